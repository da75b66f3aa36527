// Number formats: exact decoding, correctly rounded encoding, quick forms of the conversions that kernels are full of.
#pragma once
#include "lanes.h"

namespace softgpu {

enum class Round { NEAREST, ZERO, DOWN, UP, AWAY };  // NEAREST: ties to even; AWAY: to nearest, ties away from zero

// A format of sign, exponent and mantissa. Without infinities (e4m3) the code with all bits set is the only NaN.
struct Format {
  int exponent_bits, mantissa_bits;
  bool has_infinity = true;

  constexpr int bits() const { return 1 + exponent_bits + mantissa_bits; }
  constexpr int bias() const { return (1 << (exponent_bits - 1)) - 1; }
  constexpr uint64_t sign() const { return uint64_t(1) << (bits() - 1); }
  constexpr uint64_t nan() const { return sign() - 1; }  // NVIDIA's: all bits but the sign
  constexpr uint64_t infinity() const { return nan() >> mantissa_bits << mantissa_bits; }
  constexpr uint64_t largest() const { return (has_infinity ? infinity() : nan()) - 1; }
};
constexpr Format FORMAT_F16{5, 10}, FORMAT_BF16{8, 7}, FORMAT_F32{8, 23}, FORMAT_F64{11, 52}, FORMAT_TF32{8, 10},
    FORMAT_E4M3{4, 3, false}, FORMAT_E5M2{5, 2};

// A value: significand * 2^exponent, and a bit more if `sticky` (something between 0 and 1 is added to the significand).
struct Number {
  enum Kind { FINITE, INFINITE, NOT_A_NUMBER } kind = FINITE;
  bool negative = false;
  uint64_t significand = 0;
  int exponent = 0;
  bool sticky = false;
};

inline Number decode(Format f, uint64_t code) {
  Number x;
  x.negative = code & f.sign();
  const uint64_t magnitude = code & (f.sign() - 1);
  if (magnitude > (f.has_infinity ? f.infinity() : f.largest())) {
    x.kind = Number::NOT_A_NUMBER;
  } else if (f.has_infinity && magnitude == f.infinity()) {
    x.kind = Number::INFINITE;
  } else {
    const int exponent = int(magnitude >> f.mantissa_bits);
    x.significand = magnitude & ((uint64_t(1) << f.mantissa_bits) - 1);
    if (exponent) x.significand |= uint64_t(1) << f.mantissa_bits;
    x.exponent = (exponent ? exponent : 1) - f.bias() - f.mantissa_bits;
  }
  return x;
}

// Does rounding away what lies below the kept bits make the magnitude larger? `half`: the first dropped bit; `more`: any
// other; `odd`: the last kept bit.
inline bool rounds_up(Round round, bool negative, bool odd, bool half, bool more) {
  switch (round) {
    case Round::NEAREST: return half && (more || odd);
    case Round::AWAY: return half;
    case Round::ZERO: return false;
    case Round::DOWN: return negative && (half || more);
    case Round::UP: return !negative && (half || more);
  }
  return false;
}

// The code of x, rounded once. `finite`: what is too large becomes the largest number (.satfinite).
inline uint64_t encode(Format f, const Number &x, Round round, bool finite = false) {
  if (x.kind == Number::NOT_A_NUMBER) return f.nan();
  const uint64_t sign = x.negative ? f.sign() : 0;
  const uint64_t overflow = finite || !f.has_infinity ? f.largest() : f.infinity();
  if (x.kind == Number::INFINITE) return sign | overflow;
  if (!x.significand) return sign;

  const int shift = __builtin_clzll(x.significand);
  const uint64_t significand = x.significand << shift;  // 1.xxx * 2^63
  const int exponent = x.exponent - shift + 63;          // of its leading bit
  const int least = 1 - f.bias();
  const bool is_normal = exponent >= least;
  const int dropped = 63 - f.mantissa_bits + (is_normal ? 0 : least - exponent);
  const uint64_t kept = dropped > 63 ? 0 : significand >> dropped;
  const bool half = dropped <= 64 && significand >> (dropped - 1) & 1;
  const bool more = x.sticky || (dropped > 64 ? significand != 0 : (significand << (64 - dropped) << 1) != 0);

  if (exponent <= f.bias() + 1) {
    // A carry out of the mantissa is the next exponent.
    const uint64_t leading = uint64_t(1) << f.mantissa_bits;
    uint64_t code = is_normal ? (uint64_t(exponent + f.bias()) << f.mantissa_bits) + (kept - leading) : kept;
    code += rounds_up(round, x.negative, kept & 1, half, more);
    if (code <= f.largest()) return sign | code;
  }
  const bool stays = round == Round::ZERO || round == (x.negative ? Round::UP : Round::DOWN);
  return sign | (stays ? f.largest() : overflow);
}

inline Number number(double x) { return decode(FORMAT_F64, bit_cast<uint64_t>(x)); }

// ---- 16 bits ---------------------------------------------------------------------------------------------------------

struct F16 { uint16_t bits; };
struct BF16 { uint16_t bits; };

inline float to_float(BF16 x) { return bit_cast<float>(uint32_t(x.bits) << 16); }

inline float to_float(F16 x) {
  // Read as float32's, the exponent is 112 too small, also a subnormal's.
  const uint32_t magnitude = uint32_t(x.bits & 0x7fff) << 13, special = (x.bits & 0x7c00) == 0x7c00 ? 0x7f800000 : 0;
  const uint32_t scaled = bit_cast<uint32_t>(bit_cast<float>(magnitude) * 0x1p112f);
  const uint32_t nan = (x.bits & 0x7fff) > 0x7c00 ? 0x007fffff : 0, sign = uint32_t(x.bits & 0x8000) << 16;
  return bit_cast<float>(nan ? special | nan : scaled | special | sign);
}

template <class T> T from_float(float x);  // to nearest, ties to even; NaN is 0x7fff

template <> inline BF16 from_float<BF16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x);
  const uint32_t rounded = (bits + 0x7fff + (bits >> 16 & 1)) >> 16;
  return {uint16_t((bits & 0x7fffffff) > 0x7f800000 ? 0x7fff : rounded)};
}

template <> inline F16 from_float<F16>(float x) {
  const uint32_t bits = bit_cast<uint32_t>(x), magnitude = bits & 0x7fffffff, sign = bits >> 16 & 0x8000;
  // Normal results: drop 13 bits and 112 of the exponent. Subnormal ones: 0.5 has their unit in its last place.
  const uint32_t normal = (magnitude - (112u << 23) + 0xfff + (magnitude >> 13 & 1)) >> 13;
  const uint32_t subnormal = bit_cast<uint32_t>(bit_cast<float>(magnitude) + 0.5f) - 0x3f000000;
  uint32_t code = magnitude < 0x38800000 ? subnormal : normal;
  code = magnitude >= 0x47800000 || code > 0x7c00 ? 0x7c00 : code;
  return {uint16_t(magnitude > 0x7f800000 ? 0x7fff : code | sign)};
}

// x in float32, rounded to odd: a second rounding to 16 bits then gives what a single one would have given.
inline float to_odd(double x) {
  const float nearest = static_cast<float>(x);
  const uint32_t bits = bit_cast<uint32_t>(nearest);
  const double back = nearest, distance = bit_cast<double>(bit_cast<uint64_t>(x) & ~(uint64_t(1) << 63)) -
                                          bit_cast<double>(bit_cast<uint64_t>(back) & ~(uint64_t(1) << 63));
  const uint32_t step = bits & 1 ? 0 : distance > 0 ? 1 : distance < 0 ? ~0u : 0;
  return bit_cast<float>(bits + step);
}

template <class T> T from_double(double x) { return from_float<T>(to_odd(x)); }

}  // namespace softgpu
