"""Device code: which targets count, the loss of each row, and the same with its gradient.

The formulas, and how a row lies in memory, are told in device.py. One program takes one row.
"""

import triton
import triton.language as tl

from .device import (
    fold,
    load_logit,
    load_logits,
    load_target,
    merge,
    nothing_seen,
    row_gradient,
    target_share,
)
from .structs import Row


@triton.jit
def count_targets_kernel(Target, Counts, N, V, ignore_index, BLOCK_N: tl.constexpr):
    """Counts[0] = how many targets are not ignored, Counts[1] = 1 if all of those lie in [0, V), else 0.

    Target (N,) int, Counts (2,) int64. One program: the order of the sum is fixed. Called by `launch.check_targets`.
    """
    count = tl.zeros((BLOCK_N,), dtype=tl.int64)
    bad = tl.zeros((BLOCK_N,), dtype=tl.int32)
    for start in tl.range(0, N, BLOCK_N):
        offs = start + tl.arange(0, BLOCK_N)
        t = tl.load(Target + offs, mask=offs < N, other=0)  # (BLOCK_N,)
        valid = (offs < N) & (t != ignore_index)  # ignore_index may lie outside of the targets' dtype
        count += valid.to(tl.int64)
        bad |= (valid & ((t < 0) | (t >= V))).to(tl.int32)
    tl.store(Counts, tl.sum(count, axis=0))
    tl.store(Counts + 1, (tl.max(bad, axis=0) == 0).to(tl.int64))


@triton.jit
def loss_kernel(
    Logits, Bias, Target, Loss, Max, LogSum, V, columns, stride_n, ignore_index, label_smoothing, z_loss, softcap,
    HAS_SMOOTHING: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """loss = lse - (1 - a) y[t] - a mean(y) + w lse² of each row, and its softmax, in one read of the logits.

    Logits (N, columns); Bias (columns,) or None; Target (N,) int; Loss, Max, LogSum (N,) float32; ignore_index ...
    softcap: arguments.Formula. Grid (N,). Called by `launch._loss`.
    """
    i = tl.program_id(0)
    row = Row(Logits + i.to(tl.int64) * stride_n, Bias, V, columns)
    t, valid = load_target(Target, i, row.V, ignore_index)
    y_t, _ = load_logit(row, t, softcap)
    softmax, pull = row_softmax(row, y_t, softcap, HAS_SMOOTHING, LANES, WIDTH)
    store_row(Loss, Max, LogSum, i, softmax, y_t, pull, valid, row.V, label_smoothing, z_loss)


@triton.jit
def loss_and_gradient_kernel(
    Logits, Bias, Target, Loss, Max, LogSum, V, columns, stride_n, ignore_index, label_smoothing, z_loss, softcap,
    HAS_SMOOTHING: tl.constexpr, IN_REGISTERS: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr,
):  # fmt: skip
    """As `loss_kernel`, and dloss/dlogits (for an upstream gradient of 1) written over the logits; 0 in ignored rows.

    IN_REGISTERS: a tile holds the whole row, which is read once. Else it is read twice, the second time from the
    caches, where the first has just put it. Grid (N,). Called by `launch._loss_and_gradient`.
    """
    i = tl.program_id(0)
    row = Row(Logits + i.to(tl.int64) * stride_n, Bias, V, columns)
    dtype = Logits.dtype.element_ty
    t, valid = load_target(Target, i, row.V, ignore_index)
    y_t, slope_t = load_logit(row, t, softcap)
    dloss = tl.where(valid, 1.0, 0.0)
    share = target_share(dloss, 0.0, row.V, label_smoothing)
    share_t = target_share(dloss, 1.0, row.V, label_smoothing)
    tile = tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]  # (LANES, WIDTH) columns

    if IN_REGISTERS:
        y, slope = load_logits(row, tile, softcap, True)
        softmax, pull = merge(fold(nothing_seen(LANES), y, y_t, tile, row.V, HAS_SMOOTHING))
        tl.debug_barrier()  # no warp may overwrite a logit that another has yet to read: y_t, or a tile of few columns
        d = row_gradient(y, slope, softmax, dloss, 0.0, share, z_loss)
        tl.store(row.Logits + tile, d.to(dtype), mask=tile < row.columns)
    else:
        softmax, pull = row_softmax(row, y_t, softcap, HAS_SMOOTHING, LANES, WIDTH)
        tl.debug_barrier()  # as above
        inner = row.V // (LANES * WIDTH) * (LANES * WIDTH)
        for start in tl.range(0, inner, LANES * WIDTH):
            y, slope = load_logits(row, start + tile, softcap, False)
            d = row_gradient(y, slope, softmax, dloss, 0.0, share, z_loss)
            tl.store(row.Logits + start + tile, d.to(dtype))
        for start in tl.range(inner, row.columns, LANES * WIDTH):
            y, slope = load_logits(row, start + tile, softcap, True)
            d = row_gradient(y, slope, softmax, dloss, 0.0, share, z_loss)
            tl.store(row.Logits + start + tile, d.to(dtype), mask=start + tile < row.columns)

    # The target's column once more: a comparison in every column would cost as much as the softmax does.
    tl.debug_barrier()  # after the stores above
    d_t = row_gradient(y_t, slope_t, softmax, dloss, 0.0, share_t, z_loss)
    tl.store(row.Logits + t, d_t.to(dtype))
    store_row(Loss, Max, LogSum, i, softmax, y_t, pull, valid, row.V, label_smoothing, z_loss)


@triton.jit
def row_softmax(row, y_t, softcap, HAS_SMOOTHING: tl.constexpr, LANES: tl.constexpr, WIDTH: tl.constexpr):
    """(the row's Softmax, its Σ (y - y[t])), in one read."""
    seen = nothing_seen(LANES)
    tile = tl.arange(0, LANES)[:, None] * WIDTH + tl.arange(0, WIDTH)[None, :]  # (LANES, WIDTH) columns
    inner = row.V // (LANES * WIDTH) * (LANES * WIDTH)
    for start in tl.range(0, inner, LANES * WIDTH):
        y, _ = load_logits(row, start + tile, softcap, False)
        seen = fold(seen, y, y_t, start + tile, row.V, HAS_SMOOTHING)
    for start in tl.range(inner, row.columns, LANES * WIDTH):
        y, _ = load_logits(row, start + tile, softcap, True)
        seen = fold(seen, y, y_t, start + tile, row.V, HAS_SMOOTHING)
    return merge(seen)


@triton.jit
def store_row(Loss, Max, LogSum, i, softmax, y_t, pull, valid, V, label_smoothing, z_loss):
    """Write the row's loss, 0 if it is ignored, and what its gradient needs."""
    m, log_sum = softmax.m, softmax.log_sum
    lse = m + log_sum
    smoothed = tl.where(y_t == -float("inf"), 0.0, label_smoothing * (pull / V))
    loss = (log_sum + (m - y_t)) - smoothed + z_loss * lse * lse
    tl.store(Loss + i, tl.where(valid, loss, 0.0))
    tl.store(Max + i, m)
    tl.store(LogSum + i, log_sum)
