"""Device code: LayerNorm backward. One pass over the rows gives dx and partial sums of dweight and dbias.

With xhat = (h - mean) · rstd and g = dy · weight, both (M, N), and means taken over the columns:

    dh = rstd · (g - mean(g) - xhat · mean(g · xhat))        dweight = Σ_rows dy · xhat        dbias = Σ_rows dy

For add_layer_norm, h = residual + dropout(x) is also an output, whose gradient is added to dh; then d_residual = dh and
dx = dh · dropout factor, with the mask drawn again from its seed.
"""

import triton
import triton.language as tl

from ..device.sums import rounded_product, sum_of_products
from .forward import dropout_factor, in_elements, row_indices


@triton.jit
def store_input_gradients(
    dh, DHout, Seed, DH, DX, row, cols, mask, stride_dhm, threshold, scale, N: tl.constexpr
):  # fmt: skip
    """Add the gradient that reaches h directly, and store the gradients of residual and x. dh (block_m, block_n)."""
    if DHout is not None:
        dh += tl.load(DHout + row * stride_dhm + cols, mask=mask, other=0.0).to(tl.float32)
    if DH is not None:
        tl.store(DH + row * N + cols, dh.to(DH.dtype.element_ty), mask=mask)
    if DX is not None:
        if Seed is not None:
            dh *= dropout_factor(Seed, row, cols, threshold, scale)
        tl.store(DX + row * N + cols, dh.to(DX.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M", "threshold"])
def layer_norm_backward(
    DY, DHout, H, Weight, Stats, Seed, DH, DX, Partials,
    M, stride_dym, stride_dhm, stride_hm, threshold, scale,
    N: tl.constexpr, need_dweight: tl.constexpr, need_dbias: tl.constexpr, aligned: tl.constexpr,
    block_m: tl.constexpr, block_n: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """A fixed number of programs walk over the rows, `block_m` at a time, each summing its own rows' weight gradients.

    DY, H        (M, N), row strides in units of `aligned` elements; H is what was normalised: x, or the new residual
    DHout        (M, N) likewise: the gradient of the new residual, or None
    Stats        (2, M) float32: mean, rstd
    DH, DX       (M, N) contiguous, None where not asked for: gradients of h (the residual) and of the dropped x
    Partials     (need_dweight + need_dbias, programs, N) float32
    """
    program, programs = tl.program_id(0), tl.num_programs(0)
    column = tl.arange(0, block_n)  # (block_n,)
    cols = column[None, :]  # (1, block_n)
    stride_dym, stride_hm = in_elements(stride_dym, aligned), in_elements(stride_hm, aligned)
    stride_dhm = in_elements(stride_dhm, aligned)
    if Weight is not None:
        # One-dimensional, so that a weight of a wider dtype does not impose its layout on the tiles of the loop.
        weight = tl.load(Weight + column, mask=column < N, other=0.0).to(tl.float32)[None, :]  # (1, block_n)
    # Summed per row of the tile, and over its rows only once, after the loop: no exchange between threads inside it.
    dweight = tl.zeros((block_m, block_n), tl.float32)
    dbias = tl.zeros((block_m, block_n), tl.float32)

    tiles = (M - 1) // block_m + 1  # M + block_m may pass 2^31
    for tile in tl.range(program, tiles, programs, num_stages=stages):
        row = row_indices(tile, block_m)  # (block_m, 1)
        mask = (row < M) & (cols < N)  # (block_m, block_n)
        h = tl.load(H + row * stride_hm + cols, mask=mask, other=0.0).to(tl.float32)
        dy = tl.load(DY + row * stride_dym + cols, mask=mask, other=0.0).to(tl.float32)
        mean = tl.load(Stats + row, mask=row < M, other=0.0)  # (block_m, 1)
        rstd = tl.load(Stats + M + row, mask=row < M, other=0.0)
        xhat = tl.where(mask, (h - mean) * rstd, 0.0)  # (block_m, block_n)
        if need_dweight:
            dweight += dy * xhat
        if need_dbias:
            dbias += dy
        if (DH is not None) or (DX is not None):
            g = dy
            if Weight is not None:
                g = rounded_product(dy, weight)  # it is summed as it is, too
            mean_gx = sum_of_products(g, xhat, axis=1, keep_dims=True) / N  # (block_m, 1)
            mean_g = tl.sum(g, axis=1, keep_dims=True) / N
            dh = (g - mean_g - xhat * mean_gx) * rstd
            store_input_gradients(dh, DHout, Seed, DH, DX, row, cols, mask, stride_dhm, threshold, scale, N)

    if need_dweight:
        tl.store(Partials + program * N + column, tl.sum(dweight, axis=0), mask=column < N)
    if need_dbias:
        which = need_dweight * programs + program  # dbias lies behind dweight, if that is there
        tl.store(Partials + which * N + column, tl.sum(dbias, axis=0), mask=column < N)
