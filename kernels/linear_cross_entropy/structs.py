"""Values that travel together: arguments of the kernels, and what their device functions hand to each other."""

from typing import Any, NamedTuple

import triton.language as tl

Pointer = Any  # a torch.Tensor where launch.py makes the argument, a pointer where a kernel reads it


class Rows(NamedTuple):
    """Logits (N, columns) of V classes, to which Bias (columns,) or None is to be added; columns past V are padding."""

    Logits: Pointer
    Bias: Pointer
    V: int
    columns: int
    stride_n: int


class Stats(NamedTuple):
    """Maximum and log-sum of each row, (N,) float32 both: all that its gradient needs to know of its softmax."""

    Max: Pointer
    LogSum: Pointer


class Upstream(NamedTuple):
    """Gradients of the rows' losses, (N,) float32 with stride stride_n (0: one for all), and of their lse, or None."""

    DLoss: Pointer
    stride_n: int
    DLse: Pointer


class Row(NamedTuple):
    """One row of Rows: Logits points at its first column."""

    Logits: tl.tensor
    Bias: tl.tensor
    V: tl.tensor
    columns: tl.tensor


class Seen(NamedTuple):
    """Of the columns so far, lane by lane, (lanes,) float32: m = max(y), s = Σ exp(y - m), pull = Σ (y - y[t])."""

    m: tl.tensor
    s: tl.tensor
    pull: tl.tensor


class Softmax(NamedTuple):
    """Of one row, scalars: exp(y - m - log_sum) are its probabilities, m + log_sum is its lse."""

    m: tl.tensor
    log_sum: tl.tensor
