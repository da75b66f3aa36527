// Names of who accesses memory, for findings.
#include "shadow.h"

namespace softgpu {

namespace {

std::string name_of(uint32_t cta, int column, int lane) {
  if (column < WGMMA_COLUMN)
    return lane < SEVERAL ? format("CTA %u warp %d lane %d", cta, column, lane)
                          : format("CTA %u warp %d, several lanes", cta, column);
  if (column < BULK_COLUMN) return format("CTA %u, a matrix product of warp %d", cta, column - WGMMA_COLUMN);
  if (column < BULK_WRITE_COLUMN) return format("CTA %u, a bulk copy of warp %d", cta, column - BULK_COLUMN);
  if (column < COPY_COLUMN) return format("CTA %u, a bulk copy of warp %d", cta, column - BULK_WRITE_COLUMN);
  return format("CTA %u, a copy that an mbarrier awaits (its number %d)", cta, column - COPY_COLUMN);
}

}  // namespace

std::string name_of(const Stamp &s) { return name_of(s.cta - 1, s.column, s.lane); }
std::string name_of(const Agent &who) { return name_of(who.cta->linear, who.column, who.lane); }

}  // namespace softgpu
