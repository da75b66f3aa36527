// What a CTA's shared memory is kept in: its bytes, and for each cell (shadow.h) the last weak write that changed it and,
// of every agent, the last access since then, stores of the value that was there already among them. An agent and a kind of access have a slot, and a cell a clock for each slot, so that a
// write compares them all at once with what its agent knows.
#pragma once
#include <algorithm>
#include "memory.h"

namespace softgpu {

constexpr uint32_t BLOCK = 1024;  // of bytes: what was never touched in a block need not be reset
constexpr uint8_t POISON = 0xff;  // a NaN in every format of floats

enum CellFlags : uint8_t {
  WRITTEN = 1,
  TAINTED = 2,    // some of it (Space::tainted) with a value that comes from what nobody wrote
  IN_FLIGHT = 4,  // by an asynchronous copy
  OBJECT = 8,     // an mbarrier
  BY_ASYNC = 16,  // the last write came through the asynchronous proxy
  WRITTEN_SINCE = 32,  // there is a write among the accesses since
};

struct Mark {  // the last weak write; clock 0: none
  uint32_t clock;
  int32_t pc;
  uint32_t step;  // Machine::steps, to tell one instruction's lanes from a loop's
  uint16_t agent;
  int8_t lane;
  uint8_t flags;
};
constexpr uint32_t MARK_WORDS = sizeof(Mark) / 4;

// What else a slot says: the lane, the pc.
constexpr uint32_t LANE_BITS = 63, PC_SHIFT = 8;

struct Space {
  std::vector<uint8_t> bytes;
  std::vector<uint8_t> tainted;      // of each byte: does it come from what nobody wrote?
  uint32_t shift = 2;                // log2 of a granule
  uint32_t stride = 0;               // slots that there is room for
  uint32_t num_agents = 0;           // of the cluster
  std::vector<uint32_t> cells;       // of each: Mark, clocks of the slots, infos of the slots
  std::vector<uint8_t> split_lines, touched;
  struct Slot { uint16_t agent; Kind kind; };
  std::vector<Slot> slots;
  std::vector<int16_t> slot_of;      // [kind * num_agents + agent]
  struct Object { uint32_t bytes; int32_t pc; };
  std::map<uint32_t, Object> objects;

  // What the agent that looks knows of each slot's.
  std::vector<uint32_t> limit;
  const Knowledge *limit_view = nullptr;
  uint32_t limit_agent = 0, limit_clock = 0;
  uint64_t limit_step = 0;

  uint32_t cell_words() const { return MARK_WORDS + 2 * stride; }
  uint32_t *cell(uint32_t index) { return cells.data() + size_t(index) * cell_words(); }
  uint8_t &split(uint32_t line) { return split_lines[line]; }
  void spread(uint32_t line) {
    const uint32_t n = LINE >> shift, first = line * n;
    for (uint32_t k = 1; k < n; k++) std::copy_n(cell(first), cell_words(), cell(first + k));
  }
  void touch(uint32_t at, uint32_t count) {
    for (uint32_t block = at / BLOCK; block <= (at + count - 1) / BLOCK; block++) touched[block] = true;
  }

  void shape(uint32_t size, uint32_t new_shift, uint32_t new_stride, uint32_t agents) {
    shift = new_shift, stride = new_stride, num_agents = agents;
    const uint32_t lines = (size + LINE - 1) / LINE;
    bytes.assign(size, POISON);
    tainted.assign(size, false);
    cells.assign((size_t(lines) * (LINE >> shift)) * cell_words(), 0);
    split_lines.assign(lines, false);
    touched.assign(size / BLOCK + 1, false);
    slot_of.assign(size_t(KINDS) * agents, -1);
  }

  void reset() {
    const uint32_t lines = uint32_t(split_lines.size());
    for (uint32_t block = 0; block < touched.size(); block++) {
      if (!touched[block]) continue;
      const uint32_t from = block * BLOCK, to = std::min<uint32_t>(from + BLOCK, uint32_t(bytes.size()));
      const uint32_t first = from / LINE, last = std::min(lines, (from + BLOCK) / LINE);
      std::fill(bytes.begin() + from, bytes.begin() + to, POISON);
      std::fill(tainted.begin() + from, tainted.begin() + to, false);
      std::fill(split_lines.begin() + first, split_lines.begin() + last, false);
      for (uint32_t line = first; line < last; line++)  // the line's other cells are made of the first
        std::fill_n(cell(line * (LINE >> shift)), cell_words(), 0);
      touched[block] = false;
    }
    std::fill(slot_of.begin(), slot_of.end(), -1);
    slots.clear();
    objects.clear();
    limit_view = nullptr;
  }

  int slot(uint32_t agent, Kind kind) {
    int16_t &at = slot_of[size_t(kind) * num_agents + agent];
    if (at < 0) {
      if (slots.size() == stride) widen();
      at = int16_t(slots.size());
      slots.push_back({uint16_t(agent), kind});
      limit_view = nullptr;
    }
    return at;
  }

  void widen() {
    const uint32_t old_stride = stride, old_words = cell_words();
    const size_t n = cells.size() / old_words;
    std::vector<uint32_t> old;
    old.swap(cells);
    stride *= 2;
    cells.assign(n * cell_words(), 0);
    for (uint32_t k = 0; k < n; k++) {
      const uint32_t *from = old.data() + size_t(k) * old_words;
      std::copy_n(from, MARK_WORDS + old_stride, cell(k));
      std::copy_n(from + MARK_WORDS + old_stride, old_stride, cell(k) + MARK_WORDS + stride);
    }
  }
};

}  // namespace softgpu
