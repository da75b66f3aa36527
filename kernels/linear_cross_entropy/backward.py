"""Device code: the gradient of the logits for any upstream gradients, and of gradients made before one was known.

The formulas, and how a row lies in memory, are told in device.py.
"""

import triton
import triton.language as tl

from .device import load_logits, load_target, row_gradient, target_share
from .structs import Row, Softmax


@triton.jit
def gradient_kernel(rows, Target, Out, stride_on, Max, LogSum, upstream, parts, formula, BLOCK_V: tl.constexpr):
    """dlogits = dloss · dloss/dlogits + dlse · dlse/dlogits, from the saved softmax: one read, one write.

    rows: Rows (N, columns); Target (N,) int; Out as the logits, with row stride stride_on, or the logits themselves;
    Max, LogSum (N,) float32; upstream: Upstream (N,); formula: Formula. Grid (N * parts,), with
    parts = cdiv(columns, BLOCK_V): the grid's other dimensions end at 65535. Called by `launch._gradient`.

    In place, each logit is read by the one thread that writes its gradient. Hence the comparison in every column: the
    target's logit, read by itself, would be read by all threads, and by some of them after another has overwritten it.
    """
    program = tl.program_id(0)
    i = program // parts
    offs = (program % parts) * BLOCK_V + tl.arange(0, BLOCK_V)  # (BLOCK_V,)
    t, valid = load_target(Target, i, rows.V, formula.ignore_index)
    softmax = Softmax(tl.load(Max + i), tl.load(LogSum + i))
    dloss = tl.where(valid, tl.load(upstream.DLoss + i.to(tl.int64) * upstream.stride_n), 0.0)
    dlse = 0.0
    if upstream.DLse is not None:
        dlse = tl.load(upstream.DLse + i)

    row = Row(rows.Logits + i.to(tl.int64) * rows.stride_n, rows.Bias, rows.V, rows.columns)
    y, slope = load_logits(row, offs, formula.softcap, True)
    at_target = target_share(dloss, 1.0, rows.V, formula.label_smoothing)
    elsewhere = target_share(dloss, 0.0, rows.V, formula.label_smoothing)
    share = tl.where(offs == t, at_target, elsewhere)
    d = row_gradient(y, slope, softmax, dloss, dlse, share, formula.z_loss)  # (BLOCK_V,)
    tl.store(Out + i.to(tl.int64) * stride_on + offs, d.to(Out.dtype.element_ty), mask=offs < rows.columns)


@triton.jit
def scale_kernel(DLoss, Counts, Src, Out, numel, BLOCK: tl.constexpr):
    """Out = Src · DLoss / Counts[0] (Counts None: Src · DLoss), in float32; 0 where no target counts.

    Src, Out (numel,) float; DLoss () float32; Counts (2,) int64 or None. Grid (cdiv(numel, BLOCK),).
    Called by `launch.scale`.
    """
    scale = tl.load(DLoss).to(tl.float32)
    if Counts is not None:
        count = tl.load(Counts)
        scale = tl.where(count > 0, scale / tl.maximum(count, 1).to(tl.float32), 0.0)
    offs = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(Src + offs, mask=offs < numel, other=0.0).to(tl.float32)  # (BLOCK,)
    tl.store(Out + offs, (x * scale).to(Out.dtype.element_ty), mask=offs < numel)
