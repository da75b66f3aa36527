// Counts of a warp's request: sectors of global memory and wavefronts of shared memory, and the least that would do.
#include <algorithm>
#include "access.h"

namespace softgpu {

namespace {

constexpr uint64_t SECTOR = 32;  // bytes
constexpr int BANKS = 32;        // of 4 bytes each

}  // namespace

void count_global(Warp &w, const Ins &i, Mask m, const uint64_t *at, uint32_t bytes) {
  Count &count = w.machine->counts[i.pc];
  count.bytes += uint64_t(__builtin_popcount(m)) * bytes;
  uint64_t first[LANES];  // of each distinct sector, and which of its bytes are asked for
  uint32_t wanted[LANES];
  int n = 0;
  uint64_t greatest = 0;
  SG_FOR_LANES(lane, m) {
    const uint64_t sector = at[lane] / SECTOR;
    const uint32_t within = uint32_t(at[lane] % SECTOR);
    const uint32_t mask = uint32_t(((1ull << bytes) - 1) << within);
    int k = n;
    if (n && sector <= greatest)  // else it is new: lanes' addresses mostly ascend
      for (k = n - 1; k >= 0 && first[k] != sector; k--) {}
    if (k < 0) k = n;
    if (k == n) first[n] = sector, wanted[n] = 0, n++;
    wanted[k] |= mask;
    greatest = std::max(greatest, sector);
  }
  uint64_t distinct = 0;
  for (int k = 0; k < n; k++) distinct += __builtin_popcount(wanted[k]);
  count.transactions += n;
  count.ideal += (distinct + SECTOR - 1) / SECTOR;
}

void count_shared(Warp &w, const Ins &i, Mask m, const uint64_t *at, uint32_t bytes) {
  Count &count = w.machine->counts[i.pc];
  count.bytes += uint64_t(__builtin_popcount(m)) * bytes;
  const uint32_t words = std::max(1u, bytes / 4);  // of a lane
  const int lanes = std::max<int>(1, LANES / int(words));  // that are served together
  for (int from = 0; from < LANES; from += lanes) {
    const Mask group = m & (lanes == LANES ? ALL : lanes_below(lanes) << from);
    if (!group) continue;
    count.ideal += std::max(1u, words / BANKS);
    // Lanes of rising, adjoining words meet no bank twice.
    bool adjoining = group == (lanes == LANES ? ALL : lanes_below(lanes) << from) && bytes >= 4;
    for (int lane = from; adjoining && lane < from + lanes; lane++)
      adjoining = at[lane] == at[from] + uint64_t(lane - from) * bytes;
    if (adjoining) {
      count.transactions++;
      continue;
    }
    uint64_t held[BANKS][LANES];  // distinct words of each bank
    int depth[BANKS] = {}, worst = 1;
    SG_FOR_LANES(lane, group) {
      const uint64_t first = at[lane] / 4;
      for (uint64_t word = first; word < first + words; word++) {
        const int bank = int(word % BANKS);
        int k = 0;
        while (k < depth[bank] && held[bank][k] != word) k++;
        if (k < depth[bank]) continue;
        held[bank][depth[bank]++] = word;
        worst = std::max(worst, depth[bank]);
      }
    }
    count.transactions += worst;
  }
}

void count_traffic(Warp &w, const Ins &i, Mask m, Where where, const uint64_t *at, uint32_t bytes) {
  if (where == Where::GLOBAL)
    count_global(w, i, m, at, bytes);
  else if (where == Where::SHARED)
    count_shared(w, i, m, at, bytes);
  else
    w.machine->counts[i.pc].bytes += uint64_t(__builtin_popcount(m)) * bytes;
}

}  // namespace softgpu
