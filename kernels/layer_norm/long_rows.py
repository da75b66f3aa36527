"""Device code: LayerNorm of rows too long for the registers of one program.

Forward and dh walk over a row twice, in tiles; the second visit finds the row in the L2 cache. dweight and dbias are
summed column block by column block, each by one program over all rows, so that no partial sums are needed.
"""

import triton
import triton.language as tl

from .backward import store_input_gradients
from .forward import in_elements, load_h, row_indices, store_y
from .lanes import add_to_lanes, merge_lanes


@triton.jit(do_not_specialize=["M", "threshold"])
def layer_norm_forward_long(
    X, Residual, Weight, Bias, Seed, Y, NewResidual, Stats,
    M, stride_xm, stride_rm, eps, threshold, scale,
    N: tl.constexpr, aligned: tl.constexpr, block_n: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """Arguments of `layer_norm_forward`; one program a row.

    With a residual, x and residual are read once: the second walk reads what the first one wrote. Without one it reads
    x again.
    """
    row = row_indices(tl.program_id(0), 1)  # (1, 1)
    stride_xm, stride_rm = in_elements(stride_xm, aligned), in_elements(stride_rm, aligned)
    lane = tl.arange(0, block_n)[None, :]  # (1, block_n)
    mean_lane = tl.zeros((1, block_n), tl.float32)
    m2_lane = tl.zeros((1, block_n), tl.float32)
    seen = tl.zeros((1, 1), tl.float32)  # elements of each lane
    for i in tl.range(0, tl.cdiv(N, block_n), num_stages=stages):
        cols = i * block_n + lane  # (1, block_n)
        h = load_h(X, Residual, Seed, row, cols, cols < N, stride_xm, stride_rm, threshold, scale)
        if Residual is not None:
            tl.store(NewResidual + row * N + cols, h.to(NewResidual.dtype.element_ty), mask=cols < N)
        seen += 1.0
        mean_lane, m2_lane = add_to_lanes(mean_lane, m2_lane, h, cols < N, tl.div_rn(1.0, seen))
    mean, rstd = merge_lanes(mean_lane, m2_lane, eps, N, block_n)
    tl.store(Stats + row, mean)
    tl.store(Stats + M + row, rstd)

    if Residual is not None:
        tl.debug_barrier()  # an element of the new residual may be read by another thread than wrote it
    for i in tl.range(0, tl.cdiv(N, block_n)):
        cols = i * block_n + lane
        if Residual is not None:
            h = tl.load(NewResidual + row * N + cols, mask=cols < N, other=0.0).to(tl.float32)
        else:
            h = tl.load(X + row * stride_xm + cols, mask=cols < N, other=0.0).to(tl.float32)
        store_y(Y, Weight, Bias, row * N + cols, cols, (h - mean) * rstd, cols < N, N)


@triton.jit
def load_xhat_and_g(H, DY, Weight, row, cols, mask, mean, rstd, stride_hm, stride_dym):
    """xhat and g = dy · weight, (1, block_n) float32, both 0 outside the mask."""
    h = tl.load(H + row * stride_hm + cols, mask=mask, other=0.0).to(tl.float32)
    g = tl.load(DY + row * stride_dym + cols, mask=mask, other=0.0).to(tl.float32)
    if Weight is not None:
        g *= tl.load(Weight + cols, mask=mask, other=0.0).to(tl.float32)
    return tl.where(mask, (h - mean) * rstd, 0.0), g


@triton.jit(do_not_specialize=["M", "threshold"])
def layer_norm_dh_long(
    DY, DHout, H, Weight, Stats, Seed, DH, DX,
    M, stride_dym, stride_dhm, stride_hm, threshold, scale,
    N: tl.constexpr, aligned: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """Arguments of `layer_norm_backward`; the gradients of h and x only, one program a row."""
    row = row_indices(tl.program_id(0), 1)  # (1, 1)
    stride_dym, stride_hm = in_elements(stride_dym, aligned), in_elements(stride_hm, aligned)
    stride_dhm = in_elements(stride_dhm, aligned)
    mean = tl.load(Stats + row)  # (1, 1)
    rstd = tl.load(Stats + M + row)
    sum_gx = tl.zeros((1, block_n), tl.float32)
    sum_g = tl.zeros((1, block_n), tl.float32)
    for start in tl.range(0, N, block_n):
        cols = start + tl.arange(0, block_n)[None, :]  # (1, block_n)
        xhat, g = load_xhat_and_g(H, DY, Weight, row, cols, cols < N, mean, rstd, stride_hm, stride_dym)
        sum_gx += g * xhat
        sum_g += g
    mean_gx = tl.sum(sum_gx, axis=1, keep_dims=True) / N  # (1, 1)
    mean_g = tl.sum(sum_g, axis=1, keep_dims=True) / N
    for start in tl.range(0, N, block_n):
        cols = start + tl.arange(0, block_n)[None, :]
        mask = cols < N
        xhat, g = load_xhat_and_g(H, DY, Weight, row, cols, mask, mean, rstd, stride_hm, stride_dym)
        dh = (g - mean_g - xhat * mean_gx) * rstd
        store_input_gradients(dh, DHout, Seed, DH, DX, row, cols, mask, stride_dhm, threshold, scale, N)


@triton.jit(do_not_specialize=["M"])
def layer_norm_dweight_long(
    DY, H, Stats, DWeight, DBias, M, stride_dym, stride_hm,
    N: tl.constexpr, aligned: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """dweight and dbias (None where not asked for) of columns [block_n · program, block_n · (program + 1))."""
    cols = tl.program_id(0) * block_n + tl.arange(0, block_n)  # (block_n,)
    stride_dym, stride_hm = in_elements(stride_dym, aligned), in_elements(stride_hm, aligned)
    dweight = tl.zeros((block_m, block_n), tl.float32)
    dbias = tl.zeros((block_m, block_n), tl.float32)
    for tile in tl.range(0, tl.cdiv(M, block_m)):  # in int32: no memory holds 2^31 rows of this length
        row = row_indices(tile, block_m)  # (block_m, 1)
        mask = (row < M) & (cols < N)[None, :]  # (block_m, block_n)
        dy = tl.load(DY + row * stride_dym + cols[None, :], mask=mask, other=0.0).to(tl.float32)
        if DWeight is not None:
            h = tl.load(H + row * stride_hm + cols[None, :], mask=mask, other=0.0).to(tl.float32)
            mean = tl.load(Stats + row, mask=row < M, other=0.0)  # (block_m, 1)
            rstd = tl.load(Stats + M + row, mask=row < M, other=0.0)
            dweight += dy * (h - mean) * rstd  # rstd is 0 past the last row
        if DBias is not None:
            dbias += dy
    if DWeight is not None:
        tl.store(DWeight + cols, tl.sum(dweight, axis=0).to(DWeight.dtype.element_ty), mask=cols < N)
    if DBias is not None:
        tl.store(DBias + cols, tl.sum(dbias, axis=0).to(DBias.dtype.element_ty), mask=cols < N)
