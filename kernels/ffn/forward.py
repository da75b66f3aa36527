"""Device code of the forward product x W1ᵀ with bias and GELU, and dropout of a tile.

Every program computes tiles pid, pid + num_programs, ... of the output; see `gemm.py` for operands and `tma`.
"""

import triton
import triton.language as tl

from ..device.dropout import keep_mask
from .gelu import gelu
from .gemm import columns_of, product_tile, store_tile, tile_at


@triton.jit
def up_kernel(
    X, W, Bias, Pre, Act, stride_xm, stride_xk, stride_wk, stride_wn, stride_bias, stride_pm, stride_am, M, N, K,
    has_bias: tl.constexpr, save_pre: tl.constexpr, tanh: tl.constexpr, tma: tl.constexpr, tma_out: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, parts: tl.constexpr, group_m: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    """Act (M, N) = gelu(Pre), Pre (M, N) = X (M, K) · Wᵀ + Bias; W is (N, K). Pre is written only with `save_pre`.

    Even with cuBLAS and a pass over memory, or better, for K <= 768, and worse above (estimate, VARIANTS.md): "auto"
    does not take it.
    """
    num_m, num_n = tl.cdiv(M, block_m), tl.cdiv(N, block_n)
    for index in tl.range(tl.program_id(0), num_m * num_n, tl.num_programs(0)):
        i, j = tile_at(index, num_m, num_n, group_m)
        m0, n0 = i * block_m, j * block_n
        product = product_tile(
            X, W, stride_xm, stride_xk, stride_wk, stride_wn, M, N, K, m0, n0,
            block_m, block_n, block_k, b_is_nk=True, tma=tma, precision=precision,
        )  # fmt: skip
        band: tl.constexpr = block_n // parts
        for p in tl.static_range(parts):
            pre = columns_of(product, p, parts)  # (block_m, band)
            n1 = n0 + p * band
            if has_bias:
                offs_n = n1 + tl.arange(0, band)
                bias = tl.load(Bias + offs_n.to(tl.int64) * stride_bias, mask=offs_n < N, other=0.0)
                pre += bias.to(tl.float32)[None, :]
            if save_pre:
                store_tile(Pre, stride_pm, M, N, m0, n1, pre, block_m, band, tma_out)
            store_tile(Act, stride_am, M, N, m0, n1, gelu(pre, tanh), block_m, band, tma_out)


@triton.jit
def drop(tile, Seed, row, column, drop_threshold, keep_scale):
    """dropout of a tile: the elements that survive times `keep_scale`, 0 elsewhere."""
    keep = keep_mask(tl.load(Seed), tl.load(Seed + 1), row * 0, row, column, drop_threshold)
    return tl.where(keep, tile * keep_scale, 0.0)
