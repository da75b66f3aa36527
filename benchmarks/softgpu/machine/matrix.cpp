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

// The bytes of the rows that lanes address, for the lanes that are returned. `undefined`: what they store, or found.
Mask rows_at(Warp &w, const Ins &i, Where where, const Addresses &a, Kind kind, Mask &undefined, const Values *values,
             uint8_t **rows) {
  Location at[LANES];
  uint64_t offsets[LANES];
  bool is_own = true;
  SG_FOR_LANES(lane, a.defined) {
    at[lane] = locate(w, where, a.at[lane]);
    offsets[lane] = at[lane].at;
    is_own &= at[lane].where == Where::SHARED && at[lane].owner == w.cta && at[lane].at <= UINT32_MAX;
  }
  if (is_own) return shared_request(*w.cta, agent(w, i, 0), a.defined, offsets, ROW_BYTES, kind, undefined, values, rows);
  Mask good = 0;
  SG_FOR_LANES(lane, a.defined) {
    bool tainted = undefined >> lane & 1;
    const uint8_t *value = values ? values->of[lane] : nullptr;
    rows[lane] = touch(w, agent(w, i, lane), at[lane], ROW_BYTES, kind, tainted, value);
    if (!rows[lane]) continue;
    good |= 1u << lane;
    undefined |= Mask(tainted) << lane;
    if (value) std::memcpy(rows[lane], value, ROW_BYTES);
  }
  return good;
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
  Mask undefined[COUNT] = {}, tainted = 0;
  uint8_t *from[LANES];
  const Mask good = rows_at(w, i, WHERE, a, kind_of(false), tainted, nullptr, from);
  SG_FOR_LANES(lane, ADDRESSED) {
    const int q = lane / ROWS, r = lane % ROWS;
    if (good >> lane & 1) std::memcpy(rows[q][r], from[lane], ROW_BYTES);
    if ((~good | tainted) >> lane & 1) undefined[q] |= TRANSPOSED ? lanes_of_column(r) : 15u << (4 * r);
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
  Values values;
  Mask undefined = 0;
  for (int q = 0; q < COUNT; q++) {
    uint16_t rows[ROWS][ROWS];
    std::memcpy(rows, w.reg<uint32_t>(i.op[1 + q]), sizeof rows);
    if (TRANSPOSED) transpose(rows);
    const Mask of_register = w.undefined[i.op[1 + q]];
    for (int r = 0; r < ROWS; r++) {
      std::memcpy(values.of[ROWS * q + r], rows[r], ROW_BYTES);
      if (of_register & (TRANSPOSED ? lanes_of_column(r) : 15u << (4 * r))) undefined |= 1u << (ROWS * q + r);
    }
  }
  uint8_t *to[LANES];
  rows_at(w, i, WHERE, a, kind_of(true), undefined, &values, to);
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
  announce("ldmatrix" + head + end, ldmatrix<COUNT, false, WHERE>, OWN_TAINT | SYNCS);
  announce("ldmatrix" + head + ".trans" + end, ldmatrix<COUNT, true, WHERE>, OWN_TAINT | SYNCS);
  announce("stmatrix" + head + end, stmatrix<COUNT, false, WHERE>, OWN_TAINT | SYNCS);
  announce("stmatrix" + head + ".trans" + end, stmatrix<COUNT, true, WHERE>, OWN_TAINT | SYNCS);
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
