// Floating-point arithmetic, correctly rounded: add, sub, mul, fma, div, rcp, sqrt, min, max, neg, abs, copysign.
//
// A result that is NaN is NVIDIA's NaN (all bits but the sign) in 32 and 16 bits. 16-bit formats are computed in double,
// rounded to odd and then once to their format.
#include <cfenv>
#include <cmath>
#include <type_traits>

#include "formats.h"

namespace softgpu {
namespace {

// Options of an opcode, as a template's argument.
enum Option { FTZ = 1, SAT = 2, RELU = 4, NAN_WINS = 8, XORSIGN = 16 };

std::string suffix(int options) {
  std::string text;
  if (options & FTZ) text += ".ftz";
  if (options & SAT) text += ".sat";
  if (options & NAN_WINS) text += ".NaN";
  if (options & XORSIGN) text += ".xorsign.abs";
  if (options & RELU) text += ".relu";
  return text;
}

// ---- what every format needs: reading, finishing ---------------------------------------------------------------------

template <class T> constexpr bool IS_SHORT = std::is_same_v<T, F16> || std::is_same_v<T, BF16>;

template <class T> struct FormatOf;
template <> struct FormatOf<F16> { static constexpr Format value = FORMAT_F16; };
template <> struct FormatOf<BF16> { static constexpr Format value = FORMAT_BF16; };
template <> struct FormatOf<float> { static constexpr Format value = FORMAT_F32; };
template <> struct FormatOf<double> { static constexpr Format value = FORMAT_F64; };

template <class T> bool is_nan(T x) {
  constexpr Format f = FormatOf<T>::value;
  return Bits<T>(bit_cast<Bits<T>>(x) & f.nan()) > Bits<T>(f.infinity());
}
// A double's NaN keeps its payload.
template <class T> T canonical(T x) {
  if (std::is_same_v<T, double>) return x;
  return is_nan(x) ? bit_cast<T>(Bits<T>(FormatOf<T>::value.nan())) : x;
}

// Subnormals become zeros of their sign.
template <int OPTIONS, class T> T flushed(T x) {
  constexpr Format f = FormatOf<T>::value;
  const auto bits = bit_cast<Bits<T>>(x);
  return (OPTIONS & FTZ) && !(bits & f.infinity()) ? bit_cast<T>(Bits<T>(bits & f.sign())) : x;
}

template <int OPTIONS, class T> T clamped(T x) {
  if (OPTIONS & SAT) return x > 0 ? (x < 1 ? x : T(1)) : T(0);
  if (OPTIONS & RELU) return x > 0 || x != x ? x : T(0);
  return x;
}

template <int OPTIONS, class T> T finished(T x) { return canonical(flushed<OPTIONS>(clamped<OPTIONS>(x))); }
template <int OPTIONS, class T> T finished16(double x) {
  return flushed<OPTIONS>(from_float<T>(clamped<OPTIONS>(to_odd(x))));
}
template <int OPTIONS, class T> double widened(T x) { return to_float(flushed<OPTIONS>(x)); }

// ---- arithmetic ------------------------------------------------------------------------------------------------------

// a + b rounded to odd: with what the sum has lost (Knuth's two-sum) its last bit is set if anything was lost.
double sum_to_odd(double a, double b) {
  const double sum = a + b, part = sum - a, lost = (a - (sum - part)) + (b - part);
  const auto bits = bit_cast<uint64_t>(sum);
  const bool inexact = lost < 0 || lost > 0, larger = (lost > 0) == (sum > 0);
  return bit_cast<double>(inexact && !(bits & 1) ? (larger ? bits + 1 : bits - 1) : bits);
}

template <class T, int OPTIONS> T add(T a, T b) {
  if constexpr (IS_SHORT<T>)
    return finished16<OPTIONS, T>(sum_to_odd(widened<OPTIONS>(a), widened<OPTIONS>(b)));
  else
    return finished<OPTIONS>(flushed<OPTIONS>(a) + flushed<OPTIONS>(b));
}
template <class T, int OPTIONS> T sub(T a, T b) {
  if constexpr (IS_SHORT<T>)
    return finished16<OPTIONS, T>(sum_to_odd(widened<OPTIONS>(a), -widened<OPTIONS>(b)));
  else
    return finished<OPTIONS>(flushed<OPTIONS>(a) - flushed<OPTIONS>(b));
}
template <class T, int OPTIONS> T mul(T a, T b) {
  if constexpr (IS_SHORT<T>)
    return finished16<OPTIONS, T>(widened<OPTIONS>(a) * widened<OPTIONS>(b));
  else
    return finished<OPTIONS>(flushed<OPTIONS>(a) * flushed<OPTIONS>(b));
}
template <class T, int OPTIONS> T fma(T a, T b, T c) {
  if constexpr (IS_SHORT<T>)
    return finished16<OPTIONS, T>(sum_to_odd(widened<OPTIONS>(a) * widened<OPTIONS>(b), widened<OPTIONS>(c)));
  else if constexpr (std::is_same_v<T, float>)
    return finished<OPTIONS>(__builtin_fmaf(flushed<OPTIONS>(a), flushed<OPTIONS>(b), flushed<OPTIONS>(c)));
  else
    return __builtin_fma(a, b, c);
}
template <class T, int OPTIONS> T divide(T a, T b) {
  return finished<OPTIONS>(flushed<OPTIONS>(a) / flushed<OPTIONS>(b));
}
template <class T, int OPTIONS> T reciprocal(T a) { return finished<OPTIONS>(T(1) / flushed<OPTIONS>(a)); }
template <class T, int OPTIONS> T square_root(T a) { return finished<OPTIONS>(std::sqrt(flushed<OPTIONS>(a))); }

// Of 16 bits with a float32: exact until the one rounding at the end.
template <class T, int OPTIONS> float add_mixed(T a, float c) { return finished<OPTIONS>(to_float(a) + c); }
template <class T, int OPTIONS> float sub_mixed(T a, float c) { return finished<OPTIONS>(to_float(a) - c); }
template <class T, int OPTIONS> float fma_mixed(T a, T b, float c) {
  return finished<OPTIONS>(__builtin_fmaf(to_float(a), to_float(b), c));
}

template <class T, int OPTIONS> T negative(T a) {
  return canonical(bit_cast<T>(Bits<T>(bit_cast<Bits<T>>(flushed<OPTIONS>(a)) ^ FormatOf<T>::value.sign())));
}
template <class T, int OPTIONS> T absolute(T a) {
  return canonical(bit_cast<T>(Bits<T>(bit_cast<Bits<T>>(flushed<OPTIONS>(a)) & FormatOf<T>::value.nan())));
}

// The order of finite numbers and infinities as that of integers; -0 lies below +0.
template <class T> auto rank(T x) {
  using Signed = std::make_signed_t<Bits<T>>;
  const auto bits = bit_cast<Signed>(x);
  return Signed(bits < 0 ? Signed(bits ^ Signed(FormatOf<T>::value.nan())) : bits);
}

// The number if only one operand is NaN, unless .NaN. With .xorsign.abs: of magnitudes, with the product's sign.
template <class T, int OPTIONS, bool GREATEST> T extremum(T a, T b) {
  constexpr auto SIGN = Bits<T>(FormatOf<T>::value.sign());
  a = flushed<OPTIONS>(a), b = flushed<OPTIONS>(b);
  const auto sign = Bits<T>((bit_cast<Bits<T>>(a) ^ bit_cast<Bits<T>>(b)) & SIGN);
  if (OPTIONS & XORSIGN) {
    a = bit_cast<T>(Bits<T>(bit_cast<Bits<T>>(a) & ~SIGN));
    b = bit_cast<T>(Bits<T>(bit_cast<Bits<T>>(b) & ~SIGN));
  }
  const bool a_is_nan = is_nan(a), b_is_nan = is_nan(b);
  T chosen = (rank(a) < rank(b)) == GREATEST ? b : a;
  if (OPTIONS & NAN_WINS)
    chosen = a_is_nan ? a : b_is_nan ? b : chosen;
  else
    chosen = a_is_nan ? b : b_is_nan ? a : chosen;
  if (OPTIONS & XORSIGN) chosen = bit_cast<T>(Bits<T>(bit_cast<Bits<T>>(chosen) | sign));
  const bool is_negative = bit_cast<Bits<T>>(chosen) & SIGN;
  if ((OPTIONS & RELU) && is_negative && !is_nan(chosen)) chosen = bit_cast<T>(Bits<T>(0));
  return canonical(chosen);
}

// Of two, or three (sm_100).
template <int OPTIONS, bool GREATEST> float extremum_of_three(float a, float b, float c) {
  return extremum<float, OPTIONS, GREATEST>(extremum<float, OPTIONS, GREATEST>(a, b), c);
}
template <int OPTIONS, bool GREATEST> Step extremum_of_some(Warp &w, const Ins &i, Mask m) {
  constexpr Handler OF_TWO = each<extremum<float, OPTIONS, GREATEST>>, OF_THREE = each<extremum_of_three<OPTIONS, GREATEST>>;
  return i.op.size() == 4 ? OF_THREE(w, i, m) : OF_TWO(w, i, m);
}

template <class T> T copysign(T sign, T magnitude) { return std::copysign(magnitude, sign); }

// ---- directed rounding: the processor's own mode, around the same handlers -------------------------------------------

// Opaque to the compiler, which must not move arithmetic across the change of mode.
[[gnu::noipa]] Step run_rounded(int mode, Handler run, Warp &w, const Ins &i, Mask m) {
  std::fesetround(mode);
  const Step step = run(w, i, m);
  std::fesetround(FE_TONEAREST);
  return step;
}
template <Handler RUN, int MODE> Step rounded(Warp &w, const Ins &i, Mask m) { return run_rounded(MODE, RUN, w, i, m); }

// ---- names -----------------------------------------------------------------------------------------------------------


// `name`, ".rn" and so on, `rest`. Without a name of a rounding it is to nearest, where that may be left out.
template <auto F> void on_roundings(const std::string &name, const std::string &rest, bool may_be_left_out) {
  if (may_be_left_out) announce(name + rest, each<F>);
  announce(name + ".rn" + rest, each<F>);
  announce(name + ".rz" + rest, rounded<&Each<F>::handler, FE_TOWARDZERO>);
  announce(name + ".rm" + rest, rounded<&Each<F>::handler, FE_DOWNWARD>);
  announce(name + ".rp" + rest, rounded<&Each<F>::handler, FE_UPWARD>);
}

template <class T, int OPTIONS> void announce_sums(const std::string &type) {
  const std::string rest = suffix(OPTIONS) + type;
  on_roundings<add<T, OPTIONS>>("add", rest, true);
  on_roundings<sub<T, OPTIONS>>("sub", rest, true);
  on_roundings<mul<T, OPTIONS>>("mul", rest, true);
  on_roundings<fma<T, OPTIONS>>("fma", rest, false);
  on_roundings<fma<T, OPTIONS>>("mad", rest, false);
}
template <class T, int OPTIONS> void announce_quotients(const std::string &type) {
  const std::string rest = suffix(OPTIONS) + type;
  on_roundings<divide<T, OPTIONS>>("div", rest, false);
  on_roundings<reciprocal<T, OPTIONS>>("rcp", rest, false);
  on_roundings<square_root<T, OPTIONS>>("sqrt", rest, false);
}
template <class T, int OPTIONS> void announce_signs(const std::string &type) {
  announce("neg" + suffix(OPTIONS) + type, each<negative<T, OPTIONS>>);
  announce("abs" + suffix(OPTIONS) + type, each<absolute<T, OPTIONS>>);
}
template <class T, int OPTIONS> void announce_extrema(const std::string &type) {
  announce("min" + suffix(OPTIONS) + type, each<extremum<T, OPTIONS, false>>);
  announce("max" + suffix(OPTIONS) + type, each<extremum<T, OPTIONS, true>>);
  if constexpr (IS_SHORT<T>) {
    announce("min" + suffix(OPTIONS) + type + "x2", each<both<extremum<T, OPTIONS, false>>>);
    announce("max" + suffix(OPTIONS) + type + "x2", each<both<extremum<T, OPTIONS, true>>>);
  }
}
template <int OPTIONS> void announce_extrema_of_some() {
  announce("min" + suffix(OPTIONS) + ".f32", extremum_of_some<OPTIONS, false>);
  announce("max" + suffix(OPTIONS) + ".f32", extremum_of_some<OPTIONS, true>);
}
template <class T, int OPTIONS> void announce_all_extrema(const std::string &type) {
  announce_extrema<T, OPTIONS>(type);
  announce_extrema<T, OPTIONS | NAN_WINS>(type);
  announce_extrema<T, OPTIONS | XORSIGN>(type);
  announce_extrema<T, OPTIONS | NAN_WINS | XORSIGN>(type);
}

// Both of a value and of two packed ones.
template <auto F> void on_short(const std::string &name, int options, const std::string &type) {
  announce(name + suffix(options) + type, each<F>);
  announce(name + suffix(options) + type + "x2", each<both<F>>);
}
template <class T, int OPTIONS> void announce_short_sums(const std::string &type) {
  for (const std::string rounding : {"", ".rn"}) {
    on_short<add<T, OPTIONS>>("add" + rounding, OPTIONS, type);
    on_short<sub<T, OPTIONS>>("sub" + rounding, OPTIONS, type);
    on_short<mul<T, OPTIONS>>("mul" + rounding, OPTIONS, type);
  }
  on_short<fma<T, OPTIONS>>("fma.rn", OPTIONS, type);
}
template <class T, int OPTIONS> void announce_short_signs(const std::string &type) {
  on_short<negative<T, OPTIONS>>("neg", OPTIONS, type);
  on_short<absolute<T, OPTIONS>>("abs", OPTIONS, type);
}
template <class T, int OPTIONS> void announce_mixed(const std::string &type) {
  const std::string rest = suffix(OPTIONS) + ".f32" + type;
  on_roundings<add_mixed<T, OPTIONS>>("add", rest, true);
  on_roundings<sub_mixed<T, OPTIONS>>("sub", rest, true);
  on_roundings<fma_mixed<T, OPTIONS>>("fma", rest, false);
}
const bool announced = [] {
  announce_sums<float, 0>(".f32");
  announce_sums<float, FTZ>(".f32");
  announce_sums<float, SAT>(".f32");
  announce_sums<float, FTZ | SAT>(".f32");
  announce_sums<double, 0>(".f64");
  announce_mixed<F16, 0>(".f16");
  announce_mixed<F16, SAT>(".f16");
  announce_mixed<BF16, 0>(".bf16");
  announce_mixed<BF16, SAT>(".bf16");

  announce_short_sums<F16, 0>(".f16");
  announce_short_sums<F16, FTZ>(".f16");
  announce_short_sums<F16, SAT>(".f16");
  announce_short_sums<F16, FTZ | SAT>(".f16");
  announce_short_sums<BF16, 0>(".bf16");
  on_short<fma<F16, RELU>>("fma.rn", RELU, ".f16");
  on_short<fma<F16, FTZ | RELU>>("fma.rn", FTZ | RELU, ".f16");
  on_short<fma<BF16, RELU>>("fma.rn", RELU, ".bf16");

  announce_quotients<float, 0>(".f32");
  announce_quotients<float, FTZ>(".f32");
  announce_quotients<double, 0>(".f64");

  announce_signs<float, 0>(".f32");
  announce_signs<float, FTZ>(".f32");
  announce_signs<double, 0>(".f64");
  announce_short_signs<F16, 0>(".f16");
  announce_short_signs<F16, FTZ>(".f16");
  announce_short_signs<BF16, 0>(".bf16");

  announce_all_extrema<float, 0>(".f32");
  announce_all_extrema<float, FTZ>(".f32");
  announce_extrema_of_some<0>();
  announce_extrema_of_some<FTZ>();
  announce_extrema_of_some<NAN_WINS>();
  announce_extrema_of_some<FTZ | NAN_WINS>();
  announce_all_extrema<F16, 0>(".f16");
  announce_all_extrema<F16, FTZ>(".f16");
  announce_all_extrema<BF16, 0>(".bf16");
  announce_extrema<double, 0>(".f64");

  announce("copysign.f32", each<copysign<float>>);
  announce("copysign.f64", each<copysign<double>>);
  return true;
}();

}  // namespace
}  // namespace softgpu
