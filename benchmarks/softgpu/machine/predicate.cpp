// Comparisons and predicates: setp, set, testp, logic of predicates; selp and slct, which choose by them.
#include <array>
#include <cmath>
#include <type_traits>

#include "formats.h"

namespace softgpu {
namespace {

// ---- comparisons -----------------------------------------------------------------------------------------------------

// In integers of either sign, and in floats: ordered ones, false if an operand is NaN, and unordered ones, then true.
template <class T> bool eq(T a, T b) { return a == b; }
template <class T> bool ne(T a, T b) { return a < b || a > b; }
template <class T> bool lt(T a, T b) { return a < b; }
template <class T> bool le(T a, T b) { return a <= b; }
template <class T> bool gt(T a, T b) { return a > b; }
template <class T> bool ge(T a, T b) { return a >= b; }
template <class T> bool equ(T a, T b) { return !(a < b || a > b); }
template <class T> bool neu(T a, T b) { return !(a == b); }
template <class T> bool ltu(T a, T b) { return !(a >= b); }
template <class T> bool leu(T a, T b) { return !(a > b); }
template <class T> bool gtu(T a, T b) { return !(a <= b); }
template <class T> bool geu(T a, T b) { return !(a < b); }
template <class T> bool num(T a, T b) { return a == a && b == b; }
template <class T> bool nan(T a, T b) { return a != a || b != b; }

// Lanes where the test holds.
template <class T, bool (*TEST)(T, T)> [[gnu::noinline]] Mask holding(const T *a, const T *b) {
  Mask holds = 0;
  for (int lane = 0; lane < LANES; lane++) holds |= Mask(TEST(a[lane], b[lane])) << lane;
  return holds;
}

// How a register is read before it is compared: as VALUES, of which it has COUNT in a lane. `half`: which of two.
template <class T> struct Plain {
  using Value = T;
  static constexpr int COUNT = 1;
  static const T *read(Warp &w, int32_t unit, int, T (&)[LANES]) { return w.reg<const T>(unit); }
};
struct FlushedFloat {
  using Value = float;
  static constexpr int COUNT = 1;
  static const float *read(Warp &w, int32_t unit, int, float (&values)[LANES]) {
    const float *x = w.reg<const float>(unit);
    for (int lane = 0; lane < LANES; lane++) values[lane] = std::fabs(x[lane]) < 0x1p-126f ? 0.0f : x[lane];
    return values;
  }
};
template <class T, bool FTZ, int ELEMENTS> struct Short {
  using Value = float;
  static constexpr int COUNT = ELEMENTS;
  [[gnu::noinline]] static const float *read(Warp &w, int32_t unit, int half, float (&values)[LANES]) {
    const uint16_t *x = w.reg<const uint16_t>(unit) + half;
    for (int lane = 0; lane < LANES; lane++) {
      const float value = to_float(T{x[lane * ELEMENTS]});
      values[lane] = FTZ && std::fabs(value) < 0x1p-14f ? 0.0f : value;
    }
    return values;
  }
};

template <class Reader, bool (*TEST)(typename Reader::Value, typename Reader::Value)>
Mask compare(Warp &w, const int32_t *source, int half) {
  typename Reader::Value a[LANES], b[LANES];
  const typename Reader::Value *first = Reader::read(w, source[0], half, a), *second = Reader::read(w, source[1], half, b);
  return holding<typename Reader::Value, TEST>(first, second);
}

enum Combination { ALONE, AND, OR, XOR };
Mask combined(Combination with, Mask holds, const Mask *other) {
  return with == ALONE ? holds : with == AND ? holds & *other : with == OR ? holds | *other : holds ^ *other;
}

// setp p|q, a, b, c: p says whether the comparison holds, q whether it does not; of packed values: of the low and of the
// high half.
template <class Reader, bool (*TEST)(typename Reader::Value, typename Reader::Value), Combination COMBINE>
Step setp(Warp &w, const Ins &i, Mask m) {
  const int32_t *source = &i.op[i.num_dst];
  const Mask holds = compare<Reader, TEST>(w, source, 0);
  Mask other = ~holds;
  if (Reader::COUNT == 2 && i.num_dst == 2) other = compare<Reader, TEST>(w, source, 1);
  const Mask *with = COMBINE == ALONE ? nullptr : &w.pred(source[2]);
  const Mask p = combined(COMBINE, holds, with), q = combined(COMBINE, other, with);
  put_pred(w, i.op[0], m, p);
  if (i.num_dst == 2) put_pred(w, i.op[1], m, q);
  return Step::NEXT;
}

template <class D> void put_choice(Warp &w, const Ins &i, Mask m, Mask low, Mask high, D in_low, D in_high) {
  D value[LANES];
  for (int lane = 0; lane < LANES; lane++)
    value[lane] = D((low >> lane & 1 ? in_low : D(0)) | (high >> lane & 1 ? in_high : D(0)));
  put(w, i.op[0], m, value);
}

// set d, a, b, c: the destination type's "true" or 0; of packed values: in each half. Rare enough to be told apart by
// the key when it runs.
template <class Reader, bool (*TEST)(typename Reader::Value, typename Reader::Value)>
Step set(Warp &w, const Ins &i, Mask m) {
  const auto says = [&](const char *part) { return i.key.find(part) != std::string::npos; };
  const Combination with = says(".and.") ? AND : says(".or.") ? OR : says(".xor.") ? XOR : ALONE;
  const Mask *other = with == ALONE ? nullptr : &w.pred(i.op[3]);
  const Mask low = combined(with, compare<Reader, TEST>(w, &i.op[1], 0), other);
  if (Reader::COUNT == 2) {
    const Mask high = combined(with, compare<Reader, TEST>(w, &i.op[1], 1), other);
    const uint32_t one = says(".bf16x2") ? 0x3f80 : 0x3c00;
    put_choice<uint32_t>(w, i, m, low, high, one, one << 16);
  } else if (i.width[0] == 2) {
    put_choice<uint16_t>(w, i, m, low, 0, says(".bf16.") ? 0x3f80 : says(".f16.") ? 0x3c00 : 0xffff, 0);
  } else {
    put_choice<uint32_t>(w, i, m, low, 0, says(".f32.") ? 0x3f800000 : 0xffffffff, 0);
  }
  return Step::NEXT;
}

// ---- classes of floats -----------------------------------------------------------------------------------------------

enum Class { IS_FINITE, IS_INFINITE, IS_NUMBER, NOT_A_NUMBER, IS_NORMAL, IS_SUBNORMAL };
template <class T, Class CLASS> Step testp(Warp &w, const Ins &i, Mask m) {
  const T *x = w.reg<const T>(i.op[1]);
  Mask holds = 0;
  for (int lane = 0; lane < LANES; lane++) {
    const int kind = std::fpclassify(x[lane]);
    const bool is = CLASS == IS_FINITE     ? kind != FP_INFINITE && kind != FP_NAN
                    : CLASS == IS_INFINITE ? kind == FP_INFINITE
                    : CLASS == IS_NUMBER   ? kind != FP_NAN
                    : CLASS == NOT_A_NUMBER ? kind == FP_NAN
                    : CLASS == IS_NORMAL    ? kind == FP_NORMAL
                                            : kind == FP_SUBNORMAL;
    holds |= Mask(is) << lane;
  }
  put_pred(w, i.op[0], m, holds);
  return Step::NEXT;
}

// ---- logic of predicates ---------------------------------------------------------------------------------------------

Step not_pred(Warp &w, const Ins &i, Mask m) {
  put_pred(w, i.op[0], m, ~w.pred(i.op[1]));
  return Step::NEXT;
}
Step mov_pred(Warp &w, const Ins &i, Mask m) {
  put_pred(w, i.op[0], m, w.pred(i.op[1]));
  return Step::NEXT;
}
Step xor_pred(Warp &w, const Ins &i, Mask m) {
  put_pred(w, i.op[0], m, w.pred(i.op[1]) ^ w.pred(i.op[2]));
  return Step::NEXT;
}
// One operand that is known to decide (a false one of and, a true one of or) makes the result known.
template <bool IS_AND> Step and_or_pred(Warp &w, const Ins &i, Mask m) {
  const Mask a = w.pred(i.op[1]), b = w.pred(i.op[2]);
  const Mask a_undefined = w.undefined[i.op[1]], b_undefined = w.undefined[i.op[2]];
  const Mask decided = (~a_undefined & (IS_AND ? ~a : a)) | (~b_undefined & (IS_AND ? ~b : b));
  put_pred(w, i.op[0], m, IS_AND ? a & b : a | b);
  Mask &undefined = w.undefined[i.op[0]];
  undefined = (undefined & ~m) | ((a_undefined | b_undefined) & ~decided & m);
  return Step::NEXT;
}

// ---- choices ---------------------------------------------------------------------------------------------------------

// d = first in the lanes of `choice`, else second. Only the side that was chosen makes it undefined, and the choice.
template <class T> Step choose(Warp &w, const Ins &i, Mask m, Mask choice, Mask choice_undefined) {
  const T *a = w.reg<const T>(i.op[1]), *b = w.reg<const T>(i.op[2]);
  T value[LANES];
  for (int lane = 0; lane < LANES; lane++) value[lane] = choice >> lane & 1 ? a[lane] : b[lane];
  const Mask of_side = (choice & w.undefined[i.op[1]]) | (~choice & w.undefined[i.op[2]]);
  put(w, i.op[0], m, value);
  Mask &undefined = w.undefined[i.op[0]];
  undefined = (undefined & ~m) | ((of_side | choice_undefined) & m);
  return Step::NEXT;
}
template <class T> Step selp(Warp &w, const Ins &i, Mask m) {
  return choose<T>(w, i, m, w.pred(i.op[3]), w.undefined[i.op[3]]);
}
// slct d, a, b, c: a if c >= 0, else b (also for NaN).
template <class T, class C, bool FTZ> Step slct(Warp &w, const Ins &i, Mask m) {
  const C *c = w.reg<const C>(i.op[3]);
  Mask choice = 0;
  for (int lane = 0; lane < LANES; lane++) {
    const bool flushed = FTZ && std::fabs(double(c[lane])) < 0x1p-126;
    choice |= Mask(flushed || c[lane] >= 0) << lane;
  }
  return choose<T>(w, i, m, choice, w.undefined[i.op[3]]);
}

// ---- names -----------------------------------------------------------------------------------------------------------


const std::string COMBINATIONS[] = {"", ".and", ".or", ".xor"};  // in the order of Combination

// `type` with its dot; `flush`: "" or ".ftz".
void on_comparison(const std::string &comparison, const std::string &flush, const std::string &type,
                   const std::array<Handler, 4> &setps, Handler set) {
  std::vector<std::string> results = {".u32", ".s32", ".f32"};
  if (type.find("16x2") != std::string::npos)
    results = {type};
  else if (type.find("16") != std::string::npos)
    results.insert(results.end(), {".u16", ".s16", ".f16", ".bf16"});
  for (int k = 0; k < 4; k++) {
    const std::string name = "." + comparison + COMBINATIONS[k] + flush;
    announce("setp" + name + type, setps[k]);
    for (const std::string &result : results) announce("set" + name + result + type, set);
  }
}

template <class Reader, bool (*TEST)(typename Reader::Value, typename Reader::Value)>
void announce_comparison(const char *comparison, const std::string &flush, const std::string &type) {
  on_comparison(comparison, flush, type,
                {setp<Reader, TEST, ALONE>, setp<Reader, TEST, AND>, setp<Reader, TEST, OR>, setp<Reader, TEST, XOR>},
                set<Reader, TEST>);
}

template <class T> void announce_bits(const std::string &type) {
  announce_comparison<Plain<T>, eq<T>>("eq", "", type);
  announce_comparison<Plain<T>, ne<T>>("ne", "", type);
}
template <class T> void announce_integers(const std::string &type) {
  announce_bits<T>(type);
  announce_comparison<Plain<T>, lt<T>>("lt", "", type);
  announce_comparison<Plain<T>, le<T>>("le", "", type);
  announce_comparison<Plain<T>, gt<T>>("gt", "", type);
  announce_comparison<Plain<T>, ge<T>>("ge", "", type);
  if constexpr (std::is_unsigned_v<T>) {
    announce_comparison<Plain<T>, lt<T>>("lo", "", type);
    announce_comparison<Plain<T>, le<T>>("ls", "", type);
    announce_comparison<Plain<T>, gt<T>>("hi", "", type);
    announce_comparison<Plain<T>, ge<T>>("hs", "", type);
  }
}
template <class Reader> void announce_floats(const std::string &flush, const std::string &type) {
  using T = typename Reader::Value;
  announce_comparison<Reader, eq<T>>("eq", flush, type);
  announce_comparison<Reader, ne<T>>("ne", flush, type);
  announce_comparison<Reader, lt<T>>("lt", flush, type);
  announce_comparison<Reader, le<T>>("le", flush, type);
  announce_comparison<Reader, gt<T>>("gt", flush, type);
  announce_comparison<Reader, ge<T>>("ge", flush, type);
  announce_comparison<Reader, equ<T>>("equ", flush, type);
  announce_comparison<Reader, neu<T>>("neu", flush, type);
  announce_comparison<Reader, ltu<T>>("ltu", flush, type);
  announce_comparison<Reader, leu<T>>("leu", flush, type);
  announce_comparison<Reader, gtu<T>>("gtu", flush, type);
  announce_comparison<Reader, geu<T>>("geu", flush, type);
  announce_comparison<Reader, num<T>>("num", flush, type);
  announce_comparison<Reader, nan<T>>("nan", flush, type);
}

template <class T> void announce_classes(const std::string &type) {
  announce("testp.finite" + type, testp<T, IS_FINITE>);
  announce("testp.infinite" + type, testp<T, IS_INFINITE>);
  announce("testp.number" + type, testp<T, IS_NUMBER>);
  announce("testp.notanumber" + type, testp<T, NOT_A_NUMBER>);
  announce("testp.normal" + type, testp<T, IS_NORMAL>);
  announce("testp.subnormal" + type, testp<T, IS_SUBNORMAL>);
}

template <class T> void announce_choices(std::initializer_list<const char *> types) {
  for (const std::string type : types) {
    announce("selp" + type, selp<T>, OWN_TAINT);
    announce("slct" + type + ".s32", slct<T, int32_t, false>, OWN_TAINT);
    announce("slct" + type + ".f32", slct<T, float, false>, OWN_TAINT);
    announce("slct.ftz" + type + ".f32", slct<T, float, true>, OWN_TAINT);
  }
}

const bool announced = [] {
  announce_bits<uint16_t>(".b16");
  announce_bits<uint32_t>(".b32");
  announce_bits<uint64_t>(".b64");
  announce_integers<int16_t>(".s16");
  announce_integers<uint16_t>(".u16");
  announce_integers<int32_t>(".s32");
  announce_integers<uint32_t>(".u32");
  announce_integers<int64_t>(".s64");
  announce_integers<uint64_t>(".u64");
  announce_floats<Plain<float>>("", ".f32");
  announce_floats<FlushedFloat>(".ftz", ".f32");
  announce_floats<Plain<double>>("", ".f64");
  announce_floats<Short<F16, false, 1>>("", ".f16");
  announce_floats<Short<F16, true, 1>>(".ftz", ".f16");
  announce_floats<Short<F16, false, 2>>("", ".f16x2");
  announce_floats<Short<F16, true, 2>>(".ftz", ".f16x2");
  announce_floats<Short<BF16, false, 1>>("", ".bf16");
  announce_floats<Short<BF16, false, 2>>("", ".bf16x2");

  announce_classes<float>(".f32");
  announce_classes<double>(".f64");

  announce_choices<uint16_t>({".b16", ".u16", ".s16"});
  announce_choices<uint32_t>({".b32", ".u32", ".s32", ".f32"});
  announce_choices<uint64_t>({".b64", ".u64", ".s64", ".f64"});
  return true;
}();

SG_ON("not.pred", not_pred);
SG_ON("mov.pred", mov_pred);
SG_ON("and.pred", and_or_pred<true>, OWN_TAINT);
SG_ON("or.pred", and_or_pred<false>, OWN_TAINT);
SG_ON("xor.pred", xor_pred);

}  // namespace
}  // namespace softgpu
