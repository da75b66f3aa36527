// Clusters: addresses in other CTAs' shared memory, their barrier; the hand-over of registers; dependent launches.
#include "asynchronous.h"
#include "machine.h"

namespace softgpu {

namespace {

// ---- addresses -------------------------------------------------------------------------------------------------------

constexpr uint64_t OFFSET = (1u << RANK_SHIFT) - 1;

// mapa.shared::cluster d, a, rank: where `a` of the own CTA lies in the CTA of that rank. Generic without a space.
template <class T, bool GENERIC> Step on_mapa(Warp &w, const Ins &i, Mask m) {
  T *d = w.reg<T>(i.op[0]);
  SG_FOR_LANES(lane, m) {
    const uint64_t a = value_of(w, i, 1, lane), rank = uint32_t(value_of(w, i, 2, lane));
    if (rank >= w.cta->cluster.size()) {
      w.machine->add("out of bounds", i.pc, format("%s: no CTA of rank %llu in a cluster of %zu", name_of(w, lane).c_str(),
                                                   static_cast<unsigned long long>(rank), w.cta->cluster.size()));
      return Step::STOP;
    }
    d[lane] = T((GENERIC ? SHARED_WINDOW : 0) | (rank + 1) << RANK_SHIFT | ((a & ~SHARED_WINDOW) & OFFSET));
  }
  return Step::NEXT;
}

// getctarank d, a: of the CTA whose shared memory `a` is in.
template <class T> Step on_getctarank(Warp &w, const Ins &i, Mask m) {
  uint32_t *d = w.reg<uint32_t>(i.op[0]);
  const T *a = w.reg<T>(i.op[1]);
  SG_FOR_LANES(lane, m) {
    const uint64_t rank = (uint64_t(a[lane]) & ~SHARED_WINDOW) >> RANK_SHIFT;
    d[lane] = rank ? uint32_t(rank - 1) : w.cta->rank;
  }
  return Step::NEXT;
}

// ---- the cluster's barrier -------------------------------------------------------------------------------------------

// Kept by the CTA of rank 0. Threads that have ended count as arrived.
struct ClusterBarrier {
  struct Lanes {
    Mask arrived = 0;  // in the phase under way
    Mask owe = 0;      // have arrived and not waited since
  };
  std::unordered_map<const Warp *, Lanes> lanes;
  Knowledge met, open;  // of the phase that is over; of the one under way
};

ClusterBarrier &barrier_of(Cta &cta) {
  auto &state = cta.cluster[0]->cluster_barrier;
  if (!state) state = std::make_shared<ClusterBarrier>();
  return *static_cast<ClusterBarrier *>(state.get());
}

void settle(Warp &w, ClusterBarrier &b) {
  for (const Cta *cta : w.cta->cluster)
    for (const auto &other : cta->warps)
      if (other->alive & ~b.lanes[other.get()].arrived) return;
  for (auto &of_warp : b.lanes) of_warp.second.arrived = 0;
  b.met = std::move(b.open);
  b.open = Knowledge();
  w.machine->happened();
}

// Lanes may come apart, but for an .aligned instruction, which waits for the whole warp.
template <bool ALIGNED> bool come(Warp &w, const Ins &i, Mask m) {
  if (!ALIGNED) return true;
  if (!gathered(w, ALL)) return false;
  if (m != w.alive && !w.machine->has("partial warp", i.pc))
    w.machine->add("partial warp", i.pc,
                   name_of(w) + format(" lanes %08x alone execute, of a whole warp, ", m) + w.machine->where(i.pc));
  return true;
}

template <bool RELEASES, bool ALIGNED> Step on_arrive(Warp &w, const Ins &i, Mask m) {
  if (!come<ALIGNED>(w, i, m)) return Step::RETRY;
  ClusterBarrier &b = barrier_of(*w.cta);
  ClusterBarrier::Lanes &lanes = b.lanes[&w];
  if (lanes.owe & m)
    w.machine->add("bad barrier", i.pc, format("%s arrives twice at the cluster's barrier, with no wait between",
                                               name_of(w, __builtin_ctz(lanes.owe & m)).c_str()));
  lanes.arrived |= m, lanes.owe |= m;
  if (RELEASES)
    b.open.join(w.view);
  else if (w.has_released)  // what a fence released, that of mbarriers' inits among them
    b.open.join(w.released);
  tick(w);
  settle(w, b);
  return Step::NEXT;
}

template <bool ALIGNED> Step on_wait(Warp &w, const Ins &i, Mask m) {
  if (!come<ALIGNED>(w, i, m)) return Step::RETRY;
  ClusterBarrier &b = barrier_of(*w.cta);
  ClusterBarrier::Lanes &lanes = b.lanes[&w];
  if (const Mask strangers = m & ~lanes.owe) {
    w.machine->add("bad barrier", i.pc, format("%s waits at the cluster's barrier, where it has not arrived",
                                               name_of(w, __builtin_ctz(strangers)).c_str()));
    return Step::STOP;
  }
  settle(w, b);  // others may have ended since
  Fragment &f = w.now();
  const Mask held = m & lanes.arrived, free = f.mask & ~held;
  if (!free) return Step::RETRY;
  if (free & m) w.view.join(b.met);
  lanes.owe &= ~(free & m);
  tick(w);
  if (!held) return Step::NEXT;
  const int32_t next = f.pc + 1;
  f.mask = held;
  w.fragments.push_back({next, free});
  return Step::JUMP;
}

// ---- registers -------------------------------------------------------------------------------------------------------

// setmaxnreg.{inc,dec} n: the warps of a CTA hand registers to each other through the CTA's pool.
template <bool MORE> Step on_setmaxnreg(Warp &w, const Ins &i, Mask) {
  if (!gathered(w, ALL)) return Step::RETRY;
  Machine &m = *w.machine;
  const int32_t n = int32_t(w.reg<uint32_t>(i.op[0])[0]);
  const auto bad = [&](const std::string &why) {
    m.add("bad setmaxnreg", i.pc, name_of(w) + format(", %d registers: ", n) + why);
    return Step::STOP;
  };
  if (n % 8 || n < 24 || n > 256) return bad("it must be a multiple of 8 from 24 to 256");
  if (!w.registers) return bad("the kernel does not say with how many it starts (.maxnreg)");
  if (MORE ? n < w.registers : n > w.registers) return bad(format("it has %d, which is on the other side", w.registers));
  if (MORE && n - w.registers > w.cta->free_registers) return Step::RETRY;  // until others have given theirs back
  w.cta->free_registers += w.registers - n;
  w.registers = n;
  if (!MORE) m.happened();
  return Step::NEXT;
}

template <bool ALIGNED> void announce_barrier(const std::string &aligned) {
  const std::string head = "barrier.cluster.";
  announce(head + "arrive" + aligned, on_arrive<true, ALIGNED>);
  announce(head + "arrive.release" + aligned, on_arrive<true, ALIGNED>);
  announce(head + "arrive.relaxed" + aligned, on_arrive<false, ALIGNED>);
  announce(head + "wait" + aligned, on_wait<ALIGNED>);
  announce(head + "wait.acquire" + aligned, on_wait<ALIGNED>);
}

const bool announced = [] {
  announce("mapa.u32", on_mapa<uint32_t, true>);
  announce("mapa.u64", on_mapa<uint64_t, true>);
  announce("mapa.shared::cluster.u32", on_mapa<uint32_t, false>);
  announce("mapa.shared::cluster.u64", on_mapa<uint64_t, false>);
  announce("getctarank.u32", on_getctarank<uint32_t>);
  announce("getctarank.u64", on_getctarank<uint64_t>);
  announce("getctarank.shared::cluster.u32", on_getctarank<uint32_t>);
  announce("getctarank.shared::cluster.u64", on_getctarank<uint64_t>);
  announce_barrier<false>(""), announce_barrier<true>(".aligned");
  announce("setmaxnreg.inc.sync.aligned.u32", on_setmaxnreg<true>);
  announce("setmaxnreg.dec.sync.aligned.u32", on_setmaxnreg<false>);
  // Launches follow each other here; the next one never begins early.
  announce("griddepcontrol.launch_dependents", nothing);
  announce("griddepcontrol.wait", nothing);
  return true;
}();

}  // namespace
}  // namespace softgpu
