// Clusters: addresses in other CTAs' shared memory, their barrier; the hand-over of registers; dependent launches.
#include <algorithm>
#include <array>
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

// Kept by the CTA of rank 0. Lanes that have ended count as arrived.
struct ClusterBarrier {
  uint64_t phase = 0;
  std::unordered_map<const Warp *, std::array<uint64_t, LANES>> arrived;  // the phase of each lane's last arrival, plus 1
  Knowledge met, open;                                 // of the phase that is over; of the one under way
};

ClusterBarrier &barrier_of(Cta &cta) {
  auto &state = cta.cluster[0]->cluster_barrier;
  if (!state) state = std::make_shared<ClusterBarrier>();
  return *static_cast<ClusterBarrier *>(state.get());
}

void settle(Warp &w, ClusterBarrier &b) {
  for (const Cta *cta : w.cta->cluster)
    for (const auto &other : cta->warps) {
      const auto &arrived = b.arrived[other.get()];
      SG_FOR_LANES(lane, other->alive) if (arrived[lane] != b.phase + 1) return;
    }
  b.phase++;
  b.met = std::move(b.open);
  b.open = Knowledge();
  w.machine->happened();
}

template <bool ALIGNED, bool RELEASES> Step on_arrive(Warp &w, const Ins &i, Mask m) {
  if (ALIGNED && !gathered(w, ALL)) return Step::RETRY;
  ClusterBarrier &b = barrier_of(*w.cta);
  SG_FOR_LANES(lane, m) {
    uint64_t &arrived = b.arrived[&w][lane];
    if (arrived == b.phase + 1 && !w.machine->has("bad barrier", i.pc))
      w.machine->add("bad barrier", i.pc,
                     format("%s arrives twice at one phase of the cluster's barrier", name_of(w, lane).c_str()));
    arrived = b.phase + 1;
  }
  if (RELEASES)
    b.open.join(w.view);
  else if (w.has_released)  // what a fence released, that of mbarriers' inits among them
    b.open.join(w.released);
  tick(w);
  settle(w, b);
  return Step::NEXT;
}

template <bool ALIGNED> Step on_wait(Warp &w, const Ins &i, Mask m) {
  if (ALIGNED && !gathered(w, ALL)) return Step::RETRY;
  ClusterBarrier &b = barrier_of(*w.cta);
  uint64_t waited = 0;
  SG_FOR_LANES(lane, m) {
    const uint64_t arrived = b.arrived[&w][lane];
    if (!arrived) {
      w.machine->add("bad barrier", i.pc,
                     format("%s waits at the cluster's barrier, where it has not arrived", name_of(w, lane).c_str()));
      return Step::STOP;
    }
    waited = std::max(waited, arrived);
  }
  settle(w, b);  // others may have ended since
  if (b.phase < waited) return Step::RETRY;
  w.view.join(b.met);
  tick(w);
  return Step::NEXT;
}

template <bool ALIGNED> void announce_barrier(const std::string &tail) {
  announce("barrier.cluster.arrive" + tail, on_arrive<ALIGNED, true>);
  announce("barrier.cluster.arrive.release" + tail, on_arrive<ALIGNED, true>);
  announce("barrier.cluster.arrive.relaxed" + tail, on_arrive<ALIGNED, false>);
  announce("barrier.cluster.wait" + tail, on_wait<ALIGNED>);
  announce("barrier.cluster.wait.acquire" + tail, on_wait<ALIGNED>);
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

const bool announced = [] {
  announce("mapa.u32", on_mapa<uint32_t, true>);
  announce("mapa.u64", on_mapa<uint64_t, true>);
  announce("mapa.shared::cluster.u32", on_mapa<uint32_t, false>);
  announce("mapa.shared::cluster.u64", on_mapa<uint64_t, false>);
  announce("getctarank.u32", on_getctarank<uint32_t>);
  announce("getctarank.u64", on_getctarank<uint64_t>);
  announce("getctarank.shared::cluster.u32", on_getctarank<uint32_t>);
  announce("getctarank.shared::cluster.u64", on_getctarank<uint64_t>);
  announce_barrier<false>("");
  announce_barrier<true>(".aligned");
  announce("setmaxnreg.inc.sync.aligned.u32", on_setmaxnreg<true>);
  announce("setmaxnreg.dec.sync.aligned.u32", on_setmaxnreg<false>);
  // Launches follow each other here; the next one never begins early.
  announce("griddepcontrol.launch_dependents", nothing);
  announce("griddepcontrol.wait", nothing);
  return true;
}();

}  // namespace
}  // namespace softgpu
