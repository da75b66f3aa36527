"""Device code: cross-entropy of logits, row by row, and its gradient. One program takes one row of V logits.

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

LOG2E = tl.constexpr(1.4426950408889634)


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
def load_logits(Row, Bias, offs, V, columns, softcap, masked: tl.constexpr):
    """(y, dy/dx) of the columns `offs`, float32 of their shape. `masked`: some may lie beyond V; there y = -inf."""
    if masked:
        inside = offs < columns  # not `offs < V`: a bound that 16 divides lets the compiler read 16 bytes at a time
        x = tl.load(Row + offs, mask=inside, other=0.0).to(tl.float32)
        if Bias is not None:
            x += tl.load(Bias + offs, mask=inside, other=0.0).to(tl.float32)
    else:
        x = tl.load(Row + offs).to(tl.float32)
        if Bias is not None:
            x += tl.load(Bias + offs).to(tl.float32)
    y, slope = cap(x, softcap)
    if masked:
        y = tl.where(offs < V, y, -float("inf"))
    return y, slope


@triton.jit
def load_logit(Row, Bias, t, softcap):
    """(y, dy/dx) of column t alone: scalars."""
    x = tl.load(Row + t).to(tl.float32)
    if Bias is not None:
        x += tl.load(Bias + t).to(tl.float32)
    return cap(x, softcap)


@triton.jit
def load_target(Target, i, V, ignore_index):
    """(t, whether row i counts). An ignored row is given column 0 for a target."""
    t = tl.load(Target + i)
    return tl.where((t >= 0) & (t < V), t, 0).to(tl.int32), t != ignore_index


@triton.jit
def fold(m, s, pull, y, y_t, offs, V, has_smoothing: tl.constexpr):
    """Take a tile y (lanes, width) into m = max(y), s = Σ exp(y - m), pull = Σ (y - y[t]) of each lane; (lanes,)."""
    m_new = tl.maximum(m, tl.max(y, axis=1))
    base = tl.where(m_new == -float("inf"), 0.0, m_new)  # nothing but -inf so far: -inf - -inf would be NaN
    s = s * tl.exp2((m - base) * LOG2E) + tl.sum(tl.exp2((y - base[:, None]) * LOG2E), axis=1)
    if has_smoothing:
        pull += tl.sum(tl.where(offs < V, y - y_t, 0.0), axis=1)
    return m_new, s, pull


@triton.jit
def merge(m, s):
    """(maximum, log of the sum) of the row from those of its lanes, (lanes,) each."""
    m_row = tl.max(m, axis=0)
    base = tl.where(m_row == -float("inf"), 0.0, m_row)
    return m_row, tl.log(sum_of_products(s, tl.exp2((m - base) * LOG2E), axis=0))


@triton.jit
def row_statistics(
    Row, Bias, y_t, V, columns, softcap, has_smoothing: tl.constexpr, lanes: tl.constexpr, width: tl.constexpr
):
    """(m, log_sum, Σ (y - y[t])) of a row, in one read."""
    m = tl.full((lanes,), -float("inf"), tl.float32)
    s = tl.zeros((lanes,), tl.float32)
    pull = tl.zeros((lanes,), tl.float32)
    tile = tl.arange(0, lanes)[:, None] * width + tl.arange(0, width)[None, :]  # (lanes, width) columns
    inner = V // (lanes * width) * (lanes * width)
    for start in tl.range(0, inner, lanes * width):
        y, _ = load_logits(Row, Bias, start + tile, V, columns, softcap, False)
        m, s, pull = fold(m, s, pull, y, y_t, start + tile, V, has_smoothing)
    for start in tl.range(inner, columns, lanes * width):
        y, _ = load_logits(Row, Bias, start + tile, V, columns, softcap, True)
        m, s, pull = fold(m, s, pull, y, y_t, start + tile, V, has_smoothing)
    m, log_sum = merge(m, s)
    return m, log_sum, tl.sum(pull, axis=0)


@triton.jit
def store_row(Loss, Max, LogSum, i, m, log_sum, y_t, pull, valid, V, smoothing, z_loss):
    """Write the row's loss, 0 if it is ignored, and what its gradient needs."""
    lse = m + log_sum
    loss = (log_sum + (m - y_t)) - tl.where(y_t == -float("inf"), 0.0, smoothing * (pull / V)) + z_loss * lse * lse
    tl.store(Loss + i, tl.where(valid, loss, 0.0))
    tl.store(Max + i, m)
    tl.store(LogSum + i, log_sum)


@triton.jit
def target_share(g_loss, at_target, V, smoothing):
    """g_loss · the probability that the loss wants of a column: the target (at_target 1.0) or another one (0.0)."""
    return g_loss * (smoothing / V + at_target * (1.0 - smoothing))


@triton.jit
def row_gradient(y, slope, m, log_sum, g_loss, g_lse, share, z_loss):
    """g_loss · dloss/dx + g_lse · dlse/dx of logits y, given the `target_share` of each."""
    p = tl.exp2((y - m) * LOG2E - log_sum * LOG2E)  # softmax
    of_p = g_loss * (1.0 + 2.0 * z_loss * (m + log_sum)) + g_lse
    return (p * of_p - share) * slope


@triton.jit
def loss_kernel(
    Logits, Bias, Target, Loss, Max, LogSum,
    V, columns, stride_n, ignore_index, smoothing, z_loss, softcap,
    has_smoothing: tl.constexpr, lanes: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """Loss, maximum and log-sum of each row, in one read of the logits.

    Logits (N, columns), Bias (columns,) or None, Target (N,) int; Loss, Max, LogSum (N,) float32. Grid (N,).
    """
    i = tl.program_id(0)
    Row = Logits + i.to(tl.int64) * stride_n
    t, valid = load_target(Target, i, V, ignore_index)
    y_t, _ = load_logit(Row, Bias, t, softcap)
    m, log_sum, pull = row_statistics(Row, Bias, y_t, V, columns, softcap, has_smoothing, lanes, width)
    store_row(Loss, Max, LogSum, i, m, log_sum, y_t, pull, valid, V, smoothing, z_loss)


@triton.jit
def loss_and_gradient_kernel(
    Logits, Bias, Target, Loss, Max, LogSum,
    V, columns, stride_n, ignore_index, smoothing, z_loss, softcap,
    has_smoothing: tl.constexpr, in_registers: tl.constexpr, lanes: tl.constexpr, width: tl.constexpr,
):  # fmt: skip
    """As `loss_kernel`, and dloss/dlogits (for an upstream gradient of 1) written over the logits; 0 in ignored rows.

    in_registers: a tile holds the whole row, which is read once. Else it is read twice, the second time from the
    caches, where the first has just put it. Grid (N,).
    """
    i = tl.program_id(0)
    Row = Logits + i.to(tl.int64) * stride_n
    t, valid = load_target(Target, i, V, ignore_index)
    y_t, slope_t = load_logit(Row, Bias, t, softcap)
    g_loss = tl.where(valid, 1.0, 0.0)
    share, share_t = target_share(g_loss, 0.0, V, smoothing), target_share(g_loss, 1.0, V, smoothing)
    tile = tl.arange(0, lanes)[:, None] * width + tl.arange(0, width)[None, :]  # (lanes, width) columns

    if in_registers:
        y, slope = load_logits(Row, Bias, tile, V, columns, softcap, True)
        m = tl.full((lanes,), -float("inf"), tl.float32)
        m, s, pull = fold(m, tl.zeros_like(m), tl.zeros_like(m), y, y_t, tile, V, has_smoothing)
        m, log_sum = merge(m, s)
        pull = tl.sum(pull, axis=0)
        tl.debug_barrier()  # no warp may overwrite a logit that another has yet to read: y_t, or a tile of few columns
        d = row_gradient(y, slope, m, log_sum, g_loss, 0.0, share, z_loss)
        tl.store(Row + tile, d.to(Logits.dtype.element_ty), mask=tile < columns)
    else:
        m, log_sum, pull = row_statistics(Row, Bias, y_t, V, columns, softcap, has_smoothing, lanes, width)
        tl.debug_barrier()  # as above
        inner = V // (lanes * width) * (lanes * width)
        for start in tl.range(0, inner, lanes * width):
            y, slope = load_logits(Row, Bias, start + tile, V, columns, softcap, False)
            d = row_gradient(y, slope, m, log_sum, g_loss, 0.0, share, z_loss)
            tl.store(Row + start + tile, d.to(Logits.dtype.element_ty))
        for start in tl.range(inner, columns, lanes * width):
            y, slope = load_logits(Row, Bias, start + tile, V, columns, softcap, True)
            d = row_gradient(y, slope, m, log_sum, g_loss, 0.0, share, z_loss)
            tl.store(Row + start + tile, d.to(Logits.dtype.element_ty), mask=start + tile < columns)

    # The target's column once more: a comparison in every column would cost as much as the softmax does.
    tl.debug_barrier()  # after the stores above
    d_t = row_gradient(y_t, slope_t, m, log_sum, g_loss, 0.0, share_t, z_loss)
    tl.store(Row + t, d_t.to(Logits.dtype.element_ty))
    store_row(Loss, Max, LogSum, i, m, log_sum, y_t, pull, valid, V, smoothing, z_loss)


@triton.jit
def gradient_kernel(
    Logits, Out, Bias, Target, Max, LogSum, GradLoss, GradLse,
    V, columns, tiles, stride_n, stride_on, stride_g, ignore_index, smoothing, z_loss, softcap,
    block_v: tl.constexpr,
):  # fmt: skip
    """dlogits for any upstream gradients, from the saved maximum and log-sum: one read, one write, perhaps in place.

    Logits (N, columns); Out the same shape, or Logits itself; GradLoss (N,) float32 with stride stride_g (0: one for
    all rows); GradLse (N,) float32 or None. Grid (N * tiles,), with tiles = cdiv(columns, block_v): the grid's other
    dimensions end at 65535.

    In place, each logit is read by the one thread that writes its gradient. Hence the comparison in every column: the
    target's logit, read by itself, would be read by all threads, and by some of them after another has overwritten it.
    """
    program = tl.program_id(0)
    i = program // tiles
    offs = (program % tiles) * block_v + tl.arange(0, block_v)  # (block_v,)
    t, valid = load_target(Target, i, V, ignore_index)
    m = tl.load(Max + i)
    log_sum = tl.load(LogSum + i)
    g_loss = tl.where(valid, tl.load(GradLoss + i.to(tl.int64) * stride_g), 0.0)
    g_lse = 0.0
    if GradLse is not None:
        g_lse = tl.load(GradLse + i)

    y, slope = load_logits(Logits + i.to(tl.int64) * stride_n, Bias, offs, V, columns, softcap, True)
    at_target, elsewhere = target_share(g_loss, 1.0, V, smoothing), target_share(g_loss, 0.0, V, smoothing)
    share = tl.where(offs == t, at_target, elsewhere)
    d = row_gradient(y, slope, m, log_sum, g_loss, g_lse, share, z_loss)  # (block_v,)
    tl.store(Out + i.to(tl.int64) * stride_on + offs, d.to(Out.dtype.element_ty), mask=offs < columns)
