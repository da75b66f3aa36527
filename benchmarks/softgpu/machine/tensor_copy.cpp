// tcgen05.ld, tcgen05.st and their waits: between a warp's registers and its quarter of tensor memory's lanes.
#include "collective.h"
#include "tensor_memory.h"

namespace softgpu {
namespace {

// Shapes: lanes by bits of columns; HALVES: 16 lanes twice, at two places.
enum class Shape { L32_B32, L16_B64, L16_B128, L16_B256, HALVES };

constexpr int registers_of(Shape s) { return s == Shape::L16_B128 ? 2 : s == Shape::L16_B256 ? 4 : 1; }  // of a repetition
constexpr int columns_of(Shape s) {
  return s == Shape::L16_B64 ? 2 : s == Shape::L16_B128 ? 4 : s == Shape::L16_B256 ? 8 : 1;
}

struct Spot {
  int lane, column;
};

// Where register r of a thread lies, from the address on; `apart`: columns between the halves.
template <Shape S> Spot spot(int thread, int r, int apart) {
  switch (S) {
  case Shape::L32_B32: return {thread, r};
  case Shape::L16_B64: return {thread / 4 + 8 * (thread & 1), 2 * r + (thread >> 1 & 1)};
  case Shape::L16_B128: return {thread / 4 + 8 * (r & 1), r / 2 * 4 + thread % 4};
  case Shape::L16_B256: return {thread / 4 + 8 * (r >> 1 & 1), r / 4 * 8 + thread % 4 * 2 + (r & 1)};
  default: return {thread % 16, r + (thread < 16 ? 0 : apart)};
  }
}

// Operands of both: {registers}, [address] and [address], {registers}; HALVES: with a number behind the address.
template <Shape S, int REPEAT, bool STORE> Step copy(Warp &w, const Ins &i, Mask m) {
  Step step;
  if (!whole_warp(w, i, m, step)) return step;
  constexpr int COUNT = registers_of(S) * REPEAT, COLUMNS_EACH = columns_of(S) * REPEAT;
  constexpr bool HALVES = S == Shape::HALVES;
  const int at = STORE ? 0 : COUNT, first = STORE ? 1 + HALVES : 0;
  Machine &machine = *w.machine;
  if (i.op.size() != size_t(COUNT) + 1 + HALVES || i.num_dst != (STORE ? 0 : COUNT)) {
    machine.add("bad operand", i.pc, format("%d registers are wanted by ", COUNT) + machine.where(i.pc));
    return Step::STOP;
  }
  const auto give_up = [&] {
    for (int k = 0; k < i.num_dst; k++) w.undefined[i.op[k]] = ALL;
    return Step::NEXT;
  };
  uint32_t address;
  if (!tensor_address(w, i, m, at, i.imm[0], address)) return give_up();
  const int lane = int(address >> 16), column = int(address & 0xffff);
  const int apart = HALVES ? int(constant(w, i, at + 1)) : 0;
  if (lane / LANES != w.index % 4 || lane % (S == Shape::L32_B32 ? LANES : CELL_LANES)) {
    if (!machine.has("tensor memory of other lanes", i.pc))
      machine.add("tensor memory of other lanes", i.pc,
                  format("%s reaches lanes %d to %d, not from lane %d on, of ", name_of(w).c_str(), w.index % 4 * LANES,
                         w.index % 4 * LANES + LANES - 1, lane) + machine.where(i.pc));
    return give_up();
  }
  const TensorUse use = use_by_warp(w, i);
  for (int half = 0; half < 1 + HALVES; half++) {
    const TensorRange range = {lane / CELL_LANES, S == Shape::L32_B32 ? 2 : 1, 1, column + half * apart, COLUMNS_EACH};
    if (!touch_tensor(w, i, range, use, STORE)) return give_up();
  }
  Cta &cta = *w.cta;
  uint32_t *const lanes = tensor_lane(cta, lane) + column;
  uint16_t *const cells = tensor_undefined(cta, lane / CELL_LANES) + column;
  for (int r = 0; r < COUNT; r++) {
    const int32_t unit = i.op[first + r];
    uint32_t *registers = w.reg<uint32_t>(unit);
    Mask undefined = STORE ? w.undefined[unit] : 0;
    for (int thread = 0; thread < LANES; thread++) {
      const Spot s = spot<S>(thread, r, apart);
      uint32_t &word = lanes[s.lane * TENSOR_COLUMNS + s.column];
      uint16_t &cell = cells[s.lane / CELL_LANES * TENSOR_COLUMNS + s.column];
      const uint16_t bit = uint16_t(1u << s.lane % CELL_LANES);
      if (STORE) {
        word = registers[thread];
        cell = uint16_t(undefined >> thread & 1 ? cell | bit : cell & ~bit);
      } else {
        registers[thread] = word;
        if (cell & bit) undefined |= Mask(1) << thread;
      }
    }
    if (!STORE) w.undefined[unit] = undefined;
  }
  machine.counts[i.pc].bytes += uint64_t(COUNT) * LANES * 4;
  return Step::NEXT;
}

template <bool STORE> Step wait(Warp &w, const Ins &i, Mask m) {
  Step step;
  if (!whole_warp(w, i, m, step)) return step;
  finish_tensor_uses(w, STORE);
  return Step::NEXT;
}

template <Shape S, int REPEAT> void announce_repeated(const std::string &shape) {
  if constexpr (registers_of(S) * REPEAT <= 128) {
    const std::string rest = ".sync.aligned" + shape + ".x" + std::to_string(REPEAT) + ".b32";
    announce("tcgen05.ld" + rest, copy<S, REPEAT, false>, OWN_TAINT | SYNCS);
    announce("tcgen05.st" + rest, copy<S, REPEAT, true>, SYNCS);
    if constexpr (REPEAT < 128) announce_repeated<S, 2 * REPEAT>(shape);
  }
}

const bool announced = [] {
  announce_repeated<Shape::L32_B32, 1>(".32x32b");
  announce_repeated<Shape::L16_B64, 1>(".16x64b");
  announce_repeated<Shape::L16_B128, 1>(".16x128b");
  announce_repeated<Shape::L16_B256, 1>(".16x256b");
  announce_repeated<Shape::HALVES, 1>(".16x32bx2");
  announce("tcgen05.wait::ld.sync.aligned", wait<false>, SYNCS);
  announce("tcgen05.wait::st.sync.aligned", wait<true>, SYNCS);
  return true;
}();

}  // namespace
}  // namespace softgpu
