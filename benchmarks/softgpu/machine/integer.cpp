// Integers and bits: add, mul, mad, div, min, max, shifts, fields, permutations, dot products.
#include <algorithm>
#include <type_traits>

#include "lanes.h"

namespace softgpu {
namespace {

template <class T> constexpr int WIDTH = 8 * sizeof(T);
template <class T> using Unsigned = std::make_unsigned_t<T>;
template <class T> struct TwiceAs;
template <> struct TwiceAs<int16_t> { using type = int32_t; };
template <> struct TwiceAs<uint16_t> { using type = uint32_t; };
template <> struct TwiceAs<int32_t> { using type = int64_t; };
template <> struct TwiceAs<uint32_t> { using type = uint64_t; };
template <> struct TwiceAs<int64_t> { using type = __int128; };
template <> struct TwiceAs<uint64_t> { using type = unsigned __int128; };
template <class T> using Twice = typename TwiceAs<T>::type;

// Sums and products wrap; they are computed unsigned, where C++ defines that.
template <class T> T add(T a, T b) { return T(Unsigned<T>(Unsigned<T>(a) + Unsigned<T>(b))); }
template <class T> T sub(T a, T b) { return T(Unsigned<T>(Unsigned<T>(a) - Unsigned<T>(b))); }
template <class T> T mul_lo(T a, T b) {
  using Word = std::common_type_t<Unsigned<T>, unsigned>;  // two uint16_t would be multiplied as int
  return T(Word(a) * Word(b));
}
template <class T> Twice<T> mul_wide(T a, T b) { return Twice<T>(a) * Twice<T>(b); }
template <class T> T mul_hi(T a, T b) { return T(mul_wide(a, b) >> WIDTH<T>); }
template <class T> T mad_lo(T a, T b, T c) { return add(mul_lo(a, b), c); }
template <class T> T mad_hi(T a, T b, T c) { return add(mul_hi(a, b), c); }
template <class T> Twice<T> mad_wide(T a, T b, Twice<T> c) { return add(mul_wide(a, b), c); }

int32_t saturated(int64_t x) { return int32_t(std::clamp<int64_t>(x, INT32_MIN, INT32_MAX)); }
int32_t add_sat(int32_t a, int32_t b) { return saturated(int64_t(a) + b); }
int32_t sub_sat(int32_t a, int32_t b) { return saturated(int64_t(a) - b); }
int32_t mad_hi_sat(int32_t a, int32_t b, int32_t c) { return saturated(int64_t(mul_hi(a, b)) + c); }

// The product of the low 24 bits of each: its bits 0 to 31, or 16 to 47.
template <class T> T low24(T x) { return T(Unsigned<T>(x) << 8) >> 8; }
template <class T> T mul24_lo(T a, T b) { return T(Twice<T>(low24(a)) * low24(b)); }
template <class T> T mul24_hi(T a, T b) { return T(Twice<T>(low24(a)) * low24(b) >> 16); }
template <class T> T mad24_lo(T a, T b, T c) { return add(mul24_lo(a, b), c); }
template <class T> T mad24_hi(T a, T b, T c) { return add(mul24_hi(a, b), c); }
int32_t mad24_hi_sat(int32_t a, int32_t b, int32_t c) { return saturated(int64_t(mul24_hi(a, b)) + c); }

// By zero: all ones, quotient and remainder alike, as ptxas makes it. The least integer by -1 wraps.
template <class T> T quotient(T a, T b) {
  if (b == 0) return T(-1);
  if (std::is_signed_v<T> && b == T(-1)) return sub(T(0), a);
  return T(a / b);
}
template <class T> T remainder(T a, T b) { return b == 0 ? T(-1) : sub(a, mul_lo(quotient(a, b), b)); }

template <class T> T negative(T a) { return sub(T(0), a); }
template <class T> T absolute(T a) { return a < 0 ? negative(a) : a; }
template <class T> T least(T a, T b) { return a < b ? a : b; }
template <class T> T greatest(T a, T b) { return a < b ? b : a; }
template <class T> T least_relu(T a, T b) { return greatest(least(a, b), T(0)); }
template <class T> T greatest_relu(T a, T b) { return greatest(greatest(a, b), T(0)); }
template <class T> T sad(T a, T b, T c) { return add(c, a < b ? sub(b, a) : sub(a, b)); }

template <class T> T bit_and(T a, T b) { return a & b; }
template <class T> T bit_or(T a, T b) { return a | b; }
template <class T> T bit_xor(T a, T b) { return a ^ b; }
template <class T> T bit_not(T a) { return T(~a); }
template <class T> T logical_not(T a) { return a == 0; }

// Shifts by the width or more leave nothing but copies of the sign.
template <class T> T shl(T a, uint32_t n) { return n < WIDTH<T> ? T(Unsigned<T>(a) << (n & (WIDTH<T> - 1))) : T(0); }
template <class T> T shr(T a, uint32_t n) {
  if (std::is_signed_v<T>) return T(a >> (n < WIDTH<T> ? n : WIDTH<T> - 1));
  return n < WIDTH<T> ? T(a >> (n & (WIDTH<T> - 1))) : T(0);
}
template <bool LEFT, bool WRAP> uint32_t funnel(uint32_t low, uint32_t high, uint32_t n) {
  const uint64_t pair = uint64_t(high) << 32 | low;
  n = WRAP ? n & 31 : std::min(n, 32u);
  return LEFT ? uint32_t(pair << n >> 32) : uint32_t(pair >> n);
}

template <class T> uint32_t popc(T a) { return uint32_t(__builtin_popcountll(a)); }
template <class T> uint32_t clz(T a) { return a ? uint32_t(__builtin_clzll(a)) - (64 - WIDTH<T>) : WIDTH<T>; }
template <class T> T brev(T a) {
  T reversed = 0;
  for (int bit = 0; bit < WIDTH<T>; bit++) reversed = T(reversed << 1 | (a >> bit & 1));
  return reversed;
}
// The place of the highest bit that differs from the sign; -1 if none does.
template <class T, bool SHIFT> uint32_t bfind(T a) {
  const auto bits = Unsigned<T>(a < 0 ? ~a : a);
  if (!bits) return ~0u;
  const uint32_t place = WIDTH<T> - 1 - clz(bits);
  return SHIFT ? WIDTH<T> - 1 - place : place;
}
template <class T> Unsigned<T> low_ones(uint32_t count) {
  return count >= WIDTH<T> ? Unsigned<T>(-1) : Unsigned<T>((Unsigned<T>(1) << count) - 1);
}
template <class T> T bfe(T a, uint32_t start, uint32_t length) {
  start &= 255, length &= 255;
  if (!length) return 0;
  const uint32_t top = std::min<uint32_t>(start + length - 1, WIDTH<T> - 1);
  const bool sign = std::is_signed_v<T> && Unsigned<T>(a) >> top & 1;
  const auto field = Unsigned<T>(shr(Unsigned<T>(a), start) & low_ones<T>(length));
  const uint32_t present = start < WIDTH<T> ? std::min<uint32_t>(length, WIDTH<T> - start) : 0;
  return T(sign ? field | Unsigned<T>(~low_ones<T>(present)) : field);
}
template <class T> T bfi(T field, T into, uint32_t start, uint32_t length) {
  const T place = shl(low_ones<T>(length & 255), start & 255);
  return (into & ~place) | (shl(field, start & 255) & place);
}
template <bool CLAMP> uint32_t bmsk(uint32_t start, uint32_t length) {
  return shl(low_ones<uint32_t>(CLAMP ? length : length & 31), CLAMP ? start : start & 31);
}
template <class T, bool CLAMP> T szext(T a, uint32_t bits) {
  if (!CLAMP) bits &= 31;
  if (bits == 0) return 0;
  if (bits >= 32) return a;
  return T(Unsigned<T>(a) << (32 - bits)) >> (32 - bits);
}
// The place of the |offset|-th set bit at or above `base` (below, if offset is negative).
uint32_t fns(uint32_t mask, uint32_t base, int32_t offset) {
  if (offset == 0) return base < 32 && mask >> base & 1 ? base : ~0u;
  int64_t left = std::abs(int64_t(offset));
  for (int64_t place = base; place >= 0 && place < 32; place += offset > 0 ? 1 : -1)
    if (mask >> place & 1 && --left == 0) return uint32_t(place);
  return ~0u;
}

// ---- permutations of bytes -------------------------------------------------------------------------------------------

uint32_t byte_of(uint64_t x, uint32_t place) { return uint32_t(x >> 8 * place) & 255; }
uint64_t joined(uint32_t a, uint32_t b) { return uint64_t(b) << 32 | a; }

// Each nibble of the selector picks a byte of eight; its top bit replicates that byte's sign.
uint32_t prmt(uint32_t a, uint32_t b, uint32_t selector) {
  uint32_t result = 0;
  for (int k = 0; k < 4; k++) {
    const uint32_t nibble = selector >> 4 * k, byte = byte_of(joined(a, b), nibble & 7);
    result |= (nibble & 8 ? (byte & 128 ? 255 : 0) : byte) << 8 * k;
  }
  return result;
}

enum PermuteMode { F4E, B4E, RC8, ECL, ECR, RC16 };
template <PermuteMode MODE> uint32_t prmt_mode(uint32_t a, uint32_t b, uint32_t selector) {
  const uint32_t n = selector & 3;
  uint32_t result = 0;
  for (uint32_t k = 0; k < 4; k++) {
    const uint32_t place = MODE == F4E   ? n + k
                           : MODE == B4E ? (n - k) & 7
                           : MODE == RC8 ? n
                           : MODE == ECL ? std::max(n, k)
                           : MODE == ECR ? std::min(n, k)
                                         : (n & 1) * 2 + (k & 1);
    result |= byte_of(joined(a, b), place) << 8 * k;
  }
  return result;
}

// ---- any function of three bits --------------------------------------------------------------------------------------

template <bool HAS_PREDICATE> void lookup(Warp &w, const Ins &i, uint32_t (&value)[LANES]) {
  const int32_t *source = &i.op[HAS_PREDICATE ? 2 : 1];
  const uint32_t *a = w.reg<uint32_t>(source[0]), *b = w.reg<uint32_t>(source[1]), *c = w.reg<uint32_t>(source[2]);
  const uint32_t table = *w.reg<uint32_t>(source[3]);
  uint32_t on[8];  // all ones where the table has a one
  for (int k = 0; k < 8; k++) on[k] = table >> k & 1 ? ~0u : 0;
  for (int lane = 0; lane < LANES; lane++) {
    const uint32_t x = a[lane], y = b[lane], z = c[lane];
    const uint32_t low = (~y & ((~z & on[0]) | (z & on[1]))) | (y & ((~z & on[2]) | (z & on[3])));
    const uint32_t high = (~y & ((~z & on[4]) | (z & on[5]))) | (y & ((~z & on[6]) | (z & on[7])));
    value[lane] = (~x & low) | (x & high);
  }
}

Step lop3(Warp &w, const Ins &i, Mask m) {
  uint32_t value[LANES];
  lookup<false>(w, i, value);
  put(w, i.op[0], m, value);
  return Step::NEXT;
}

// lop3.or d|p, a, b, c, table, q: p says whether d is not 0, or q.
template <bool IS_AND> Step lop3_predicate(Warp &w, const Ins &i, Mask m) {
  uint32_t value[LANES];
  lookup<true>(w, i, value);
  Mask any = 0;
  for (int lane = 0; lane < LANES; lane++) any |= Mask(value[lane] != 0) << lane;
  const Mask q = w.pred(i.op[6]);
  if (i.op[0] >= 0) put(w, i.op[0], m, value);
  put_pred(w, i.op[1], m, IS_AND ? any & q : any | q);
  return Step::NEXT;
}

// ---- dot products ----------------------------------------------------------------------------------------------------

template <class A, class B>
using DotSum = std::conditional_t<std::is_signed_v<A> || std::is_signed_v<B>, int32_t, uint32_t>;

template <class A, class B> DotSum<A, B> dp4a(uint32_t a, uint32_t b, DotSum<A, B> c) {
  uint32_t sum = uint32_t(c);
  for (int k = 0; k < 4; k++) sum += uint32_t(int32_t(A(a >> 8 * k)) * int32_t(B(b >> 8 * k)));
  return DotSum<A, B>(sum);
}
// A: of 16 bits; B: of 8, the lower or the upper two.
template <class A, class B, bool UPPER> DotSum<A, B> dp2a(uint32_t a, uint32_t b, DotSum<A, B> c) {
  uint32_t sum = uint32_t(c);
  for (int k = 0; k < 2; k++) sum += uint32_t(int32_t(A(a >> 16 * k)) * int32_t(B(b >> (8 * k + (UPPER ? 16 : 0)))));
  return DotSum<A, B>(sum);
}

// ---- names -----------------------------------------------------------------------------------------------------------


template <class T> std::string type_name() { return (std::is_signed_v<T> ? ".s" : ".u") + std::to_string(WIDTH<T>); }

template <class T> void announce_integers() {
  const std::string type = type_name<T>();
  announce("add" + type, each<add<T>>);
  announce("sub" + type, each<sub<T>>);
  announce("mul.lo" + type, each<mul_lo<T>>);
  announce("mul.hi" + type, each<mul_hi<T>>);
  announce("mad.lo" + type, each<mad_lo<T>>);
  announce("mad.hi" + type, each<mad_hi<T>>);
  announce("sad" + type, each<sad<T>>);
  announce("div" + type, each<quotient<T>>);
  announce("rem" + type, each<remainder<T>>);
  announce("min" + type, each<least<T>>);
  announce("max" + type, each<greatest<T>>);
  announce("shr" + type, each<shr<T>>);
  if constexpr (sizeof(T) < 8) {
    announce("mul.wide" + type, each<mul_wide<T>>);
    announce("mad.wide" + type, each<mad_wide<T>>);
  }
  if constexpr (sizeof(T) > 2) {
    announce("bfe" + type, each<bfe<T>>);
    announce("bfind" + type, each<bfind<T, false>>);
    announce("bfind.shiftamt" + type, each<bfind<T, true>>);
  }
  if constexpr (sizeof(T) == 4) {
    announce("mul24.lo" + type, each<mul24_lo<T>>);
    announce("mul24.hi" + type, each<mul24_hi<T>>);
    announce("mad24.lo" + type, each<mad24_lo<T>>);
    announce("mad24.hi" + type, each<mad24_hi<T>>);
    announce("szext.clamp" + type, each<szext<T, true>>);
    announce("szext.wrap" + type, each<szext<T, false>>);
  }
  if constexpr (sizeof(T) == 2) {
    announce("add" + type + "x2", each<both<add<T>>>);
    announce("sub" + type + "x2", each<both<sub<T>>>);
    announce("min" + type + "x2", each<both<least<T>>>);
    announce("max" + type + "x2", each<both<greatest<T>>>);
  }
  if constexpr (std::is_signed_v<T>) {
    announce("neg" + type, each<negative<T>>);
    announce("abs" + type, each<absolute<T>>);
  }
}

template <class T> void announce_bits() {
  const std::string type = ".b" + std::to_string(WIDTH<T>);
  announce("and" + type, each<bit_and<T>>);
  announce("or" + type, each<bit_or<T>>);
  announce("xor" + type, each<bit_xor<T>>);
  announce("not" + type, each<bit_not<T>>);
  announce("cnot" + type, each<logical_not<T>>);
  announce("shl" + type, each<shl<T>>);
  announce("shr" + type, each<shr<T>>);
  if constexpr (sizeof(T) > 2) {
    announce("popc" + type, each<popc<T>>);
    announce("clz" + type, each<clz<T>>);
    announce("brev" + type, each<brev<T>>);
    announce("bfi" + type, each<bfi<T>>);
  }
}

template <class A, class B> void announce_dots() {
  using Half = std::conditional_t<std::is_signed_v<A>, int16_t, uint16_t>;
  const std::string first = std::is_signed_v<A> ? ".s32" : ".u32", second = std::is_signed_v<B> ? ".s32" : ".u32";
  const std::string types = first + second;
  announce("dp4a" + types, each<dp4a<A, B>>);
  announce("dp2a.lo" + types, each<dp2a<Half, B, false>>);
  announce("dp2a.hi" + types, each<dp2a<Half, B, true>>);
}

const bool announced = [] {
  announce_integers<int16_t>();
  announce_integers<uint16_t>();
  announce_integers<int32_t>();
  announce_integers<uint32_t>();
  announce_integers<int64_t>();
  announce_integers<uint64_t>();
  announce_bits<uint16_t>();
  announce_bits<uint32_t>();
  announce_bits<uint64_t>();
  announce_dots<int8_t, int8_t>();
  announce_dots<int8_t, uint8_t>();
  announce_dots<uint8_t, int8_t>();
  announce_dots<uint8_t, uint8_t>();
  return true;
}();

SG_ON("add.sat.s32", each<add_sat>);
SG_ON("sub.sat.s32", each<sub_sat>);
SG_ON("mad.hi.sat.s32", each<mad_hi_sat>);
SG_ON("mad24.hi.sat.s32", each<mad24_hi_sat>);
SG_ON("min.relu.s32", each<least_relu<int32_t>>);
SG_ON("max.relu.s32", each<greatest_relu<int32_t>>);
SG_ON("min.relu.s16x2", each<both<least_relu<int16_t>>>);
SG_ON("max.relu.s16x2", each<both<greatest_relu<int16_t>>>);
SG_ON("shf.l.clamp.b32", each<funnel<true, false>>);
SG_ON("shf.l.wrap.b32", each<funnel<true, true>>);
SG_ON("shf.r.clamp.b32", each<funnel<false, false>>);
SG_ON("shf.r.wrap.b32", each<funnel<false, true>>);
SG_ON("bmsk.clamp.b32", each<bmsk<true>>);
SG_ON("bmsk.wrap.b32", each<bmsk<false>>);
SG_ON("fns.b32", each<fns>);
SG_ON("prmt.b32", each<prmt>);
SG_ON("prmt.b32.f4e", each<prmt_mode<F4E>>);
SG_ON("prmt.b32.b4e", each<prmt_mode<B4E>>);
SG_ON("prmt.b32.rc8", each<prmt_mode<RC8>>);
SG_ON("prmt.b32.ecl", each<prmt_mode<ECL>>);
SG_ON("prmt.b32.ecr", each<prmt_mode<ECR>>);
SG_ON("prmt.b32.rc16", each<prmt_mode<RC16>>);
SG_ON("lop3.b32", lop3);
SG_ON("lop3.or.b32", lop3_predicate<false>);
SG_ON("lop3.and.b32", lop3_predicate<true>);

}  // namespace
}  // namespace softgpu
