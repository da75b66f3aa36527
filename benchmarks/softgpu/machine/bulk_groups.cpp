// Groups of bulk copies out of shared memory: commit_group, wait_group, and what a thread learns by waiting.
#include <array>
#include "tma.h"

namespace softgpu {

namespace {

using Group = std::vector<std::shared_ptr<Transfer>>;

// Of a warp: the groups of each of its threads, the oldest first, and the one that is open.
struct Groups {
  std::array<std::deque<Group>, LANES> committed;
  std::array<Group, LANES> open;
};

Groups &groups_of(Warp &w) {
  if (!w.bulks) w.bulks = std::make_shared<Groups>();
  return *static_cast<Groups *>(w.bulks.get());
}

// Groups keep a transfer that is done, for its clock; what it copied is let go.
void finish(Transfer &transfer) {
  transfer.land();
  transfer.go = nullptr;
}

struct Queued : Pending {
  std::shared_ptr<Transfer> transfer;
  void land(Machine &) override { finish(*transfer); }
};

Step on_commit(Warp &w, const Ins &, Mask m) {
  Groups &g = groups_of(w);
  SG_FOR_LANES(lane, m) g.committed[lane].push_back(std::exchange(g.open[lane], {}));
  return Step::NEXT;
}

// wait_group{.read} n: all but the n latest groups are done, or at least no longer read shared memory.
template <bool READ> Step on_wait(Warp &w, const Ins &i, Mask m) {
  Groups &g = groups_of(w);
  const uint32_t most = w.reg<uint32_t>(i.op[0])[0];
  uint32_t learned = 0;
  SG_FOR_LANES(lane, m) {
    auto &groups = g.committed[lane];
    const size_t done = groups.size() > most ? groups.size() - most : 0;
    for (size_t k = 0; k < done; k++)
      for (const auto &transfer : groups[k]) {
        finish(*transfer);
        learned = std::max(learned, transfer->clock);
      }
    if (!READ) groups.erase(groups.begin(), groups.begin() + done);
  }
  if (learned) {
    const size_t base = w.cta->column_base() + w.index;
    for (const int column : {BULK_COLUMN, BULK_WRITE_COLUMN}) {
      if (READ && column == BULK_WRITE_COLUMN) continue;
      for (auto *clocks : {&w.view.known, &w.view.proxied})
        (*clocks)[base + column] = std::max((*clocks)[base + column], learned);
    }
    w.machine->happened();
  }
  return Step::NEXT;
}

const bool announced = [] {
  announce("cp.async.bulk.commit_group", on_commit);
  announce("cp.async.bulk.wait_group", on_wait<false>);
  announce("cp.async.bulk.wait_group.read", on_wait<true>);
  return true;
}();

}  // namespace

void enqueue(Machine &m, Cta *cta, std::shared_ptr<Transfer> transfer) {
  auto queued = std::make_unique<Queued>();
  queued->cta = cta;
  queued->transfer = std::move(transfer);
  m.later(std::move(queued));
}

void add_to_group(Warp &w, int lane, std::shared_ptr<Transfer> transfer) {
  groups_of(w).open[lane].push_back(std::move(transfer));
}

void count_bulk(Warp &w, const Ins &i, const std::vector<Piece> &pieces, uint32_t bytes) {
  Count &count = w.machine->counts[i.pc];
  count.bytes += bytes;
  for (const Piece &p : pieces) {
    count.transactions += (p.global + p.bytes - 1) / 32 - p.global / 32 + 1;
    count.ideal += (p.bytes + 31) / 32;
  }
}

}  // namespace softgpu
