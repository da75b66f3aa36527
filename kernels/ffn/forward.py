"""Device code of the forward pass: x W1ᵀ with bias and GELU, GELU alone, and dropout with the residual.

    pre = x W1ᵀ + b1      act = gelu(pre)      y = residual + dropout(act W2ᵀ + b2)

The product act W2ᵀ + b2 is cuBLAS's.
"""

import triton
import triton.language as tl

from ..device.tiles import load_tile, store_tile
from .device import band_of, drop, gelu, matmul_tile, store_band, tile_at


@triton.jit
def up_kernel(X, W, Bias, Pre, Act, stride, M, N, K, C: tl.constexpr):
    """pre = x wᵀ + bias, act = gelu(pre). Launched by `launch.up`.

    X         (M, K)       pointer with `stride`, or descriptor of (block_m, block_k)
    W         (N, K)       the same; block (block_n, block_k)
    Bias      (N,)         or None: no bias
    Pre, Act  (M, N)       contiguous rows: pointers, or descriptors of (block_m, block_n / parts); Pre None: not wanted

    Persistent: each program computes the tiles pid, pid + num_programs, ... of the output. Even with cuBLAS and
    `gelu_kernel`, or better, for K <= 768, and worse above (an estimate, VARIANTS.md): "auto" does not take it.
    """
    BLOCK_M: tl.constexpr = C.block_m
    BLOCK_N: tl.constexpr = C.block_n
    PARTS: tl.constexpr = C.parts
    GROUP_M: tl.constexpr = C.group_m
    IS_TANH: tl.constexpr = C.is_tanh
    BAND: tl.constexpr = BLOCK_N // PARTS
    num_m, num_n = tl.cdiv(M, BLOCK_M), tl.cdiv(N, BLOCK_N)
    for index in tl.range(tl.program_id(0), num_m * num_n, tl.num_programs(0)):
        i, j = tile_at(index, num_m, num_n, GROUP_M)
        m0, n0 = i * BLOCK_M, j * BLOCK_N
        product = matmul_tile(X, W, stride, M, N, K, m0, n0, B_IS_NK=True, C=C)
        for p in tl.static_range(PARTS):
            pre = band_of(product, p, PARTS)  # (block_m, block_n / parts)
            n1 = n0 + p * BAND
            if Bias is not None:
                offs_n = n1 + tl.arange(0, BAND)
                bias = tl.load(Bias + offs_n.to(tl.int64) * stride.bias, mask=offs_n < N, other=0.0)
                pre += bias.to(tl.float32)[None, :]
            if Pre is not None:
                store_band(Pre, stride.pre, M, N, m0, n1, pre, C)
            store_band(Act, stride.act, M, N, m0, n1, gelu(pre, IS_TANH), C)


@triton.jit
def gelu_kernel(Pre, Act, numel, IS_TANH: tl.constexpr, BLOCK: tl.constexpr):
    """act = gelu(pre), after cuBLAS's product. Launched by `launch.gelu_pass`.

    Pre, Act  (numel,)  any shape, contiguous; Act may be Pre itself

    Grid (cdiv(numel, BLOCK),).
    """
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    pre = tl.load(Pre + offs, mask=offs < numel, other=0.0).to(tl.float32)
    tl.store(Act + offs, gelu(pre, IS_TANH).to(Act.dtype.element_ty), mask=offs < numel)


@triton.jit
def finish_kernel(
    Y, Residual, Out, dropout, stride_y, stride_residual, stride_out, M, N, row0,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
):  # fmt: skip
    """out = residual + dropout(y), after cuBLAS's product. Launched by `launch.finish_pass`.

    Y, Residual, Out  (M, N)  contiguous rows; Residual None: nothing is added; Out may be Y itself
    dropout                   None: nothing is dropped; these are the rows row0, row0 + 1, ... of its mask

    Grid (cdiv(M, BLOCK_M) * cdiv(N, BLOCK_N),): on CUDA only a grid's first dimension passes 65535.
    """
    tiles = tl.cdiv(N, BLOCK_N)
    offs_m = tl.program_id(0) // tiles * BLOCK_M + tl.arange(0, BLOCK_M)
    offs_n = tl.program_id(0) % tiles * BLOCK_N + tl.arange(0, BLOCK_N)
    rows, row_ok, column_ok = offs_m.to(tl.int64), offs_m < M, offs_n < N
    y = load_tile(Y, rows, offs_n, stride_y, 1, row_ok, column_ok).to(tl.float32)  # (BLOCK_M, BLOCK_N)
    if dropout is not None:
        y = drop(y, dropout, row0 + offs_m[:, None], offs_n[None, :])
    if Residual is not None:
        y += load_tile(Residual, rows, offs_n, stride_residual, 1, row_ok, column_ok).to(tl.float32)
    store_tile(Out, y, rows, offs_n, stride_out, 1, row_ok, column_ok)
