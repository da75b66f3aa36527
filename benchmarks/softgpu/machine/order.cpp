// Happens-before: who has seen whose accesses, by vector clocks.
//
// A warp's clock ticks whenever it tells somebody something (a barrier, an mbarrier, an atomic) and whenever its lanes
// meet (a shuffle, a vote, bar.warp.sync). `known[agent]` is the clock of that agent up to which its accesses happened
// before whatever the owner of the knowledge does next. Accesses of one warp at one clock are ordered within a lane only.
#include "machine.h"

namespace softgpu {

namespace {

void join_vector(std::vector<uint32_t> &into, const std::vector<uint32_t> &from) {
  if (into.size() < from.size()) into.resize(from.size(), 0);
  for (size_t k = 0; k < from.size(); k++)
    if (from[k] > into[k]) into[k] = from[k];
}

int32_t rank_in_cluster(const Cta &cta, uint32_t linear) {
  if (cta.linear == linear) return int32_t(cta.rank);
  if (cta.cluster.size() > 1)
    for (const Cta *other : cta.cluster)
      if (other->linear == linear) return int32_t(other->rank);
  return -1;
}

// The clock of `before`'s agent that `now` knows: generic (offset 0) or visible to asynchronous proxies (offset COLUMNS).
uint32_t known_of(const Stamp &before, const Agent &now, bool proxied) {
  const uint32_t linear = before.cta - 1;
  const int32_t rank = rank_in_cluster(*now.cta, linear);
  if (rank >= 0) {
    const auto &clocks = proxied ? now.view->proxied : now.view->known;
    const size_t at = size_t(rank) * COLUMNS + before.column;
    return at < clocks.size() ? clocks[at] : 0;
  }
  const auto found = now.view->foreign.find(linear);
  return found == now.view->foreign.end() ? 0 : found->second[before.column + (proxied ? COLUMNS : 0)];
}

}  // namespace

void Knowledge::join(const Knowledge &other) {
  join_vector(known, other.known);
  join_vector(proxied, other.proxied);
  for (const auto &[cta, clocks] : other.foreign) join_vector(foreign[cta], clocks);
}

bool ordered(const Stamp &before, const Agent &now) {
  if (!before.clock) return true;
  if (before.cta == now.cta->linear + 1 && before.column == now.column && now.column < WGMMA_COLUMN) {
    if (before.lane == now.lane || before.clock < now.clock) return true;
    return !now.cta->machine->check_lanes;
  }
  return known_of(before, now, false) >= before.clock;
}

bool visible_to_async(const Stamp &before, const Agent &now) {
  if (!before.clock || before.proxy == Proxy::ASYNC) return true;
  return known_of(before, now, true) >= before.clock;
}

Agent agent(Warp &w, const Ins &i, int lane) {
  return {w.cta, int16_t(WARP_COLUMN + w.index), int16_t(lane), w.clock, &w.view, Proxy::GENERIC, i.pc};
}

Agent engine(Warp &w, const Ins &i, int column, uint32_t clock, const Knowledge &view) {
  return {w.cta, int16_t(column), 0, clock, &view, Proxy::ASYNC, i.pc};
}

void tick(Warp &w) { w.view.known[w.cta->column_base() + WARP_COLUMN + w.index] = ++w.clock; }

// ---- atomics and fences ----------------------------------------------------------------------------------------------

namespace {

// What releases published at a location: linear CTA -> its clocks, generic and then proxied.
using Published = std::unordered_map<uint32_t, std::vector<uint32_t>>;
using Locations = std::unordered_map<uint64_t, Published>;

Locations &locations(Machine &m) {
  if (!m.atomics) m.atomics = std::make_shared<Locations>();
  return *std::static_pointer_cast<Locations>(m.atomics);
}

void publish(Machine &m, const Cta &cta, const Knowledge &view, uint64_t address) {
  Published &at = locations(m)[address];
  for (const Cta *member : cta.cluster) {
    std::vector<uint32_t> clocks(2 * COLUMNS, 0);
    const size_t base = member->column_base();
    bool any = false;
    for (int c = 0; c < COLUMNS; c++) {
      if (base + c < view.known.size()) any |= (clocks[c] = view.known[base + c]) != 0;
      if (base + c < view.proxied.size()) clocks[COLUMNS + c] = view.proxied[base + c];
    }
    if (any) join_vector(at[member->linear], clocks);
  }
  for (const auto &[linear, clocks] : view.foreign) join_vector(at[linear], clocks);
}

void learn(Machine &m, const Cta &cta, Knowledge &view, uint64_t address) {
  const auto found = locations(m).find(address);
  if (found == locations(m).end()) return;
  for (const auto &[linear, clocks] : found->second) {
    const int32_t rank = rank_in_cluster(cta, linear);
    if (rank < 0) {
      join_vector(view.foreign[linear], clocks);
      continue;
    }
    const size_t base = size_t(rank) * COLUMNS;
    if (view.known.size() < base + COLUMNS) view.known.resize(base + COLUMNS, 0);
    if (view.proxied.size() < base + COLUMNS) view.proxied.resize(base + COLUMNS, 0);
    for (int c = 0; c < COLUMNS; c++) {
      view.known[base + c] = std::max(view.known[base + c], clocks[c]);
      view.proxied[base + c] = std::max(view.proxied[base + c], clocks[COLUMNS + c]);
    }
  }
}

}  // namespace

void release_to(Warp &w, uint64_t address) {
  publish(*w.machine, *w.cta, w.view, address);
  tick(w);
}

void acquire_from(Warp &w, uint64_t address) { learn(*w.machine, *w.cta, w.view, address); }

void relaxed_write(Warp &w, uint64_t address) {
  if (w.has_released) publish(*w.machine, *w.cta, w.released, address);
}

void relaxed_read(Warp &w, uint64_t address) {
  learn(*w.machine, *w.cta, w.pending, address);
  w.has_pending = true;
}

namespace {

// fence.acq_rel, membar: acquires what relaxed reads found, and is what relaxed writes publish.
Step fence(Warp &w, const Ins &, Mask) {
  if (w.has_pending) {
    w.view.join(w.pending);
    w.pending = Knowledge();
    w.has_pending = false;
  }
  if (w.machine->program->has_atomics) {
    w.released = w.view;
    w.has_released = true;
  }
  tick(w);
  return Step::NEXT;
}

// What is known becomes visible to asynchronous proxies.
Step fence_proxy_async(Warp &w, const Ins &, Mask) {
  join_vector(w.view.proxied, w.view.known);
  for (auto &[cta, clocks] : w.view.foreign)
    for (int c = 0; c < COLUMNS; c++) clocks[COLUMNS + c] = std::max(clocks[COLUMNS + c], clocks[c]);
  tick(w);
  return Step::NEXT;
}

const bool announced = [] {
  for (const char *scope : {"cta", "cluster", "gpu", "sys"})
    for (const char *kind : {"fence.acq_rel.", "fence.sc.", "fence.", "fence.acquire.", "fence.release."})
      announce(std::string(kind) + scope, fence);
  for (const char *level : {"membar.cta", "membar.gl", "membar.sys"}) announce(level, fence);
  // A restricted proxy fence orders a part of what the whole one does; the whole is what is modelled.
  for (const char *space : {"", ".global", ".shared::cta", ".shared::cluster"})
    announce(std::string("fence.proxy.async") + space, fence_proxy_async);
  announce("fence.proxy.alias", fence_proxy_async);
  return true;
}();

}  // namespace
}  // namespace softgpu
