// What api.cpp needs of the machine, and the machine of its parts, beyond machine.h.
#pragma once
#include "machine.h"

namespace softgpu {

std::unordered_map<std::string, std::pair<Handler, uint32_t>> &handlers();
void run(Machine &m);  // the whole grid; findings, counts and steps are left in m

// For the report of a deadlock: the state of the mbarrier that `i`, a test_wait or try_wait, waits for (mbarrier.cpp).
std::string describe_mbarrier(Warp &w, const Ins &i);

}  // namespace softgpu
