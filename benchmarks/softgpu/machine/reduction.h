// Reductions that bulk copies do at their destination, element by element.
#pragma once
#include <cstdint>
#include <cstring>
#include "formats.h"
#include "tensor_map.h"

namespace softgpu {

enum class Reduction { NONE, ADD, MIN, MAX, INC, DEC, AND, OR, XOR };

// Which reductions there are of which types; `type` as in a tensor map.
inline bool has_reduction(Reduction op, int type) {
  const bool floats = tensor_map_floats(type), halves = type == TENSOR_MAP_FLOAT16 || type == TENSOR_MAP_BFLOAT16;
  const bool whole = tensor_map_element(type) >= 4 && !floats;
  switch (op) {
  case Reduction::NONE: return true;
  case Reduction::ADD: return whole || floats;
  case Reduction::MIN: case Reduction::MAX: return whole || halves;
  case Reduction::INC: case Reduction::DEC: return type == TENSOR_MAP_UINT32;
  default: return whole;
  }
}

namespace reduction {

template <class T> T whole(Reduction op, T a, T b) {
  using U = std::make_unsigned_t<T>;
  switch (op) {
  case Reduction::ADD: return T(U(a) + U(b));
  case Reduction::MIN: return a < b ? a : b;
  case Reduction::MAX: return a > b ? a : b;
  case Reduction::INC: return a >= b ? 0 : T(a + 1);
  case Reduction::DEC: return a == 0 || a > b ? b : T(a - 1);
  case Reduction::AND: return a & b;
  case Reduction::OR: return a | b;
  case Reduction::XOR: return a ^ b;
  default: return b;
  }
}

template <class T> T half(Reduction op, T a, T b) {
  const float x = to_float(a), y = to_float(b);
  if (op == Reduction::ADD) return from_float<T>(x + y);
  if (x != x) return b;  // the other one of a NaN and a number
  if (y != y) return a;
  const bool a_is_less = x < y || (x == y && a.bits >> 15);  // -0 is less than 0
  return (op == Reduction::MIN) == a_is_less ? a : b;
}

template <class T> T real(Reduction, T a, T b) { return a + b; }

template <class T, class F> void elementwise(uint8_t *into, const uint8_t *from, uint32_t bytes, F f) {
  for (uint32_t at = 0; at + sizeof(T) <= bytes; at += sizeof(T)) {
    T a, b;
    std::memcpy(&a, into + at, sizeof(T));
    std::memcpy(&b, from + at, sizeof(T));
    a = f(a, b);
    std::memcpy(into + at, &a, sizeof(T));
  }
}

}  // namespace reduction

// into = op(into, from), for bytes of elements of `type`.
inline void reduce(Reduction op, int type, uint8_t *into, const uint8_t *from, uint32_t bytes) {
  using namespace reduction;
  const auto go = [&](auto sample, auto function) {
    using T = decltype(sample);
    elementwise<T>(into, from, bytes, [&](T a, T b) { return function(op, a, b); });
  };
  switch (type) {
  case TENSOR_MAP_UINT32: return go(uint32_t(), whole<uint32_t>);
  case TENSOR_MAP_INT32: return go(int32_t(), whole<int32_t>);
  case TENSOR_MAP_UINT64: return go(uint64_t(), whole<uint64_t>);
  case TENSOR_MAP_INT64: return go(int64_t(), whole<int64_t>);
  case TENSOR_MAP_FLOAT16: return go(F16(), half<F16>);
  case TENSOR_MAP_BFLOAT16: return go(BF16(), half<BF16>);
  case TENSOR_MAP_FLOAT64: return go(double(), real<double>);
  default: return go(float(), real<float>);
  }
}

}  // namespace softgpu
