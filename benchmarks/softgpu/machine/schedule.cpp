// The schedule: which warp runs next and how far, divergence within a warp, the end of a launch.
#include <algorithm>
#include <limits>
#include "launch.h"

namespace softgpu {

// ---- one warp --------------------------------------------------------------------------------------------------------

namespace {

constexpr uint64_t LONGEST_WAIT = 1 << 20;  // instructions of all warps

bool is_wait(const Ins &i) { return i.key.rfind("mbarrier.t", 0) == 0; }  // test_wait, try_wait

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
                 name_of(w, __builtin_ctz(undefined)) + ": the guard of `" + i.text + "` comes from what nobody wrote");
}

void check_busy(Warp &w, const Ins &i) {
  for (size_t k = 0; k < i.op.size(); k++) {
    const int32_t unit = i.op[k];
    if (unit < 0 || !w.busy[unit]) continue;
    const bool writes = int32_t(k) < i.num_dst;
    if (!(w.busy[unit] & BUSY_WRITTEN) && !writes) continue;
    w.machine->add("in flight", i.pc,
                   name_of(w) + format(": `%s` %s a register that a wgmma in flight %s: its wait_group comes too late",
                                       i.text.c_str(), writes ? "writes" : "reads",
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
  advance_clocks(w);
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

bool cluster_done(const Cta &cta) {
  return std::all_of(cta.cluster.begin(), cta.cluster.end(), [](const Cta *c) { return c->living == 0; });
}

bool land_one(Machine &m, bool any) {
  if (m.pending.empty()) return false;
  const size_t k = any ? m.random() % m.pending.size() : 0;
  auto p = std::move(m.pending[k]);
  m.pending.erase(m.pending.begin() + k);
  p->land(m);
  m.happened();
  return true;
}

// Time passes: whoever waits at an mbarrier hears once that the phase is not over, and may do something else.
bool expire_waits(Machine &m) {
  bool any = false;
  for (const auto &cta : m.ctas)
    for (const auto &w : cta->warps)
      for (Fragment &f : w->fragments)
        if (!f.asleep && is_wait(m.program->code[f.pc])) f.expired = any = true, f.tried = 0;
  return any;
}

// How long waits expire when nobody can run. Who only asks again comes back to where it was: if nothing happened and all
// warps are in a state in which they have been before, they will be for ever.
class Patience {
 public:
  // Is there hope? Then the waits have expired.
  bool lasts(Machine &m) {
    if (events_ != m.events) events_ = m.events, rounds_ = 0;
    const uint64_t now = state(m);
    if ((rounds_ && now == kept_) || ++rounds_ > MOST) return false;
    if (!(rounds_ & (rounds_ - 1))) kept_ = now;  // Brent: a cycle of any length is found
    return expire_waits(m);
  }

 private:
  static constexpr uint64_t MOST = 1 << 14;  // of those who count how often they asked
  uint64_t events_ = 0, rounds_ = 0, kept_ = 0;

  // A hash of the lanes' places and of all registers.
  static uint64_t state(const Machine &m) {
    uint64_t hash = 0;
    const auto mix = [&](uint64_t x) { hash = (hash ^ x ^ hash >> 29) * 0xbf58476d1ce4e5b9ull; };
    const auto mix_all = [&](const std::vector<uint8_t> &bytes) {
      for (size_t k = 0; k + 8 <= bytes.size(); k += 8) {
        uint64_t word;
        std::memcpy(&word, bytes.data() + k, 8);
        mix(word);
      }
    };
    for (const auto &cta : m.ctas)
      for (const auto &w : cta->warps) {
        for (const Fragment &f : w->fragments) mix(uint64_t(f.pc) << 32 | f.mask);
        mix_all(w->file);
        mix_all(w->local);
      }
    return hash;
  }
};

void report_deadlock(Machine &m, const char *why) {
  std::string text = why;
  int32_t pc = -1, shown = 0;
  for (const auto &cta : m.ctas)
    for (const auto &w : cta->warps)
      for (const Fragment &f : w->fragments) {
        const Ins &i = m.program->code[std::min(size_t(f.pc), m.program->code.size() - 1)];
        if (pc < 0 || f.asleep) pc = f.pc;
        if (++shown > 64) continue;
        text += "\n  " + name_of(*w) + format(" lanes %08x at ", f.mask) + m.where(f.pc);
        if (is_wait(i)) text += ": " + describe_mbarrier(*w, i);
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
  Patience patience;
  uint64_t overdue = LONGEST_WAIT;
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
      if (patience.lasts(m)) continue;
      report_deadlock(m, "nobody can run:");
      break;
    }
    if (m.steps > overdue) {  // somebody may poll memory for what only a copy, or who waits, will write
      overdue = m.steps + LONGEST_WAIT;
      if (!land_one(m, m.landing == Landing::RANDOM)) expire_waits(m);
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
      for (Cta *member : members) {
        end_tensor_memory(*member);
        if (p.uses_wgmma) report_missing_wgmmas(*member);
      }
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
