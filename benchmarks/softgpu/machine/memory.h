// Shared and global memory, beyond what machine.h offers to all: allocations, for api.cpp; strong accesses and requests
// of whole warps, for load_store.cpp and its kin.
#pragma once
#include "machine.h"
#include "shadow.h"

namespace softgpu {

// Allocations of global memory are the host's memory. A launch may touch those alone that it was given.
enum class Tracked : int32_t {
  NO,      // all was written by the host
  EXACT,   // nothing was written yet
  POISON,  // nothing was written yet; the host writes unseen, and where bytes are no longer 0xff it has
};
Global *global_create();
void global_destroy(Global *g);
int32_t global_register(Global &g, uint64_t start, uint64_t bytes, const char *name, Tracked tracked);  // its id
void global_forget(Global &g, int32_t id);
void global_begin_launch(Global &g, const Program &p, const std::vector<uint8_t> &params, const int32_t *ids,
                         size_t num_ids);
// "`x` + 0x40", or how far it lies from what it is nearest to.
std::string global_name(Machine &m, uint64_t at);

// As shared_read and its kin in machine.h, of any kind. A strong write is stored at once by the caller.
uint8_t *shared_access(Cta &owner, const Agent &who, uint32_t at, uint32_t bytes, uint32_t alignment, Kind kind,
                       bool &undefined, const uint8_t *value);
uint8_t *global_access(Machine &m, const Agent &who, uint64_t at, uint32_t bytes, uint32_t alignment, Kind kind,
                       const uint8_t *value);

constexpr uint32_t MOST_BYTES = 64;  // of a lane's access
struct Values {
  uint8_t of[LANES][MOST_BYTES];
};
// The same for lanes in turn, as of a warp's instruction. `values` are stored as well. `where` gets the bytes of the
// lanes that are returned; `undefined`: what they store, or found.
Mask shared_request(Cta &owner, Agent who, Mask m, const uint64_t *at, uint32_t bytes, Kind kind, Mask &undefined,
                    const Values *values, uint8_t **where);
Mask global_request(Machine &machine, Agent who, Mask m, const uint64_t *at, uint32_t bytes, Kind kind,
                    const Values *values, uint8_t **where);
// Lanes' copies of `bytes` each to places that are inside: they set out, as by shared_in_flight; they arrive, are no
// longer in flight, and written by `who`.
void shared_launch(Cta &owner, Agent who, Mask m, const uint32_t *at, uint32_t bytes);
void shared_land(Cta &owner, Agent who, Mask m, const uint32_t *at, uint32_t bytes);

}  // namespace softgpu
