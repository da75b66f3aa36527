// cp.async: copies of 4, 8 or 16 bytes from global to shared memory, by each thread for itself.
//
// The source is read at the instruction, and again when the copy lands: it must not have changed. The destination is in
// flight from the instruction until the thread waits for the copy's group, or an mbarrier that it told waits; when in
// that time the bytes arrive, Machine::landing says.
#include <algorithm>
#include "access.h"

namespace softgpu {

namespace {

constexpr uint32_t MOST = 16;

// A warp's instruction. A lane's part of it belongs to the lane's group of that number.
struct Copy {
  const Ins *ins;
  uint64_t number;        // in the order of instructions
  Mask left;              // lanes that have not landed
  uint32_t bytes;
  uint32_t to[LANES], group[LANES], source_bytes[LANES];  // of the source; the rest is zeros
  uint64_t from[LANES];
  uint8_t data[LANES][MOST];  // zeros where nothing is copied
};

struct Copies {
  std::vector<std::unique_ptr<Copy>> in_flight;
  uint32_t committed[LANES] = {};  // groups
  uint64_t issued = 0;
};

std::shared_ptr<Copies> copies_of(Warp &w) {
  if (!w.copies) w.copies = std::make_shared<Copies>();
  return std::static_pointer_cast<Copies>(w.copies);
}

bool arrives_early(Machine &m) {
  return m.landing == Landing::EARLY || (m.landing == Landing::RANDOM && m.random() & 1);
}

// ---- issue -----------------------------------------------------------------------------------------------------------

struct Operands {
  uint32_t bytes;
  int source_size = -1, ignore = -1;  // the operand; -1: there is none
};

Operands operands_of(Warp &w, const Ins &i) {
  Operands o{w.reg<uint32_t>(i.op[2])[0]};
  if (i.op.size() > 3) (i.width[3] ? o.source_size : o.ignore) = 3;
  return o;
}

// How many bytes of the source a lane reads; false if that is not known, or more than it copies.
bool find_source_bytes(Warp &w, const Ins &i, const Operands &o, int lane, uint32_t &bytes) {
  Machine &m = *w.machine;
  const int k = o.source_size >= 0 ? o.source_size : o.ignore;
  bytes = o.bytes;
  if (k < 0) return true;
  if (w.undefined[i.op[k]] >> lane & 1) {
    if (!m.has("undefined value", i.pc))
      m.add("undefined value", i.pc,
            name_of(w, lane) + ": how much is copied comes from what nobody wrote, in " + m.where(i.pc));
    return false;
  }
  if (k == o.ignore)
    bytes = w.pred(i.op[k]) >> lane & 1 ? 0 : o.bytes;
  else
    bytes = w.reg<uint32_t>(i.op[k])[lane];
  if (bytes <= o.bytes) return true;
  if (!m.has("bad copy", i.pc))
    m.add("bad copy", i.pc,
          name_of(w, lane) + format(" copies %u bytes of %u, in ", bytes, o.bytes) + m.where(i.pc));
  return false;
}

// Is the lane's destination, in the own CTA, inside and aligned?
bool find_destination(Warp &w, const Ins &i, uint32_t bytes, int lane, uint64_t to, uint32_t &at) {
  const Location l = locate(w, Where::SHARED, to);
  at = uint32_t(l.at);
  if (l.at % bytes == 0 && l.at + bytes <= shared_size(*w.cta)) return true;
  bool undefined = false;
  touch(w, agent(w, i, lane), l, bytes, kind_of(true), undefined, nullptr);  // reports it
  return false;
}

// Looks at the sources of lanes, which are read now; `from` gets where they are. Returns the lanes that may read.
Mask read_sources(Warp &w, const Agent &who, const Copy &c, Mask m, uint8_t **from) {
  Mask whole = 0, part = 0;
  SG_FOR_LANES(lane, m) (c.source_bytes[lane] == c.bytes ? whole : part) |= 1u << lane;
  Mask good = whole ? global_request(*w.machine, who, whole, c.from, c.bytes, kind_of(false), nullptr, from) : 0;
  SG_FOR_LANES(lane, part) {
    Agent by = who;
    by.lane = int16_t(lane);
    from[lane] = global_access(*w.machine, by, c.from[lane], c.source_bytes[lane], c.bytes, kind_of(false), nullptr);
    if (from[lane]) good |= 1u << lane;
  }
  return good;
}

Step issue(Warp &w, const Ins &i, Mask m) {
  const Operands o = operands_of(w, i);
  const auto state = copies_of(w);
  const Addresses to = addresses(w, i, m, 0, i.imm[0]), from = addresses(w, i, m, 1, i.imm[1]);
  auto c = std::make_unique<Copy>();
  c->ins = &i, c->number = state->issued++, c->left = 0, c->bytes = o.bytes;
  std::copy(from.at, from.at + LANES, c->from);
  std::copy(state->committed, state->committed + LANES, c->group);
  Mask reads = 0;
  SG_FOR_LANES(lane, to.defined & from.defined) {
    if (!find_source_bytes(w, i, o, lane, c->source_bytes[lane])) continue;
    if (!find_destination(w, i, o.bytes, lane, to.at[lane], c->to[lane])) continue;
    c->left |= 1u << lane;
    if (c->source_bytes[lane]) reads |= 1u << lane;
  }
  uint8_t *sources[LANES];
  const Mask good = read_sources(w, agent(w, i, 0), *c, reads, sources);
  c->left &= ~reads | good;
  SG_FOR_LANES(lane, c->left & reads) std::memcpy(c->data[lane], sources[lane], c->source_bytes[lane]);
  shared_launch(*w.cta, agent(w, i, 0), c->left, c->to, o.bytes);
  if (arrives_early(*w.machine))
    SG_FOR_LANES(lane, c->left) std::memcpy(shared_bytes(*w.cta) + c->to[lane], c->data[lane], o.bytes);
  count_global(w, i, reads, from.at, o.bytes);
  if (c->left) state->in_flight.push_back(std::move(c));
  return Step::NEXT;
}

// ---- landing ---------------------------------------------------------------------------------------------------------

void check_sources(Warp &w, const Copy &c, const Agent &who, Mask m) {
  Machine &machine = *w.machine;
  if (!machine.check) return;
  Mask reads = 0;
  SG_FOR_LANES(lane, m) if (c.source_bytes[lane]) reads |= 1u << lane;
  uint8_t *sources[LANES];
  SG_FOR_LANES(lane, read_sources(w, who, c, reads, sources)) {
    if (!std::memcmp(sources[lane], c.data[lane], c.source_bytes[lane]) || machine.has("source changed", who.pc))
      continue;
    machine.add("source changed", who.pc,
                name_of(w, lane) + ": " + global_name(machine, c.from[lane]) + " was written while " + machine.where(who.pc) + " copied it");
  }
}

// Lands lanes' copies that `wanted(copy, lane)` names, as accesses at `who`'s time.
template <class F> void land(Warp &w, Agent who, Mask m, F wanted) {
  if (!w.copies) return;
  const auto state = copies_of(w);
  bool any_landed = false;
  for (auto &c : state->in_flight) {
    Mask now = 0;
    SG_FOR_LANES(lane, m & c->left) if (wanted(*c, lane)) now |= 1u << lane;
    if (!now) continue;
    who.pc = c->ins->pc;
    check_sources(w, *c, who, now);
    shared_land(*w.cta, who, now, c->to, c->bytes);
    SG_FOR_LANES(lane, now) std::memcpy(shared_bytes(*w.cta) + c->to[lane], c->data[lane], c->bytes);
    c->left &= ~now;
    any_landed |= !c->left;
  }
  auto &all = state->in_flight;
  if (any_landed) all.erase(std::remove_if(all.begin(), all.end(), [](const auto &c) { return !c->left; }), all.end());
}

Step commit_group(Warp &w, const Ins &, Mask m) {
  const auto state = copies_of(w);
  SG_FOR_LANES(lane, m) state->committed[lane]++;
  return Step::NEXT;
}

// All but the newest N of a thread's groups have landed.
Step wait_group(Warp &w, const Ins &i, Mask m) {
  const auto state = copies_of(w);
  const uint32_t pending = w.reg<uint32_t>(i.op[0])[0];
  land(w, agent(w, i, 0), m, [&](const Copy &c, int lane) { return c.group[lane] + pending < state->committed[lane]; });
  return Step::NEXT;
}

Step wait_all(Warp &w, const Ins &i, Mask m) {
  land(w, agent(w, i, 0), m, [](const Copy &, int) { return true; });
  return commit_group(w, i, m);
}

// ---- arrival at an mbarrier ------------------------------------------------------------------------------------------

// The copies that a lane has issued until now land, and then it arrives.
struct Arrival : Pending {
  Warp *w;
  const Ins *ins;
  int lane;
  uint32_t clock;
  uint64_t issued;
  uint64_t address;
  Knowledge view;

  void land(Machine &) override {
    Agent who = agent(*w, *ins, lane);
    who.clock = clock, who.view = &view;
    softgpu::land(*w, who, 1u << lane, [this](const Copy &c, int) { return c.number < issued; });
    mbarrier_arrive_copies(*w, *ins, lane, address, view);
  }
};

template <bool NOINC> Step arrive(Warp &w, const Ins &i, Mask m) {
  const auto state = copies_of(w);
  const Addresses at = addresses(w, i, m, 0, i.imm.empty() ? 0 : i.imm[0]);
  std::vector<std::unique_ptr<Arrival>> arrivals;
  SG_FOR_LANES(lane, at.defined) {
    if (!mbarrier_expect_copies(w, i, lane, at.at[lane], NOINC)) continue;
    auto a = std::make_unique<Arrival>();
    a->cta = w.cta, a->w = &w, a->ins = &i, a->lane = lane, a->issued = state->issued, a->address = at.at[lane];
    arrivals.push_back(std::move(a));
  }
  for (auto &a : arrivals) a->clock = w.clock, a->view = w.view;
  tick(w);
  for (auto &a : arrivals) w.machine->later(std::move(a));
  return Step::NEXT;
}

const bool announced = [] {
  for (const char *space : {"shared", "shared::cta"}) {
    announce(format("cp.async.%s.global", space), issue, OWN_TAINT);
    const std::string head = "cp.async.mbarrier.arrive";
    announce(head + "." + space + ".b64", arrive<false>, OWN_TAINT);
    announce(head + ".noinc." + space + ".b64", arrive<true>, OWN_TAINT);
  }
  announce("cp.async.mbarrier.arrive.b64", arrive<false>, OWN_TAINT);
  announce("cp.async.mbarrier.arrive.noinc.b64", arrive<true>, OWN_TAINT);
  announce("cp.async.commit_group", commit_group, OWN_TAINT);
  announce("cp.async.wait_group", wait_group, OWN_TAINT);
  announce("cp.async.wait_all", wait_all, OWN_TAINT);
  return true;
}();

}  // namespace
}  // namespace softgpu
