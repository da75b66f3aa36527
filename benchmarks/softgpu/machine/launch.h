// What api.cpp needs of the machine, and the machine of its parts, beyond machine.h.
#pragma once
#include "machine.h"

namespace softgpu {

std::unordered_map<std::string, std::pair<Handler, uint32_t>> &handlers();
void start_cluster(Machine &m, uint32_t first_x, uint32_t first_y, uint32_t first_z);  // its CTAs, added to m.ctas
void advance_clocks(Warp &w);  // %clock and its kin, whenever the schedule turns to a warp
void run(Machine &m);  // the whole grid; findings, counts and steps are left in m

void report_missing_wgmmas(Cta &cta);  // at its end: those that not all warps of a warpgroup issued (wgmma.cpp)

// For the report of a deadlock: the state of the mbarrier that `i`, a test_wait or try_wait, waits for (mbarrier.cpp).
std::string describe_mbarrier(Warp &w, const Ins &i);

// When a CTA's last thread has ended: what tensor memory it still holds is a finding (tensor_memory.cpp).
void end_tensor_memory(Cta &cta);

}  // namespace softgpu
