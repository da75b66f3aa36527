// Tensor memory of a CTA (sm_100): 128 lanes of 512 columns of 32 bits; who has accessed what of it.
//
// Both kinds of accesses are asynchronous. A tcgen05.ld or .st of a warp is done at the warp's wait::ld or wait::st, and
// from then on ordered as the warp's own doings are. A product is done when the mbarrier of a later commit has told so;
// before that, only later products of its pipeline (the same accumulators, shape and kind) may touch what it touches.
// Ordinary synchronisation orders both; a program that uses tcgen05.fence must have it wherever the ISA's patterns do.
#pragma once
#include "machine.h"

namespace softgpu {

constexpr int TENSOR_LANES = 128, TENSOR_COLUMNS = 512;
constexpr int CELL_LANES = 16;  // a cell is so many lanes of a column: no access touches fewer
constexpr int CELL_ROWS = TENSOR_LANES / CELL_LANES;

// Cells: `rows` of them from `row` on, `step` apart, in `columns` columns from `column` on.
struct TensorRange {
  int row, rows, step, column, columns;
};

// Who accesses: a warp, or a product that it issued.
struct TensorUse {
  uint32_t clock = 0;    // of a warp, when it had waited (UNFINISHED before); of a product, its engine's. 0: nobody
  uint32_t issued = 0;   // the warp's clock at the instruction
  int32_t pc = -1;
  int16_t warp = -1;
  bool product = false;
  uint64_t pipeline = 0;  // of a product
};
constexpr uint32_t UNFINISHED = ~uint32_t(0);

TensorUse use_by_warp(Warp &w, const Ins &i);
TensorUse use_by_product(Warp &w, const Ins &i, uint64_t pipeline);

// Checks an access to all cells of a range, and remembers it. False, with a finding, if some are not allocated. To read
// what nobody has written is none: compilers do so where they do not use it (see tensor_undefined).
bool touch_tensor(Warp &w, const Ins &i, const TensorRange &range, const TensorUse &use, bool writes);

// For ranges that touch_tensor let pass, by column: a lane's values; of a row's cells, the lanes (bit by bit) whose value
// comes from what nobody wrote.
uint32_t *tensor_lane(Cta &cta, int lane);
uint16_t *tensor_undefined(Cta &cta, int row);

// wait::ld (false) and wait::st (true).
void finish_tensor_uses(Warp &w, bool writes);

// The whole warp's address in an operand, offset included: lane << 16 | column. False, with a finding, if there is none.
bool tensor_address(Warp &w, const Ins &i, Mask m, int operand, int64_t offset, uint32_t &address);

}  // namespace softgpu
