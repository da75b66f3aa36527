// Special functions that PTX leaves approximate: computed in double, rounded to the format, and, as Machine::approx
// says, moved as far as the ISA allows: 1 upwards, -1 downwards, 2 to a place between that depends on the input's bits.
//
// Each function is a struct: value(x), and error(x, value), the greatest absolute error that the PTX ISA (8.x) documents
// there; 0 where its tables of special inputs give the result.
#include <algorithm>
#include <cmath>
#include <type_traits>

#include "formats.h"

namespace softgpu {
namespace {

// One unit in the last place of x rounded to float32: 2^(exponent - 23), of subnormal numbers 2^-149.
double ulp32(double x) {
  const uint32_t exponent = std::max(bit_cast<uint32_t>(float(x)) >> 23 & 255, 1u);
  return bit_cast<double>(uint64_t(exponent - 150 + 1023) << 52);
}
// Errors in units in the last place stay on x's side of zero.
double ulps(double count, double x) { return std::min(count * ulp32(x), std::fabs(x)); }

const double ERROR_2_9_9 = std::exp2(-9.9), ERROR_2_10_987 = std::exp2(-10.987), ERROR_2_14_7 = std::exp2(-14.7),
             ERROR_2_20_5 = std::exp2(-20.5), ERROR_2_22_9 = std::exp2(-22.9);

constexpr double inverse_factorial_power(int k) {  // ln(2)^k / k!
  double term = 1;
  for (int j = 1; j <= k; j++) term *= 0.693147180559945309417232121458 / j;
  return term;
}
template <int K> double series(double x) {
  if constexpr (K == 14)
    return 0;
  else
    return inverse_factorial_power(K) + x * series<K + 1>(x);
}

struct Ex2 {
  // By its series around the nearest integer, to less than 2^-51; beyond any format's range x may be cut off.
  static double value(double x) {
    constexpr double MAGIC = 0x1.8p52;  // added and taken away, it rounds to an integer
    const double cut = x < -500 ? -500 : x > 500 ? 500 : x, shifted = cut + MAGIC, whole = shifted - MAGIC;
    const uint64_t power = (bit_cast<uint64_t>(shifted) + 1023) << 52;
    const double result = series<0>(cut - whole) * bit_cast<double>(power);
    return x != x ? x : result;
  }
  // f32: 2 ulp of the correctly rounded result; f16: relative 2^-9.9; bf16: relative 2^-7.
  static double error(double x, double y, float) { return x == 0 || std::isinf(x) ? 0 : ulps(2, y); }
  static double error(double x, double y, F16) { return x == 0 ? 0 : ERROR_2_9_9 * y; }
  static double error(double x, double y, BF16) { return x == 0 ? 0 : 0x1p-7 * y; }
};

struct Lg2 {
  static double value(double x) { return std::log2(x); }
  // Absolute 2^-22 in (0.5, 2), elsewhere relative 2^-22.
  static double error(double x, double y, float) { return x > 0.5 && x < 2 ? 0x1p-22 : 0x1p-22 * std::fabs(y); }
};

struct Sin {
  static double value(double x) { return std::sin(x); }
  // Absolute 2^-20.5 in [-2 pi, 2 pi], 2^-14.7 in [-100 pi, 100 pi]; beyond that none is documented.
  static double error(double x, double, float) {
    return x == 0 ? 0 : std::fabs(x) <= 2 * M_PI ? ERROR_2_20_5 : ERROR_2_14_7;
  }
};

struct Cos {
  static double value(double x) { return std::cos(x); }
  static double error(double x, double y, float) { return Sin::error(x, y, 0.0f); }
};

struct Tanh {
  static double value(double x) { return std::tanh(x); }
  // f32: relative 2^-11; f16: absolute 2^-10.987; bf16: absolute 2^-8.
  static double error(double x, double y, float) { return std::isinf(x) ? 0 : 0x1p-11 * std::fabs(y); }
  static double error(double x, double, F16) { return x == 0 || std::isinf(x) ? 0 : ERROR_2_10_987; }
  static double error(double x, double, BF16) { return x == 0 || std::isinf(x) ? 0 : 0x1p-8; }
};

struct Rcp {
  static double value(double x) { return 1 / x; }
  static double error(double x, double y, float) { return std::isinf(x) ? 0 : ulps(1, y); }  // 1 ulp
};

struct Sqrt {
  static double value(double x) { return std::sqrt(x); }
  static double error(double, double y, float) { return 0x1p-23 * y; }  // relative 2^-23
};

struct Rsqrt {
  static double value(double x) { return 1 / std::sqrt(x); }
  static double error(double, double y, float) { return ERROR_2_22_9 * y; }  // relative 2^-22.9
};

// ---- from a double to a format ---------------------------------------------------------------------------------------

constexpr Format format_of(float) { return FORMAT_F32; }
constexpr Format format_of(F16) { return FORMAT_F16; }
constexpr Format format_of(BF16) { return FORMAT_BF16; }
inline float to_float(float x) { return x; }
using softgpu::to_float;

// Codes of a format as integers in the order of their values.
int64_t rank(Format f, uint64_t code) { return code & f.sign() ? -int64_t(code & f.nan()) : int64_t(code); }

uint64_t mixed(uint64_t x) {  // the finaliser of splitmix64
  x = (x ^ x >> 30) * 0xbf58476d1ce4e5b9;
  x = (x ^ x >> 27) * 0x94d049bb133111eb;
  return x ^ x >> 31;
}

// The code of the greatest number that is not above x, or of the least that is not below.
template <class T, bool BELOW> uint64_t neighbour(double x) {
  if constexpr (std::is_same_v<T, float>) {
    float y = float(x);
    if (BELOW ? y > x : y < x) y = std::nextafter(y, BELOW ? -INFINITY : INFINITY);
    return bit_cast<uint32_t>(y);
  } else {
    return encode(format_of(T{}), number(x), BELOW ? Round::DOWN : Round::UP);
  }
}
template <class T> uint64_t nearest_code(double x) {
  if constexpr (std::is_same_v<T, float>)
    return x != x ? FORMAT_F32.nan() : bit_cast<uint32_t>(float(x));
  else
    return from_double<T>(x).bits;
}

// A code between value - error and value + error; the nearest of all if the error leaves no choice.
template <class T> uint64_t moved(double value, double error, int approx, uint64_t seed) {
  constexpr Format f = format_of(T{});
  const uint64_t nearest = nearest_code<T>(value);
  if (!(error > 0) || (nearest & f.nan()) >= f.infinity()) return nearest;
  const int64_t middle = rank(f, nearest);
  const int64_t least = std::min(middle, rank(f, neighbour<T, false>(value - error)));
  const int64_t greatest = std::max(middle, rank(f, neighbour<T, true>(value + error)));
  const int64_t chosen = approx == 1    ? greatest
                         : approx == -1 ? least
                                        : least + int64_t(mixed(seed) % uint64_t(greatest - least + 1));
  if (chosen == 0) return nearest & f.sign();  // a zero keeps its sign
  return chosen < 0 ? f.sign() | uint64_t(-chosen) : uint64_t(chosen);
}

template <class T> uint64_t flushed(uint64_t code) {
  constexpr Format f = format_of(T{});
  return code & f.infinity() ? code : code & f.sign();
}

template <bool FTZ, class T> double source(T x) {
  const auto bits = bit_cast<Bits<T>>(x);
  return to_float(FTZ ? bit_cast<T>(Bits<T>(flushed<T>(bits))) : x);
}

// What all elements become: correctly rounded, or moved.
template <class T, bool FTZ> void round_all(int approx, const double *value, const double *error, const uint64_t *seed,
                                            Bits<T> *to, int count) {
  for (int k = 0; k < count; k++) {
    const uint64_t code = moved<T>(value[k], error[k], approx, seed[k]);
    to[k] = Bits<T>(FTZ ? flushed<T>(code) : code);
  }
}
template <class T, bool FTZ> Bits<T> rounded(double value) {
  const uint64_t code = nearest_code<T>(value);
  return Bits<T>(FTZ ? flushed<T>(code) : code);
}

// Elements of a warp's register: 32 of float, 32 or 64 (packed) of 16 bits.
template <class F, class T, bool FTZ, int ELEMENTS> Step function(Warp &w, const Ins &i, Mask m) {
  using Packed = typename BitsOfSize<sizeof(T) * ELEMENTS>::type;
  constexpr int COUNT = LANES * ELEMENTS;
  const Bits<T> *x = w.reg<const Bits<T>>(i.op[1]);
  double value[COUNT];
  for (int k = 0; k < COUNT; k++) value[k] = F::value(source<FTZ>(bit_cast<T>(x[k])));
  Bits<T> code[COUNT];
  if (w.machine->approx == 0) {
    for (int k = 0; k < COUNT; k++) code[k] = rounded<T, FTZ>(value[k]);
  } else {
    double error[COUNT];
    uint64_t seed[COUNT];
    for (int k = 0; k < COUNT; k++) {
      error[k] = F::error(source<FTZ>(bit_cast<T>(x[k])), value[k], T{});
      seed[k] = x[k];
    }
    round_all<T, FTZ>(w.machine->approx, value, error, seed, code, COUNT);
  }
  Packed packed[LANES];
  std::memcpy(packed, code, sizeof packed);
  put(w, i.op[0], m, packed);
  return Step::NEXT;
}

// div.full, and div.approx, which is a * (1 / b): 2 ulp. For 2^126 < |b| < 2^128 the latter's reciprocal is 0.
template <bool FULL, bool FTZ> Step divide(Warp &w, const Ins &i, Mask m) {
  const float *a = w.reg<const float>(i.op[1]), *b = w.reg<const float>(i.op[2]);
  uint32_t code[LANES];
  double value[LANES];
  for (int lane = 0; lane < LANES; lane++) {
    const double x = source<FTZ>(a[lane]), y = source<FTZ>(b[lane]), magnitude = std::fabs(y);
    value[lane] = !FULL && magnitude > 0x1p126 && magnitude < 0x1p128 ? x * std::copysign(0.0, y) : x / y;
  }
  if (w.machine->approx == 0) {
    for (int lane = 0; lane < LANES; lane++) code[lane] = rounded<float, FTZ>(value[lane]);
  } else {
    double error[LANES];
    uint64_t seed[LANES];
    for (int lane = 0; lane < LANES; lane++) {
      error[lane] = ulps(2, value[lane]);
      seed[lane] = uint64_t(bit_cast<uint32_t>(a[lane])) << 32 | bit_cast<uint32_t>(b[lane]);
    }
    round_all<float, FTZ>(w.machine->approx, value, error, seed, code, LANES);
  }
  put(w, i.op[0], m, code);
  return Step::NEXT;
}

template <class F> void announce_function(const std::string &name) {
  announce(name + ".approx.f32", function<F, float, false, 1>);
  announce(name + ".approx.ftz.f32", function<F, float, true, 1>);
}

const bool announced = [] {
  announce_function<Ex2>("ex2");
  announce_function<Lg2>("lg2");
  announce_function<Sin>("sin");
  announce_function<Cos>("cos");
  announce_function<Rcp>("rcp");
  announce_function<Sqrt>("sqrt");
  announce_function<Rsqrt>("rsqrt");
  return true;
}();

SG_ON("ex2.approx.f16", function<Ex2, F16, false, 1>);
SG_ON("ex2.approx.f16x2", function<Ex2, F16, false, 2>);
SG_ON("ex2.approx.ftz.bf16", function<Ex2, BF16, true, 1>);
SG_ON("ex2.approx.ftz.bf16x2", function<Ex2, BF16, true, 2>);
SG_ON("tanh.approx.f32", function<Tanh, float, false, 1>);
SG_ON("tanh.approx.f16", function<Tanh, F16, false, 1>);
SG_ON("tanh.approx.f16x2", function<Tanh, F16, false, 2>);
SG_ON("tanh.approx.bf16", function<Tanh, BF16, false, 1>);
SG_ON("tanh.approx.bf16x2", function<Tanh, BF16, false, 2>);
SG_ON("div.full.f32", divide<true, false>);
SG_ON("div.full.ftz.f32", divide<true, true>);
SG_ON("div.approx.f32", divide<false, false>);
SG_ON("div.approx.ftz.f32", divide<false, true>);

}  // namespace
}  // namespace softgpu
