"""Device code: LayerNorm forward, alone or with the residual addition (and dropout) that precedes it in a GPT block.

    h = x                            layer_norm
    h = residual + dropout(x)        add_layer_norm, rounded to the residual's dtype
    y = (h - mean(h)) · rstd(h) · weight + bias        (Ba, Kiros and Hinton 2016, arXiv 1607.06450)

A program holds `block_m` whole rows in registers, so that each element is read once.
"""

import triton
import triton.language as tl

from ..device.dropout import keep_mask
from ..device.sums import sum_of_products


@triton.jit
def row_indices(tile, block_m: tl.constexpr):
    """Rows of the `tile`-th group of block_m: (block_m, 1) int64, since row · stride may pass 2^31."""
    return (tl.zeros((block_m, 1), tl.int64) + tile) * block_m + tl.arange(0, block_m)[:, None]


@triton.jit
def in_elements(stride, aligned: tl.constexpr):
    """A row stride given in units of `aligned` elements: in int64 elements, and visibly a multiple of `aligned`."""
    return tl.cast(stride, tl.int64) * aligned


@triton.jit
def dropout_factor(Seed, row, cols, threshold, scale):
    """What dropout multiplies each element by: `scale` = 1 / (1 - p) where it is kept, else 0. Shape of row x cols."""
    plane = tl.full((1, 1), 0, tl.int32)
    keep = keep_mask(tl.load(Seed), tl.load(Seed + 1), plane, row, cols, threshold)
    return tl.where(keep, scale, 0.0)


@triton.jit
def load_h(
    X, Residual, Seed, row, cols, mask, stride_xm, stride_rm, threshold, scale
):  # fmt: skip
    """h in float32, (block_m, block_n), 0 outside the mask. row (block_m, 1) int64, cols (1, block_n)."""
    h = tl.load(X + row * stride_xm + cols, mask=mask, other=0.0).to(tl.float32)
    if Residual is not None:
        if Seed is not None:
            h *= dropout_factor(Seed, row, cols, threshold, scale)
        h += tl.load(Residual + row * stride_rm + cols, mask=mask, other=0.0).to(tl.float32)
        # The backward normalises the stored residual, so that the statistics must be those of the rounded one.
        h = h.to(Residual.dtype.element_ty).to(tl.float32)
    return h


@triton.jit
def store_y(Y, Weight, Bias, offsets, cols, xhat, mask, N: tl.constexpr):
    """y = xhat · weight + bias, rounded to Y's dtype. xhat (block_m, block_n) float32, cols (1, block_n)."""
    y = xhat
    if Weight is not None:
        y *= tl.load(Weight + cols, mask=cols < N, other=0.0).to(tl.float32)
    if Bias is not None:
        y += tl.load(Bias + cols, mask=cols < N, other=0.0).to(tl.float32)
    tl.store(Y + offsets, y.to(Y.dtype.element_ty), mask=mask)


@triton.jit(do_not_specialize=["M", "threshold"])
def layer_norm_forward(
    X, Residual, Weight, Bias, Seed, Y, NewResidual, Stats,
    M, stride_xm, stride_rm, eps, threshold, scale,
    N: tl.constexpr, aligned: tl.constexpr, block_m: tl.constexpr, block_n: tl.constexpr,
):  # fmt: skip
    """One program normalises rows [block_m · program, block_m · (program + 1)).

    X, Residual      (M, N) with row strides of aligned · stride_xm, aligned · stride_rm elements; Residual None for
                     plain layer_norm
    Weight, Bias     (N,) or None
    Seed             (2,) int64 (seed, offset) of the dropout, or None
    Y, NewResidual   (M, N) contiguous; NewResidual None for plain layer_norm
    Stats            (2, M) float32: mean, rstd
    aligned          elements that every row start is a multiple of (16-byte loads need 16 bytes)
    """
    row = row_indices(tl.program_id(0), block_m)  # (block_m, 1)
    cols = tl.arange(0, block_n)[None, :]  # (1, block_n)
    mask = (row < M) & (cols < N)  # (block_m, block_n)
    stride_xm, stride_rm = in_elements(stride_xm, aligned), in_elements(stride_rm, aligned)

    h = load_h(X, Residual, Seed, row, cols, mask, stride_xm, stride_rm, threshold, scale)
    if Residual is not None:
        tl.store(NewResidual + row * N + cols, h.to(NewResidual.dtype.element_ty), mask=mask)

    # Passes over the registers cost nothing: E[h²] - E[h]² would lose every digit at mean 1000 and variance 1. A second
    # look at the mean takes back the rounding of the first sum, so that a constant row gives exactly the bias.
    mean = tl.sum(h, axis=1, keep_dims=True) / N  # (block_m, 1)
    mean += tl.sum(tl.where(mask, h - mean, 0.0), axis=1, keep_dims=True) / N
    centred = tl.where(mask, h - mean, 0.0)  # columns past N must not count
    rstd = tl.rsqrt(sum_of_products(centred, centred, axis=1, keep_dims=True) / N + eps)  # (block_m, 1)

    tl.store(Stats + row, mean, mask=row < M)
    tl.store(Stats + M + row, rstd, mask=row < M)
    store_y(Y, Weight, Bias, row * N + cols, cols, centred * rstd, mask, N)
