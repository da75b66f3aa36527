// Matrices in shared memory, as the descriptors of wgmma and tcgen05 describe them: rows of 16 bytes, and reading them.
#pragma once
#include <utility>
#include "machine.h"

namespace softgpu {

constexpr uint32_t ROW_BYTES = 16, DESCRIBED_SPACE = 1 << 18;  // what a descriptor can address
constexpr int ROW_WORDS = DESCRIBED_SPACE / ROW_BYTES / 64;

// In wgmma's form; tcgen05.cpp brings its own to this one.
struct Descriptor {
  uint32_t start, lead, stride, base;
  int mode, bits;  // bits: log2 of the rows of 16 bytes that a pattern is wide

  explicit Descriptor(uint64_t d)
      : start(offset(d)), lead(offset(d >> 16)), stride(offset(d >> 32)), base(uint32_t(d >> 49 & 7)),
        mode(int(d >> 62)), bits(mode ? 4 - mode : 0) {}

  static uint32_t offset(uint64_t field) { return uint32_t(field & 0x3fff) << 4; }
  uint32_t mask() const { return (1u << bits) - 1; }

  // Bits 4 and up of an address are exchanged by those that number the lines of 128 bytes in a pattern.
  uint32_t swizzled(uint32_t at) const { return at ^ (((at >> 7) - base) & mask()) << 4; }

  // A row of 16 bytes along k: number `k` of them, for row or column `mn` of the matrix.
  uint32_t along_k(int mn, int k) const {
    const uint32_t at = start + mn / 8 * stride + (uint32_t(mn % 8) << (4 + bits));
    return mode ? swizzled(at + 16 * k) : at + k * lead;
  }
  // A row of 16 bytes along m or n: number `mn` of them, for this k.
  uint32_t along_mn(int mn, int k) const {
    const uint32_t at = start + (uint32_t(k % 8) << (4 + bits));
    if (!mode) return at + mn * stride + k / 8 * lead;
    return swizzled(at + (mn >> bits) * lead + (mn & int(mask())) * 16 + k / 8 * stride);
  }

  std::string text() const {
    return format("start 0x%x, leading offset 0x%x, stride offset 0x%x, base offset %u, swizzle of %d bytes", start,
                  lead, stride, base, mode ? 16 << bits : 0);
  }
};

// What is wrong with a descriptor in wgmma's form; "" if nothing is.
std::string fault_of(uint64_t descriptor);

// Rows of 16 bytes that an operand consists of, by its descriptor.
struct Rows {
  uint64_t descriptor = 0;
  int shape = -1;                                    // which operand, of which size
  std::vector<uint32_t> at;                          // addresses, in the order in which they are wanted
  std::vector<std::pair<uint32_t, uint64_t>> words;  // the same as bits of CheckedRows, in ascending order
  bool inside = true;                                // of what a descriptor can address
};

// Blocks of 8 rows: `num_blocks` along m or n, from `first` on, and 2 along k for each. Kept: few recur often.
const Rows &rows_of(uint64_t descriptor, bool transposed, int first, int num_blocks);

// Rows of shared memory that an engine has read at one clock: they need not be checked again, for whoever wrote them
// meanwhile met that read.
struct CheckedRows {
  uint64_t words[ROW_WORDS] = {};  // a bit for each row
  bool any = false;
  void forget();
};

// Reads the rows one after the other to `to`. If some hold what nobody wrote, or cannot be read, `undefined` becomes a
// flag for each row.
void read_rows(Cta &cta, const Agent &reader, CheckedRows &checked, const Rows &rows, uint8_t *to,
               std::vector<bool> &undefined);

}  // namespace softgpu
