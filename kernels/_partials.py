"""Launch: partial sums of gradients, added up."""

from __future__ import annotations

from torch import Tensor

from ._runtime import cdiv
from .device.partials import sum_partials_kernel

FEW = 16  # partials that are added one after another: then a program takes many columns, 16 bytes of them a load


def sum_partials(partials: Tensor, out: Tensor, other_out: Tensor | None = None) -> Tensor:
    """out = the sum of float32 `partials` over their first dimension, in a fixed order, rounded once; returns out.

    One shape and GPU, one order, in every run. Up to FEW partials it is theirs, whatever the shape. More are added by
    lanes, and the lanes then as the compiler lays them out, which also depends on whether 4 divides out.numel().

    Two sums are one launch. Launches on the current device, which must be that of the tensors.

    Args:
        partials: (P, *out.shape) float32, contiguous; with `other_out`, (2, P, *out.shape): those of each in turn.
        out, other_out: contiguous, of any float dtype, and of one shape.
    """
    N, sums = out.numel(), 1 if other_out is None else 2
    P = partials.shape[sums - 1]
    block_p, block_n = (1, 1024) if P <= FEW else (64, 32)
    if N:
        sum_partials_kernel[(cdiv(N, block_n), sums)](
            partials, out, other_out, P,
            N=N, IS_WIDE=sums * (P + block_p) * N >= 2**31, BLOCK_P=block_p, BLOCK_N=block_n, num_warps=4,
        )  # fmt: skip
    return out
