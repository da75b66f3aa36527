// Instructions that do the same in every lane: a handler made of a function of values.
//
//     int32_t sum(int32_t a, int32_t b) { return a + b; }
//     SG_ON("add.s32", each<sum>);
#pragma once
#include <utility>

#include "machine.h"

namespace softgpu {

// Registers are read and written as unsigned integers of their size.
template <size_t BYTES> struct BitsOfSize;
template <> struct BitsOfSize<1> { using type = uint8_t; };
template <> struct BitsOfSize<2> { using type = uint16_t; };
template <> struct BitsOfSize<4> { using type = uint32_t; };
template <> struct BitsOfSize<8> { using type = uint64_t; };
template <> struct BitsOfSize<16> { using type = unsigned __int128; };
template <class T> using Bits = typename BitsOfSize<sizeof(T)>::type;

template <class To, class From> To bit_cast(const From &from) {
  static_assert(sizeof(To) == sizeof(From));
  To to;
  std::memcpy(&to, &from, sizeof to);
  return to;
}

// Writes `value` to the lanes in m of the register at `unit`.
template <class T> void put(Warp &w, int32_t unit, Mask m, const T (&value)[LANES]) {
  T *to = w.reg<T>(unit);
  if (m == ALL) {
    std::memcpy(to, value, sizeof value);
    return;
  }
  for (int lane = 0; lane < LANES; lane++) to[lane] = m >> lane & 1 ? value[lane] : to[lane];
}

inline void put_pred(Warp &w, int32_t unit, Mask m, Mask value) {
  if (unit >= 0) w.pred(unit) = (w.pred(unit) & ~m) | (value & m);
}

template <auto F> struct Each;
template <class Result, class... A, Result (*F)(A...)> struct Each<F> {
  static Step handler(Warp &w, const Ins &i, Mask m) { return gather(w, i, m, std::index_sequence_for<A...>{}); }
  template <size_t... K> static Step gather(Warp &w, const Ins &i, Mask m, std::index_sequence<K...>) {
    return apply(w, i.op[0], m, w.reg<const Bits<A>>(i.op[1 + K])...);
  }
  static Step apply(Warp &w, int32_t to, Mask m, const Bits<A> *...from) {
    Bits<Result> value[LANES];
    for (int lane = 0; lane < LANES; lane++) value[lane] = bit_cast<Bits<Result>>(F(bit_cast<A>(from[lane])...));
    put(w, to, m, value);
    return Step::NEXT;
  }
};

// A handler: F of the sources' values in every lane (also in those outside m, whose results are dropped).
template <auto F> constexpr Handler each = &Each<F>::handler;

// F in both halves of a packed value.
template <auto F> struct Both;
template <class T, class... A, T (*F)(A...)> struct Both<F> {
  template <class> using Packed = typename BitsOfSize<2 * sizeof(T)>::type;
  static Packed<T> run(Packed<A>... a) {
    constexpr int HALF = 8 * sizeof(T);
    const Bits<T> low = bit_cast<Bits<T>>(F(bit_cast<A>(static_cast<Bits<A>>(a))...));
    const Bits<T> high = bit_cast<Bits<T>>(F(bit_cast<A>(static_cast<Bits<A>>(a >> HALF))...));
    return static_cast<Packed<T>>(high) << HALF | low;
  }
};
template <auto F> constexpr auto both = &Both<F>::run;

}  // namespace softgpu
