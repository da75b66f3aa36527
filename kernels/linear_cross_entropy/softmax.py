"""Device code: cross-entropy of logits, row by row, and its gradient. One program is one row of V logits.

With x a row of logits, y = softcap · tanh(x / softcap) (or y = x), t its target, w the z-loss weight, a the smoothing:

    m = max(y)        log_sum = ln Σ exp(y - m)        lse = m + log_sum
    loss = lse - (1 - a) y[t] - a mean(y) + w lse²
    dloss/dy[v] = (1 + 2 w lse) exp(y[v] - lse) - (1 - a) [v = t] - a / V

The maximum and the sum are found in one pass, online (Milakov and Gimelshein 2018, arXiv 1805.02867). Wherever a
difference decides (lse - y[t], y - lse), m is subtracted before log_sum is added, so that logits that share a large
offset lose nothing.

In memory a row may be wider than V: columns V ... `columns` are padding, which may be read and overwritten, and which
makes every row start on a 16-byte boundary.
"""

import triton
import triton.language as tl

LOG2E = tl.constexpr(1.4426950408889634)


@triton.jit
def tanh(z):
    """tanh in float32 to a few ulp: a polynomial near 0, where 1 - exp(-2|z|) would cancel."""
    a = tl.abs(z)
    e = tl.exp2(a * (-2.0 * LOG2E))
    far = (1.0 - e) / (1.0 + e)
    z2 = z * z
    near = z * (1.0 + z2 * (-1.0 / 3.0 + z2 * (2.0 / 15.0 + z2 * (-17.0 / 315.0 + z2 * (62.0 / 2835.0)))))
    return tl.where(a < 0.25, near, tl.where(z < 0.0, -far, far))


@triton.jit
def load_logits(Row, Bias, offs, V, columns, softcap):
    """(y, slope): capped logits of columns `offs`, -inf beyond V; dy/dx, 1.0 without softcap. (block,) float32."""
    inside = offs < columns  # not `offs < V`: a bound that 16 divides lets the compiler read 16 bytes at a time
    x = tl.load(Row + offs, mask=inside, other=0.0).to(tl.float32)  # (block,)
    if Bias is not None:
        x += tl.load(Bias + offs, mask=inside, other=0.0).to(tl.float32)
    slope = 1.0
    if softcap is not None:
        squashed = tanh(x / softcap)
        x = softcap * squashed
        slope = 1.0 - squashed * squashed
    return tl.where(offs < V, x, -float("inf")), slope


@triton.jit
def load_target_logit(Row, Bias, t, softcap):
    """y[t], a float32 scalar."""
    x = tl.load(Row + t).to(tl.float32)
    if Bias is not None:
        x += tl.load(Bias + t).to(tl.float32)
    if softcap is not None:
        x = softcap * tanh(x / softcap)
    return x


@triton.jit
def fold(m, s, y):
    """The running maximum m and s = Σ exp(y - m) after one more tile y (block,)."""
    m_new = tl.maximum(m, tl.max(y, axis=0))
    base = tl.where(m_new == -float("inf"), 0.0, m_new)  # nothing but -inf so far: -inf - -inf would be NaN
    s = s * tl.exp2((m - base) * LOG2E) + tl.sum(tl.exp2((y - base) * LOG2E), axis=0)
    return m_new, s


@triton.jit
def row_loss(m, log_sum, y_t, y_sum, V, smoothing, z_loss):
    """The loss of a row, given y[t] and y_sum = Σ (y - y[t]), from which mean(y) - y[t] comes without cancellation."""
    lse = m + log_sum
    pull = tl.where(y_t == -float("inf"), 0.0, smoothing * (y_sum / V))  # there the loss is +inf already
    return (log_sum + (m - y_t)) - pull + z_loss * lse * lse


@triton.jit
def row_gradient(y, slope, offs, t, m, log_sum, g_loss, g_lse, V, smoothing, z_loss):
    """g_loss · dloss/dx + g_lse · dlse/dx for the columns `offs` of a row: (block,) float32."""
    p = tl.exp2(((y - m) - log_sum) * LOG2E)  # (block,) softmax
    of_p = g_loss * (1.0 + 2.0 * z_loss * (m + log_sum)) + g_lse
    d = p * of_p - g_loss * smoothing / V
    d = tl.where(offs == t, d - g_loss * (1.0 - smoothing), d)
    return d * slope


@triton.jit
def shift_of(y_t):
    """What Σ (y - shift) subtracts: y[t], unless that is -inf."""
    return tl.where(y_t == -float("inf"), 0.0, y_t)


@triton.jit
def loss_kernel(
    Logits, Bias, Target, Loss, Max, LogSum,
    V, columns, stride_n, ignore_index, smoothing, z_loss, softcap,
    has_smoothing: tl.constexpr, block_v: tl.constexpr,
):  # fmt: skip
    """Loss, maximum and log-sum of each row, in one read of the logits.

    Logits (N, columns), Bias (columns,) or None, Target (N,) int; Loss, Max, LogSum (N,) float32. Grid (N,).
    """
    i = tl.program_id(0)
    Row = Logits + i.to(tl.int64) * stride_n
    t = tl.load(Target + i)
    valid = t != ignore_index
    t = tl.where((t >= 0) & (t < V), t, 0).to(tl.int32)
    y_t = load_target_logit(Row, Bias, t, softcap)
    shift = shift_of(y_t)

    m = -float("inf")
    s = 0.0
    y_sum = 0.0
    for start in tl.range(0, columns, block_v):
        offs = start + tl.arange(0, block_v)
        y, _ = load_logits(Row, Bias, offs, V, columns, softcap)  # (block_v,)
        m, s = fold(m, s, y)
        if has_smoothing:
            y_sum += tl.sum(tl.where(offs < V, y - shift, 0.0), axis=0)

    log_sum = tl.log(s)
    loss = row_loss(m, log_sum, y_t, y_sum, V, smoothing, z_loss)
    tl.store(Loss + i, tl.where(valid, loss, 0.0))
    tl.store(Max + i, m)
    tl.store(LogSum + i, log_sum)


@triton.jit
def loss_and_gradient_kernel(
    Logits, Bias, Target, Loss, Max, LogSum,
    V, columns, stride_n, ignore_index, smoothing, z_loss, softcap,
    has_smoothing: tl.constexpr, in_registers: tl.constexpr, block_v: tl.constexpr,
):  # fmt: skip
    """As `loss_kernel`, and dloss/dlogits (for an upstream gradient of 1) written over the logits.

    in_registers: block_v >= columns, the row is read once and stays in registers. Else it is read twice, the second
    time from the L2 cache, where the first pass has just put it. Rows to ignore get gradient 0. Grid (N,).
    """
    i = tl.program_id(0)
    Row = Logits + i.to(tl.int64) * stride_n
    t = tl.load(Target + i)
    valid = t != ignore_index
    t = tl.where((t >= 0) & (t < V), t, 0).to(tl.int32)
    y_t = load_target_logit(Row, Bias, t, softcap)
    shift = shift_of(y_t)

    m = -float("inf")
    s = 0.0
    y_sum = 0.0
    g_loss = tl.where(valid, 1.0, 0.0)
    if in_registers:
        offs = tl.arange(0, block_v)
        y, slope = load_logits(Row, Bias, offs, V, columns, softcap)  # (block_v,)
        m, s = fold(m, s, y)
        if has_smoothing:
            y_sum += tl.sum(tl.where(offs < V, y - shift, 0.0), axis=0)
        log_sum = tl.log(s)
        d = row_gradient(y, slope, offs, t, m, log_sum, g_loss, 0.0, V, smoothing, z_loss)
        tl.store(Row + offs, d.to(Logits.dtype.element_ty), mask=offs < columns)
    else:
        for start in tl.range(0, columns, block_v):
            offs = start + tl.arange(0, block_v)
            y, _ = load_logits(Row, Bias, offs, V, columns, softcap)  # (block_v,)
            m, s = fold(m, s, y)
            if has_smoothing:
                y_sum += tl.sum(tl.where(offs < V, y - shift, 0.0), axis=0)
        log_sum = tl.log(s)
        for start in tl.range(0, columns, block_v):
            offs = start + tl.arange(0, block_v)
            y, slope = load_logits(Row, Bias, offs, V, columns, softcap)
            d = row_gradient(y, slope, offs, t, m, log_sum, g_loss, 0.0, V, smoothing, z_loss)
            tl.store(Row + offs, d.to(Logits.dtype.element_ty), mask=offs < columns)

    loss = row_loss(m, log_sum, y_t, y_sum, V, smoothing, z_loss)
    tl.store(Loss + i, tl.where(valid, loss, 0.0))
    tl.store(Max + i, m)
    tl.store(LogSum + i, log_sum)


@triton.jit
def gradient_kernel(
    Logits, Out, Bias, Target, Max, LogSum, GradLoss, GradLse,
    V, columns, stride_n, stride_on, stride_g, ignore_index, smoothing, z_loss, softcap,
    block_v: tl.constexpr,
):  # fmt: skip
    """dlogits for any upstream gradients, from the saved maximum and log-sum: one read, one write, perhaps in place.

    Logits (N, columns); Out the same shape, or Logits itself; GradLoss (N,) float32 with stride stride_g (0: one for
    all rows); GradLse (N,) float32 or None. Grid (N, cdiv(columns, block_v)).
    """
    i = tl.program_id(0)
    t = tl.load(Target + i)
    g_loss = tl.where(t != ignore_index, tl.load(GradLoss + i.to(tl.int64) * stride_g), 0.0)
    g_lse = 0.0
    if GradLse is not None:
        g_lse = tl.load(GradLse + i)
    m = tl.load(Max + i)
    log_sum = tl.load(LogSum + i)

    offs = tl.program_id(1) * block_v + tl.arange(0, block_v)
    y, slope = load_logits(Logits + i.to(tl.int64) * stride_n, Bias, offs, V, columns, softcap)  # (block_v,)
    d = row_gradient(y, slope, offs, t.to(tl.int32), m, log_sum, g_loss, g_lse, V, smoothing, z_loss)
    tl.store(Out + i.to(tl.int64) * stride_on + offs, d.to(Out.dtype.element_ty), mask=offs < columns)
