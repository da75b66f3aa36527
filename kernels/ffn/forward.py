"""Device code of the forward products: x W1ᵀ with bias and GELU, and a W2ᵀ with bias, dropout and residual.

Every program computes tiles pid, pid + num_programs, ... of the output; see `gemm.py` for operands and `tma`.
"""

import triton
import triton.language as tl

from ..device.dropout import keep_mask
from .gelu import gelu
from .gemm import columns_of, load_tile, product_tile, store_tile, tile_at


@triton.jit
def up_kernel(
    X, W, Bias, Pre, Act, stride_xm, stride_xk, stride_wk, stride_wn, stride_bias, stride_pm, stride_am, M, N, K,
    has_bias: tl.constexpr, save_pre: tl.constexpr, tanh: tl.constexpr, tma: tl.constexpr, tma_out: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, parts: tl.constexpr, group_m: tl.constexpr,
    precision: tl.constexpr,
):  # fmt: skip
    """Act (M, N) = gelu(Pre), Pre (M, N) = X (M, K) · Wᵀ + Bias; W is (N, K). Pre is written only with `save_pre`."""
    num_m, num_n = tl.cdiv(M, block_m), tl.cdiv(N, block_n)
    for index in tl.range(tl.program_id(0), num_m * num_n, tl.num_programs(0)):
        i, j = tile_at(index, num_m, num_n, group_m)
        m0, n0 = i * block_m, j * block_n
        product = product_tile(
            X, W, stride_xm, stride_xk, stride_wk, stride_wn, M, N, m0, n0, 0, K,
            block_m, block_n, block_k, a_is_km=False, b_is_nk=True, tma=tma, precision=precision,
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
def down_kernel(
    A, W, Bias, Residual, Seed, Out, stride_am, stride_ak, stride_wk, stride_wn, stride_bias, stride_rm, stride_om,
    M, N, K, row0, drop_threshold, keep_scale,
    has_bias: tl.constexpr, has_dropout: tl.constexpr, has_residual: tl.constexpr, tma: tl.constexpr,
    tma_out: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr, parts: tl.constexpr,
    group_m: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """Out (M, N) = Residual + dropout(A (M, K) · Wᵀ + Bias); W is (N, K).

    These are rows row0, row0 + 1, ... of the dropout mask; `keep_scale` is 1 / (1 - p).
    """
    num_m, num_n = tl.cdiv(M, block_m), tl.cdiv(N, block_n)
    for index in tl.range(tl.program_id(0), num_m * num_n, tl.num_programs(0)):
        i, j = tile_at(index, num_m, num_n, group_m)
        m0, n0 = i * block_m, j * block_n
        product = product_tile(
            A, W, stride_am, stride_ak, stride_wk, stride_wn, M, N, m0, n0, 0, K,
            block_m, block_n, block_k, a_is_km=False, b_is_nk=True, tma=tma, precision=precision,
        )  # fmt: skip
        band: tl.constexpr = block_n // parts
        for p in tl.static_range(parts):
            out = columns_of(product, p, parts)  # (block_m, band)
            n1 = n0 + p * band
            offs_n = n1 + tl.arange(0, band)
            if has_bias:
                bias = tl.load(Bias + offs_n.to(tl.int64) * stride_bias, mask=offs_n < N, other=0.0)
                out += bias.to(tl.float32)[None, :]
            if has_dropout:
                offs_m = row0 + m0 + tl.arange(0, block_m)
                out = drop(out, Seed, offs_m[:, None], offs_n[None, :], drop_threshold, keep_scale)
            if has_residual:
                out += load_tile(Residual, stride_rm, M, N, m0, n1, block_m, band, tma_out)
            store_tile(Out, stride_om, M, N, m0, n1, out, block_m, band, tma_out)


@triton.jit
def drop(tile, Seed, row, column, drop_threshold, keep_scale):
    """dropout of a tile: the elements that survive times `keep_scale`, 0 elsewhere."""
    keep = keep_mask(tl.load(Seed), tl.load(Seed + 1), row * 0, row, column, drop_threshold)
    return tl.where(keep, tile * keep_scale, 0.0)
