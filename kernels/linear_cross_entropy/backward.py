"""Device code: the gradient of the logits for any upstream gradients, and of gradients made before one was known.

The formulas, and how a row lies in memory, are told in device.py.
"""

import triton
import triton.language as tl

from .device import load_logits, load_target, row_gradient, target_share
from .structs import Row, Softmax


@triton.jit
def gradient_kernel(
    Logits, Out, Bias, Target, Max, LogSum, DLoss, DLse, V, columns, parts, stride_n, stride_on, stride_dloss,
    ignore_index, label_smoothing, z_loss, softcap, BLOCK_V: tl.constexpr,
):  # fmt: skip
    """dlogits = dloss · dloss/dlogits + dlse · dlse/dlogits, from the saved softmax: one read, one write.

    Logits (N, columns); Out as Logits, or Logits itself; Bias (columns,) or None; Target (N,) int; Max, LogSum (N,)
    float32; DLoss (N,) float32, of stride 0 where one serves all rows; DLse (N,) float32 or None; ignore_index ...
    softcap: arguments.Formula. Grid (N * parts,), with parts = cdiv(columns, BLOCK_V): the grid's other dimensions end
    at 65535. Called by `launch._gradient`.

    In place, each logit is read by the one thread that writes its gradient. Hence the comparison in every column: the
    target's logit, read by itself, would be read by all threads, and by some of them after another has overwritten it.
    """
    program = tl.program_id(0)
    i = program // parts
    offs = (program % parts) * BLOCK_V + tl.arange(0, BLOCK_V)  # (BLOCK_V,)
    t, valid = load_target(Target, i, V, ignore_index)
    softmax = Softmax(tl.load(Max + i), tl.load(LogSum + i))
    dloss = tl.where(valid, tl.load(DLoss + i.to(tl.int64) * stride_dloss), 0.0)
    dlse = 0.0
    if DLse is not None:
        dlse = tl.load(DLse + i)

    row = Row(Logits + i.to(tl.int64) * stride_n, Bias, V, columns)
    y, slope = load_logits(row, offs, softcap, True)
    at_target = target_share(dloss, 1.0, V, label_smoothing)
    elsewhere = target_share(dloss, 0.0, V, label_smoothing)
    share = tl.where(offs == t, at_target, elsewhere)
    d = row_gradient(y, slope, softmax, dloss, dlse, share, z_loss)  # (BLOCK_V,)
    tl.store(Out + i.to(tl.int64) * stride_on + offs, d.to(Out.dtype.element_ty), mask=offs < columns)


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
