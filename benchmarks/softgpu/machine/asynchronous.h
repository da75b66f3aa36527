// What mbarriers, bulk copies and clusters have in common: where an operand points, and a copy's end at an mbarrier.
#pragma once
#include "machine.h"
#include "tensor_map.h"

namespace softgpu {

// ---- operands --------------------------------------------------------------------------------------------------------

// The bits of an operand in a lane; signed if it is narrower than what is asked for.
uint64_t value_of(Warp &w, const Ins &i, int operand, int lane);
inline int32_t signed_of(Warp &w, const Ins &i, int operand, int lane) { return int32_t(value_of(w, i, operand, lane)); }

// Lanes of `m` in which the operands from `first` to before `last` have a value; a finding of the others.
Mask defined(Warp &w, const Ins &i, Mask m, int first, int last);

// A place in the shared memory of a CTA of the cluster.
struct Place {
  Cta *cta = nullptr;
  uint32_t at = 0;
};
// Where `address`, of .shared::cta, .shared::cluster or generic, points. A finding and false if it is nowhere.
bool find_place(Warp &w, const Ins &i, int lane, uint64_t address, Place &place);

// ---- copies that complete at an mbarrier -----------------------------------------------------------------------------

// A copy under way: its engine at the time, and the mbarrier that it will tell.
struct Ticket {
  Place bar;
  uint64_t object = 0;    // which mbarrier of those that were at this place
  int16_t column = 0;     // of the engine, in the part of bar.cta
  uint32_t clock = 0;
  int32_t pc = -1;
  std::shared_ptr<const Knowledge> view;  // of the thread that issued it

  Agent engine() const { return {bar.cta, column, 0, clock, view.get(), Proxy::ASYNC, pc}; }
};

// What the warp knows now; what it does afterwards is later.
std::shared_ptr<const Knowledge> view_now(Warp &w);

// The start of a copy. False, with a finding, if there is no mbarrier that the thread knows of.
bool begin_copy(Warp &w, const Ins &i, int lane, Place bar, std::shared_ptr<const Knowledge> view, Ticket &ticket);
// Its end: `bytes` of it have arrived. Who waits learns what `ticket`'s engine did, and that of `source`, which read.
void end_copy(const Ticket &ticket, const Ticket &source, uint32_t bytes);

// The tensor map at a generic address, if there is one that may be used; else a finding.
bool read_map(Warp &w, const Ins &i, int lane, uint64_t address, tensor_map &map);

}  // namespace softgpu
