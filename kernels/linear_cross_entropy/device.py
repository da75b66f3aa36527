"""Device code: a row of logits read, its softmax taken online, and the gradient of a logit.

With x a row of logits, y = softcap · tanh(x / softcap) (or y = x), t its target, w the z-loss weight, a the smoothing:

    m = max(y)        log_sum = ln Σ exp(y - m)        lse = m + log_sum
    loss = lse - (1 - a) y[t] - a mean(y) + w lse²
    dloss/dy[v] = (1 + 2 w lse) exp(y[v] - lse) - (1 - a) [v = t] - a / V

The maximum and the sum are found in one pass, online (Milakov and Gimelshein 2018, arXiv 1805.02867). A tile is
(lanes, width): width columns are what one thread reads at once, so that each thread keeps a maximum and a sum of its
own and none waits for another before the row ends. Wherever a difference decides (lse - y[t], y - lse), m is subtracted
before log_sum is added, so that logits that share a large offset lose nothing.

In memory a row may be wider than V: columns V ... `columns` are padding, which may be read and overwritten, and which
makes every row start on a 16-byte boundary.
"""

import triton
import triton.language as tl

from ..device.sums import sum_of_products
from .structs import Seen, Softmax

LOG2E = tl.constexpr(1.4426950408889634)


# ---- reading ------------------------------------------------------------------------------------------------------


@triton.jit
def cap(x, softcap):
    """(y, dy/dx) for y = softcap · tanh(z), z = x / softcap; y = x and 1.0 where softcap is None.

    y to a few ulp of itself, the slope to a few and 2|z| more: it falls as exp(-2|z|), and z is rounded, and 2|z| too.
    tanh by a polynomial near 0, where 1 - exp(-2|z|) would cancel, and as a factor of x, since z underflows under a
    large softcap. The slope is sech²(z) = 4 E / (1 + E)² with E = exp(-2|z|), because 1 - tanh² has no digit left where
    tanh is nearly 1: there, under a small softcap, lies every logit.
    """
    slope = 1.0
    if softcap is not None:
        z = x / softcap
        a = tl.abs(z)
        e = tl.exp2(a * (-2.0 * LOG2E))  # in [0, 1]
        inverse = 1.0 / (1.0 + e)
        far = softcap * ((1.0 - e) * inverse)
        z2 = z * z
        near = x * (1.0 + z2 * (-1.0 / 3.0 + z2 * (2.0 / 15.0 + z2 * (-17.0 / 315.0 + z2 * (62.0 / 2835.0)))))
        x = tl.where(a < 0.25, near, tl.where(z < 0.0, -far, far))
        slope = 4.0 * e * inverse * inverse
    return x, slope


@triton.jit
def load_logits(row, offs, softcap, MASKED: tl.constexpr):
    """(y, dy/dx) of the columns `offs`, float32 of their shape. MASKED: some may lie beyond V; there y = -inf."""
    if MASKED:
        inside = offs < row.columns  # not `offs < V`: a bound that 16 divides lets the compiler read 16 bytes at a time
        x = tl.load(row.Logits + offs, mask=inside, other=0.0).to(tl.float32)
        if row.Bias is not None:
            x += tl.load(row.Bias + offs, mask=inside, other=0.0).to(tl.float32)
    else:
        x = tl.load(row.Logits + offs).to(tl.float32)
        if row.Bias is not None:
            x += tl.load(row.Bias + offs).to(tl.float32)
    y, slope = cap(x, softcap)
    if MASKED:
        y = tl.where(offs < row.V, y, -float("inf"))
    return y, slope


@triton.jit
def load_logit(row, t, softcap):
    """(y, dy/dx) of column t alone: scalars."""
    x = tl.load(row.Logits + t).to(tl.float32)
    if row.Bias is not None:
        x += tl.load(row.Bias + t).to(tl.float32)
    return cap(x, softcap)


@triton.jit
def load_target(Target, i, V, ignore_index):
    """(t, whether row i counts). An ignored row is given column 0 for a target."""
    t = tl.load(Target + i)
    return tl.where((t >= 0) & (t < V), t, 0).to(tl.int32), t != ignore_index


# ---- the online softmax -------------------------------------------------------------------------------------------


@triton.jit
def nothing_seen(LANES: tl.constexpr):
    """What the lanes know before the first tile."""
    zeros = tl.zeros((LANES,), tl.float32)
    return Seen(tl.full((LANES,), -float("inf"), tl.float32), zeros, zeros)


@triton.jit
def fold(seen, y, y_t, offs, V, HAS_SMOOTHING: tl.constexpr):
    """What the lanes have seen after one more tile y (lanes, width), of the columns `offs`."""
    m = tl.maximum(seen.m, tl.max(y, axis=1))
    base = tl.where(m == -float("inf"), 0.0, m)  # nothing but -inf so far: -inf - -inf would be NaN
    s = seen.s * tl.exp2((seen.m - base) * LOG2E) + tl.sum(tl.exp2((y - base[:, None]) * LOG2E), axis=1)
    pull = seen.pull
    if HAS_SMOOTHING:
        pull += tl.sum(tl.where(offs < V, y - y_t, 0.0), axis=1)
    return Seen(m, s, pull)


@triton.jit
def merge(seen):
    """(the row's Softmax, its Σ (y - y[t])) from what its lanes have seen."""
    m = tl.max(seen.m, axis=0)
    base = tl.where(m == -float("inf"), 0.0, m)
    log_sum = tl.log(sum_of_products(seen.s, tl.exp2((seen.m - base) * LOG2E), axis=0))
    return Softmax(m, log_sum), tl.sum(seen.pull, axis=0)


# ---- the gradient -------------------------------------------------------------------------------------------------


@triton.jit
def target_share(dloss, at_target, V, smoothing):
    """dloss · the probability that the loss wants of a column: the target (at_target 1.0) or another one (0.0)."""
    return dloss * (smoothing / V + at_target * (1.0 - smoothing))


@triton.jit
def row_gradient(y, slope, softmax, dloss, dlse, share, z_loss):
    """dloss · dloss/dx + dlse · dlse/dx of logits y, given the `target_share` of each."""
    p = tl.exp2((y - softmax.m) * LOG2E - softmax.log_sum * LOG2E)
    of_p = dloss * (1.0 + 2.0 * z_loss * (softmax.m + softmax.log_sum)) + dlse
    return (p * of_p - share) * slope
