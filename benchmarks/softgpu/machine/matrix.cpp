// ldmatrix, stmatrix, movmatrix: 8x8 matrices of 16 bits between shared memory and the fragments of a warp.
//
// Lane 8 q + r has the address of row r of matrix q; lane 4 r + t holds elements 2 t and 2 t + 1 of row r, or,
// transposed, of column r.
#include <string>
#include "access.h"
#include "collective.h"

namespace softgpu {
namespace {

constexpr int ROWS = 8;
constexpr uint32_t ROW_BYTES = 16;

void transpose(uint16_t (&x)[ROWS][ROWS]) {
  for (int r = 0; r < ROWS; r++)
    for (int c = 0; c < r; c++) std::swap(x[r][c], x[c][r]);
}

// Lanes that hold, transposed, an element of row r.
Mask lanes_of_column(int r) { return 0x11111111u << (r / 2); }

// {d, ...}, [a].
template <int COUNT, bool TRANSPOSED, Where WHERE> Step ldmatrix(Warp &w, const Ins &i, Mask m) {
  Step step;
  if (!whole_warp(w, i, m, step)) return step;
  constexpr Mask ADDRESSED = COUNT == 4 ? ALL : Mask(uint64_t(1) << (ROWS * COUNT)) - 1;
  const Addresses a = addresses(w, i, ADDRESSED, COUNT, i.imm[0]);
  uint16_t rows[COUNT][ROWS][ROWS] = {};
  Mask undefined[COUNT] = {};
  for (int q = 0; q < COUNT; q++)
    for (int r = 0; r < ROWS; r++) {
      const int lane = ROWS * q + r;
      bool tainted = false;
      uint8_t *data = nullptr;
      if (a.defined >> lane & 1)
        data = touch(w, agent(w, i, lane), locate(w, WHERE, a.at[lane]), ROW_BYTES, kind_of(false), tainted, nullptr);
      if (data) std::memcpy(rows[q][r], data, ROW_BYTES);
      if (!data || tainted) undefined[q] |= TRANSPOSED ? lanes_of_column(r) : 15u << (4 * r);
    }
  for (int q = 0; q < COUNT; q++) {
    if (TRANSPOSED) transpose(rows[q]);
    if (i.op[q] < 0) continue;
    std::memcpy(w.reg<uint32_t>(i.op[q]), rows[q], sizeof rows[q]);
    w.undefined[i.op[q]] = undefined[q];
  }
  count_shared(w, i, ADDRESSED, a.at, ROW_BYTES);
  return Step::NEXT;
}

// [a], {r, ...}.
template <int COUNT, bool TRANSPOSED, Where WHERE> Step stmatrix(Warp &w, const Ins &i, Mask m) {
  Step step;
  if (!whole_warp(w, i, m, step)) return step;
  constexpr Mask ADDRESSED = COUNT == 4 ? ALL : Mask(uint64_t(1) << (ROWS * COUNT)) - 1;
  const Addresses a = addresses(w, i, ADDRESSED, 0, i.imm[0]);
  for (int q = 0; q < COUNT; q++) {
    uint16_t rows[ROWS][ROWS];
    std::memcpy(rows, w.reg<uint32_t>(i.op[1 + q]), sizeof rows);
    if (TRANSPOSED) transpose(rows);
    const Mask undefined = w.undefined[i.op[1 + q]];
    for (int r = 0; r < ROWS; r++) {
      const int lane = ROWS * q + r;
      if (!(a.defined >> lane & 1)) continue;
      bool tainted = undefined & (TRANSPOSED ? lanes_of_column(r) : 15u << (4 * r));
      uint8_t *data = touch(w, agent(w, i, lane), locate(w, WHERE, a.at[lane]), ROW_BYTES, kind_of(true), tainted,
                            reinterpret_cast<const uint8_t *>(rows[r]));
      if (data) std::memcpy(data, rows[r], ROW_BYTES);
    }
  }
  count_shared(w, i, ADDRESSED, a.at, ROW_BYTES);
  return Step::NEXT;
}

// d, a: the transpose.
Step movmatrix(Warp &w, const Ins &i, Mask m) {
  Step step;
  if (!whole_warp(w, i, m, step)) return step;
  uint16_t rows[ROWS][ROWS];
  std::memcpy(rows, w.reg<uint32_t>(i.op[1]), sizeof rows);
  transpose(rows);
  std::memcpy(w.reg<uint32_t>(i.op[0]), rows, sizeof rows);
  Mask undefined = 0;
  SG_FOR_LANES(lane, w.undefined[i.op[1]]) undefined |= 0x11u << (8 * (lane % 4) + lane / 8);  // its two elements' lanes
  w.undefined[i.op[0]] = undefined;
  return Step::NEXT;
}

template <int COUNT, Where WHERE> void on(const std::string &space) {
  const std::string head = ".sync.aligned.m8n8.x" + std::to_string(COUNT);
  const std::string end = space + ".b16";
  announce(("ldmatrix" + head + end).c_str(), ldmatrix<COUNT, false, WHERE>, OWN_TAINT | SYNCS);
  announce(("ldmatrix" + head + ".trans" + end).c_str(), ldmatrix<COUNT, true, WHERE>, OWN_TAINT | SYNCS);
  announce(("stmatrix" + head + end).c_str(), stmatrix<COUNT, false, WHERE>, OWN_TAINT | SYNCS);
  announce(("stmatrix" + head + ".trans" + end).c_str(), stmatrix<COUNT, true, WHERE>, OWN_TAINT | SYNCS);
}

const bool announced = [] {
  on<1, Where::SHARED>(".shared"), on<2, Where::SHARED>(".shared"), on<4, Where::SHARED>(".shared");
  on<1, Where::SHARED>(".shared::cta"), on<2, Where::SHARED>(".shared::cta"), on<4, Where::SHARED>(".shared::cta");
  on<1, Where::GENERIC>(""), on<2, Where::GENERIC>(""), on<4, Where::GENERIC>("");
  announce("movmatrix.sync.aligned.m8n8.trans.b16", movmatrix, OWN_TAINT | SYNCS);
  return true;
}();

}  // namespace
}  // namespace softgpu
