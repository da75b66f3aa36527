// The schedule: which warp runs next and how far, divergence within a warp, branches, barriers, the end of a launch.
#include "machine.h"
#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <limits>
#include "launch.h"

namespace softgpu {

// ---- what handlers there are -----------------------------------------------------------------------------------------

std::unordered_map<std::string, std::pair<Handler, uint32_t>> &handlers() {
  static std::unordered_map<std::string, std::pair<Handler, uint32_t>> all;
  return all;
}

void announce(const char *key, Handler run, uint32_t flags) { handlers()[key] = {run, flags}; }

std::string format(const char *pattern, ...) {
  va_list args, again;
  va_start(args, pattern);
  va_copy(again, args);
  std::string text(size_t(vsnprintf(nullptr, 0, pattern, args)), '\0');
  vsnprintf(text.data(), text.size() + 1, pattern, again);
  va_end(args);
  va_end(again);
  return text;
}

// ---- findings and chance ---------------------------------------------------------------------------------------------

void Machine::add(const char *kind, int32_t pc, const std::string &text, int32_t other_pc, uint64_t count) {
  const auto [at, fresh] = finding_index.try_emplace({kind, pc, other_pc}, findings.size());
  if (fresh)
    findings.push_back({kind, text, pc, other_pc, count});
  else
    findings[at->second].count += count;
}

bool Machine::has(const char *kind, int32_t pc, int32_t other_pc) {
  const auto at = finding_index.find({kind, pc, other_pc});
  if (at == finding_index.end()) return false;
  findings[at->second].count++;
  return true;
}

std::string Machine::where(int32_t pc) const {
  if (pc < 0 || size_t(pc) >= program->code.size()) return "the start";
  const Ins &i = program->code[pc];
  return format("PTX line %d: `%s`", i.line, i.text.c_str());
}

uint64_t Machine::random() {  // splitmix64
  uint64_t z = random_state += 0x9e3779b97f4a7c15ull;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9ull;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebull;
  return z ^ (z >> 31);
}

void Machine::later(std::unique_ptr<Pending> p) {
  if (landing == Landing::EARLY) {
    p->land(*this);
    happened();
    return;
  }
  pending.push_back(std::move(p));
}

// ---- CTAs ------------------------------------------------------------------------------------------------------------

namespace {

template <class F> void fill(Warp &w, int32_t unit, F value) {
  uint32_t *r = w.reg<uint32_t>(unit);
  for (int lane = 0; lane < LANES; lane++) r[lane] = uint32_t(value(lane));
  w.undefined[unit] = 0;
}

void fill_special(Warp &w, const Program::Special &s) {
  const Machine &m = *w.machine;
  const Cta &cta = *w.cta;
  const Program &p = *m.program;
  const uint32_t size[3] = {uint32_t(p.cluster[0]), uint32_t(p.cluster[1]), uint32_t(p.cluster[2])};
  const auto same = [&](uint64_t v) { fill(w, s.unit, [v](int) { return v; }); };
  const auto axis = [&](int first) { return s.which - first; };
  switch (s.which) {
  case TID_X: fill(w, s.unit, [&](int lane) { return w.thread(lane); }); break;
  case TID_Y: case TID_Z: same(0); break;
  case NTID_X: same(p.num_threads); break;
  case NTID_Y: case NTID_Z: same(1); break;
  case CTAID_X: case CTAID_Y: case CTAID_Z: same(cta.id[axis(CTAID_X)]); break;
  case NCTAID_X: case NCTAID_Y: case NCTAID_Z: same(m.grid[axis(NCTAID_X)]); break;
  case LANEID: fill(w, s.unit, [](int lane) { return lane; }); break;
  case WARPID: same(w.index); break;
  case NWARPID: same(cta.warps.size()); break;
  case SMID: same(cta.linear % m.num_sms); break;
  case NSMID: same(m.num_sms); break;
  case CLOCK: case GLOBALTIMER: case CLOCK_HI: case CLOCK64: case GRIDID: {
    const bool wide = s.which == CLOCK64 || s.which == GLOBALTIMER || s.which == GRIDID;
    const uint64_t now = s.which == GRIDID ? 1 : s.which == CLOCK_HI ? m.steps >> 32 : m.steps;
    if (!wide) {
      same(now);
    } else {
      uint64_t *r = w.reg<uint64_t>(s.unit);
      std::fill(r, r + LANES, now);
      w.undefined[s.unit] = 0;
    }
    break;
  }
  case LANEMASK_EQ: fill(w, s.unit, [](int lane) { return 1u << lane; }); break;
  case LANEMASK_LE: fill(w, s.unit, [](int lane) { return lanes_below(lane) | 1u << lane; }); break;
  case LANEMASK_LT: fill(w, s.unit, [](int lane) { return lanes_below(lane); }); break;
  case LANEMASK_GE: fill(w, s.unit, [](int lane) { return ~lanes_below(lane); }); break;
  case LANEMASK_GT: fill(w, s.unit, [](int lane) { return ~(lanes_below(lane) | 1u << lane); }); break;
  case CLUSTERID_X: case CLUSTERID_Y: case CLUSTERID_Z: same(cta.id[axis(CLUSTERID_X)] / size[axis(CLUSTERID_X)]); break;
  case NCLUSTERID_X: case NCLUSTERID_Y: case NCLUSTERID_Z:
    same(m.grid[axis(NCLUSTERID_X)] / size[axis(NCLUSTERID_X)]); break;
  case CLUSTER_CTAID_X: case CLUSTER_CTAID_Y: case CLUSTER_CTAID_Z:
    same(cta.id[axis(CLUSTER_CTAID_X)] % size[axis(CLUSTER_CTAID_X)]); break;
  case CLUSTER_NCTAID_X: case CLUSTER_NCTAID_Y: case CLUSTER_NCTAID_Z: same(size[axis(CLUSTER_NCTAID_X)]); break;
  case CLUSTER_CTARANK: same(cta.rank); break;
  case CLUSTER_NCTARANK: same(size[0] * size[1] * size[2]); break;
  case DYNAMIC_SMEM_SIZE: same(m.shared_bytes - p.shared_static); break;
  case TOTAL_SMEM_SIZE: same(m.shared_bytes); break;
  }
}

std::unique_ptr<Warp> make_warp(Machine &m, Cta &cta, int index) {
  const Program &p = *m.program;
  auto w = std::make_unique<Warp>();
  w->machine = &m;
  w->cta = &cta;
  w->index = index;
  const int threads = std::min(LANES, p.num_threads - index * LANES);
  w->alive = threads == LANES ? ALL : lanes_below(threads);
  w->fragments.push_back({0, w->alive});
  w->file.resize(size_t(p.num_units) * UNIT);
  for (size_t k = 0; k + 8 <= w->file.size(); k += 8) {  // what a register holds before it is written is anything
    const uint64_t bits = m.random();
    std::memcpy(w->file.data() + k, &bits, 8);
  }
  w->undefined.assign(p.num_units, ALL);
  w->busy.assign(p.num_units, 0);
  if (p.uses_wgmma) w->wrote.assign(p.num_units, 0);
  w->registers = p.max_registers;
  w->local.resize(size_t(p.local_bytes) * LANES);
  w->view.known.assign(cta.cluster.size() * COLUMNS, 0);
  w->view.proxied.assign(cta.cluster.size() * COLUMNS, 0);
  w->view.known[cta.column_base() + WARP_COLUMN + index] = w->clock;
  for (const auto &c : p.constants) {
    uint8_t *r = w->reg<uint8_t>(c.unit);
    w->undefined[c.unit] = 0;
    if (!c.bytes) {
      w->pred(c.unit) = c.value ? ALL : 0;
      continue;
    }
    for (int lane = 0; lane < LANES; lane++) std::memcpy(r + size_t(lane) * c.bytes, &c.value, c.bytes);
  }
  for (const auto &s : p.specials) fill_special(*w, s);
  return w;
}

void start_cluster(Machine &m, uint32_t first_x, uint32_t first_y, uint32_t first_z) {
  const Program &p = *m.program;
  std::vector<Cta *> members;
  for (int z = 0; z < p.cluster[2]; z++)
    for (int y = 0; y < p.cluster[1]; y++)
      for (int x = 0; x < p.cluster[0]; x++) {
        auto cta = std::make_unique<Cta>();
        cta->machine = &m;
        cta->id[0] = first_x + x, cta->id[1] = first_y + y, cta->id[2] = first_z + z;
        cta->linear = cta->id[0] + m.grid[0] * (cta->id[1] + m.grid[1] * cta->id[2]);
        cta->rank = uint32_t(members.size());
        cta->barriers.resize(16);
        members.push_back(cta.get());
        m.ctas.push_back(std::move(cta));
      }
  for (Cta *cta : members) {
    cta->cluster = members;
    shared_reset(*cta, m.shared_bytes);
    const int num_warps = (p.num_threads + LANES - 1) / LANES;
    for (int k = 0; k < num_warps; k++) cta->warps.push_back(make_warp(m, *cta, k));
    cta->living = num_warps;
  }
}

bool cluster_done(const Cta &cta) {
  return std::all_of(cta.cluster.begin(), cta.cluster.end(), [](const Cta *c) { return c->living == 0; });
}

}  // namespace

// ---- barriers --------------------------------------------------------------------------------------------------------

namespace {

void wake(Warp &w) {
  for (Fragment &f : w.fragments)
    if (f.asleep) f.asleep = false, f.tried = 0, f.pc++;
}

int32_t expected_at(const Cta &cta, const Barrier &b) { return b.expected > 0 ? b.expected : cta.living * LANES; }

// Let everybody go if all who are expected have come.
void settle(Cta &cta, Barrier &b) {
  if (!b.arrived || b.arrived < expected_at(cta, b)) return;
  for (const auto &r : b.replies) {
    if (r.kind == 0) {
      uint32_t *out = r.warp->reg<uint32_t>(r.unit);
      SG_FOR_LANES(lane, r.mask) out[lane] = b.popc;
    } else {
      Mask &out = r.warp->pred(r.unit);
      out = (out & ~r.mask) | ((r.kind == 1 ? b.all : b.any) ? r.mask : 0);
    }
  }
  std::vector<Warp *> sleeping;
  sleeping.swap(b.sleeping);
  for (Warp *w : sleeping) {
    w->view.join(b.met);
    tick(*w);
    wake(*w);
  }
  b = Barrier();
  cta.machine->happened();
}

bool arrive(Warp &w, const Ins &i, int first_operand, Barrier *&b) {
  Machine &m = *w.machine;
  const size_t operands = i.op.size() - first_operand;
  const uint32_t id = operands ? w.reg<uint32_t>(i.op[first_operand])[0] : 0;
  const int32_t count = operands > 1 && i.width[first_operand + 1] ? int32_t(w.reg<uint32_t>(i.op[first_operand + 1])[0]) : 0;
  if (id >= w.cta->barriers.size() || count % LANES) {
    m.add("bad barrier", i.pc, format("barrier %u for %d threads: ids go from 0 to 15, counts by whole warps", id, count));
    return false;
  }
  b = &w.cta->barriers[id];
  if (b->arrived && b->expected != count)
    m.add("bad barrier", i.pc, format("CTA %u: warp %d expects %d threads at barrier %u, where others expect %d (0: all)",
                                      w.cta->linear, w.index, count, id, b->expected));
  b->expected = count;
  b->arrived += LANES;
  b->met.join(w.view);
  tick(w);
  if (b->arrived > expected_at(*w.cta, *b))
    m.add("bad barrier", i.pc, format("CTA %u: warp %d is one too many at barrier %u, which expects %d threads",
                                      w.cta->linear, w.index, id, expected_at(*w.cta, *b)));
  return true;
}

Step sleep_at(Warp &w, Barrier &b) {
  w.now().asleep = true;
  b.sleeping.push_back(&w);
  settle(*w.cta, b);
  return Step::WAIT;
}

Step on_bar_sync(Warp &w, const Ins &i, Mask) {
  if (!gathered(w, ALL)) return Step::RETRY;
  Barrier *b = nullptr;
  return arrive(w, i, 0, b) ? sleep_at(w, *b) : Step::STOP;
}

Step on_bar_arrive(Warp &w, const Ins &i, Mask) {
  if (!gathered(w, ALL)) return Step::RETRY;
  Barrier *b = nullptr;
  if (!arrive(w, i, 0, b)) return Step::STOP;
  settle(*w.cta, *b);
  return Step::NEXT;
}

// bar.red.{popc,and,or}: d, id{, count}, predicate.
template <int KIND> Step on_bar_red(Warp &w, const Ins &i, Mask m) {
  if (!gathered(w, ALL)) return Step::RETRY;
  Barrier *b = nullptr;
  if (!arrive(w, i, 1, b)) return Step::STOP;
  const Mask p = w.pred(i.op.back()) & m;
  b->popc += __builtin_popcount(p);
  b->any |= p != 0;
  b->all &= p == m;
  w.undefined[i.op[0]] &= ~m;
  b->replies.push_back({&w, i.op[0], KIND, m});
  return sleep_at(w, *b);
}

// ---- branches --------------------------------------------------------------------------------------------------------

Step jump(Warp &w, Mask lanes, int32_t target) {
  Fragment &f = w.now();
  if (lanes == f.mask) {
    f.pc = target;
    return Step::JUMP;
  }
  f.mask &= ~lanes;
  w.fragments.push_back({target, lanes});
  return Step::JUMP;
}

Step on_bra(Warp &w, const Ins &i, Mask m) {
  Fragment &f = w.now();
  if (m != f.mask) {
    jump(w, m, int32_t(i.imm[0]));
    w.now().pc++;
    return Step::JUMP;
  }
  return jump(w, m, int32_t(i.imm[0]));
}

Step on_brx(Warp &w, const Ins &i, Mask m) {
  const uint32_t *index = w.reg<uint32_t>(i.op[0]);
  const int32_t here = w.now().pc;
  const Mask undefined = w.undefined[i.op[0]] & m;
  if (undefined) w.machine->add("undefined value", i.pc, "the index of a jump comes from what nobody wrote");
  Mask left = m;
  while (left) {
    const uint32_t value = index[__builtin_ctz(left)];
    Mask same = 0;
    SG_FOR_LANES(lane, left) if (index[lane] == value) same |= 1u << lane;
    if (value >= i.imm.size()) {
      w.machine->add("out of bounds", i.pc, format("jump %u of a table of %zu", value, i.imm.size()));
      return Step::STOP;
    }
    left &= ~same;
    if (same == w.now().mask) {
      w.now().pc = int32_t(i.imm[value]);
      return Step::JUMP;
    }
    w.now().mask &= ~same;
    w.fragments.push_back({int32_t(i.imm[value]), same});
  }
  w.now().pc = here + 1;  // lanes that the guard held back
  return Step::JUMP;
}

Step on_exit(Warp &w, const Ins &, Mask m) {
  w.alive &= ~m;
  Fragment &f = w.now();
  f.mask &= ~m;
  if (f.mask)
    f.pc++;
  else
    w.fragments.erase(w.fragments.begin() + w.current);
  w.machine->happened();
  if (!w.alive) {
    Cta &cta = *w.cta;
    cta.living--;
    for (Barrier &b : cta.barriers)
      if (!b.sleeping.empty()) settle(cta, b);
  }
  return Step::JUMP;
}

Step on_trap(Warp &w, const Ins &i, Mask) {
  w.machine->add("trap", i.pc, format("CTA %u warp %d stops the kernel", w.cta->linear, w.index));
  return Step::STOP;
}

Step on_nothing(Warp &, const Ins &, Mask) { return Step::NEXT; }

// Where lower.py lets a register reuse the place of another one: what it holds is nobody's.
Step on_undef(Warp &w, const Ins &i, Mask m) {
  for (int32_t unit : i.op) w.undefined[unit] |= m;
  return Step::NEXT;
}

const bool announced = [] {
  for (const char *key : {"bar.sync", "bar.cta.sync", "barrier.sync", "barrier.cta.sync", "barrier.sync.aligned",
                          "barrier.cta.sync.aligned"})
    announce(key, on_bar_sync);
  for (const char *key : {"bar.arrive", "bar.cta.arrive", "barrier.arrive", "barrier.cta.arrive", "barrier.arrive.aligned",
                          "barrier.cta.arrive.aligned"})
    announce(key, on_bar_arrive);
  for (const char *head : {"bar.red", "bar.cta.red", "barrier.red", "barrier.cta.red"})
    for (const char *aligned : {"", ".aligned"}) {
      const std::string red = head;
      announce((red + ".popc" + aligned + ".u32").c_str(), on_bar_red<0>, OWN_TAINT);
      announce((red + ".and" + aligned + ".pred").c_str(), on_bar_red<1>, OWN_TAINT);
      announce((red + ".or" + aligned + ".pred").c_str(), on_bar_red<2>, OWN_TAINT);
    }
  announce("bra", on_bra), announce("bra.uni", on_bra);
  announce("brx.idx", on_brx, OWN_TAINT), announce("brx.idx.uni", on_brx, OWN_TAINT);
  announce("ret", on_exit), announce("ret.uni", on_exit), announce("exit", on_exit);
  announce("trap", on_trap), announce("brkpt", on_nothing), announce("nanosleep.u32", on_nothing);
  announce("pmevent", on_nothing);
  announce("softgpu.undef", on_undef, OWN_TAINT | OWN_BUSY);
  return true;
}();

}  // namespace

bool gathered(Warp &w, Mask members) {
  const Mask wanted = members & w.alive;
  return (w.now().mask & wanted) == wanted;
}

// ---- one warp --------------------------------------------------------------------------------------------------------

namespace {

bool can_run(const Fragment &f, uint64_t events) { return !f.asleep && f.tried < events; }

bool can_run(const Warp &w, uint64_t events) {
  for (const Fragment &f : w.fragments)
    if (can_run(f, events)) return true;
  return false;
}

// Unite lanes that met, and choose the fragment with the least pc that can run; false if none can.
bool choose(Warp &w, uint64_t events) {
  auto &all = w.fragments;
  if (all.size() > 1) {
    std::sort(all.begin(), all.end(), [](const Fragment &a, const Fragment &b) { return a.pc < b.pc; });
    size_t kept = 0;
    for (size_t k = 1; k < all.size(); k++) {
      if (all[k].pc == all[kept].pc && !all[k].asleep && !all[kept].asleep)
        all[kept].mask |= all[k].mask, all[kept].tried = 0;
      else
        all[++kept] = all[k];
    }
    all.resize(kept + 1);
  }
  for (size_t k = 0; k < all.size(); k++)
    if (can_run(all[k], events)) {
      w.current = k;
      return true;
    }
  return false;
}

void report_guard(Warp &w, const Ins &i, Mask undefined) {
  w.machine->add("undefined value", i.pc,
                 format("CTA %u warp %d lane %d: the guard of `%s` comes from what nobody wrote", w.cta->linear, w.index,
                        __builtin_ctz(undefined), i.text.c_str()));
}

void check_busy(Warp &w, const Ins &i) {
  for (size_t k = 0; k < i.op.size(); k++) {
    const int32_t unit = i.op[k];
    if (unit < 0 || !w.busy[unit]) continue;
    const bool writes = int32_t(k) < i.num_dst;
    if (!(w.busy[unit] & BUSY_WRITTEN) && !writes) continue;
    w.machine->add("in flight", i.pc,
                   format("CTA %u warp %d: `%s` %s a register that a wgmma in flight %s: its wait_group comes too late",
                          w.cta->linear, w.index, i.text.c_str(), writes ? "writes" : "reads",
                          w.busy[unit] & BUSY_WRITTEN ? "writes" : "reads"));
  }
}

void spread_taint(Warp &w, const Ins &i, Mask m) {
  Mask undefined = 0;
  for (size_t k = i.num_dst; k < i.op.size(); k++)
    if (i.op[k] >= 0) undefined |= w.undefined[i.op[k]];
  for (int32_t k = 0; k < i.num_dst; k++)
    if (i.op[k] >= 0) {
      Mask &at = w.undefined[i.op[k]];
      at = (at & ~m) | (undefined & m);
    }
}

// Run `w` for at most `quantum` instructions; false if it was cut off there and could go on.
bool run_warp(Machine &m, Warp &w, uint64_t quantum) {
  const Program &p = *m.program;
  const bool keep_writes = p.uses_wgmma;
  int32_t limit = -1;  // of the running fragment: where another one waits to be met
  for (const auto &s : p.specials)
    if (s.which == CLOCK || s.which == CLOCK_HI || s.which == CLOCK64 || s.which == GLOBALTIMER) fill_special(w, s);
  for (uint64_t done = 0; done < quantum; done++) {
    if (limit < 0) {
      if (w.fragments.empty() || !choose(w, m.events)) return true;
      limit = w.current + 1 < w.fragments.size() ? w.fragments[w.current + 1].pc : std::numeric_limits<int32_t>::max();
      if (w.current > 0) limit = -1;  // an earlier fragment waits: look again after every instruction
    }
    Fragment &f = w.now();
    if (size_t(f.pc) >= p.code.size()) {
      m.add("past the end", int32_t(p.code.size()) - 1, "control reaches the end of the kernel without ret");
      m.stopped = true;
      return true;
    }
    const Ins &i = p.code[f.pc];
    Mask lanes = f.mask;
    if (i.pred >= 0) {
      if (const Mask undefined = w.undefined[i.pred] & lanes; undefined && m.check) report_guard(w, i, undefined);
      lanes &= i.negated ? ~w.pred(i.pred) : w.pred(i.pred);
    }
    m.steps++, w.steps++;
    Count &count = m.counts[f.pc];
    Step step = Step::NEXT;
    if (lanes) {
      if (w.num_busy && !(i.flags & OWN_BUSY)) check_busy(w, i);
      if (!(i.flags & OWN_TAINT)) spread_taint(w, i, lanes);
      step = i.run(w, i, lanes);
      if (step != Step::RETRY) {
        count.executed++, count.lanes += __builtin_popcount(lanes);
        if (keep_writes)
          for (int32_t k = 0; k < i.num_dst; k++)
            if (i.op[k] >= 0) w.wrote[i.op[k]] = w.steps;
        if (i.flags & SYNCS) tick(w);
      }
    }
    switch (step) {
    case Step::NEXT:
      if (++w.now().pc >= limit) limit = -1;
      break;
    case Step::JUMP: limit = -1; break;
    case Step::RETRY:
      w.now().tried = m.events;
      m.steps--, w.steps--;
      limit = -1;
      break;
    case Step::WAIT: limit = -1; break;
    case Step::STOP: m.stopped = true; return true;
    }
    if (m.stopped) return true;
  }
  return false;
}

// ---- all warps -------------------------------------------------------------------------------------------------------

struct Scheduler {
  Machine &m;
  std::vector<Warp *> warps;
  std::vector<uint64_t> priority;  // WORST
  std::vector<bool> cut;           // ran to the end of its time last: others first
  size_t last = 0;

  void refresh() {
    warps.clear();
    for (auto &cta : m.ctas)
      for (auto &w : cta->warps) {
        w->slot = int32_t(warps.size());
        warps.push_back(w.get());
      }
    priority.resize(warps.size());
    for (auto &p : priority) p = m.random();
    cut.assign(warps.size(), false);
    last = 0;
  }

  Warp *pick() {
    const size_t n = warps.size();
    std::vector<size_t> able;
    for (int again = 0; again < 2 && able.empty(); again++) {
      for (size_t k = 0; k < n; k++)
        if (!cut[k] && can_run(*warps[k], m.events)) able.push_back(k);
      if (able.empty()) cut.assign(n, false);
    }
    if (able.empty()) return nullptr;
    size_t chosen = able[0];
    switch (m.schedule) {
    case Schedule::FORWARD: break;
    case Schedule::BACKWARD: chosen = able.back(); break;
    case Schedule::TURNS:
      for (size_t k : able)
        if (k > last) {
          chosen = k;
          break;
        }
      break;
    case Schedule::RANDOM: chosen = able[m.random() % able.size()]; break;
    case Schedule::WORST:
      if (m.random() % 64 == 0) priority[m.random() % n] = m.random();
      for (size_t k : able)
        if (priority[k] > priority[chosen]) chosen = k;
      break;
    }
    last = chosen;
    return warps[chosen];
  }

  uint64_t quantum() {
    switch (m.schedule) {
    case Schedule::TURNS: return 8;
    case Schedule::RANDOM: return 1 + m.random() % 256;
    case Schedule::WORST: return 256;
    default: return 1 << 16;  // whoever polls memory must let others write it
    }
  }
};

bool land_one(Machine &m, bool any) {
  if (m.pending.empty()) return false;
  const size_t k = any ? m.random() % m.pending.size() : 0;
  auto p = std::move(m.pending[k]);
  m.pending.erase(m.pending.begin() + k);
  p->land(m);
  m.happened();
  return true;
}

void report_deadlock(Machine &m, const char *why) {
  std::string text = why;
  int32_t pc = -1, shown = 0;
  for (const auto &cta : m.ctas)
    for (const auto &w : cta->warps)
      for (const Fragment &f : w->fragments) {
        const Ins &i = m.program->code[std::min(size_t(f.pc), m.program->code.size() - 1)];
        if (pc < 0 || f.asleep) pc = f.pc;
        if (++shown > 64) continue;
        text += format("\n  CTA %u warp %d lanes %08x at %s", cta->linear, w->index, f.mask, m.where(f.pc).c_str());
        if (i.key.rfind("mbarrier.t", 0) == 0) text += ": " + describe_mbarrier(*w, i);  // test_wait, try_wait
      }
  if (shown > 64) text += format("\n  and %d more", shown - 64);
  m.add("deadlock", pc, text);
}

}  // namespace

void run(Machine &m) {
  const Program &p = *m.program;
  for (int axis = 0; axis < 3; axis++)
    if (m.grid[axis] % p.cluster[axis]) {
      m.add("bad launch", 0, format("grid %u of axis %d is no multiple of the cluster's %d", m.grid[axis], axis, p.cluster[axis]));
      return;
    }
  m.counts.assign(p.code.size(), Count());
  m.random_state = m.seed * 0x9e3779b97f4a7c15ull + 1;
  const uint64_t clusters = uint64_t(m.num_ctas) / (p.cluster[0] * p.cluster[1] * p.cluster[2]);
  const uint32_t across[2] = {m.grid[0] / p.cluster[0], m.grid[1] / p.cluster[1]};
  uint64_t next = 0;
  Scheduler scheduler{m, {}, {}, {}, 0};
  while (!m.stopped) {
    const bool room = int32_t(m.ctas.size()) < std::max(m.resident, p.cluster[0] * p.cluster[1] * p.cluster[2]);
    if (room && next < clusters) {
      const uint32_t x = next % across[0], y = next / across[0] % across[1], z = next / across[0] / across[1];
      start_cluster(m, x * p.cluster[0], y * p.cluster[1], z * p.cluster[2]);
      next++;
      scheduler.refresh();
      continue;
    }
    if (m.ctas.empty() && m.pending.empty()) break;
    if (m.landing == Landing::RANDOM && m.random() % 8 == 0) land_one(m, true);
    Warp *w = scheduler.pick();
    if (!w) {
      if (land_one(m, m.landing == Landing::RANDOM)) continue;
      report_deadlock(m, "nobody can run:");
      break;
    }
    const int32_t living = w->cta->living;
    if (!run_warp(m, *w, scheduler.quantum())) scheduler.cut[scheduler.last] = true;
    if (w->cta->living != living && cluster_done(*w->cta)) {
      for (size_t k = 0; k < m.pending.size(); k++)  // a CTA's copies may outlive its threads, but not its memory
        if (m.pending[k]->cta && m.pending[k]->cta->cluster == w->cta->cluster) {
          auto late = std::move(m.pending[k]);
          m.pending.erase(m.pending.begin() + k--);
          late->land(m);
        }
      const std::vector<Cta *> members = w->cta->cluster;
      m.ctas.erase(std::remove_if(m.ctas.begin(), m.ctas.end(),
                                  [&](const auto &c) { return std::find(members.begin(), members.end(), c.get()) != members.end(); }),
                   m.ctas.end());
      scheduler.refresh();
    }
    if (m.max_steps && m.steps > m.max_steps) {
      report_deadlock(m, "too many instructions, as if somebody waited for ever:");
      break;
    }
  }
}

}  // namespace softgpu
