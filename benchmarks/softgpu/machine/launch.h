// What api.cpp needs of the machine, and the machine of its parts, beyond machine.h.
#pragma once
#include "machine.h"

namespace softgpu {

std::unordered_map<std::string, std::pair<Handler, uint32_t>> &handlers();
void run(Machine &m);  // the whole grid; findings, counts and steps are left in m

// For the report of a deadlock: the state of the mbarrier at an address of shared memory (mbarrier.cpp).
std::string describe_mbarrier(Cta &cta, uint32_t at);

}  // namespace softgpu
