// Shared memories begin: poisoned, nothing written, no access remembered.
#include "shared_space.h"

namespace softgpu {

namespace {

// Shared memories of CTAs that have ended serve again: clearing what was touched costs less than new ones.
std::vector<std::unique_ptr<Space>> &spares() {
  static std::vector<std::unique_ptr<Space>> all;
  return all;
}

void retire(Space *s) {
  if (spares().size() < 64)
    spares().emplace_back(s);
  else
    delete s;
}

}  // namespace

void shared_reset(Cta &owner, uint32_t bytes) {
  const Program &p = *owner.machine->program;
  const uint32_t shift = uint32_t(__builtin_ctz(std::min<uint32_t>(p.shared_granule, LINE)));
  const uint32_t agents = uint32_t(owner.cluster.size()) * COLUMNS;
  uint32_t stride = 4;
  while (stride < uint32_t(p.num_threads + LANES - 1) / LANES * (p.uses_wgmma ? 2 : 1)) stride *= 2;
  const auto fits = [&](const Space &s) {
    return s.bytes.size() == bytes && s.shift == shift && s.num_agents == agents && s.stride >= stride;
  };
  if (!owner.shared || !fits(*owner.shared)) {
    auto &all = spares();
    const auto spare = std::find_if(all.begin(), all.end(), [&](const auto &s) { return fits(*s); });
    if (spare != all.end()) {
      owner.shared = {spare->release(), retire};
      all.erase(spare);
    } else {
      owner.shared = {new Space, retire};
      owner.shared->shape(bytes, shift, stride, agents);
    }
  }
  owner.shared->reset();
}

uint8_t *shared_bytes(Cta &owner) { return owner.shared->bytes.data(); }
uint32_t shared_size(Cta &owner) { return uint32_t(owner.shared->bytes.size()); }

}  // namespace softgpu
