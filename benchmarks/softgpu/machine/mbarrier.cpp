// mbarriers: arrivals and bytes that complete phases, and who learns what from a completed phase.
//
// A phase gathers what its arrivals release and the clocks of the copies that complete in it; whoever sees it completed
// learns that, and only that: nothing of the phase under way.
#include "asynchronous.h"
#include <algorithm>
#include <utility>
#include "launch.h"

namespace softgpu {
namespace {

constexpr int64_t MOST = (1 << 20) - 1;  // arrivals, and bytes owed either way
constexpr int COUNT_BITS = 20;           // of a state: arrivals that were pending; above them the phase

struct MBarrier {
  uint64_t object;
  uint32_t expected, pending;  // arrivals of a phase; those of this one that are still to come
  int64_t owed = 0;            // bytes announced and not yet there
  uint64_t phase = 0;          // the one under way
  Knowledge gathered, completed;
  int engine;
  int in_flight = 0;           // copies
  Stamp init;
  std::vector<Stamp> uses;     // the last one of each agent
};

struct MBarriers {
  std::map<uint32_t, MBarrier> at;
  uint64_t engines = 0;  // in use
  int next_engine = 0;   // when all are
  uint64_t objects = 0;
};

MBarriers &mbarriers(Cta &cta) {
  if (!cta.mbarriers) cta.mbarriers = std::make_shared<MBarriers>();
  return *std::static_pointer_cast<MBarriers>(cta.mbarriers);
}

MBarrier *find(const Place &place) {
  auto &all = mbarriers(*place.cta).at;
  const auto found = all.find(place.at);
  return found == all.end() ? nullptr : &found->second;
}

std::string name(const Place &place) { return format("the mbarrier at shared %u of CTA %u", place.at, place.cta->linear); }

Stamp stamp(const Agent &a) { return {a.clock, a.cta->linear + 1, a.column, int8_t(a.lane), a.proxy, a.pc}; }

// ---- what happens to one ---------------------------------------------------------------------------------------------

void used(MBarrier &b, const Agent &by) {
  for (Stamp &s : b.uses)
    if (s.cta == by.cta->linear + 1 && s.column == by.column) {
      const bool alone = s.lane == by.lane || s.clock != by.clock;
      s = stamp(by);
      if (!alone) s.lane = -1;  // several lanes: none of them speaks for the others
      return;
    }
  b.uses.push_back(stamp(by));
}

// The object that a thread means, if there is one and the thread knows of its init.
MBarrier *use(Warp &w, const Ins &i, int lane, const Place &place) {
  Machine &m = *w.machine;
  MBarrier *b = find(place);
  if (!b) {
    if (!m.has("no mbarrier", i.pc))
      m.add("no mbarrier", i.pc,
            format("%s: %s was never initialised, or is invalidated", name_of(w, lane).c_str(), name(place).c_str()));
    return nullptr;
  }
  const Agent by = agent(w, i, lane);
  if (m.check && !ordered(b->init, by) && !m.has("race: use of an mbarrier after init", i.pc, b->init.pc))
    m.add("race: use of an mbarrier after init", i.pc,
          format("%s: %s was initialised at %s, which nothing orders before this", name_of(w, lane).c_str(),
                 name(place).c_str(), m.where(b->init.pc).c_str()),
          b->init.pc);
  used(*b, by);
  return b;
}

void turn(Machine &m, MBarrier &b, const Place &place, int32_t pc) {
  if (b.pending) return;
  if (b.owed < 0 && !m.has("bytes unannounced", pc))
    m.add("bytes unannounced", pc,
          format("%s: all have arrived, and %lld bytes more came than its expect_tx announced", name(place).c_str(),
                 (long long)-b.owed));
  if (b.owed) return;
  b.phase++;
  b.pending = b.expected;
  b.completed.join(b.gathered);
  b.gathered = Knowledge();
  m.happened();
}

void owe(Machine &m, MBarrier &b, const Place &place, int64_t bytes, int32_t pc) {
  b.owed += bytes;
  if ((b.owed > MOST || b.owed < -MOST) && !m.has("bad mbarrier", pc))
    m.add("bad mbarrier", pc, format("%s owes %lld bytes: its count ends at 2^20 - 1", name(place).c_str(), (long long)b.owed));
}

void arrive(Machine &m, MBarrier &b, const Place &place, uint32_t count, int32_t pc, const std::string &by) {
  if (count > b.pending || count == 0) {
    if (!m.has("bad arrival", pc))
      m.add("bad arrival", pc, format("%s: %u arrivals at %s, which awaits %u in this phase", by.c_str(), count,
                                      name(place).c_str(), b.pending));
    count = std::min(count, b.pending);
  }
  b.pending -= count;
  turn(m, b, place, pc);
}

// ---- init and inval --------------------------------------------------------------------------------------------------

// Whoever ends an mbarrier must know of all its uses.
void end_object(Warp &w, const Ins &i, int lane, const Place &place, MBarrier &b) {
  Machine &m = *w.machine;
  if (b.in_flight && !m.has("in flight", i.pc))
    m.add("in flight", i.pc, format("%s ends %s while %d copies are under way to it", name_of(w, lane).c_str(),
                                    name(place).c_str(), b.in_flight));
  const Agent by = agent(w, i, lane);
  for (const Stamp &s : b.uses)
    if (m.check && !ordered(s, by) && !m.has("race: end of an mbarrier in use", i.pc, s.pc))
      m.add("race: end of an mbarrier in use", i.pc,
            format("%s ends %s, which nothing orders after its use by %s of CTA %u at %s", name_of(w, lane).c_str(),
                   name(place).c_str(), s.column >= COPY_COLUMN ? "a copy" : format("warp %d", s.column).c_str(),
                   s.cta - 1, m.where(s.pc).c_str()),
            s.pc);
  MBarriers &all = mbarriers(*place.cta);
  all.engines &= ~(1ull << b.engine);
  all.at.erase(place.at);
}

bool own(Warp &w, const Ins &i, int lane, const Place &place) {
  if (place.cta == w.cta) return true;
  w.machine->add("bad mbarrier", i.pc, format("%s: `%s` of another CTA's mbarrier", name_of(w, lane).c_str(), i.text.c_str()));
  return false;
}

// mbarrier.init [a], count
Step on_init(Warp &w, const Ins &i, Mask m) {
  m = defined(w, i, m, 0, 2);
  SG_FOR_LANES(lane, m) {
    Place place;
    if (!find_place(w, i, lane, value_of(w, i, 0, lane) + i.imm[0], place) || !own(w, i, lane, place)) continue;
    const int64_t count = signed_of(w, i, 1, lane);
    if (count < 1 || count > MOST) {
      w.machine->add("bad mbarrier", i.pc, format("%s: an mbarrier of %lld arrivals; 1 to 2^20 - 1 may be asked for",
                                                  name_of(w, lane).c_str(), (long long)count));
      continue;
    }
    if (MBarrier *old = find(place)) {
      if (!w.machine->has("mbarrier initialised twice", i.pc, old->init.pc))
        w.machine->add("mbarrier initialised twice", i.pc,
                       format("%s: %s has been there since %s; inval it first", name_of(w, lane).c_str(), name(place).c_str(),
                              w.machine->where(old->init.pc).c_str()),
                       old->init.pc);
      end_object(w, i, lane, place, *old);
      shared_mark(*place.cta, place.at, 8, 0, i.pc);
    }
    const Agent by = agent(w, i, lane);
    uint8_t *bytes = shared_write(*place.cta, by, place.at, 8, 8, false, nullptr);
    if (!bytes) continue;
    const uint64_t opaque = uint64_t(count) << COUNT_BITS | uint64_t(count);
    std::memcpy(bytes, &opaque, 8);
    shared_mark(*place.cta, place.at, 8, 1, i.pc);
    MBarriers &all = mbarriers(*place.cta);
    MBarrier b;
    b.object = ++all.objects;
    b.expected = b.pending = uint32_t(count);
    b.init = stamp(by);
    const uint64_t free = ~all.engines;
    b.engine = free ? __builtin_ctzll(free) : all.next_engine++ % MAX_COPY_ENGINES;
    all.engines |= 1ull << b.engine;
    all.at[place.at] = std::move(b);
  }
  return Step::NEXT;
}

// mbarrier.inval [a]
Step on_inval(Warp &w, const Ins &i, Mask m) {
  m = defined(w, i, m, 0, 1);
  SG_FOR_LANES(lane, m) {
    Place place;
    if (!find_place(w, i, lane, value_of(w, i, 0, lane) + i.imm[0], place) || !own(w, i, lane, place)) continue;
    MBarrier *b = use(w, i, lane, place);
    if (!b) continue;
    end_object(w, i, lane, place, *b);
    shared_mark(*place.cta, place.at, 8, 0, i.pc);
    shared_write(*place.cta, agent(w, i, lane), place.at, 8, 8, false, nullptr);
  }
  return Step::NEXT;
}

// ---- arrivals --------------------------------------------------------------------------------------------------------

enum Arrival : int { PLAIN_ARRIVAL = 0, EXPECT_TX = 1, NO_COMPLETE = 2, DROP = 4, RELAXED = 8 };

// mbarrier.arrive{_drop}{.expect_tx|.noComplete} state, [a]{, count or bytes}
template <int KIND> Step on_arrive(Warp &w, const Ins &i, Mask m) {
  const int a = i.num_dst, number = a + 1;
  const bool has_number = int(i.op.size()) > number;
  uint64_t *state = a && i.op[0] >= 0 ? w.reg<uint64_t>(i.op[0]) : nullptr;
  const Knowledge *released = !(KIND & RELAXED) ? &w.view : w.has_released ? &w.released : nullptr;
  const MBarrier *last = nullptr;
  uint64_t last_phase = 0;
  m = defined(w, i, m, a, int(i.op.size()));
  SG_FOR_LANES(lane, m) {
    Place place;
    if (!find_place(w, i, lane, value_of(w, i, a, lane) + i.imm[0], place)) continue;
    MBarrier *b = use(w, i, lane, place);
    if (!b) continue;
    const uint32_t operand = has_number ? uint32_t(value_of(w, i, number, lane)) : 1;
    const uint32_t count = KIND & EXPECT_TX ? 1 : operand;
    if (state) state[lane] = b->phase << COUNT_BITS | b->pending;
    if (KIND & EXPECT_TX) owe(*w.machine, *b, place, operand, i.pc);
    if (KIND & DROP) b->expected -= std::min(count, b->expected);
    if (KIND & NO_COMPLETE && count >= b->pending && !w.machine->has("bad arrival", i.pc))
      w.machine->add("bad arrival", i.pc, format("%s: .noComplete, but it completes the phase of %s", name_of(w, lane).c_str(),
                                                 name(place).c_str()));
    if (released && (b != last || b->phase != last_phase)) b->gathered.join(*released);
    last = b, last_phase = b->phase;
    arrive(*w.machine, *b, place, count, i.pc, name_of(w, lane));
  }
  tick(w);
  return Step::NEXT;
}

// mbarrier.expect_tx, .complete_tx [a], bytes
template <bool EXPECT> Step on_bytes(Warp &w, const Ins &i, Mask m) {
  m = defined(w, i, m, 0, 2);
  SG_FOR_LANES(lane, m) {
    Place place;
    if (!find_place(w, i, lane, value_of(w, i, 0, lane) + i.imm[0], place)) continue;
    MBarrier *b = use(w, i, lane, place);
    if (!b) continue;
    const int64_t bytes = uint32_t(value_of(w, i, 1, lane));
    owe(*w.machine, *b, place, EXPECT ? bytes : -bytes, i.pc);
    if (!EXPECT) turn(*w.machine, *b, place, i.pc);
  }
  return Step::NEXT;
}

// mbarrier.pending_count d, state
Step on_pending_count(Warp &w, const Ins &i, Mask m) {
  SG_FOR_LANES(lane, m) w.reg<uint32_t>(i.op[0])[lane] = uint32_t(value_of(w, i, 1, lane) & MOST);
  return Step::NEXT;
}

// ---- waits -----------------------------------------------------------------------------------------------------------

enum Wait : int { TEST = 0, TRY = 1, PARITY = 2, UNORDERED = 4 };

// The phase that a lane waits for has completed: by its parity, or by the state that an arrival returned.
bool over(const MBarrier &b, bool by_parity, uint64_t waited) {
  return by_parity ? (b.phase & 1) != (waited & 1) : b.phase > waited >> COUNT_BITS;
}

// mbarrier.{test,try}_wait{.parity} p, [a], state or parity{, time}
template <int KIND> Step on_wait(Warp &w, const Ins &i, Mask m) {
  Machine &machine = *w.machine;
  const Mask lanes = defined(w, i, m, 1, 3);
  // A wait that cannot be made lets its lane pass: it would hide what follows.
  Mask done = m & ~lanes, met = 0;
  const bool moody = machine.schedule == Schedule::RANDOM || machine.schedule == Schedule::WORST;
  if (KIND & TRY && moody && machine.random() % 8 == 0) {  // it may fail for no reason
    w.pred(i.op[0]) &= ~m;
    return Step::NEXT;
  }
  const MBarrier *last = nullptr;
  SG_FOR_LANES(lane, lanes) {
    Place place;
    MBarrier *b = nullptr;
    if (find_place(w, i, lane, value_of(w, i, 1, lane) + i.imm[0], place) && own(w, i, lane, place)) b = find(place);
    const uint64_t waited = value_of(w, i, 2, lane);
    if (b && !over(*b, KIND & PARITY, waited)) continue;
    done |= 1u << lane;
    b = place.cta ? use(w, i, lane, place) : nullptr;
    if (!b) continue;
    met |= 1u << lane;
    if (!(KIND & PARITY) && b->phase > (waited >> COUNT_BITS) + 1 && !machine.has("bad wait", i.pc))
      machine.add("bad wait", i.pc, format("%s asks %s for phase %llu, which is not the last completed one: %llu is under way",
                                           name_of(w, lane).c_str(), name(place).c_str(),
                                           (unsigned long long)(waited >> COUNT_BITS), (unsigned long long)b->phase));
    if (b == last) continue;
    last = b;
    if (KIND & UNORDERED) {
      w.pending.join(b->completed);
      w.has_pending = true;
    } else {
      w.view.join(b->completed);
    }
  }
  // try_wait suspends its thread for a time. test_wait does not, but to ask again before anything has happened is no
  // better than to be suspended.
  const bool expired = std::exchange(w.now().expired, false);
  if (!done) {
    if ((KIND & TRY || w.polled == machine.events) && !expired) return Step::RETRY;
    w.polled = machine.events;
  }
  Mask &p = w.pred(i.op[0]);
  p = (p & ~m) | done;
  return Step::NEXT;
}

// fence.mbarrier_init.release.cluster: a relaxed arrival at the cluster's barrier then hands on the inits. That it hands
// on what else was written before is more than the ISA promises.
Step on_fence_init(Warp &w, const Ins &, Mask) {
  w.released.join(w.view);
  w.has_released = true;
  tick(w);
  return Step::NEXT;
}

// ---- spellings -------------------------------------------------------------------------------------------------------

const char *const OWN_SPACES[] = {"", ".shared", ".shared::cta"};
const char *const SPACES[] = {"", ".shared", ".shared::cta", ".shared::cluster"};

template <int KIND> void announce_arrivals(const std::string &head, const char *order) {
  for (const char *space : SPACES)
    announce(head + order + space + ".b64", on_arrive<KIND>);
}

template <int KIND> void announce_arrival(const std::string &head) {
  for (const char *order : {"", ".release.cta", ".release.cluster"}) announce_arrivals<KIND>(head, order);
  for (const char *order : {".relaxed.cta", ".relaxed.cluster"}) announce_arrivals<KIND | RELAXED>(head, order);
}

template <int KIND> void announce_wait(const std::string &head) {
  for (const char *space : OWN_SPACES) {
    for (const char *order : {"", ".acquire.cta", ".acquire.cluster"})
      announce(head + order + space + ".b64", on_wait<KIND>);
    for (const char *order : {".relaxed.cta", ".relaxed.cluster"})
      announce(head + order + space + ".b64", on_wait<KIND | UNORDERED>);
  }
}

const bool announced = [] {
  for (const char *space : OWN_SPACES) {
    announce(std::string("mbarrier.init") + space + ".b64", on_init);
    announce(std::string("mbarrier.inval") + space + ".b64", on_inval);
  }
  announce_arrival<PLAIN_ARRIVAL>("mbarrier.arrive");
  announce_arrival<EXPECT_TX>("mbarrier.arrive.expect_tx");
  announce_arrival<NO_COMPLETE>("mbarrier.arrive.noComplete");
  announce_arrival<DROP>("mbarrier.arrive_drop");
  announce_arrival<DROP | EXPECT_TX>("mbarrier.arrive_drop.expect_tx");
  announce_arrival<DROP | NO_COMPLETE>("mbarrier.arrive_drop.noComplete");
  for (const char *space : SPACES)
    for (const char *order : {"", ".relaxed.cta", ".relaxed.cluster"}) {
      announce(std::string("mbarrier.expect_tx") + order + space + ".b64", on_bytes<true>);
      announce(std::string("mbarrier.complete_tx") + order + space + ".b64", on_bytes<false>);
    }
  announce_wait<TEST>("mbarrier.test_wait");
  announce_wait<TRY>("mbarrier.try_wait");
  announce_wait<TEST | PARITY>("mbarrier.test_wait.parity");
  announce_wait<TRY | PARITY>("mbarrier.try_wait.parity");
  announce("mbarrier.pending_count.b64", on_pending_count);
  announce("fence.mbarrier_init.release.cluster", on_fence_init);
  return true;
}();

}  // namespace

// ---- for copies ------------------------------------------------------------------------------------------------------

bool begin_copy(Warp &w, const Ins &i, int lane, Place bar, std::shared_ptr<const Knowledge> view, Ticket &ticket) {
  MBarrier *b = use(w, i, lane, bar);
  if (!b) return false;
  b->in_flight++;
  ticket = {bar, b->object, int16_t(COPY_COLUMN + b->engine), ++bar.cta->copy_clock[b->engine], i.pc, std::move(view)};
  return true;
}

void end_copy(const Ticket &ticket, const Ticket &source, uint32_t bytes) {
  Machine &m = *ticket.bar.cta->machine;
  MBarrier *b = find(ticket.bar);
  if (!b || b->object != ticket.object) return;  // whoever ended it under way was found there
  b->in_flight--;
  for (const Ticket *done : {&ticket, &source}) {
    const size_t at = done->bar.cta->column_base() + done->column;
    for (auto *clocks : {&b->gathered.known, &b->gathered.proxied}) {
      if (clocks->size() <= at) clocks->resize(at + 1, 0);
      (*clocks)[at] = std::max((*clocks)[at], done->clock);
    }
  }
  used(*b, ticket.engine());
  owe(m, *b, ticket.bar, -int64_t(bytes), ticket.pc);
  turn(m, *b, ticket.bar, ticket.pc);
}

bool mbarrier_expect_copies(Warp &w, const Ins &i, int lane, uint64_t address, bool noinc) {
  Place place;
  if (!find_place(w, i, lane, address, place) || !own(w, i, lane, place)) return false;
  MBarrier *b = use(w, i, lane, place);
  if (b && !noinc) b->pending++;
  return b != nullptr;
}

void mbarrier_arrive_copies(Warp &w, const Ins &i, int lane, uint64_t address, const Knowledge &view) {
  Place place;
  if (!find_place(w, i, lane, address, place)) return;
  MBarrier *b = find(place);
  if (!b) {
    w.machine->add("no mbarrier", i.pc, format("%s: %s ended before the copies that arrive at it", name_of(w, lane).c_str(),
                                               name(place).c_str()));
    return;
  }
  b->gathered.join(view);
  arrive(*w.machine, *b, place, 1, i.pc, name_of(w, lane));
}

std::string describe_mbarrier(Warp &w, const Ins &i) {
  Mask lanes = 0;
  for (const Fragment &f : w.fragments)
    if (f.pc == i.pc) lanes |= f.mask;
  if (i.pred >= 0) lanes &= i.negated ? ~w.pred(i.pred) : w.pred(i.pred);
  if (!lanes) return "nobody";
  const int lane = __builtin_ctz(lanes);
  const uint64_t waited = value_of(w, i, 2, lane);
  const bool by_parity = i.key.find(".parity") != std::string::npos;
  std::string text = by_parity ? format("waits for parity %d", int(waited & 1))
                               : format("waits for phase %llu", (unsigned long long)(waited >> COUNT_BITS));
  Place place;
  if (!find_place(w, i, lane, value_of(w, i, 1, lane) + i.imm[0], place)) return text;
  const MBarrier *b = find(place);
  if (!b) return text + " of " + name(place) + ", which does not exist";
  return text + format(" of %s, initialised at %s: phase %llu (parity %d) is under way, %u of %u arrivals are to come, "
                       "%lld bytes are owed",
                       name(place).c_str(), w.machine->where(b->init.pc).c_str(), (unsigned long long)b->phase,
                       int(b->phase & 1), b->pending, b->expected, (long long)b->owed);
}

}  // namespace softgpu
