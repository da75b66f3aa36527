// Accesses to shared memory: bounds, races, copies in flight, what nobody wrote, taint, proxies, mbarriers' objects.
#include "shared_space.h"

namespace softgpu {

namespace {

Mark &mark(Space &s, uint32_t cell) { return *reinterpret_cast<Mark *>(s.cell(cell)); }

uint8_t *refuse(Cta &owner, const Agent &who, uint64_t at, uint32_t bytes, uint32_t alignment, Kind kind) {
  Machine &m = *owner.machine;
  const uint32_t size = uint32_t(owner.shared->bytes.size());
  const bool outside = at + bytes > size;
  const char *what = outside ? "out of bounds" : "misaligned";
  if (m.has(what, who.pc)) return nullptr;
  std::string text = name_of(who) + (writes(kind) ? " writes " : " reads ") +
                     format("%u bytes of shared memory at 0x%llx by ", bytes, static_cast<unsigned long long>(at)) +
                     m.where(who.pc) + "; ";
  text += outside ? format("it has 0x%x bytes", size) : format("no multiple of %u", alignment);
  m.add(what, who.pc, text);
  return nullptr;
}

// Accesses of one kind by one agent, cell by cell.
struct Visit {
  Cta &owner;
  Space &space;
  Machine &m;
  const Agent &who;
  const Kind kind;
  const uint32_t me;       // the agent's number in the cluster
  const bool by_warp, by_async;
  const uint32_t own_limit;  // a warp's lanes know each other's accesses up to the clock before
  int slot = -1;             // made when it is first needed
  const uint8_t *value = nullptr;  // of the access that runs, which starts at `start`
  uint32_t start = 0;
  bool undefined = false;  // the value stored; or (a read) found

  Visit(Cta &cta, const Agent &agent, Kind access)
      : owner(cta), space(*cta.shared), m(*cta.machine), who(agent), kind(access),
        me(agent.cta->rank * COLUMNS + agent.column), by_warp(agent.column < WGMMA_COLUMN),
        by_async(agent.proxy == Proxy::ASYNC), own_limit(by_warp ? agent.clock - 1 : known(me)) {}

  uint32_t known(uint32_t agent) const { return agent < who.view->known.size() ? who.view->known[agent] : 0; }
  uint32_t proxied(uint32_t agent) const { return agent < who.view->proxied.size() ? who.view->proxied[agent] : 0; }
  uint32_t limit(uint32_t agent) const { return agent == me ? own_limit : known(agent); }
  uint32_t *clocks(Mark &c) const { return reinterpret_cast<uint32_t *>(&c) + MARK_WORDS; }
  uint32_t *infos(Mark &c) const { return clocks(c) + space.stride; }

  std::string place(uint32_t at) const { return format("shared memory 0x%x of CTA %u", at, owner.linear); }

  Stamp stamp(uint32_t agent, uint32_t clock, int lane, Proxy proxy, int32_t pc) const {
    return {clock, owner.cluster[agent / COLUMNS]->linear + 1, int16_t(agent % COLUMNS), int8_t(lane), proxy, pc};
  }
  Stamp stamp(const Mark &c) const {
    return stamp(c.agent, c.clock, c.lane, c.flags & BY_ASYNC ? Proxy::ASYNC : Proxy::GENERIC, c.pc);
  }
  Stamp stamp(Mark &c, size_t k) const {
    const uint32_t info = infos(c)[k], agent = space.slots[k].agent;
    const Proxy proxy = agent % COLUMNS < WGMMA_COLUMN ? Proxy::GENERIC : Proxy::ASYNC;
    return stamp(agent, clocks(c)[k], int(info & LANE_BITS), proxy, int32_t(info >> PC_SHIFT));
  }

  // An agent's own operation meets itself where it touches a place twice.
  bool same_operation(const Stamp &s) const {
    return !by_warp && s.cta == who.cta->linear + 1 && s.column == who.column && s.clock == who.clock;
  }

  void check_mark(Mark &c, uint32_t at) {
    const Stamp before = stamp(c);
    if (same_operation(before)) return;
    if (c.agent == me && by_warp && c.lane != who.lane && c.step == uint32_t(m.steps)) {
      report_conflict(m, c.lane, who, [&] { return place(at); });
      return;
    }
    if (!ordered(before, who)) {
      report_pair(m, before, true, who, writes(kind), false, [&] { return place(at); });
    } else if (by_async && !visible_to_async(before, who)) {
      report_pair(m, before, true, who, writes(kind), true, [&] { return place(at); });
    }
  }

  // `same_value`: this is a store of what is there already. It needs no order with other stores that changed nothing.
  void check_slots(Mark &c, uint32_t at, bool same_value = false) {
    for (size_t k = 0; k < space.slots.size(); k++) {
      const auto slot_k = space.slots[k];
      const bool stored = slot_k.kind == kind_of(true);
      const uint32_t clock = clocks(c)[k];
      if (!clock || (stored && same_value)) continue;
      const bool unseen = by_async && stored && clock > proxied(slot_k.agent);
      if (clock <= limit(slot_k.agent) && !unseen) continue;
      if (!need_order(slot_k.kind, kind, slot_k.agent / COLUMNS == me / COLUMNS, true)) continue;
      const Stamp before = stamp(c, k);
      if (same_operation(before)) continue;
      if (ordered(before, who)) {
        if (unseen && !visible_to_async(before, who))
          report_pair(m, before, true, who, writes(kind), true, [&] { return place(at); });
      } else if (stored && by_warp && slot_k.agent == me && before.pc == who.pc) {
        report_conflict(m, before.lane, who, [&] { return place(at); });
      } else {
        report_pair(m, before, writes(slot_k.kind), who, writes(kind), false, [&] { return place(at); });
      }
    }
  }

  // The clocks alone say whether the accesses since the last write are well; true if they are worth a closer look.
  bool suspicious_slots(Mark &c) {
    if (c.flags & WRITTEN_SINCE) return true;
    const uint32_t *clock = clocks(c), *known_of = limits();
    bool unknown = false;
    for (size_t k = 0; k < space.slots.size(); k++) unknown |= clock[k] > known_of[k];
    return unknown;
  }

  // The mark alone says whether a weak read is well; true if it is worth a closer look.
  bool suspicious(const Mark &c) const {
    if (c.clock > limit(c.agent)) return true;
    return by_async && !(c.flags & BY_ASYNC) && c.clock > proxied(c.agent);
  }

  void note(uint32_t cell) {
    if (slot < 0) slot = space.slot(me, kind);  // may move all cells
    Mark &c = mark(space, cell);
    c.flags |= writes(kind) ? WRITTEN_SINCE : 0;
    uint32_t &clock = clocks(c)[slot], &info = infos(c)[slot];
    uint32_t lane = uint32_t(who.lane);
    if (clock == who.clock && (info & LANE_BITS) != lane) lane = SEVERAL;
    info = uint32_t(who.pc) << PC_SHIFT | lane;
    clock = who.clock;
  }

  // What is in flight, or an mbarrier, is nobody's; true if it was reported.
  bool report_foreign(const Mark &c, uint32_t at) {
    const char *verb = writes(kind) ? "writes" : "reads";
    if (c.flags & IN_FLIGHT) {
      if (!m.has("in flight", who.pc, c.pc))
        m.add("in flight", who.pc,
              place(at) + ": " + name_of(who) + " " + verb + " by " + m.where(who.pc) +
                  " what the asynchronous copy of " + name_of(stamp(c)) + ", " + m.where(c.pc) +
                  ", still writes: nothing waited for it",
              c.pc);
      return true;
    }
    if (c.flags & OBJECT) {
      auto object = space.objects.upper_bound(at);
      const int32_t pc = object == space.objects.begin() ? -1 : std::prev(object)->second.pc;
      if (!m.has("mbarrier object", who.pc, pc))
        m.add("mbarrier object", who.pc,
              place(at) + ": " + name_of(who) + " " + verb + " by " + m.where(who.pc) +
                  " an mbarrier that lives there since " + m.where(pc),
              pc);
      return true;
    }
    return false;
  }

  void look_closer(const Mark &c, uint32_t at, uint32_t bytes) {
    if (c.flags & TAINTED)
      for (uint32_t k = at; k < at + bytes; k++) undefined |= space.tainted[k] != 0;
    if (c.flags & WRITTEN || m.has("never written", who.pc)) return;
    m.add("never written", who.pc,
          place(at) + ": " + name_of(who) + " reads by " + m.where(who.pc) + " what nobody wrote");
  }

  void taint(Mark &c, uint32_t at, uint32_t bytes) {
    if (!undefined && !(c.flags & TAINTED)) return;
    std::fill_n(space.tainted.begin() + at, bytes, undefined);
    const bool all = bytes >= 1u << space.shift;
    c.flags = (all ? c.flags & ~TAINTED : c.flags) | (undefined ? TAINTED : 0);
  }

  void read(uint32_t cell, uint32_t at, uint32_t bytes) {
    Mark &c = mark(space, cell);
    if ((c.flags & (WRITTEN | TAINTED | IN_FLIGHT | OBJECT)) != WRITTEN) {
      if (c.flags & (IN_FLIGHT | OBJECT) && report_foreign(c, at)) return;
      look_closer(c, at, bytes);
    }
    if (suspicious(c)) check_mark(c, at);
    if (c.flags & WRITTEN_SINCE) check_slots(c, at);
    note(cell);
  }

  bool holds_value_already(const Mark &c, uint32_t at, uint32_t bytes) const {
    return value && c.flags & WRITTEN && !std::memcmp(space.bytes.data() + at, value + (at - start), bytes);
  }

  // Returns whether the cell forgot what was before.
  bool write(uint32_t cell, uint32_t at, uint32_t bytes) {
    Mark &c = mark(space, cell);
    if (c.flags & (IN_FLIGHT | OBJECT)) report_foreign(c, at);
    taint(c, at, bytes);
    if (holds_value_already(c, at, bytes)) {
      if (suspicious_slots(c)) check_slots(c, at, true);
      note(cell);
      return false;
    }
    if (suspicious(c)) check_mark(c, at);
    forget_slots(c, at);
    c = {who.clock, who.pc, uint32_t(m.steps), uint16_t(me), int8_t(who.lane),
         uint8_t(WRITTEN | (by_async ? BY_ASYNC : 0) | (c.flags & (TAINTED | IN_FLIGHT | OBJECT)))};
    return true;
  }

  void forget_slots(Mark &c, uint32_t at) {
    if (suspicious_slots(c)) check_slots(c, at);
    std::fill_n(clocks(c), space.slots.size(), 0u);
  }

  void write_strong(uint32_t cell, uint32_t at, uint32_t bytes) {
    Mark &c = mark(space, cell);
    if (c.flags & (IN_FLIGHT | OBJECT)) report_foreign(c, at);
    if (suspicious(c)) check_mark(c, at);
    check_slots(c, at);
    taint(c, at, bytes);
    c.flags |= WRITTEN;
    note(cell);
  }

  void launch(uint32_t at, uint32_t bytes) {
    space.touch(at, bytes);
    if (!m.check) return;
    for_cells(space, at, bytes, true,
              [&](uint32_t cell, uint32_t from, uint32_t) { return launch_cell(mark(space, cell), from); });
  }

  void forget_flight(uint32_t at, uint32_t bytes) {
    for_cells(space, at, bytes, false, [&](uint32_t cell, uint32_t, uint32_t) {
      mark(space, cell).flags &= ~IN_FLIGHT;
      return false;
    });
  }

  void land(uint32_t at, uint32_t bytes) {
    if (!m.check) return;
    value = nullptr, start = at, undefined = false;
    for_cells(space, at, bytes, true, [&](uint32_t cell, uint32_t from, uint32_t count) {
      mark(space, cell).flags &= ~IN_FLIGHT;
      return write(cell, from, count);
    });
  }

  bool launch_cell(Mark &c, uint32_t at) {
    if (report_foreign(c, at)) return false;
    if (suspicious(c)) check_mark(c, at);
    forget_slots(c, at);
    c = {who.clock, who.pc, uint32_t(m.steps), uint16_t(me), int8_t(who.lane),
         uint8_t((c.flags & (WRITTEN | TAINTED)) | IN_FLIGHT | (by_async ? BY_ASYNC : 0))};
    return true;
  }

  uint8_t *access(uint32_t at, uint32_t bytes, uint32_t alignment, bool &tainted, const uint8_t *stored) {
    if (uint64_t(at) + bytes > space.bytes.size() || at & (alignment - 1))
      return refuse(owner, who, at, bytes, alignment, kind);
    uint8_t *data = space.bytes.data() + at;
    if (!bytes) return data;
    space.touch(at, bytes);
    if (!m.check) return data;
    value = stored, start = at, undefined = writes(kind) && tainted;
    switch (kind) {
    case kind_of(false):
      for_cells(space, at, bytes, false, [&](uint32_t cell, uint32_t from, uint32_t count) {
        read(cell, from, count);
        return false;
      });
      break;
    case kind_of(true):
      for_cells(space, at, bytes, true, [&](uint32_t cell, uint32_t from, uint32_t count) {
        return write(cell, from, count);
      });
      break;
    default:
      for_cells(space, at, bytes, false, [&](uint32_t cell, uint32_t from, uint32_t count) {
        writes(kind) ? write_strong(cell, from, count) : read(cell, from, count);
        return false;
      });
    }
    tainted = undefined;
    return data;
  }

  const uint32_t *limits() {
    Space &s = space;
    if (s.limit_view != who.view || s.limit_agent != me || s.limit_clock != who.clock || s.limit_step != m.steps) {
      s.limit.resize(s.stride);
      for (size_t k = 0; k < s.slots.size(); k++) s.limit[k] = limit(s.slots[k].agent);
      s.limit_view = who.view, s.limit_agent = me, s.limit_clock = who.clock, s.limit_step = m.steps;
    }
    return s.limit.data();
  }
};

}  // namespace

uint8_t *shared_access(Cta &owner, const Agent &who, uint32_t at, uint32_t bytes, uint32_t alignment, Kind kind,
                       bool &undefined, const uint8_t *value) {
  return Visit(owner, who, kind).access(at, bytes, alignment, undefined, value);
}

Mask shared_request(Cta &owner, Agent who, Mask m, const uint64_t *at, uint32_t bytes, Kind kind, Mask &undefined,
                    const Values *values, uint8_t **where) {
  Visit visit(owner, who, kind);
  Mask good = 0;
  SG_FOR_LANES(lane, m) {
    who.lane = int16_t(lane);
    bool tainted = undefined >> lane & 1;
    const uint8_t *value = values ? values->of[lane] : nullptr;
    where[lane] = visit.access(uint32_t(at[lane]), bytes, bytes, tainted, value);
    if (!where[lane]) continue;
    good |= 1u << lane;
    if (tainted) undefined |= 1u << lane;
    if (value) std::memcpy(where[lane], value, bytes);
  }
  return good;
}

uint8_t *shared_read(Cta &owner, const Agent &who, uint32_t at, uint32_t bytes, uint32_t alignment, bool &undefined) {
  bool found = false;
  uint8_t *data = shared_access(owner, who, at, bytes, alignment, kind_of(false), found, nullptr);
  undefined |= found;
  return data;
}

uint8_t *shared_write(Cta &owner, const Agent &who, uint32_t at, uint32_t bytes, uint32_t alignment, bool undefined,
                      const uint8_t *value) {
  return shared_access(owner, who, at, bytes, alignment, kind_of(true), undefined, value);
}

void shared_in_flight(Cta &owner, const Agent &who, uint32_t at, uint32_t bytes, bool in_flight) {
  if (!bytes || uint64_t(at) + bytes > owner.shared->bytes.size()) return;
  Visit visit(owner, who, kind_of(true));
  in_flight ? visit.launch(at, bytes) : visit.forget_flight(at, bytes);
}

void shared_launch(Cta &owner, Agent who, Mask m, const uint32_t *at, uint32_t bytes) {
  Visit visit(owner, who, kind_of(true));
  SG_FOR_LANES(lane, m) {
    who.lane = int16_t(lane);
    visit.launch(at[lane], bytes);
  }
}

void shared_land(Cta &owner, Agent who, Mask m, const uint32_t *at, uint32_t bytes) {
  Visit visit(owner, who, kind_of(true));
  SG_FOR_LANES(lane, m) {
    who.lane = int16_t(lane);
    visit.land(at[lane], bytes);
  }
}

void shared_mark(Cta &owner, uint32_t at, uint32_t bytes, int32_t what, int32_t pc) {
  Space &s = *owner.shared;
  if (!bytes || uint64_t(at) + bytes > s.bytes.size()) return;
  s.touch(at, bytes);
  if (what)
    s.objects[at] = {bytes, pc};
  else
    s.objects.erase(at);
  for_cells(s, at, bytes, false, [&](uint32_t cell, uint32_t, uint32_t) {
    uint8_t &flags = mark(s, cell).flags;
    flags = what ? flags | OBJECT : flags & ~OBJECT;
    return false;
  });
}

}  // namespace softgpu
