"""Device code: LayerNorm forward, alone or with the residual addition (and dropout) that precedes it in a GPT block.

    h = x                            layer_norm
    h = residual + dropout(x)        add_layer_norm, rounded to the residual's dtype
    y = (h - mean(h)) · rstd(h) · weight + bias        (Ba, Kiros and Hinton 2016, arXiv 1607.06450)

Three kernels, by the length of a row; `launch.forward` calls one of them. A row of up to 32768 elements is held in
registers in float32, so that it is read once. One of up to 65536 still fits in its own dtype. A longer one is walked
over twice.
"""

import triton
import triton.language as tl

from ..device.dropout import Dropout
from ..device.sums import sum_of_products
from .device import (
    add_to_lanes,
    convert_again,
    empty_lanes,
    load_h,
    load_rows,
    matrix_of,
    merge_lanes,
    part_of_row,
    row_indices,
    store_rows,
    store_stats,
    store_y,
    whole_rows,
)
from .structs import Rows


@triton.jit(do_not_specialize=["M", "threshold"])
def layer_norm_forward_kernel(
    X, Residual, Weight, Bias, Seed, Y, NewResidual, Stats, M, stride_xm, stride_rm, eps, threshold, scale,
    C: tl.constexpr,
):  # fmt: skip
    """y = (h - mean) · rstd · weight + bias, a program for rows [block_m · program, block_m · (program + 1)).

    X, Residual      (M, N) of any float dtype each, their row strides in units of C.aligned elements; Residual None
                     for plain layer_norm
    Weight, Bias     (N,) or None
    Seed             (2,) int64 (seed, offset) of the dropout, or None; threshold, scale: see `Dropout`
    Y, NewResidual   (M, N) contiguous; NewResidual is h, None for plain layer_norm
    Stats            (2, M) float32: mean, rstd
    """
    N: tl.constexpr = C.n
    X = matrix_of(X, stride_xm, C)
    if Residual is not None:
        Residual = matrix_of(Residual, stride_rm, C)
    at = whole_rows(tl.program_id(0), M, C)
    inside = at.row_ok[:, None] & at.col_ok[None, :]  # (block_m, block_n)

    h = load_h(X, Residual, Dropout(Seed, threshold, scale), at)  # (block_m, block_n)
    if Residual is not None:
        store_rows(NewResidual, h, at, N)

    # Passes over the registers cost nothing: E[h²] - E[h]² would lose every digit at mean 1000 and variance 1. A second
    # look at the mean takes back the rounding of the first sum, so that a constant row gives exactly the bias.
    mean = tl.sum(h, axis=1, keep_dims=True) / N  # (block_m, 1)
    mean += tl.sum(tl.where(inside, h - mean, 0.0), axis=1, keep_dims=True) / N
    centred = tl.where(inside, h - mean, 0.0)  # columns past N must not count
    rstd = tl.rsqrt(sum_of_products(centred, centred, axis=1, keep_dims=True) / N + eps)  # (block_m, 1)

    store_stats(Stats, mean, rstd, at, M)
    store_y(Y, Weight, Bias, centred * rstd, at, N)


@triton.jit(do_not_specialize=["M", "zero"])
def layer_norm_forward_held_kernel(X, Weight, Bias, Y, Stats, M, stride_xm, eps, zero, C: tl.constexpr):
    """`layer_norm_forward_kernel` without a residual, one program a row, which it holds in its own dtype, tile by tile.

    zero    0, which the compiler must not know: see `convert_again`

    A program has 65536 registers: as float32, a row of 65536 elements would fill them all. In bfloat16 and float16 it
    takes half of that, and each tile is converted twice, for the sums and for the result. A float32 row leaves no room
    for the computation beyond about 50000 elements, and the compiler then moves up to an eighth of the row to the L1
    cache and back.
    """
    N: tl.constexpr = C.n
    BLOCK_N: tl.constexpr = C.block_n
    TILES: tl.constexpr = (N - 1) // BLOCK_N + 1
    X = matrix_of(X, stride_xm, C)
    row = row_indices(tl.program_id(0), 1)  # (1,)
    lanes = empty_lanes(BLOCK_N)
    held = ()  # TILES x (1, block_n), in x's dtype
    for i in tl.static_range(TILES):
        at = part_of_row(row, i * BLOCK_N, C)
        h = load_rows(X, at)
        held = held + (h,)
        lanes = add_to_lanes(lanes, h.to(tl.float32), at.col_ok, 1.0 / (i + 1))
    mean, rstd = merge_lanes(lanes, eps, C)
    store_stats(Stats, mean, rstd, part_of_row(row, 0, C), M)
    for i in tl.static_range(TILES):
        xhat = (convert_again(held[i], zero) - mean) * rstd  # (1, block_n)
        store_y(Y, Weight, Bias, xhat, part_of_row(row, i * BLOCK_N, C), N)


@triton.jit(do_not_specialize=["M", "threshold"])
def layer_norm_forward_long_kernel(
    X, Residual, Weight, Bias, Seed, Y, NewResidual, Stats, M, stride_xm, stride_rm, eps, threshold, scale,
    C: tl.constexpr,
):  # fmt: skip
    """Arguments of `layer_norm_forward_kernel`; one program a row, read twice, the second time from the L2 cache.

    With a residual, x and residual are read once: the second walk reads what the first one wrote. Without one it reads
    x again.
    """
    N: tl.constexpr = C.n
    BLOCK_N: tl.constexpr = C.block_n
    X = matrix_of(X, stride_xm, C)
    if Residual is not None:
        Residual = matrix_of(Residual, stride_rm, C)
    dropout = Dropout(Seed, threshold, scale)
    row = row_indices(tl.program_id(0), 1)  # (1,)
    lanes = empty_lanes(BLOCK_N)
    seen = tl.zeros((1, 1), tl.float32)  # elements of each lane
    for i in tl.range(0, tl.cdiv(N, BLOCK_N), num_stages=C.stages):
        at = part_of_row(row, i * BLOCK_N, C)
        h = load_h(X, Residual, dropout, at)
        if Residual is not None:
            store_rows(NewResidual, h, at, N)
        seen += 1.0
        lanes = add_to_lanes(lanes, h, at.col_ok, tl.div_rn(1.0, seen))
    mean, rstd = merge_lanes(lanes, eps, C)
    store_stats(Stats, mean, rstd, part_of_row(row, 0, C), M)

    if Residual is not None:
        tl.debug_barrier()  # an element of the new residual may be read by another thread than wrote it
        X = Rows(NewResidual, N)
    for i in tl.range(0, tl.cdiv(N, BLOCK_N)):
        at = part_of_row(row, i * BLOCK_N, C)
        h = load_rows(X, at).to(tl.float32)
        store_y(Y, Weight, Bias, (h - mean) * rstd, at, N)
