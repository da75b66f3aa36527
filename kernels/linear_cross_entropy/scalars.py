"""Device code around the softmax: what a mean divides by, and the upstream gradient that multiplies at the end."""

import triton
import triton.language as tl


@triton.jit
def count_targets_kernel(Target, Counts, N, V, ignore_index, block_n: tl.constexpr):
    """Counts[0] = how many targets are not ignored, Counts[1] = 1 if all of those lie in [0, V), else 0.

    Target (N,) int, Counts (2,) int64. One program: the order of the sum is fixed.
    """
    count = tl.zeros((block_n,), dtype=tl.int64)
    bad = tl.zeros((block_n,), dtype=tl.int32)
    for start in tl.range(0, N, block_n):
        offs = start + tl.arange(0, block_n)
        t = tl.load(Target + offs, mask=offs < N, other=0)  # (block_n,)
        valid = (offs < N) & (t != ignore_index)  # ignore_index may lie outside of the targets' dtype
        count += valid.to(tl.int64)
        bad |= (valid & ((t < 0) | (t >= V))).to(tl.int32)
    tl.store(Counts, tl.sum(count, axis=0))
    tl.store(Counts + 1, (tl.max(bad, axis=0) == 0).to(tl.int64))


@triton.jit
def scale_kernel(Grad, Counts, Src, Out, numel, block: tl.constexpr):
    """Out = Src · Grad / Counts[0] (Counts None: Src · Grad), in float32; 0 where no target counts.

    Src, Out (numel,) float; Grad () float32; Counts (2,) int64 or None. Grid (cdiv(numel, block),).
    """
    scale = tl.load(Grad).to(tl.float32)
    if Counts is not None:
        count = tl.load(Counts)
        scale = tl.where(count > 0, scale / tl.maximum(count, 1).to(tl.float32), 0.0)
    offs = tl.program_id(0).to(tl.int64) * block + tl.arange(0, block)
    x = tl.load(Src + offs, mask=offs < numel, other=0.0).to(tl.float32)  # (block,)
    tl.store(Out + offs, (x * scale).to(Out.dtype.element_ty), mask=offs < numel)
