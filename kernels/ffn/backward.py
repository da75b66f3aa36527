"""Device code of the backward products: dY · W2 with GELU's derivative, and the plain products for dX, dW1, dW2."""

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
    """
    num_m, num_n = tl.cdiv(M, block_m), tl.cdiv(N, block_n)
    for index in tl.range(tl.program_id(0), num_m * num_n, tl.num_programs(0)):
        i, j = tile_at(index, num_m, num_n, group_m)
        m0, n0 = i * block_m, j * block_n
        dact = product_tile(
            Dy, W, stride_ym, stride_yk, stride_wk, stride_wn, M, N, m0, n0, 0, K,
            block_m, block_n, block_k, a_is_km=False, b_is_nk=False, tma=tma, precision=precision,
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


@triton.jit
def product_kernel(
    A, B, C, stride_am, stride_ak, stride_bk, stride_bn, stride_cs, stride_cm, M, N, K, k_per_split, splits,
    a_is_km: tl.constexpr, tma: tl.constexpr, tma_out: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
    block_k: tl.constexpr, parts: tl.constexpr, group_m: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """C[s] (M, N) = A[:, s-th part of K] · B[s-th part of K, :], for s < splits; B's rows lie in memory as they are.

    The parts of K are `k_per_split` long (a multiple of block_k). With more than one, C is float32 and is summed
    afterwards in a fixed order: a weight's gradient has few tiles and a long K (all the tokens).
    """
    num_m, num_n = tl.cdiv(M, block_m), tl.cdiv(N, block_n)
    for index in tl.range(tl.program_id(0), num_m * num_n * splits, tl.num_programs(0)):
        s = index // (num_m * num_n)
        i, j = tile_at(index % (num_m * num_n), num_m, num_n, group_m)
        m0, n0 = i * block_m, j * block_n
        k_begin = s * k_per_split
        k_end = tl.minimum(k_begin + k_per_split, K)
        c = product_tile(
            A, B, stride_am, stride_ak, stride_bk, stride_bn, M, N, m0, n0, k_begin, k_end,
            block_m, block_n, block_k, a_is_km=a_is_km, b_is_nk=False, tma=tma, precision=precision,
        )  # fmt: skip
        if not tma_out:
            C_s = C + s.to(tl.int64) * stride_cs
        else:
            C_s = C
        band: tl.constexpr = block_n // parts
        for p in tl.static_range(parts):
            store_tile(C_s, stride_cm, M, N, m0, n0 + p * band, columns_of(c, p, parts), block_m, band, tma_out)
