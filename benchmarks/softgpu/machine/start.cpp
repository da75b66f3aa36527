// How a CTA starts: its warps, what their registers hold, poisoned shared memory.
#include <algorithm>
#include "launch.h"

namespace softgpu {

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

}  // namespace

void advance_clocks(Warp &w) {
  for (const auto &s : w.machine->program->specials)
    if (s.which == CLOCK || s.which == CLOCK_HI || s.which == CLOCK64 || s.which == GLOBALTIMER) fill_special(w, s);
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

}  // namespace softgpu
