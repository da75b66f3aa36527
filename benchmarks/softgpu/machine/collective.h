// What instructions of a whole warp share: who takes part (warp.cpp).
#pragma once
#include "machine.h"

namespace softgpu {

// Of an .aligned instruction: does the whole warp execute it? If not, `step` is what the handler must return: RETRY
// while the others may still come; NEXT, with a finding and undefined results, if they never will (they exited, or the
// guard holds them back).
bool whole_warp(Warp &w, const Ins &i, Mask m, Step &step);

// The value of a constant operand, or of lane 0.
uint64_t constant(Warp &w, const Ins &i, size_t operand);

}  // namespace softgpu
