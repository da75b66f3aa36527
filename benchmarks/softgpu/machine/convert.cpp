// cvt: between all integers and floats, packed ones, tf32 and fp8.
//
// What kernels are full of has a handler of its own (`quick`). All else goes through one that decodes the source exactly
// and rounds once, by a plan made of the opcode.
#include <algorithm>

#include "formats.h"

namespace softgpu {
namespace {

struct Type {
  bool is_float = false, is_signed = false;
  int bits = 0;  // of an element
  int elements = 1;
  Format format{};
};

const std::unordered_map<std::string, Type> TYPES = [] {
  std::unordered_map<std::string, Type> types;
  for (const int bits : {8, 16, 32, 64}) {
    types["u" + std::to_string(bits)] = {false, false, bits};
    types["s" + std::to_string(bits)] = {false, true, bits};
  }
  types["f16"] = {true, true, 16, 1, FORMAT_F16};
  types["bf16"] = {true, true, 16, 1, FORMAT_BF16};
  types["f32"] = {true, true, 32, 1, FORMAT_F32};
  types["f64"] = {true, true, 64, 1, FORMAT_F64};
  types["tf32"] = {true, true, 32, 1, FORMAT_TF32};
  types["f16x2"] = {true, true, 16, 2, FORMAT_F16};
  types["bf16x2"] = {true, true, 16, 2, FORMAT_BF16};
  types["e4m3x2"] = {true, true, 8, 2, FORMAT_E4M3};
  types["e5m2x2"] = {true, true, 8, 2, FORMAT_E5M2};
  return types;
}();

// What an opcode says.
struct Plan {
  Type to, from;
  Round round = Round::NEAREST;
  bool to_integer = false;  // rounds to an integer (.rni and its kin), whatever the destination's type is
  bool flush = false, saturate = false, relu = false, finite = false, is_rna = false;
};

Plan make_plan(const std::string &key) {
  static const std::unordered_map<std::string, Round> ROUNDS = {
      {"rn", Round::NEAREST}, {"rz", Round::ZERO},   {"rm", Round::DOWN}, {"rp", Round::UP},  {"rni", Round::NEAREST},
      {"rzi", Round::ZERO},   {"rmi", Round::DOWN}, {"rpi", Round::UP},  {"rna", Round::AWAY}};
  Plan plan;
  bool has_destination = false;
  for (size_t start = key.find('.') + 1; start && start <= key.size(); start = key.find('.', start) + 1) {
    const std::string part = key.substr(start, key.find('.', start) - start);
    if (const auto round = ROUNDS.find(part); round != ROUNDS.end()) {
      plan.round = round->second;
      plan.to_integer = part.size() == 3 && part[2] == 'i';
      plan.is_rna = part == "rna";
    } else if (const auto type = TYPES.find(part); type != TYPES.end()) {
      (has_destination ? plan.from : plan.to) = type->second;
      has_destination = true;
    } else {
      plan.flush |= part == "ftz";
      plan.saturate |= part == "sat";
      plan.relu |= part == "relu";
      plan.finite |= part == "satfinite";
    }
  }
  plan.to_integer |= !plan.to.is_float;
  return plan;
}

const Plan &plan_of(const std::string &key) {
  static std::unordered_map<std::string, Plan> plans;
  const auto found = plans.find(key);
  return found != plans.end() ? found->second : plans.emplace(key, make_plan(key)).first->second;
}

uint64_t low_bits(uint64_t x, int bits) { return bits == 64 ? x : x & ((uint64_t(1) << bits) - 1); }
int64_t sign_extended(uint64_t x, int bits) { return int64_t(x << (64 - bits)) >> (64 - bits); }

// The greatest magnitude that an integer type has on this side of zero.
uint64_t greatest(const Type &type, bool negative) {
  if (!type.is_signed) return negative ? 0 : low_bits(~uint64_t(0), type.bits);
  return (uint64_t(1) << (type.bits - 1)) - !negative;
}
uint64_t saturated(const Type &type, bool negative, uint64_t magnitude, bool overflows) {
  const uint64_t limit = greatest(type, negative), result = overflows ? limit : std::min(magnitude, limit);
  return low_bits(negative ? -result : result, type.bits);
}

// x rounded to an integer: its magnitude is `significand` (exponent 0), unless it is so large that it is one anyway.
Number integral(Number x, Round round) {
  if (x.kind != Number::FINITE || x.exponent >= 0) return x;
  const int dropped = -x.exponent;
  const uint64_t kept = dropped > 63 ? 0 : x.significand >> dropped;
  const bool half = dropped <= 64 && x.significand >> (dropped - 1) & 1;
  const bool more = dropped > 64 ? x.significand != 0 : (x.significand << (64 - dropped) << 1) != 0;
  x.significand = kept + rounds_up(round, x.negative, kept & 1, half, more);
  x.exponent = 0;
  return x;
}

uint64_t to_integer(const Plan &plan, const Number &exact) {
  // NaN: 0, but the top bit alone from or to 64 bits.
  if (exact.kind == Number::NOT_A_NUMBER)
    return plan.from.bits == 64 || plan.to.bits == 64 ? uint64_t(1) << (plan.to.bits - 1) : 0;
  const Number x = integral(exact, plan.round);
  const bool fits = x.kind == Number::FINITE && (!x.significand || x.exponent <= __builtin_clzll(x.significand));
  return saturated(plan.to, x.negative, fits && x.significand ? x.significand << x.exponent : 0, !fits);
}

uint64_t flushed(const Type &type, uint64_t code) {
  const bool is_f32 = type.is_float && type.bits == 32;
  return is_f32 && !(code & FORMAT_F32.infinity()) ? code & FORMAT_F32.sign() : code;
}

uint64_t to_float(const Plan &plan, Number x) {
  const Format format = plan.to.format;
  if (plan.saturate && (x.kind == Number::NOT_A_NUMBER || x.negative)) x = {};
  if (plan.relu && x.kind != Number::NOT_A_NUMBER && x.negative) x = {};
  if (plan.to_integer) x = integral(x, plan.round);
  uint64_t code = encode(format, x, plan.round, plan.finite);
  const uint64_t one = uint64_t(format.bias()) << format.mantissa_bits;
  if (plan.saturate) code = std::min(code, one);
  if (plan.flush) code = flushed(plan.to, code);
  return code << (plan.to.bits - format.bits());  // tf32 lies in the upper bits of 32
}

uint64_t converted(const Plan &plan, uint64_t bits) {
  if (plan.from.is_float) {
    if (plan.flush) bits = flushed(plan.from, bits);
    const Number x = decode(plan.from.format, bits);
    // The hardware has no such instruction: NaN's upper bits stay.
    if (plan.is_rna && x.kind == Number::NOT_A_NUMBER) return bits & ~uint64_t(0x1fff);
    return plan.to.is_float ? to_float(plan, x) : to_integer(plan, x);
  }
  const bool negative = plan.from.is_signed && sign_extended(bits, plan.from.bits) < 0;
  const uint64_t magnitude = negative ? -uint64_t(sign_extended(bits, plan.from.bits)) : bits;
  if (!plan.to.is_float) {
    if (plan.saturate) return saturated(plan.to, negative, magnitude, false);
    return low_bits(negative ? -magnitude : magnitude, plan.to.bits);
  }
  Number x;
  x.negative = negative, x.significand = magnitude;
  return to_float(plan, x);
}

uint64_t load(Warp &w, const Ins &i, size_t operand, int lane) {
  uint64_t bits = 0;
  std::memcpy(&bits, w.reg<uint8_t>(i.op[operand]) + i.width[operand] * lane, i.width[operand]);
  return bits;
}

// Of two elements the first of two operands is the upper one.
Step convert(Warp &w, const Ins &i, Mask m) {
  const Plan &plan = plan_of(i.key);
  uint64_t value[LANES];
  SG_FOR_LANES(lane, m) {
    uint64_t bits = load(w, i, 1, lane), result = 0;
    if (i.op.size() == 3) bits = bits << plan.from.bits | low_bits(load(w, i, 2, lane), plan.from.bits);
    for (int k = 0; k < plan.to.elements; k++)
      result |= converted(plan, low_bits(bits >> plan.from.bits * k, plan.from.bits)) << plan.to.bits * k;
    if (!plan.to.is_float && plan.to.is_signed) result = uint64_t(sign_extended(result, plan.to.bits));
    value[lane] = result;
  }
  SG_FOR_LANES(lane, m) std::memcpy(w.reg<uint8_t>(i.op[0]) + i.width[0] * lane, &value[lane], i.width[0]);
  return Step::NEXT;
}

// ---- what kernels are full of ----------------------------------------------------------------------------------------

// For registers of just the types' sizes.
template <auto F> struct Quick;
template <class D, class... S, D (*F)(S...)> struct Quick<F> {
  static Step handler(Warp &w, const Ins &i, Mask m) {
    size_t operand = 1;
    const bool fits = i.width[0] == sizeof(D) && ((i.width[operand++] == sizeof(S)) && ...);
    return fits ? Each<F>::handler(w, i, m) : convert(w, i, m);
  }
};
template <auto F> constexpr Handler quick = &Quick<F>::handler;

template <class D, class S> D between_integers(S x) { return D(x); }
template <class S> float int_to_float(S x) { return float(x); }
template <class T> T narrowed(float x) { return from_float<T>(x); }
template <class T> float widened(T x) { return softgpu::to_float(x); }
template <class T, bool RELU> uint32_t narrowed_pair(float high, float low) {
  if (RELU) high = high > 0 || high != high ? high : 0, low = low > 0 || low != low ? low : 0;
  return uint32_t(from_float<T>(high).bits) << 16 | from_float<T>(low).bits;
}

// ---- names -----------------------------------------------------------------------------------------------------------


constexpr const char *INTEGERS[] = {".u8", ".s8", ".u16", ".s16", ".u32", ".s32", ".u64", ".s64"};
constexpr const char *FLOATS[] = {".f16", ".bf16", ".f32", ".f64"};
constexpr const char *FLOAT_ROUNDS[] = {".rn", ".rz", ".rm", ".rp"};
constexpr const char *INTEGER_ROUNDS[] = {".rni", ".rzi", ".rmi", ".rpi"};

template <class D, class S> void announce_between(const std::string &to, const std::string &from) {
  announce("cvt.u" + to + ".u" + from, quick<between_integers<std::make_unsigned_t<D>, std::make_unsigned_t<S>>>);
  announce("cvt.s" + to + ".u" + from, quick<between_integers<D, std::make_unsigned_t<S>>>);
  announce("cvt.u" + to + ".s" + from, quick<between_integers<std::make_unsigned_t<D>, S>>);
  announce("cvt.s" + to + ".s" + from, quick<between_integers<D, S>>);
}

void announce_all() {
  for (const char *saturate : {"", ".sat"}) {
    for (const char *to : INTEGERS)
      for (const char *from : INTEGERS) announce(std::string("cvt") + saturate + to + from, convert);
    for (const char *flush : {"", ".ftz"}) {
      const std::string options = std::string(flush) + saturate;
      for (const char *a : INTEGERS)
        for (const char *b : FLOATS) {
          for (const char *round : FLOAT_ROUNDS) announce("cvt" + (round + options) + b + a, convert);
          for (const char *round : INTEGER_ROUNDS) announce("cvt" + (round + options) + a + b, convert);
        }
      for (const char *to : FLOATS)
        for (const char *from : FLOATS) {
          announce("cvt" + options + to + from, convert);
          for (const char *round : FLOAT_ROUNDS) announce("cvt" + (round + options) + to + from, convert);
          for (const char *round : INTEGER_ROUNDS) announce("cvt" + (round + options) + to + from, convert);
        }
    }
  }
  for (const char *relu : {"", ".relu"}) {
    for (const char *finite : {"", ".satfinite"})
      for (const char *round : {".rn", ".rz"}) {
        for (const char *to : {".f16", ".bf16", ".f16x2", ".bf16x2"})
          announce(std::string("cvt") + round + relu + finite + to + ".f32", convert);
        announce(std::string("cvt") + round + finite + relu + ".tf32.f32", convert);
      }
    for (const char *byte : {".e4m3x2", ".e5m2x2"}) {
      announce(std::string("cvt.rn.satfinite") + relu + byte + ".f32", convert);
      announce(std::string("cvt.rn.satfinite") + relu + byte + ".f16x2", convert);
      announce(std::string("cvt.rn") + relu + ".f16x2" + byte, convert);
    }
  }
  announce("cvt.rna.tf32.f32", convert);
  announce("cvt.rna.satfinite.tf32.f32", convert);
}

const bool announced = [] {
  announce_all();
  announce_between<int16_t, int16_t>("16", "16");
  announce_between<int16_t, int32_t>("16", "32");
  announce_between<int16_t, int64_t>("16", "64");
  announce_between<int32_t, int16_t>("32", "16");
  announce_between<int32_t, int32_t>("32", "32");
  announce_between<int32_t, int64_t>("32", "64");
  announce_between<int64_t, int16_t>("64", "16");
  announce_between<int64_t, int32_t>("64", "32");
  announce_between<int64_t, int64_t>("64", "64");
  announce("cvt.rn.f32.s32", quick<int_to_float<int32_t>>);
  announce("cvt.rn.f32.u32", quick<int_to_float<uint32_t>>);
  announce("cvt.rn.f32.s64", quick<int_to_float<int64_t>>);
  announce("cvt.rn.f32.u64", quick<int_to_float<uint64_t>>);
  announce("cvt.f32.f16", quick<widened<F16>>);
  announce("cvt.f32.bf16", quick<widened<BF16>>);
  announce("cvt.rn.f16.f32", quick<narrowed<F16>>);
  announce("cvt.rn.bf16.f32", quick<narrowed<BF16>>);
  announce("cvt.rn.f16x2.f32", quick<narrowed_pair<F16, false>>);
  announce("cvt.rn.bf16x2.f32", quick<narrowed_pair<BF16, false>>);
  announce("cvt.rn.relu.f16x2.f32", quick<narrowed_pair<F16, true>>);
  announce("cvt.rn.relu.bf16x2.f32", quick<narrowed_pair<BF16, true>>);
  return true;
}();

}  // namespace
}  // namespace softgpu
