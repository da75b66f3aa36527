// Bulk copies: what a warp has under way, and how they are told to the machine.
#pragma once
#include <functional>
#include "access.h"
#include "asynchronous.h"
#include "box.h"
#include "reduction.h"

namespace softgpu {

bool read_map(Warp &w, const Ins &i, int lane, uint64_t address, tensor_map &map);  // tensor_map.cpp

// A copy that the schedule lands. Groups and the queue share it; it lands once.
struct Transfer {
  std::function<void()> go;
  bool landed = false;
  uint32_t clock = 0;  // of the bulk engines, of a store
  void land() {
    if (landed) return;
    landed = true;
    go();
  }
};

void enqueue(Machine &m, Cta *cta, std::shared_ptr<Transfer> transfer);
// Copies into shared memory tell an mbarrier; those out of it belong to the open bulk group of their thread.
void add_to_group(Warp &w, int lane, std::shared_ptr<Transfer> transfer);
void count_bulk(Warp &w, const Ins &i, const std::vector<Piece> &pieces, uint32_t bytes);

}  // namespace softgpu
