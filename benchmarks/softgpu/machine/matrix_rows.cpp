// Matrices in shared memory: where their rows of 16 bytes lie, and reading them.
#include "matrix_rows.h"
#include <algorithm>
#include <map>

namespace softgpu {
namespace {

// Calls f(from, to) for each run of set bits.
template <class F> void for_runs(uint64_t bits, F f) {
  while (bits) {
    const int from = __builtin_ctzll(bits);
    const uint64_t beyond = ~(bits >> from);
    const int to = beyond ? std::min(64, from + __builtin_ctzll(beyond)) : 64;
    f(from, to);
    bits = to < 64 ? bits & ~uint64_t(0) << to : 0;
  }
}

}  // namespace

std::string fault_of(uint64_t bits) {
  const Descriptor d(bits);
  if (bits & 0x3ff1c000c000c000ull)
    return format("bits that must be 0 are set in 0x%016llx", static_cast<unsigned long long>(bits));
  if (!d.mode && d.base) return "a base offset without a swizzle";
  if ((d.start >> 7 & d.mask()) != (d.base & d.mask()))
    return format("it starts in line %u of a pattern of %u lines of 128 bytes", d.start >> 7 & d.mask(), d.mask() + 1);
  return "";
}

const Rows &rows_of(uint64_t descriptor, bool transposed, int first, int num_blocks) {
  static thread_local std::vector<Rows> kept(256);
  const int shape = (first * 64 + num_blocks) * 2 + transposed;
  Rows &r = kept[((descriptor ^ descriptor >> 32) * 0x9e3779b97f4a7c15ull >> 40 ^ shape) % kept.size()];
  if (r.shape == shape && r.descriptor == descriptor) return r;
  r = Rows();
  r.descriptor = descriptor, r.shape = shape;
  const Descriptor d(descriptor);
  std::map<uint32_t, uint64_t> words;
  for (int block = first; block < first + num_blocks; block++)
    for (int k = 0; k < 2; k++)
      for (int line = 0; line < 8; line++) {
        r.at.push_back(transposed ? d.along_mn(block, 8 * k + line) : d.along_k(8 * block + line, k));
        const uint32_t row = r.at.back() / ROW_BYTES;
        if (r.at.back() < DESCRIBED_SPACE)
          words[row / 64] |= uint64_t(1) << row % 64;
        else
          r.inside = false;
      }
  r.words.assign(words.begin(), words.end());
  return r;
}

void CheckedRows::forget() {
  if (any) std::fill_n(words, ROW_WORDS, 0);
  any = false;
}

void read_rows(Cta &cta, const Agent &reader, CheckedRows &checked, const Rows &rows, uint8_t *to,
               std::vector<bool> &undefined) {
  bool all_well = rows.inside;
  for (const auto &[word, bits] : rows.words) {
    const uint64_t fresh = bits & ~checked.words[word];
    checked.words[word] |= bits;
    for_runs(fresh, [&](int from, int end) {
      bool tainted = false;
      const uint8_t *data =
          shared_read(cta, reader, (word * 64 + from) * ROW_BYTES, (end - from) * ROW_BYTES, ROW_BYTES, tainted);
      all_well &= data && !tainted;
    });
  }
  checked.any = true;
  if (all_well) {
    const uint8_t *bytes = shared_bytes(cta);
    for (uint32_t at : rows.at) std::memcpy(to, bytes + at, ROW_BYTES), to += ROW_BYTES;
    return;
  }
  for (uint32_t at : rows.at) {  // which rows are it?
    bool tainted = false;
    const uint8_t *data = shared_read(cta, reader, at, ROW_BYTES, ROW_BYTES, tainted);
    undefined.push_back(tainted || !data);
    if (undefined.back() && at < DESCRIBED_SPACE) checked.words[at / ROW_BYTES / 64] &= ~(uint64_t(1) << at / ROW_BYTES % 64);
    if (data)
      std::memcpy(to, data, ROW_BYTES);
    else
      std::memset(to, 0, ROW_BYTES);
    to += ROW_BYTES;
  }
}

}  // namespace softgpu
