// Control: barriers of a CTA, branches, what ends a thread.
#include "machine.h"

namespace softgpu {

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
  w.machine->add("trap", i.pc, name_of(w) + " stops the kernel");
  return Step::STOP;
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
      announce(red + ".popc" + aligned + ".u32", on_bar_red<0>, OWN_TAINT);
      announce(red + ".and" + aligned + ".pred", on_bar_red<1>, OWN_TAINT);
      announce(red + ".or" + aligned + ".pred", on_bar_red<2>, OWN_TAINT);
    }
  announce("bra", on_bra), announce("bra.uni", on_bra);
  announce("brx.idx", on_brx, OWN_TAINT), announce("brx.idx.uni", on_brx, OWN_TAINT);
  announce("ret", on_exit), announce("ret.uni", on_exit), announce("exit", on_exit);
  announce("trap", on_trap), announce("brkpt", nothing), announce("nanosleep.u32", nothing);
  announce("pmevent", nothing);
  return true;
}();

}  // namespace

bool gathered(Warp &w, Mask members) {
  const Mask wanted = members & w.alive;
  return (w.now().mask & wanted) == wanted;
}

}  // namespace softgpu
