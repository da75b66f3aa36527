// The geometry of a tensor map's box: which bytes of the tensor lie where in shared memory.
#pragma once
#include <algorithm>
#include <cstdint>
#include <vector>
#include "tensor_map.h"

namespace softgpu {

// Bytes that are contiguous in the tensor and, before the swizzle, in shared memory.
struct Piece {
  uint64_t global;
  uint32_t shared;  // from the start of the box
  uint32_t bytes;
};

struct Box {
  std::vector<Piece> pieces;  // what lies within the tensor's bounds
  uint32_t bytes = 0;         // of the whole box, bounds or not: what a load announces at its mbarrier
  uint32_t span = 0;          // of shared memory that the box lies in
  uint32_t row = 0, pitch = 0;  // bytes along the innermost dimension; from one to the next
  uint32_t element = 1;
  int swizzle = 0, type = TENSOR_MAP_UINT8;
  bool nan = false;  // what lies outside is NaN, not 0
};

// The 16-byte piece at address bits 4 to 6 moves by the 128-byte line that it is in: bits 4.. are XORed with bits 7..
inline uint32_t swizzled(uint32_t at, int mode) { return at ^ ((at >> 7 & ((1u << mode) - 1)) << 4); }

// The box at `coordinate` (innermost first). A row narrower than the swizzle's span takes a whole span.
inline Box make_box(const tensor_map &map, const int32_t *coordinate) {
  const int rank = map.rank_less_one + 1;
  Box box;
  box.element = tensor_map_element(map.type);
  box.type = map.type;
  box.swizzle = map.swizzle;
  box.nan = map.fill;
  box.row = map.box[0] * box.element;
  box.pitch = box.swizzle ? 16u << box.swizzle : box.row;
  uint32_t count[TENSOR_MAP_RANKS], rows = 1;
  for (int k = 1; k < rank; k++) {
    count[k] = (map.box[k] + map.element_stride[k] - 1u) / map.element_stride[k];
    rows *= count[k];
  }
  box.bytes = rows * box.row;
  box.span = rows * box.pitch;
  const auto size = [&](int k) { return map.size[k] ? int64_t(map.size[k]) : int64_t(1) << 32; };
  const int64_t low = std::max<int64_t>(0, -int64_t(coordinate[0]));
  const int64_t high = std::min<int64_t>(map.box[0], size(0) - coordinate[0]);
  if (low >= high) return box;
  for (uint32_t r = 0; r < rows; r++) {
    uint64_t at = map.address + (coordinate[0] + low) * box.element;
    uint32_t rest = r;
    bool inside = true;
    for (int k = 1; k < rank; k++) {
      const int64_t index = coordinate[k] + int64_t(rest % count[k]) * map.element_stride[k];
      rest /= count[k];
      inside &= index >= 0 && index < size(k);
      at += uint64_t(index) * map.stride[k - 1];
    }
    if (!inside) continue;
    const Piece piece{at, r * box.pitch + uint32_t(low) * box.element, uint32_t(high - low) * box.element};
    if (!box.pieces.empty()) {
      Piece &last = box.pieces.back();
      if (last.global + last.bytes == piece.global && last.shared + last.bytes == piece.shared) {
        last.bytes += piece.bytes;
        continue;
      }
    }
    box.pieces.push_back(piece);
  }
  return box;
}

// Calls f(address, offset, bytes) for what lies together in shared memory of the box's bytes [from, from + bytes).
template <class F> void for_chunks(const Box &box, uint32_t base, uint32_t from, uint32_t bytes, F f) {
  if (!box.swizzle) {
    f(base + from, 0u, bytes);
    return;
  }
  for (uint32_t done = 0; done < bytes;) {
    const uint32_t at = base + from + done, n = std::min(bytes - done, 16 - at % 16);
    f(swizzled(at, box.swizzle), done, n);
    done += n;
  }
}

// Calls f(address, bytes) for the areas of shared memory in which the bytes [from, from + bytes) lie, in any order: a
// swizzle moves pieces within a row's span, so that whole rows stay where they are.
template <class F> void for_areas(const Box &box, uint32_t base, uint32_t from, uint32_t bytes, F f) {
  if (box.row == box.pitch && from % box.pitch == 0 && bytes % box.pitch == 0)
    f(base + from, bytes);
  else
    for_chunks(box, base, from, bytes, [&](uint32_t at, uint32_t, uint32_t n) { f(at, n); });
}

// The same for the whole box.
template <class F> void for_areas(const Box &box, uint32_t base, F f) {
  if (box.row == box.pitch)
    f(base, box.span);
  else
    for (uint32_t row = 0; row < box.span; row += box.pitch) for_areas(box, base, row, box.row, f);
}

}  // namespace softgpu
