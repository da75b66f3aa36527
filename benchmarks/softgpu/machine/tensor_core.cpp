// mma.sync: a product of small matrices whose fragments lie in the registers of a warp.
#include <cmath>
#include <string>
#include "collective.h"
#include "fragments.h"

namespace softgpu {
namespace {

// Undefined elements of A reach their rows, those of B their columns, those of C themselves. Registers of A are in the
// order [r][block], those of the accumulators [block][i], or [block] where two elements share one (`packed`).
void taint(Warp &w, const Ins &i, int num_a, int num_b, int blocks, bool packed) {
  const int32_t *d = i.op.data(), *a = d + i.num_dst, *b = a + num_a, *c = b + num_b;
  Mask any = 0;
  for (size_t k = i.num_dst; k < i.op.size(); k++) any |= w.undefined[i.op[k]];
  if (!any) {
    for (int k = 0; k < i.num_dst; k++) w.undefined[d[k]] = 0;
    return;
  }
  Mask rows[2] = {0, 0}, columns = 0, of_c[4];
  for (int k = 0; k < num_a; k++) rows[k % blocks] |= whole_quads(w.undefined[a[k]]);
  for (int k = 0; k < num_b; k++) columns |= w.undefined[b[k]];
  for (int k = 0; k < i.num_dst; k++) of_c[k] = w.undefined[c[k]];
  for (int k = 0; k < i.num_dst; k++) w.undefined[d[k]] = of_c[k] | lanes_reached(rows, columns, k, packed);
}

// d = a b + c with 8 BLOCKS rows, 8 columns.
template <class A, class B, class C, int K, int BLOCKS = 2, bool SATURATE = false>
Step mma(Warp &w, const Ins &i, Mask m) {
  Step step;
  if (!whole_warp(w, i, m, step)) return step;
  constexpr int NUM_A = BLOCKS * K / (4 * A::PER_WORD), NUM_B = K / (4 * B::PER_WORD);
  constexpr int NUM_C = C::REGISTERS * BLOCKS / 2;
  const int32_t *op = i.op.data() + NUM_C;
  const uint32_t *a[NUM_A], *b[NUM_B];
  uint8_t *c[NUM_C], *d[NUM_C];
  for (int k = 0; k < NUM_A; k++) a[k] = w.reg<uint32_t>(op[k]);
  for (int k = 0; k < NUM_B; k++) b[k] = w.reg<uint32_t>(op[NUM_A + k]);
  for (int k = 0; k < NUM_C; k++) c[k] = w.reg<uint8_t>(op[NUM_A + NUM_B + k]), d[k] = w.reg<uint8_t>(i.op[k]);

  Left<A, K, BLOCKS> left;
  Right<B, K> right;
  Accumulators<typename C::Vector> sum;
  unpack(a, false, left);
  unpack(b, right);
  C::template read<BLOCKS>(c, sum);
  accumulate<A, B, K, BLOCKS, SATURATE>(left, right, false, sum);
  C::template write<BLOCKS>(sum, d);
  taint(w, i, NUM_A, NUM_B, BLOCKS, std::is_same_v<C, H16>);
  return Step::NEXT;
}

// float64: a fused multiply-add for each k, in order. A lane holds one k of four in each register.
template <int K, int BLOCKS> Step mma_f64(Warp &w, const Ins &i, Mask m) {
  Step step;
  if (!whole_warp(w, i, m, step)) return step;
  constexpr int NUM_A = BLOCKS * K / 4, NUM_B = K / 4, NUM_C = 2 * BLOCKS;
  const int32_t *op = i.op.data() + NUM_C;
  double sum[NUM_C][LANES];
  for (int r = 0; r < NUM_C; r++) {
    std::memcpy(sum[r], w.reg<double>(op[NUM_A + NUM_B + r]), sizeof sum[r]);
    for (int k = 0; k < K; k++) {
      const double *a = w.reg<double>(op[(r >> 1) + BLOCKS * (k / 4)]), *b = w.reg<double>(op[NUM_A + k / 4]);
      for (int lane = 0; lane < LANES; lane++) {
        const int column = 2 * (lane % 4) + (r & 1);
        sum[r][lane] = std::fma(a[lane / 4 * 4 + k % 4], b[4 * column + k % 4], sum[r][lane]);
      }
    }
  }
  for (int r = 0; r < NUM_C; r++) std::memcpy(w.reg<double>(i.op[r]), sum[r], sizeof sum[r]);
  taint(w, i, NUM_A, NUM_B, BLOCKS, false);
  return Step::NEXT;
}

void on(const std::string &shape, const std::string &types, Handler run) {
  announce("mma.sync.aligned." + shape + ".row.col." + types, run, OWN_TAINT | SYNCS);
}

template <class A, class B> void on_fp8(const std::string &a, const std::string &b) {
  const std::string ab = "." + a + "." + b + ".";
  on("m16n8k16", "f32" + ab + "f32", mma<A, B, F32, 16>);
  on("m16n8k32", "f32" + ab + "f32", mma<A, B, F32, 32>);
  on("m16n8k16", "f16" + ab + "f16", mma<A, B, H16, 16>);
  on("m16n8k32", "f16" + ab + "f16", mma<A, B, H16, 32>);
}

template <class A, class B> void on_integers(const std::string &a, const std::string &b) {
  const std::string types = "s32." + a + "." + b + ".s32";
  on("m8n8k16", types, mma<A, B, S32, 16, 1>);
  on("m16n8k16", types, mma<A, B, S32, 16>);
  on("m16n8k32", types, mma<A, B, S32, 32>);
  on("m8n8k16", "satfinite." + types, mma<A, B, S32, 16, 1, true>);
  on("m16n8k16", "satfinite." + types, mma<A, B, S32, 16, 2, true>);
  on("m16n8k32", "satfinite." + types, mma<A, B, S32, 32, 2, true>);
}

const bool announced = [] {
  on("m16n8k8", "f32.f16.f16.f32", mma<F16, F16, F32, 8>);
  on("m16n8k16", "f32.f16.f16.f32", mma<F16, F16, F32, 16>);
  on("m16n8k8", "f16.f16.f16.f16", mma<F16, F16, H16, 8>);
  on("m16n8k16", "f16.f16.f16.f16", mma<F16, F16, H16, 16>);
  on("m16n8k8", "f32.bf16.bf16.f32", mma<BF16, BF16, F32, 8>);
  on("m16n8k16", "f32.bf16.bf16.f32", mma<BF16, BF16, F32, 16>);
  on("m16n8k4", "f32.tf32.tf32.f32", mma<TF32, TF32, F32, 4>);
  on("m16n8k8", "f32.tf32.tf32.f32", mma<TF32, TF32, F32, 8>);
  on_fp8<E4M3, E4M3>("e4m3", "e4m3"), on_fp8<E4M3, E5M2>("e4m3", "e5m2");
  on_fp8<E5M2, E4M3>("e5m2", "e4m3"), on_fp8<E5M2, E5M2>("e5m2", "e5m2");
  on_integers<S8, S8>("s8", "s8"), on_integers<S8, U8>("s8", "u8");
  on_integers<U8, S8>("u8", "s8"), on_integers<U8, U8>("u8", "u8");
  on("m8n8k4", "f64.f64.f64.f64", mma_f64<4, 1>);
  on("m16n8k4", "f64.f64.f64.f64", mma_f64<4, 2>);
  on("m16n8k8", "f64.f64.f64.f64", mma_f64<8, 2>);
  on("m16n8k16", "f64.f64.f64.f64", mma_f64<16, 2>);
  return true;
}();

}  // namespace
}  // namespace softgpu
