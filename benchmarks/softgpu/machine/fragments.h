// Matrix units: elements of their formats as numbers, fragments of a warp as vectors over lanes, and the product.
//
// A register of A holds an 8x8 block of 16-bit elements (8 x 4 of 32 bits, 8 x 16 of 8 bits): lane 4 g + t has word t
// of row g. One of B is the same of B's transpose: lane 4 n + t has word t of column n. One of the accumulators holds,
// at lane 4 g + t, row g and column 2 t + i. So all operands are brought to the accumulators' lanes: of A, a vector for
// each k with A[g][k] at all lanes of row g; of B, for each k and i four values B[k][2 t + i], the same for all g.
//
// Values: products are exact; each is added to a float32 accumulator, in order of k, rounded to nearest even. The ISA
// leaves order and rounding open, and hardware is known to align the products of several k and the accumulator to the
// greatest exponent and to truncate a few bits below float32's last (fewer for 8-bit floats): its last bits differ.
#pragma once
#include <algorithm>
#include <cstring>
#include <type_traits>
#ifdef __AVX512F__
#include <immintrin.h>
#endif
#include "machine.h"

namespace softgpu {

constexpr int HALF = 16;  // lanes of a vector: half a warp
typedef uint32_t Words __attribute__((vector_size(64)));
typedef float Floats __attribute__((vector_size(64)));
typedef int32_t Ints __attribute__((vector_size(64)));

template <class V> V load(const void *from) {
  V v;
  std::memcpy(&v, from, sizeof v);
  return v;
}
template <class V> void store(void *to, V v) { std::memcpy(to, &v, sizeof v); }

// ---- formats: element e of each word --------------------------------------------------------------------------------

struct F16 {
  using Vector = Floats;
  static constexpr int PER_WORD = 2;
  static Floats widen(Words w, int e) {
    const Words h = w >> (16 * e);
    const Words bits = (h & 0x7fff) << 13;
    const Words special = (Words)(bits >= 0x7c00u << 13) & 0x7f800000;
    const Words value = (Words)((Floats)bits * 0x1p112f) | special;
    return (Floats)(value | (h & 0x8000) << 16);
  }
};

struct BF16 {
  using Vector = Floats;
  static constexpr int PER_WORD = 2;
  static Floats widen(Words w, int e) { return (Floats)(e ? w & 0xffff0000 : w << 16); }
};

// The 13 lowest bits of the register are not looked at.
struct TF32 {
  using Vector = Floats;
  static constexpr int PER_WORD = 1;
  static Floats widen(Words w, int) { return (Floats)(w & 0xffffe000); }
};

struct E4M3 {
  using Vector = Floats;
  static constexpr int PER_WORD = 4;
  static Floats widen(Words w, int e) {
    const Words b = w >> (8 * e);
    const Words nan = (Words)((b & 0x7f) == 0x7f) & 0x7fffffff;
    const Words value = (Words)((Floats)((b & 0x7f) << 20) * 0x1p120f) | nan;
    return (Floats)(value | (b & 0x80) << 24);
  }
};

struct E5M2 {
  using Vector = Floats;
  static constexpr int PER_WORD = 4;
  static Floats widen(Words w, int e) { return F16::widen((w >> (8 * e)) << 8, 0); }
};

struct S8 {
  using Vector = Ints;
  static constexpr int PER_WORD = 4;
  static Ints widen(Words w, int e) { return (Ints)(w << (24 - 8 * e)) >> 24; }
};

struct U8 {
  using Vector = Ints;
  static constexpr int PER_WORD = 4;
  static Ints widen(Words w, int e) { return (Ints)((w >> (8 * e)) & 0xff); }
};

template <class F> using Value = std::conditional_t<std::is_same_v<typename F::Vector, Floats>, float, int32_t>;

// ---- operands -------------------------------------------------------------------------------------------------------

template <class V, int T> V spread_quad(V v) {  // lane 4 g + T at all lanes of its quad
  return __builtin_shufflevector(v, v, T, T, T, T, 4 + T, 4 + T, 4 + T, 4 + T, 8 + T, 8 + T, 8 + T, 8 + T, 12 + T,
                                 12 + T, 12 + T, 12 + T);
}

template <class F, int K, int BLOCKS> struct Left {  // BLOCKS of 8 rows
  typename F::Vector x[K][BLOCKS][2];                // [k][block][half of the warp]
};

// words[block + BLOCKS * r]: the block's r-th register.
template <class F, int K, int BLOCKS> void unpack(const uint32_t *const *words, bool negate, Left<F, K, BLOCKS> &to) {
  constexpr int P = F::PER_WORD, REGISTERS = K / (4 * P);
  for (int r = 0; r < REGISTERS; r++)
    for (int block = 0; block < BLOCKS; block++)
      for (int half = 0; half < 2; half++) {
        const Words w = load<Words>(words[block + BLOCKS * r] + HALF * half);
        for (int e = 0; e < P; e++) {
          auto v = F::widen(w, e);
          if (negate) v = -v;
          auto *at = &to.x[r * 4 * P + e];
          at[0][block][half] = spread_quad<decltype(v), 0>(v);
          at[P][block][half] = spread_quad<decltype(v), 1>(v);
          at[2 * P][block][half] = spread_quad<decltype(v), 2>(v);
          at[3 * P][block][half] = spread_quad<decltype(v), 3>(v);
        }
      }
}

template <class F, int K> struct Right {  // 8 columns
  Value<F> x[K][2][4];                    // [k][i][t]: column 2 t + i
};

// words[r]: the r-th register of B, or 8 columns of a tile whose rows lie along k.
template <class F, int K> void unpack(const uint32_t *const *words, Right<F, K> &to) {
  constexpr int P = F::PER_WORD, REGISTERS = K / (4 * P);
  for (int r = 0; r < REGISTERS; r++) {
    const Words low = load<Words>(words[r]), high = load<Words>(words[r] + HALF);
    for (int e = 0; e < P; e++) {
      const auto a = F::widen(low, e), b = F::widen(high, e);  // columns 0 to 3, 4 to 7: [n][t]
      const auto first = __builtin_shufflevector(a, b, 0, 8, 16, 24, 4, 12, 20, 28, 1, 9, 17, 25, 5, 13, 21, 29);
      const auto second = __builtin_shufflevector(a, b, 2, 10, 18, 26, 6, 14, 22, 30, 3, 11, 19, 27, 7, 15, 23, 31);
      auto *at = &to.x[r * 4 * P + e];
      std::memcpy(at[0], &first, 32);
      std::memcpy(at[P], reinterpret_cast<const char *>(&first) + 32, 32);
      std::memcpy(at[2 * P], &second, 32);
      std::memcpy(at[3 * P], reinterpret_cast<const char *>(&second) + 32, 32);
    }
  }
}

// Of a tile whose rows lie along n (16 bits): words[r] has 8 rows, each a k, of 8 columns.
template <class F, int K> void unpack_transposed(const uint32_t *const *words, Right<F, K> &to) {
  static_assert(F::PER_WORD == 2);
  for (int r = 0; r < K / 8; r++)
    for (int half = 0; half < 2; half++) {
      const Words w = load<Words>(words[r] + HALF * half);
      for (int i = 0; i < 2; i++) {
        const auto v = F::widen(w, i);
        for (int k = 0; k < 4; k++)
          std::memcpy(to.x[8 * r + 4 * half + k][i], reinterpret_cast<const char *>(&v) + 16 * k, 16);
      }
    }
}

// ---- product --------------------------------------------------------------------------------------------------------

template <class V> struct Accumulators {  // 8 columns
  V x[2][2][2];                           // [block of 8 rows][i][half of the warp]
};

template <class V> V repeat_quad(const void *from) {  // four values, the same for all quads
#ifdef __AVX512F__
  return (V)_mm512_maskz_broadcast_f32x4(0xffff, _mm_loadu_ps(static_cast<const float *>(from)));
#else
  V v;
  for (int quad = 0; quad < HALF / 4; quad++) std::memcpy(reinterpret_cast<char *>(&v) + 16 * quad, from, 16);
  return v;
#endif
}

// d += A B. Contracted to FMAs, which the exact products allow. Unrolled, so that the sums stay in registers.
template <class A, class B, int K, int BLOCKS>
__attribute__((optimize("fp-contract=fast"), noinline)) void multiply(const Left<A, K, BLOCKS> &a, const Right<B, K> &b,
                                                                      Accumulators<typename A::Vector> &d) {
  using V = typename A::Vector;
  V s00 = d.x[0][0][0], s01 = d.x[0][0][1], s02 = d.x[0][1][0], s03 = d.x[0][1][1];
  V s10 = d.x[1][0][0], s11 = d.x[1][0][1], s12 = d.x[1][1][0], s13 = d.x[1][1][1];
  for (int k = 0; k < K; k++) {
    const V even = repeat_quad<V>(b.x[k][0]), odd = repeat_quad<V>(b.x[k][1]);
    s00 += a.x[k][0][0] * even, s01 += a.x[k][0][1] * even;
    s02 += a.x[k][0][0] * odd, s03 += a.x[k][0][1] * odd;
    if constexpr (BLOCKS == 2) {
      s10 += a.x[k][1][0] * even, s11 += a.x[k][1][1] * even;
      s12 += a.x[k][1][0] * odd, s13 += a.x[k][1][1] * odd;
    }
  }
  d.x[0][0][0] = s00, d.x[0][0][1] = s01, d.x[0][1][0] = s02, d.x[0][1][1] = s03;
  d.x[1][0][0] = s10, d.x[1][0][1] = s11, d.x[1][1][0] = s12, d.x[1][1][1] = s13;
}

// d = a b + d, or `fresh` a b; integers wrap, or stop at their limits (SATURATE).
template <class A, class B, int K, int BLOCKS, bool SATURATE>
void accumulate(const Left<A, K, BLOCKS> &a, const Right<B, K> &b, bool fresh, Accumulators<typename A::Vector> &d) {
  if (fresh) d = {};
  if constexpr (!SATURATE) {
    multiply(a, b, d);
  } else {
    Accumulators<Ints> product = {};
    multiply(a, b, product);
    for (int k = 0; k < 8; k++) {
      Ints &to = d.x[k >> 2][k >> 1 & 1][k & 1];
      const Ints &by = product.x[k >> 2][k >> 1 & 1][k & 1];
      for (int lane = 0; lane < HALF; lane++)
        to[lane] = int32_t(std::clamp<int64_t>(int64_t(to[lane]) + by[lane], INT32_MIN, INT32_MAX));
    }
  }
}

// ---- accumulators in registers --------------------------------------------------------------------------------------

inline Floats canonical_nan(Floats v) {
  const Words nan = (Words)(v != v);
  return (Floats)(((Words)v & ~nan) | (nan & 0x7fffffff));
}

// float32: registers in the order [block][i].
struct F32 {
  static constexpr int REGISTERS = 4;
  using Vector = Floats;
  template <int BLOCKS> static void read(uint8_t *const *r, Accumulators<Floats> &to) {
    for (int k = 0; k < 2 * BLOCKS; k++)
      for (int half = 0; half < 2; half++) to.x[k >> 1][k & 1][half] = load<Floats>(r[k] + 64 * half);
  }
  template <int BLOCKS> static void write(const Accumulators<Floats> &from, uint8_t *const *r) {
    for (int k = 0; k < 2 * BLOCKS; k++)
      for (int half = 0; half < 2; half++) store(r[k] + 64 * half, canonical_nan(from.x[k >> 1][k & 1][half]));
  }
};

struct S32 {
  static constexpr int REGISTERS = 4;
  using Vector = Ints;
  template <int BLOCKS> static void read(uint8_t *const *r, Accumulators<Ints> &to) {
    for (int k = 0; k < 2 * BLOCKS; k++)
      for (int half = 0; half < 2; half++) to.x[k >> 1][k & 1][half] = load<Ints>(r[k] + 64 * half);
  }
  template <int BLOCKS> static void write(const Accumulators<Ints> &from, uint8_t *const *r) {
    for (int k = 0; k < 2 * BLOCKS; k++)
      for (int half = 0; half < 2; half++) store(r[k] + 64 * half, from.x[k >> 1][k & 1][half]);
  }
};

// float16: a register holds both i of a block. The sum is rounded once.
struct H16 {
  static constexpr int REGISTERS = 2;
  using Vector = Floats;
  template <int BLOCKS> static void read(uint8_t *const *r, Accumulators<Floats> &to) {
    for (int block = 0; block < BLOCKS; block++)
      for (int half = 0; half < 2; half++) {
        const Words w = load<Words>(r[block] + 64 * half);
        for (int i = 0; i < 2; i++) to.x[block][i][half] = F16::widen(w, i);
      }
  }
  template <int BLOCKS> static void write(const Accumulators<Floats> &from, uint8_t *const *r) {
    for (int block = 0; block < BLOCKS; block++)
      for (int lane = 0; lane < LANES; lane++)
        for (int i = 0; i < 2; i++) {
          const float value = from.x[block][i][lane / HALF][lane % HALF];
          const _Float16 rounded = static_cast<_Float16>(value);
          uint16_t bits = 0x7fff;
          if (value == value) std::memcpy(&bits, &rounded, 2);
          std::memcpy(r[block] + 4 * lane + 2 * i, &bits, 2);
        }
  }
};

// ---- what comes from what nobody wrote ------------------------------------------------------------------------------

// Lanes of all quads that have a lane in `m`: a row of A, or a column of B, is undefined if an element of it is.
inline Mask whole_quads(Mask m) { return ((m | m >> 1 | m >> 2 | m >> 3) & 0x11111111) * 15; }

// Lanes that hold, in accumulator i, a column of which a lane 4 n + t in `m` (B's lanes) has an element.
inline Mask lanes_of_columns(Mask m, int i) {
  const Mask quads = whole_quads(m);
  Mask lanes = 0;
  if (!quads) return 0;
  for (int t = 0; t < 4; t++)
    if (quads >> (4 * (2 * t + i)) & 1) lanes |= 0x11111111u << t;
  return lanes;
}

// The same of accumulator register k, in the order [block][i], or [block] where two elements share one (`packed`).
inline Mask lanes_reached(const Mask *undefined_rows, Mask undefined_columns, int k, bool packed) {
  if (!packed) return undefined_rows[k >> 1] | lanes_of_columns(undefined_columns, k & 1);
  return undefined_rows[k] | lanes_of_columns(undefined_columns, 0) | lanes_of_columns(undefined_columns, 1);
}

}  // namespace softgpu
