// What the instructions of threads on memory share: spaces, addresses of lanes, counts of traffic.
#pragma once
#include "memory.h"

namespace softgpu {

enum class Where : uint8_t { GENERIC, GLOBAL, SHARED, CLUSTER, LOCAL, PARAM };  // SHARED: of the own CTA

// What an opcode says after its first word.
struct Modifiers {
  Where where = Where::GENERIC;
  Scope scope = Scope::WEAK;  // of a strong access
  bool acquire = false, release = false;
};
Modifiers modifiers(const std::string &key);

struct Addresses {
  uint64_t at[LANES];
  Mask defined;  // lanes whose address is worth using; the others have been reported
};
Addresses addresses(Warp &w, const Ins &i, Mask m, int operand, int64_t offset);

// Where a lane's address leads to: a space that is not GENERIC and a place in it; of shared memory, whose.
struct Location {
  Where where;
  Cta *owner;
  uint64_t at;
};
Location locate(Warp &w, Where where, uint64_t address);
// Names a location for order.cpp's atomics: its generic address, with the CTA where that matters.
uint64_t unique_address(const Location &l);

// Bytes of a lane in any space, checked; nullptr: they must not be touched. `value`: what will be stored.
uint8_t *touch(Warp &w, const Agent &who, const Location &l, uint32_t bytes, Kind kind, bool &undefined,
               const uint8_t *value);

// Reports what a lane stores to global memory though nobody wrote it; `undefined`: those lanes.
void report_undefined_store(Warp &w, const Ins &i, Mask undefined);

void count_global(Warp &w, const Ins &i, Mask m, const uint64_t *at, uint32_t bytes);
void count_shared(Warp &w, const Ins &i, Mask m, const uint64_t *at, uint32_t bytes);
void count_traffic(Warp &w, const Ins &i, Mask m, Where where, const uint64_t *at, uint32_t bytes);

}  // namespace softgpu
