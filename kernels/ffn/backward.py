"""Device code of the backward product dY · W2 with GELU's derivative."""

import triton
import triton.language as tl

from ..device.sums import rounded_product
from .gelu import gelu_and_derivative
from .gemm import columns_of, load_tile, product_tile, store_tile, tile_at


@triton.jit
def dgelu_kernel(
    Dy, W, Pre, Dpre, Act, Dbias, stride_ym, stride_yk, stride_wk, stride_wn, stride_pm, stride_dm, stride_am, M, N, K,
    has_bias: tl.constexpr, write_act: tl.constexpr, tanh: tl.constexpr, tma: tl.constexpr, tma_out: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, parts: tl.constexpr, group_m: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    """Dpre (M, N) = (Dy (M, K) · W (K, N)) ⊙ gelu'(Pre), and Act = gelu(Pre) again for dW2.

    Dbias (tile rows, N) float32 receives each tile's column sums. Dpre may be Pre itself: every element is read and
    written by one program, in this order.

    Better than cuBLAS and a pass over memory up to K = 1024 (estimate, VARIANTS.md): "auto" takes it there, on sm_90.
    """
    num_m, num_n = tl.cdiv(M, block_m), tl.cdiv(N, block_n)
    for index in tl.range(tl.program_id(0), num_m * num_n, tl.num_programs(0)):
        i, j = tile_at(index, num_m, num_n, group_m)
        m0, n0 = i * block_m, j * block_n
        dact = product_tile(
            Dy, W, stride_ym, stride_yk, stride_wk, stride_wn, M, N, K, m0, n0,
            block_m, block_n, block_k, b_is_nk=False, tma=tma, precision=precision,
        )  # fmt: skip
        band: tl.constexpr = block_n // parts
        for p in tl.static_range(parts):
            n1 = n0 + p * band
            act, slope = gelu_and_derivative(load_tile(Pre, stride_pm, M, N, m0, n1, block_m, band, tma_out), tanh)
            dpre = rounded_product(columns_of(dact, p, parts), slope)  # (block_m, band)
            if write_act:
                store_tile(Act, stride_am, M, N, m0, n1, act, block_m, band, tma_out)
            store_tile(Dpre, stride_dm, M, N, m0, n1, dpre, block_m, band, tma_out)
            if has_bias:
                offs_n = n1 + tl.arange(0, band)
                tl.store(Dbias + i.to(tl.int64) * N + offs_n, tl.sum(dpre, axis=0), mask=offs_n < N)
