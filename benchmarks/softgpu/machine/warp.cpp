// Instructions of a warp's lanes among each other: shuffles, votes, matches, reductions, elections, bar.warp.sync.
#include <algorithm>
#include <cmath>
#include <string>
#include "collective.h"

namespace softgpu {

namespace {

std::string name_of_lanes(const Warp &w, Mask lanes) { return name_of(w) + format(" lanes %08x", lanes); }

}  // namespace

bool whole_warp(Warp &w, const Ins &i, Mask m, Step &step) {
  if (!gathered(w, ALL)) {
    step = Step::RETRY;
    return false;
  }
  if (m == ALL) return true;
  if (!w.machine->has("partial warp", i.pc))
    w.machine->add("partial warp", i.pc, name_of_lanes(w, m) + " alone execute, of a whole warp, " + w.machine->where(i.pc));
  for (int32_t k = 0; k < i.num_dst; k++)
    if (i.op[k] >= 0) w.undefined[i.op[k]] |= m;
  step = Step::NEXT;
  return false;
}

uint64_t constant(Warp &w, const Ins &i, size_t operand) {
  const int32_t unit = i.op[operand];
  switch (i.width[operand]) {
  case 0: return w.pred(unit) & 1;
  case 2: return *w.reg<uint16_t>(unit);
  case 4: return *w.reg<uint32_t>(unit);
  default: return *w.reg<uint64_t>(unit);
  }
}

namespace {

// ---- who takes part -------------------------------------------------------------------------------------------------

// Splits the lanes that execute a .sync instruction by their member masks, and calls f(lanes, members) for each: of the
// `lanes` that execute it, `members` are named by their mask. RETRY while living members are elsewhere.
template <class F> Step for_groups(Warp &w, const Ins &i, Mask m, int32_t mask_unit, F f) {
  Machine &machine = *w.machine;
  const Mask *members_of = w.reg<Mask>(mask_unit);
  const int first = __builtin_ctz(m);
  bool same = true;
  SG_FOR_LANES(lane, m) same &= members_of[lane] == members_of[first];
  if (same && !gathered(w, members_of[first])) return Step::RETRY;
  if (!same) {
    SG_FOR_LANES(lane, m) if (!gathered(w, members_of[lane])) return Step::RETRY;
  }
  if (w.undefined[mask_unit] & m && !machine.has("undefined value", i.pc))
    machine.add("undefined value", i.pc,
                name_of_lanes(w, w.undefined[mask_unit] & m) + ": their member mask comes from what nobody wrote, of " +
                    machine.where(i.pc));
  for (Mask left = m; left;) {
    const Mask members = members_of[__builtin_ctz(left)];
    Mask lanes = left;
    if (!same) {
      lanes = 0;
      SG_FOR_LANES(lane, left) if (members_of[lane] == members) lanes |= 1u << lane;
    }
    left &= ~lanes;
    const Mask strangers = lanes & ~members, missing = members & w.alive & ~lanes;
    if ((strangers || missing) && !machine.has("bad member mask", i.pc))
      machine.add("bad member mask", i.pc,
                  name_of_lanes(w, lanes) + format(" name the members %08x, of which lanes %08x do not execute, with them, ",
                                             members, missing) + machine.where(i.pc));
    f(lanes, members & lanes);
  }
  return Step::NEXT;
}

void set_undefined(Warp &w, int32_t unit, Mask lanes, Mask undefined) {
  if (unit >= 0) w.undefined[unit] = (w.undefined[unit] & ~lanes) | (undefined & lanes);
}

void set_pred(Warp &w, int32_t unit, Mask lanes, Mask value) {
  if (unit >= 0) w.pred(unit) = (w.pred(unit) & ~lanes) | (value & lanes);
}

// ---- shuffles -------------------------------------------------------------------------------------------------------

enum class Shuffle { UP, DOWN, BFLY, IDX };

// d{|p}, a, b, c, members. c: the greatest lane (bits 0 to 4) and the bits of a lane's number that it keeps (8 to 12).
template <Shuffle MODE> Step shfl(Warp &w, const Ins &i, Mask m) {
  const int32_t *source = i.op.data() + i.num_dst;
  uint32_t a[LANES];
  std::memcpy(a, w.reg<uint32_t>(source[0]), sizeof a);
  const uint32_t *b = w.reg<uint32_t>(source[1]), *c = w.reg<uint32_t>(source[2]);
  const Mask undefined_a = w.undefined[source[0]], undefined_lane = w.undefined[source[1]] | w.undefined[source[2]];
  const int32_t d = i.op[0], p = i.num_dst > 1 ? i.op[1] : -1;
  uint32_t *out = d < 0 ? nullptr : w.reg<uint32_t>(d);
  return for_groups(w, i, m, source[3], [&](Mask lanes, Mask members) {
    Mask undefined = 0, inside = 0;
    SG_FOR_LANES(lane, lanes) {
      const int keep = c[lane] >> 8 & 31, by = b[lane] & 31;
      const int greatest = (lane & keep) | (c[lane] & 31 & ~keep);
      int from;
      bool valid;
      switch (MODE) {
      case Shuffle::UP: from = lane - by, valid = from >= greatest; break;
      case Shuffle::DOWN: from = lane + by, valid = from <= greatest; break;
      case Shuffle::BFLY: from = lane ^ by, valid = from <= greatest; break;
      case Shuffle::IDX: from = (lane & keep) | (by & ~keep), valid = from <= greatest; break;
      }
      if (!valid) from = lane;
      inside |= Mask(valid) << lane;
      if (out) out[lane] = a[from];
      const bool known = members >> from & 1 && !(undefined_a >> from & 1);
      undefined |= Mask(!known) << lane;
    }
    set_pred(w, p, lanes, inside);
    set_undefined(w, d, lanes, undefined | undefined_lane);
    set_undefined(w, p, lanes, undefined_lane);
  });
}

// ---- votes and matches ----------------------------------------------------------------------------------------------

enum class Vote { ALL_OF, ANY, UNI, BALLOT };

// d, p, members.
template <Vote MODE> Step vote(Warp &w, const Ins &i, Mask m) {
  const Mask p = w.pred(i.op[1]), undefined = w.undefined[i.op[1]];
  const int32_t d = i.op[0];
  return for_groups(w, i, m, i.op[2], [&](Mask lanes, Mask members) {
    const Mask ballot = p & members;
    if (MODE == Vote::BALLOT) {
      uint32_t *out = w.reg<uint32_t>(d);
      SG_FOR_LANES(lane, lanes) out[lane] = ballot;
    } else {
      const bool all = ballot == members, none = !ballot;
      set_pred(w, d, lanes, (MODE == Vote::ALL_OF ? all : MODE == Vote::ANY ? !none : all || none) ? ALL : 0);
    }
    set_undefined(w, d, lanes, undefined & members ? ALL : 0);
  });
}

// match.any: d, a, members. match.all: d{|p}, a, members.
template <class T, bool EVERY> Step match(Warp &w, const Ins &i, Mask m) {
  const int32_t *source = i.op.data() + i.num_dst;
  T a[LANES];
  std::memcpy(a, w.reg<T>(source[0]), sizeof a);
  const Mask undefined = w.undefined[source[0]];
  const int32_t d = i.op[0], p = i.num_dst > 1 ? i.op[1] : -1;
  uint32_t *out = d < 0 ? nullptr : w.reg<uint32_t>(d);
  return for_groups(w, i, m, source[1], [&](Mask lanes, Mask members) {
    Mask agree = 0;
    SG_FOR_LANES(lane, lanes) {
      Mask same = 0;
      SG_FOR_LANES(other, members) same |= Mask(a[other] == a[lane]) << other;
      if (same == members) agree |= 1u << lane;
      if (EVERY && same != members) same = 0;
      if (out) out[lane] = same;
    }
    set_pred(w, p, lanes, agree);
    set_undefined(w, d, lanes, undefined & members ? ALL : 0);
    set_undefined(w, p, lanes, undefined & members ? ALL : 0);
  });
}

Step activemask(Warp &w, const Ins &i, Mask m) {
  uint32_t *out = w.reg<uint32_t>(i.op[0]);
  SG_FOR_LANES(lane, m) out[lane] = m;
  return Step::NEXT;
}

// d|p, members. The ISA promises the same leader for the same members, not which: hardware takes the least, and random
// schedules another.
Step elect(Warp &w, const Ins &i, Mask m) {
  const Machine &machine = *w.machine;
  const bool least = machine.schedule != Schedule::RANDOM && machine.schedule != Schedule::WORST;
  const int32_t d = i.op[0], p = i.num_dst > 1 ? i.op[1] : -1;
  return for_groups(w, i, m, i.op[i.num_dst], [&](Mask lanes, Mask) {
    Mask left = lanes;
    if (!least)
      for (int n = int((machine.seed + 1) * 0x9e3779b97f4a7c15ull % __builtin_popcount(lanes)); n; n--) left &= left - 1;
    const int leader = __builtin_ctz(left);
    if (d >= 0) {
      uint32_t *out = w.reg<uint32_t>(d);
      SG_FOR_LANES(lane, lanes) out[lane] = leader;
    }
    set_pred(w, p, lanes, 1u << leader);
    set_undefined(w, d, lanes, 0);
    set_undefined(w, p, lanes, 0);
  });
}

Step bar_warp_sync(Warp &w, const Ins &i, Mask m) {
  return for_groups(w, i, m, i.op[0], [](Mask, Mask) {});
}

// ---- reductions -----------------------------------------------------------------------------------------------------

struct Add { template <class T> static T of(T a, T b) { return a + b; } };
struct Min { template <class T> static T of(T a, T b) { return std::min(a, b); } };
struct Max { template <class T> static T of(T a, T b) { return std::max(a, b); } };
struct And { template <class T> static T of(T a, T b) { return a & b; } };
struct Or { template <class T> static T of(T a, T b) { return a | b; } };
struct Xor { template <class T> static T of(T a, T b) { return a ^ b; } };

// Minimum or maximum of floats: -0 is less than 0; NaNs are passed over, or (NAN_WINS) are the result.
template <bool GREATEST, bool ABSOLUTE, bool NAN_WINS> struct Extreme {
  static uint32_t of(uint32_t a, uint32_t b) {
    if (ABSOLUTE) a &= 0x7fffffff, b &= 0x7fffffff;
    const auto is_nan = [](uint32_t x) { return (x & 0x7fffffff) > 0x7f800000; };
    if (is_nan(a) || is_nan(b)) return NAN_WINS || (is_nan(a) && is_nan(b)) ? 0x7fffffff : is_nan(a) ? b : a;
    const auto order = [](uint32_t x) { return x >> 31 ? ~x : x | 0x80000000; };
    return (order(a) > order(b)) == GREATEST ? a : b;
  }
};

// d, a, members.
template <class T, class Op> Step redux(Warp &w, const Ins &i, Mask m) {
  T a[LANES];
  std::memcpy(a, w.reg<T>(i.op[1]), sizeof a);
  const Mask undefined = w.undefined[i.op[1]];
  return for_groups(w, i, m, i.op[2], [&](Mask lanes, Mask members) {
    if (!members) return set_undefined(w, i.op[0], lanes, ALL);
    const int first = __builtin_ctz(members);
    T result = a[first];
    // The first is taken twice where that changes nothing but its form: a single member's NaN or sign.
    if constexpr (!std::is_same_v<Op, Add> && !std::is_same_v<Op, Xor>) result = Op::of(result, result);
    SG_FOR_LANES(lane, members & ~(1u << first)) result = Op::of(result, a[lane]);
    T *out = w.reg<T>(i.op[0]);
    SG_FOR_LANES(lane, lanes) out[lane] = result;
    set_undefined(w, i.op[0], lanes, undefined & members ? ALL : 0);
  });
}

const bool announced = [] {
  const auto on = [](const char *key, Handler run, uint32_t flags = OWN_TAINT | SYNCS) { announce(key, run, flags); };
  on("shfl.sync.up.b32", shfl<Shuffle::UP>), on("shfl.sync.down.b32", shfl<Shuffle::DOWN>);
  on("shfl.sync.bfly.b32", shfl<Shuffle::BFLY>), on("shfl.sync.idx.b32", shfl<Shuffle::IDX>);
  on("vote.sync.all.pred", vote<Vote::ALL_OF>), on("vote.sync.any.pred", vote<Vote::ANY>);
  on("vote.sync.uni.pred", vote<Vote::UNI>), on("vote.sync.ballot.b32", vote<Vote::BALLOT>);
  on("match.any.sync.b32", match<uint32_t, false>), on("match.any.sync.b64", match<uint64_t, false>);
  on("match.all.sync.b32", match<uint32_t, true>), on("match.all.sync.b64", match<uint64_t, true>);
  on("activemask.b32", activemask, PLAIN);
  on("elect.sync", elect);
  on("bar.warp.sync", bar_warp_sync), on("barrier.warp.sync", bar_warp_sync);
  on("redux.sync.add.u32", redux<uint32_t, Add>), on("redux.sync.add.s32", redux<uint32_t, Add>);
  on("redux.sync.min.u32", redux<uint32_t, Min>), on("redux.sync.min.s32", redux<int32_t, Min>);
  on("redux.sync.max.u32", redux<uint32_t, Max>), on("redux.sync.max.s32", redux<int32_t, Max>);
  on("redux.sync.and.b32", redux<uint32_t, And>), on("redux.sync.or.b32", redux<uint32_t, Or>);
  on("redux.sync.xor.b32", redux<uint32_t, Xor>);
  on("redux.sync.min.f32", redux<uint32_t, Extreme<false, false, false>>);
  on("redux.sync.max.f32", redux<uint32_t, Extreme<true, false, false>>);
  on("redux.sync.min.abs.f32", redux<uint32_t, Extreme<false, true, false>>);
  on("redux.sync.max.abs.f32", redux<uint32_t, Extreme<true, true, false>>);
  on("redux.sync.min.NaN.f32", redux<uint32_t, Extreme<false, false, true>>);
  on("redux.sync.max.NaN.f32", redux<uint32_t, Extreme<true, false, true>>);
  on("redux.sync.min.abs.NaN.f32", redux<uint32_t, Extreme<false, true, true>>);
  on("redux.sync.max.abs.NaN.f32", redux<uint32_t, Extreme<true, true, true>>);
  return true;
}();

}  // namespace
}  // namespace softgpu
