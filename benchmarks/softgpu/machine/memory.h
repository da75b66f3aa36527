// Global memory as the launcher sees it: which of the host's bytes there are, and which of them a launch may touch.
#pragma once
#include "machine.h"

namespace softgpu {

Global *global_new();
void global_delete(Global *g);
// An allocation; returns its number. `tracked`: nothing has been written there yet (torch.empty), so that reads of what no
// kernel wrote are findings.
int64_t global_register(Global &g, uint64_t start, uint64_t bytes, const char *name, bool tracked);
void global_forget(Global &g, int64_t allocation);
// The next launch may touch these allocations and no others; what launches before it did happened before.
void global_begin_launch(Global &g, const Program &p, const int64_t *allocations, size_t n);

}  // namespace softgpu
