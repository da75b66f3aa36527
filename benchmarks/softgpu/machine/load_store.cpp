// Loads and stores of threads, in every space: ld, st; and what only hints: prefetch, discard, applypriority,
// createpolicy.
#include "access.h"

namespace softgpu {

namespace {

struct Form {
  Where where;
  uint32_t size;  // bytes of an element
  bool is_signed, is_strong;
};

// ---- elements and registers ------------------------------------------------------------------------------------------

template <class Register, class Element>
void spread_as(Warp &w, int32_t unit, Mask m, uint8_t *const *from, uint32_t offset) {
  Register *d = w.reg<Register>(unit);
  SG_FOR_LANES(lane, m) {
    Element e;
    std::memcpy(&e, from[lane] + offset, sizeof e);
    d[lane] = Register(e);
  }
}

template <class Element>
void spread_into(Warp &w, int32_t unit, uint32_t width, Mask m, uint8_t *const *from, uint32_t offset) {
  if (width == 2) spread_as<uint16_t, Element>(w, unit, m, from, offset);
  else if (width == 4) spread_as<uint32_t, Element>(w, unit, m, from, offset);
  else spread_as<uint64_t, Element>(w, unit, m, from, offset);
}

// Registers of `width` bytes from elements at from[lane] + offset, extended by the element's sign or by zeros.
void spread(Warp &w, int32_t unit, uint32_t width, const Form &f, Mask m, uint8_t *const *from, uint32_t offset) {
  switch (f.size) {
  case 1:
    f.is_signed ? spread_into<int8_t>(w, unit, width, m, from, offset)
                : spread_into<uint8_t>(w, unit, width, m, from, offset);
    break;
  case 2:
    f.is_signed ? spread_into<int16_t>(w, unit, width, m, from, offset)
                : spread_into<uint16_t>(w, unit, width, m, from, offset);
    break;
  case 4:
    f.is_signed ? spread_into<int32_t>(w, unit, width, m, from, offset)
                : spread_into<uint32_t>(w, unit, width, m, from, offset);
    break;
  case 8: spread_into<uint64_t>(w, unit, width, m, from, offset); break;
  default: SG_FOR_LANES(lane, m) std::memcpy(w.reg<uint8_t>(unit) + size_t(lane) * width, from[lane] + offset, width);
  }
}

template <class Element> void gather_as(Warp &w, int32_t unit, uint32_t width, Mask m, Values &v, uint32_t offset) {
  const uint8_t *r = w.reg<uint8_t>(unit);
  SG_FOR_LANES(lane, m) std::memcpy(v.of[lane] + offset, r + size_t(lane) * width, sizeof(Element));
}

// The low `size` bytes of registers of `width` bytes.
void gather(Warp &w, int32_t unit, uint32_t width, uint32_t size, Mask m, Values &v, uint32_t offset) {
  switch (size) {
  case 1: gather_as<uint8_t>(w, unit, width, m, v, offset); break;
  case 2: gather_as<uint16_t>(w, unit, width, m, v, offset); break;
  case 4: gather_as<uint32_t>(w, unit, width, m, v, offset); break;
  case 8: gather_as<uint64_t>(w, unit, width, m, v, offset); break;
  default: gather_as<std::pair<uint64_t, uint64_t>>(w, unit, width, m, v, offset);
  }
}

// The one space that all of the lanes' addresses lead to; GENERIC if they differ or belong to several CTAs.
Where common_space(Warp &w, const Location *at, Mask m) {
  if (!m) return Where::GENERIC;
  const Where where = at[__builtin_ctz(m)].where;
  SG_FOR_LANES(lane, m) if (at[lane].where != where || at[lane].owner != w.cta) return Where::GENERIC;
  return where;
}

// ---- ld --------------------------------------------------------------------------------------------------------------

// May a whole warp be served at once? By global memory always, by shared memory if all of it is the own CTA's.
Where place_of_all(const Form &f, const Addresses &a) {
  if (f.where != Where::SHARED) return f.where == Where::GLOBAL ? Where::GLOBAL : Where::GENERIC;
  uint64_t all = 0;
  SG_FOR_LANES(lane, a.defined) all |= a.at[lane];
  return all >> RANK_SHIFT ? Where::GENERIC : Where::SHARED;
}

// Where the bytes of each lane are; returns the lanes that may read them, and in `tainted` those that read what was
// computed from what nobody wrote.
Mask find_bytes(Warp &w, const Ins &i, const Form &f, Kind kind, const Addresses &a, uint32_t bytes, uint8_t **from,
                Mask &tainted) {
  Where where = place_of_all(f, a);
  Mask good = a.defined;
  if (where == Where::GLOBAL) {
    good = global_request(*w.machine, agent(w, i, 0), a.defined, a.at, bytes, kind, nullptr, from);
  } else if (where == Where::SHARED) {
    good = shared_request(*w.cta, agent(w, i, 0), a.defined, a.at, bytes, kind, tainted, nullptr, from);
  } else {
    Location at[LANES];
    SG_FOR_LANES(lane, a.defined) {
      at[lane] = locate(w, f.where, a.at[lane]);
      bool undefined = false;
      if (!(from[lane] = touch(w, agent(w, i, lane), at[lane], bytes, kind, undefined, nullptr))) good &= ~(1u << lane);
      if (undefined) tainted |= 1u << lane;
    }
    where = common_space(w, at, a.defined);
  }
  count_traffic(w, i, a.defined, where, a.at, bytes);
  return good;
}

void learn(Warp &w, const Modifiers &how, const Location &at) {
  if (how.acquire)
    acquire_from(w, unique_address(at));
  else
    relaxed_read(w, unique_address(at));
}

Step load(Warp &w, const Ins &i, Mask m, const Form &f) {
  const int n = i.num_dst;
  const uint32_t bytes = uint32_t(n) * f.size;
  const Modifiers how = f.is_strong ? modifiers(i.key) : Modifiers();
  const Addresses a = addresses(w, i, m, n, i.imm.empty() ? 0 : i.imm[0]);
  uint8_t *from[LANES];
  Mask tainted = 0;
  const Mask good = find_bytes(w, i, f, kind_of(false, how.scope), a, bytes, from, tainted);
  if (f.is_strong) SG_FOR_LANES(lane, good) learn(w, how, locate(w, f.where, a.at[lane]));
  for (int k = 0; k < n; k++) {
    if (i.op[k] < 0) continue;
    spread(w, i.op[k], i.width[k], f, good, from, uint32_t(k) * f.size);
    Mask &undefined = w.undefined[i.op[k]];
    undefined = (undefined & ~m) | (m & ~good) | tainted;
  }
  return Step::NEXT;
}

// ld.param: the operands are destinations only, and the place is the same for all.
Step load_param(Warp &w, const Ins &i, Mask m, const Form &f) {
  std::vector<uint8_t> &params = w.machine->params;
  const uint64_t at = uint64_t(i.imm[0]);
  if (at + i.num_dst * f.size > params.size()) {
    w.machine->add("out of bounds", i.pc,
                   format("a parameter at byte %llu of %zu: ", static_cast<unsigned long long>(at), params.size()) +
                       w.machine->where(i.pc));
    return Step::STOP;
  }
  uint8_t *from[LANES];
  std::fill(from, from + LANES, params.data() + at);
  for (int k = 0; k < i.num_dst; k++) {
    if (i.op[k] < 0) continue;
    spread(w, i.op[k], i.width[k], f, m, from, uint32_t(k) * f.size);
    w.undefined[i.op[k]] &= ~m;
  }
  return Step::NEXT;
}

// ---- st --------------------------------------------------------------------------------------------------------------

// Stores a lane's value; where some of its elements alone are undefined, one by one.
void store_lane(Warp &w, const Agent &who, const Location &at, const Form &f, uint32_t n, Kind kind,
                const uint8_t *value, const Mask *undefined) {
  const Mask bit = 1u << who.lane;
  uint32_t num_undefined = 0;
  for (uint32_t k = 0; k < n; k++) num_undefined += (undefined[k] & bit) != 0;
  const bool apart = num_undefined && num_undefined < n;
  const uint32_t count = apart ? n : 1, bytes = apart ? f.size : n * f.size;
  for (uint32_t k = 0; k < count; k++) {
    bool tainted = (undefined[k] & bit) != 0;
    uint8_t *to = touch(w, who, {at.where, at.owner, at.at + k * bytes}, bytes, kind, tainted, value + k * bytes);
    if (!to) return;
    std::memcpy(to, value + k * bytes, bytes);
  }
}

// Lane by lane: strong stores, those of any space, and where a part of a vector is undefined. Returns the lanes' space.
Where store_each(Warp &w, const Ins &i, const Form &f, const Modifiers &how, uint32_t n, const Addresses &a,
                 const Values &values, const Mask *undefined) {
  Location at[LANES];
  Mask bad = 0;
  SG_FOR_LANES(lane, a.defined) {
    at[lane] = locate(w, f.where, a.at[lane]);
    const Agent who = agent(w, i, lane);
    if (f.is_strong) how.release ? release_to(w, unique_address(at[lane])) : relaxed_write(w, unique_address(at[lane]));
    store_lane(w, who, at[lane], f, n, kind_of(true, how.scope), values.of[lane], undefined);
    for (uint32_t k = 0; k < n && at[lane].where == Where::GLOBAL; k++) bad |= undefined[k] & 1u << lane;
  }
  if (bad) report_undefined_store(w, i, bad);
  if (f.is_strong) w.machine->happened();
  return common_space(w, at, a.defined);
}

Step store(Warp &w, const Ins &i, Mask m, const Form &f) {
  const uint32_t n = uint32_t(i.op.size()) - 1, bytes = n * f.size;
  const Modifiers how = f.is_strong ? modifiers(i.key) : Modifiers();
  const Addresses a = addresses(w, i, m, 0, i.imm.empty() ? 0 : i.imm[0]);
  Values values;
  Mask undefined[MOST_BYTES] = {}, any_undefined = 0;
  for (uint32_t k = 0; k < n; k++) {
    gather(w, i.op[k + 1], i.width[k + 1], f.size, m, values, k * f.size);
    undefined[k] = w.undefined[i.op[k + 1]] & a.defined;
    any_undefined |= undefined[k];
  }
  Where where = place_of_all(f, a);
  const bool apart = any_undefined && n > 1;
  uint8_t *to[LANES];
  if (f.is_strong || apart || where == Where::GENERIC) {
    where = store_each(w, i, f, how, n, a, values, undefined);
  } else if (where == Where::GLOBAL) {
    global_request(*w.machine, agent(w, i, 0), a.defined, a.at, bytes, kind_of(true), &values, to);
    if (any_undefined) report_undefined_store(w, i, any_undefined);
  } else {
    shared_request(*w.cta, agent(w, i, 0), a.defined, a.at, bytes, kind_of(true), any_undefined, &values, to);
  }
  count_traffic(w, i, a.defined, where, a.at, bytes);
  return Step::NEXT;
}

// ---- announcements ---------------------------------------------------------------------------------------------------

template <Where WHERE, uint32_t SIZE, bool SIGNED, bool STRONG> Step on_load(Warp &w, const Ins &i, Mask m) {
  constexpr Form form = {WHERE, SIZE, SIGNED, STRONG};
  if (WHERE == Where::PARAM && i.op.size() == size_t(i.num_dst)) return load_param(w, i, m, form);
  return load(w, i, m, form);
}

template <Where WHERE, uint32_t SIZE, bool STRONG> Step on_store(Warp &w, const Ins &i, Mask m) {
  constexpr Form form = {WHERE, SIZE, false, STRONG};
  return store(w, i, m, form);
}

const std::vector<std::string> STRONG = [] {
  std::vector<std::string> all = {".volatile", ".mmio.relaxed.sys"};
  for (const char *order : {".relaxed", ".acquire", ".release"})
    for (const char *scope : {".cta", ".cluster", ".gpu", ".sys"}) all.push_back(std::string(order) + scope);
  return all;
}();

template <Where WHERE, uint32_t SIZE>
void announce_size(const std::string &space, const std::vector<const char *> &unsigned_types, const char *signed_type) {
  for (const char *vector : {"", ".v2", ".v4", ".v8"}) {
    const auto both = [&](const std::string &type, bool is_signed) {
      const auto add = [&](const std::string &head, bool strong) {
        const std::string key = head + vector + type;
        if (key.rfind("st", 0) == 0)
          announce(key, strong ? on_store<WHERE, SIZE, true> : on_store<WHERE, SIZE, false>, OWN_TAINT);
        else if (is_signed)
          announce(key, strong ? on_load<WHERE, SIZE, true, true> : on_load<WHERE, SIZE, true, false>,
                   OWN_TAINT);
        else
          announce(key, strong ? on_load<WHERE, SIZE, false, true> : on_load<WHERE, SIZE, false, false>,
                   OWN_TAINT);
      };
      add("ld" + space, false), add("ld.weak" + space, false);
      if (WHERE == Where::PARAM) return;
      add("st" + space, false), add("st.weak" + space, false);
      if (WHERE == Where::GLOBAL) add("ld" + space + ".nc", false), add("ldu" + space, false);
      for (const std::string &order : STRONG) {
        if (order.rfind(".release", 0)) add("ld" + order + space, true), add("ld" + space + order, true);
        if (order.rfind(".acquire", 0)) add("st" + order + space, true), add("st" + space + order, true);
      }
    };
    for (const char *type : unsigned_types) both(type, false);
    if (signed_type) both(signed_type, true);
  }
}

template <Where WHERE> void announce_space(const std::string &space) {
  announce_size<WHERE, 1>(space, {".b8", ".u8"}, ".s8");
  announce_size<WHERE, 2>(space, {".b16", ".u16", ".f16", ".bf16"}, ".s16");
  announce_size<WHERE, 4>(space, {".b32", ".u32", ".f32"}, ".s32");
  announce_size<WHERE, 8>(space, {".b64", ".u64", ".f64", ".s64"}, nullptr);
  announce_size<WHERE, 16>(space, {".b128"}, nullptr);
}

// A policy only hints at what to keep in caches: any value does.
Step make_policy(Warp &w, const Ins &i, Mask m) {
  SG_FOR_LANES(lane, m) w.reg<uint64_t>(i.op[0])[lane] = 0;
  w.undefined[i.op[0]] &= ~m;
  return Step::NEXT;
}

const bool announced = [] {
  announce_space<Where::GENERIC>("");
  announce_space<Where::GLOBAL>(".global");
  announce_space<Where::SHARED>(".shared");
  announce_space<Where::SHARED>(".shared::cta");
  announce_space<Where::CLUSTER>(".shared::cluster");
  announce_space<Where::LOCAL>(".local");
  announce_space<Where::PARAM>(".param");
  announce_space<Where::PARAM>(".param::entry");
  for (const char *hint : {"prefetch", "prefetchu", "discard", "applypriority"})
    for (const char *space : {"", ".global", ".local"})
      for (const char *level : {"", ".L1", ".L2", ".L2::evict_normal", ".L2::evict_last"})
        announce(std::string(hint) + space + level, nothing, OWN_TAINT);
  for (const char *policy : {"createpolicy.fractional.b64", "createpolicy.range.b64", "createpolicy.range.global.b64",
                             "createpolicy.cvt.b64", "createpolicy.fractional.L2::evict_first.b64",
                             "createpolicy.fractional.L2::evict_last.b64",
                             "createpolicy.fractional.L2::evict_normal.b64", "createpolicy.cvt.L2.b64"})
    announce(policy, make_policy, OWN_TAINT);
  return true;
}();

}  // namespace

void report_undefined_store(Warp &w, const Ins &i, Mask undefined) {
  if (!w.machine->check || w.machine->has("undefined value", i.pc)) return;
  w.machine->add("undefined value", i.pc,
                 name_of(w, __builtin_ctz(undefined)) + " stores to global memory what comes from what nobody wrote, by " +
                     w.machine->where(i.pc));
}

}  // namespace softgpu
