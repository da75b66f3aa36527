// Addresses: spaces and their windows, what a lane's address leads to, cvta, isspacep.
#include <cstdlib>
#include "access.h"

namespace softgpu {

namespace {

constexpr uint64_t WINDOWS = SHARED_WINDOW | PARAM_WINDOW | LOCAL_WINDOW;

Where window_of(uint64_t generic) {
  if (generic & LOCAL_WINDOW) return Where::LOCAL;
  if (generic & PARAM_WINDOW) return Where::PARAM;
  if (generic & SHARED_WINDOW) return Where::CLUSTER;
  return Where::GLOBAL;
}

// Memory of .local variables: each thread's own, all of it poisoned until it is stored.
struct Local {
  std::vector<uint8_t> written;  // for each byte of Warp::local
};

}  // namespace

Modifiers modifiers(const std::string &key) {
  Modifiers m;
  bool strong = false;
  for (size_t from = key.find('.'); from != std::string::npos;) {
    const size_t to = key.find('.', from + 1);
    const std::string word = key.substr(from + 1, to == std::string::npos ? to : to - from - 1);
    if (word == "global") m.where = Where::GLOBAL;
    if (word == "shared" || word == "shared::cta") m.where = Where::SHARED;
    if (word == "shared::cluster") m.where = Where::CLUSTER;
    if (word == "local") m.where = Where::LOCAL;
    if (word == "param") m.where = Where::PARAM;
    if (word == "cta") m.scope = Scope::CTA;
    if (word == "cluster") m.scope = Scope::CLUSTER;
    if (word == "gpu" || word == "sys") m.scope = Scope::GPU;
    if (word == "acquire" || word == "acq_rel") m.acquire = true;
    if (word == "release" || word == "acq_rel") m.release = true;
    strong |= word == "volatile" || word == "relaxed" || word == "acquire" || word == "release" || word == "acq_rel" ||
              word == "mmio";
    from = to;
  }
  if (strong && m.scope == Scope::WEAK) m.scope = Scope::GPU;
  return m;
}

Addresses addresses(Warp &w, const Ins &i, Mask m, int operand, int64_t offset) {
  Addresses a;
  const int32_t unit = i.op[operand];
  if (i.width[operand] == 8) {
    const uint64_t *r = w.reg<uint64_t>(unit);
    for (int lane = 0; lane < LANES; lane++) a.at[lane] = r[lane] + uint64_t(offset);
  } else {
    const uint32_t *r = w.reg<uint32_t>(unit);
    for (int lane = 0; lane < LANES; lane++) a.at[lane] = uint32_t(r[lane] + uint32_t(offset));
  }
  const Mask undefined = w.undefined[unit] & m;
  a.defined = m & ~undefined;
  if (undefined && !w.machine->has("undefined value", i.pc))
    w.machine->add("undefined value", i.pc,
                   name_of(w, __builtin_ctz(undefined)) + ": an address comes from what nobody wrote, in " +
                       w.machine->where(i.pc));
  return a;
}

Location locate(Warp &w, Where where, uint64_t address) {
  if (where == Where::GENERIC) {
    where = window_of(address);
    if (where != Where::GLOBAL) address &= ~WINDOWS;
  }
  if (where != Where::SHARED && where != Where::CLUSTER) return {where, w.cta, address};
  const uint64_t rank = address >> RANK_SHIFT;
  Cta *owner = w.cta;
  if (rank && rank <= w.cta->cluster.size() && (where == Where::CLUSTER || w.cta->cluster[rank - 1] == w.cta)) {
    owner = w.cta->cluster[rank - 1];
    address &= (1u << RANK_SHIFT) - 1;
  }
  return {Where::SHARED, owner, address};
}

uint64_t unique_address(const Location &l) {
  return l.where == Where::SHARED ? SHARED_WINDOW | uint64_t(l.owner->linear + 1) << RANK_SHIFT | l.at : l.at;
}

namespace {

uint8_t *touch_local(Warp &w, const Agent &who, uint64_t at, uint32_t bytes, Kind kind, bool &undefined) {
  Machine &m = *w.machine;
  const uint64_t size = uint64_t(m.program->local_bytes);
  if (at > size || bytes > size - at || at & (bytes - 1)) {
    const char *what = at & (bytes - 1) ? "misaligned" : "out of bounds";
    if (!m.has(what, who.pc))
      m.add(what, who.pc,
            name_of(who) +
                format(": %u bytes at 0x%llx of %llu of local memory, by ", bytes, static_cast<unsigned long long>(at),
                       static_cast<unsigned long long>(size)) +
                m.where(who.pc));
    return nullptr;
  }
  if (!w.locals) {
    auto local = std::make_shared<Local>();
    local->written.assign(w.local.size(), false);
    w.locals = local;
  }
  uint8_t *written = static_cast<Local *>(w.locals.get())->written.data() + size * who.lane + at;
  for (uint32_t k = 0; k < bytes; k++) {
    if (writes(kind)) written[k] = !undefined;
    undefined |= !written[k];
  }
  return w.local.data() + size * who.lane + at;
}

uint8_t *touch_param(Warp &w, const Agent &who, uint64_t at, uint32_t bytes, Kind kind) {
  Machine &m = *w.machine;
  if (!writes(kind) && at <= m.params.size() && bytes <= m.params.size() - at) return m.params.data() + at;
  if (!m.has("out of bounds", who.pc))
    m.add("out of bounds", who.pc,
          name_of(who) + format(": %u bytes at 0x%llx of %zu of parameters, by ", bytes,
                                static_cast<unsigned long long>(at), m.params.size()) + m.where(who.pc));
  return nullptr;
}

}  // namespace

uint8_t *touch(Warp &w, const Agent &who, const Location &l, uint32_t bytes, Kind kind, bool &undefined,
               const uint8_t *value) {
  switch (l.where) {
  case Where::GLOBAL: return global_access(*w.machine, who, l.at, bytes, bytes, kind, value);
  case Where::SHARED: {
    if (!l.owner->living && !w.machine->has("memory of a CTA that has ended", who.pc))
      w.machine->add("memory of a CTA that has ended", who.pc,
                     name_of(who) + format(": CTA %u has ended, and its shared memory with it; ", l.owner->linear) +
                         w.machine->where(who.pc));
    const uint32_t at = l.at > UINT32_MAX ? UINT32_MAX & ~(bytes - 1) : uint32_t(l.at);  // beyond all shared memory
    return shared_access(*l.owner, who, at, bytes, bytes, kind, undefined, value);
  }
  case Where::LOCAL: return touch_local(w, who, l.at, bytes, kind, undefined);
  default: return touch_param(w, who, l.at, bytes, kind);
  }
}

// ---- cvta, isspacep --------------------------------------------------------------------------------------------------

namespace {

// cvta{.to}.space.size d, a.
template <uint64_t WINDOW, bool TO> Step convert_address(Warp &w, const Ins &i, Mask m) {
  const auto move = [&](auto *d, const auto *a) {
    SG_FOR_LANES(lane, m) {
      const uint64_t from = uint64_t(a[lane]);
      d[lane] = static_cast<std::remove_reference_t<decltype(d[0])>>(TO ? from & ~WINDOW : from | WINDOW);
    }
  };
  if (i.width[0] == 8 && i.width[1] == 8) move(w.reg<uint64_t>(i.op[0]), w.reg<uint64_t>(i.op[1]));
  else if (i.width[0] == 8) move(w.reg<uint64_t>(i.op[0]), w.reg<uint32_t>(i.op[1]));
  else if (i.width[1] == 8) move(w.reg<uint32_t>(i.op[0]), w.reg<uint64_t>(i.op[1]));
  else move(w.reg<uint32_t>(i.op[0]), w.reg<uint32_t>(i.op[1]));
  return Step::NEXT;
}

// isspacep.space p, a.
template <Where WHERE> Step is_space(Warp &w, const Ins &i, Mask m) {
  Mask &p = w.pred(i.op[0]);
  const uint64_t *a = w.reg<uint64_t>(i.op[1]);
  SG_FOR_LANES(lane, m) {
    const Where where = window_of(a[lane]);
    const bool own = where == Where::CLUSTER && locate(w, Where::GENERIC, a[lane]).owner == w.cta;
    const bool is = WHERE == Where::SHARED ? own : where == WHERE;
    p = (p & ~(1u << lane)) | Mask(is) << lane;
  }
  return Step::NEXT;
}

template <uint64_t WINDOW> void announce_conversions(const std::string &space) {
  for (const char *size : {".u64", ".u32"}) {
    announce("cvta" + space + size, convert_address<WINDOW, false>);
    announce("cvta.to" + space + size, convert_address<WINDOW, true>);
  }
}

const bool announced = [] {
  announce_conversions<0>(".global");
  announce_conversions<0>(".const");
  announce_conversions<SHARED_WINDOW>(".shared");
  announce_conversions<SHARED_WINDOW>(".shared::cta");
  announce_conversions<SHARED_WINDOW>(".shared::cluster");
  announce_conversions<LOCAL_WINDOW>(".local");
  announce_conversions<PARAM_WINDOW>(".param");
  announce_conversions<PARAM_WINDOW>(".param::entry");
  announce("isspacep.global", is_space<Where::GLOBAL>);
  announce("isspacep.shared", is_space<Where::SHARED>);
  announce("isspacep.shared::cta", is_space<Where::SHARED>);
  announce("isspacep.shared::cluster", is_space<Where::CLUSTER>);
  announce("isspacep.local", is_space<Where::LOCAL>);
  announce("isspacep.param", is_space<Where::PARAM>);
  announce("isspacep.param::entry", is_space<Where::PARAM>);
  return true;
}();

}  // namespace
}  // namespace softgpu
