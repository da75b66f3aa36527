"""Device code: LayerNorm backward. One pass over the rows gives dx and partial sums of dweight and dbias.

With xhat = (h - mean) · rstd and g = dy · weight, both (M, N), and means taken over the columns:

    dh = rstd · (g - mean(g) - xhat · mean(g · xhat))        dweight = Σ_rows dy · xhat        dbias = Σ_rows dy

For add_layer_norm, h = residual + dropout(x) is also an output, whose gradient is added to dh; then dresidual = dh and
dx = dh · dropout factor, with the mask drawn again from its seed.

`launch.backward` calls one of the first three kernels, by the length of a row, and `layer_norm_dweight_long_kernel`
where a row is so long that h and dy leave no registers for the sums.
"""

import triton
import triton.language as tl

from ..device.dropout import Dropout
from ..device.sums import rounded_product, sum_of_products
from .device import (
    convert_again,
    load_rows,
    load_stats,
    load_weight,
    matrix_of,
    part_of_row,
    row_indices,
    store_input_gradients,
    whole_rows,
)
from .structs import Place


@triton.jit(do_not_specialize=["M", "threshold"])
def layer_norm_backward_kernel(
    DY, DHOut, H, Weight, Stats, Seed, DH, DX, Partials,
    M, stride_dym, stride_dhm, stride_hm, threshold, scale, C: tl.constexpr,
):  # fmt: skip
    """dh, dx and each program's part of dweight and dbias; a fixed number of programs walk over the rows by block_m.

    DY, H        (M, N) of any float dtype each, their row strides in units of C.aligned elements; H is what was
                 normalised: x, or the new residual
    DHOut        (M, N) likewise: the gradient of the new residual, or None
    Weight       (N,) or None
    Stats        (2, M) float32: mean, rstd
    Seed         (2,) int64 (seed, offset) of the dropout, or None; threshold, scale: see `Dropout`
    DH, DX       (M, N) contiguous, None where not asked for: gradients of h (the residual) and of the dropped x
    Partials     (need_dweight + need_dbias, programs, N) float32
    """
    N: tl.constexpr = C.n
    BLOCK_M: tl.constexpr = C.block_m
    BLOCK_N: tl.constexpr = C.block_n
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, BLOCK_N)  # (block_n,)
    DY, H = matrix_of(DY, stride_dym, C), matrix_of(H, stride_hm, C)
    if DHOut is not None:
        DHOut = matrix_of(DHOut, stride_dhm, C)
    dropout = Dropout(Seed, threshold, scale)
    if Weight is not None:
        # One-dimensional, so that a weight of a wider dtype does not impose its layout on the tiles of the loop.
        weight = tl.load(Weight + column, mask=column < N, other=0.0).to(tl.float32)[None, :]  # (1, block_n)
    # Summed per row of the tile, and over its rows only once, after the loop: no exchange between threads inside it.
    dweight = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    dbias = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)

    tiles = (M - 1) // BLOCK_M + 1  # M + block_m may pass 2^31
    for tile in tl.range(program, tiles, programs, num_stages=C.stages):
        at = whole_rows(tile, M, C)
        h = load_rows(H, at).to(tl.float32)  # (block_m, block_n)
        dy = load_rows(DY, at).to(tl.float32)
        mean, rstd = load_stats(Stats, at, M)  # (block_m, 1)
        xhat = tl.where(at.row_ok[:, None] & at.col_ok[None, :], (h - mean) * rstd, 0.0)  # (block_m, block_n)
        if C.need_dweight:
            dweight += dy * xhat
        if C.need_dbias:
            dbias += dy
        if (DH is not None) or (DX is not None):
            g = dy
            if Weight is not None:
                g = rounded_product(dy, weight)  # it is summed as it is, too
            mean_gx = sum_of_products(g, xhat, axis=1, keep_dims=True) / N  # (block_m, 1)
            mean_g = tl.sum(g, axis=1, keep_dims=True) / N
            dh = (g - mean_g - xhat * mean_gx) * rstd
            store_input_gradients(dh, DHOut, DH, DX, dropout, at, N)

    if C.need_dweight:
        tl.store(Partials + program * N + column, tl.sum(dweight, axis=0), mask=column < N)
    if C.need_dbias:
        which = C.need_dweight * programs + program  # dbias lies behind dweight, if that is there
        tl.store(Partials + which * N + column, tl.sum(dbias, axis=0), mask=column < N)


@triton.jit(do_not_specialize=["M", "threshold", "zero"])
def layer_norm_backward_held_kernel(
    DY, DHOut, H, Weight, Stats, Seed, DH, DX, Partials,
    M, stride_dym, stride_dhm, stride_hm, threshold, scale, zero, C: tl.constexpr,
):  # fmt: skip
    """Arguments of `layer_norm_backward_kernel`; programs walk over single rows, each held in its dtype, tile by tile.

    As float32, h and dy would not fit into the registers beside the sums for dweight and dbias. zero: 0, which the
    compiler must not know (`convert_again`).
    """
    N: tl.constexpr = C.n
    BLOCK_N: tl.constexpr = C.block_n
    TILES: tl.constexpr = (N - 1) // BLOCK_N + 1
    program, programs = tl.program_id(0), tl.num_programs(0)
    DY, H = matrix_of(DY, stride_dym, C), matrix_of(H, stride_hm, C)
    if DHOut is not None:
        DHOut = matrix_of(DHOut, stride_dhm, C)
    dropout = Dropout(Seed, threshold, scale)
    dweight, dbias = (), ()  # TILES x (1, block_n) float32, over all rows of this program
    for _ in tl.static_range(TILES):
        dweight = dweight + (tl.zeros((1, BLOCK_N), tl.float32),)
        dbias = dbias + (tl.zeros((1, BLOCK_N), tl.float32),)

    for m in tl.range(program, M, programs, num_stages=C.stages):
        row = row_indices(m, 1)  # (1,)
        mean, rstd = load_stats(Stats, part_of_row(row, 0, C), M)  # (1, 1)
        h, dy = (), ()  # TILES x (1, block_n), in their own dtypes
        sum_gx = tl.zeros((1, BLOCK_N), tl.float32)
        sum_g = tl.zeros((1, BLOCK_N), tl.float32)
        for i in tl.static_range(TILES):
            at = part_of_row(row, i * BLOCK_N, C)
            h = h + (load_rows(H, at),)
            dy = dy + (load_rows(DY, at),)
            g = dy[i].to(tl.float32) * load_weight(Weight, at)  # 0 past the last column
            sum_gx += g * ((h[i].to(tl.float32) - mean) * rstd)
            sum_g += g
        mean_gx = tl.sum(sum_gx, axis=1, keep_dims=True) / N  # (1, 1)
        mean_g = tl.sum(sum_g, axis=1, keep_dims=True) / N
        dweight_before, dbias_before = dweight, dbias
        dweight, dbias = (), ()
        for i in tl.static_range(TILES):
            at = part_of_row(row, i * BLOCK_N, C)
            xhat = tl.where(at.col_ok[None, :], (convert_again(h[i], zero) - mean) * rstd, 0.0)  # (1, block_n)
            g = convert_again(dy[i], zero)
            dweight = dweight + (dweight_before[i] + g * xhat,)
            dbias = dbias + (dbias_before[i] + g,)
            if (DH is not None) or (DX is not None):
                g *= load_weight(Weight, at)
                dh = (g - mean_g - xhat * mean_gx) * rstd
                store_input_gradients(dh, DHOut, DH, DX, dropout, at, N)

    for i in tl.static_range(TILES):
        cols = i * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
        if C.need_dweight:
            tl.store(Partials + program * N + cols, dweight[i], mask=cols < N)
        if C.need_dbias:
            which = C.need_dweight * programs + program  # dbias lies behind dweight, if that is there
            tl.store(Partials + which * N + cols, dbias[i], mask=cols < N)


@triton.jit
def load_xhat_and_g(H, DY, Weight, mean, rstd, at):
    """xhat and g = dy · weight, (1, block_n) float32, both 0 outside the matrix."""
    h = load_rows(H, at).to(tl.float32)
    g = load_rows(DY, at).to(tl.float32)
    return tl.where(at.col_ok[None, :], (h - mean) * rstd, 0.0), g * load_weight(Weight, at)


@triton.jit(do_not_specialize=["M", "threshold"])
def layer_norm_dh_long_kernel(
    DY, DHOut, H, Weight, Stats, Seed, DH, DX, M, stride_dym, stride_dhm, stride_hm, threshold, scale, C: tl.constexpr
):  # fmt: skip
    """Arguments of `layer_norm_backward_kernel`; the gradients of h and x only.

    One program a row, over which it walks twice, the second time in the L2 cache.
    """
    N: tl.constexpr = C.n
    BLOCK_N: tl.constexpr = C.block_n
    DY, H = matrix_of(DY, stride_dym, C), matrix_of(H, stride_hm, C)
    if DHOut is not None:
        DHOut = matrix_of(DHOut, stride_dhm, C)
    dropout = Dropout(Seed, threshold, scale)
    row = row_indices(tl.program_id(0), 1)  # (1,)
    mean, rstd = load_stats(Stats, part_of_row(row, 0, C), M)  # (1, 1)
    sum_gx = tl.zeros((1, BLOCK_N), tl.float32)
    sum_g = tl.zeros((1, BLOCK_N), tl.float32)
    for start in tl.range(0, N, BLOCK_N):
        xhat, g = load_xhat_and_g(H, DY, Weight, mean, rstd, part_of_row(row, start, C))
        sum_gx += g * xhat
        sum_g += g
    mean_gx = tl.sum(sum_gx, axis=1, keep_dims=True) / N  # (1, 1)
    mean_g = tl.sum(sum_g, axis=1, keep_dims=True) / N
    for start in tl.range(0, N, BLOCK_N):
        at = part_of_row(row, start, C)
        xhat, g = load_xhat_and_g(H, DY, Weight, mean, rstd, at)
        dh = (g - mean_g - xhat * mean_gx) * rstd
        store_input_gradients(dh, DHOut, DH, DX, dropout, at, N)


@triton.jit(do_not_specialize=["M"])
def layer_norm_dweight_long_kernel(DY, H, Stats, DWeight, DBias, M, stride_dym, stride_hm, C: tl.constexpr):
    """Weight gradients of columns [block_n · program, block_n · (program + 1)), over all rows: no partial sums.

    DY, H            (M, N); H is what was normalised
    Stats            (2, M) float32: mean, rstd
    DWeight, DBias   (N,), None where not asked for
    """
    N: tl.constexpr = C.n
    BLOCK_M: tl.constexpr = C.block_m
    BLOCK_N: tl.constexpr = C.block_n
    DY, H = matrix_of(DY, stride_dym, C), matrix_of(H, stride_hm, C)
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)  # (block_n,)
    dweight = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    dbias = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for tile in tl.range(0, tl.cdiv(M, BLOCK_M)):  # in int32: no memory holds 2^31 rows of this length
        rows = row_indices(tile, BLOCK_M)  # (block_m,)
        at = Place(rows, cols, rows < M, cols < N)
        dy = load_rows(DY, at).to(tl.float32)  # (block_m, block_n)
        if DWeight is not None:
            h = load_rows(H, at).to(tl.float32)
            mean, rstd = load_stats(Stats, at, M)  # (block_m, 1)
            dweight += dy * (h - mean) * rstd  # rstd is 0 past the last row
        if DBias is not None:
            dbias += dy
    if DWeight is not None:
        tl.store(DWeight + cols, tl.sum(dweight, axis=0).to(DWeight.dtype.element_ty), mask=cols < N)
    if DBias is not None:
        tl.store(DBias + cols, tl.sum(dbias, axis=0).to(DBias.dtype.element_ty), mask=cols < N)
