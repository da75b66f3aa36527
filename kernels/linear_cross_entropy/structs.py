"""What this family's kernels hand on together: NamedTuples, made by the launch or at a kernel's head."""

from __future__ import annotations

from typing import Any, NamedTuple


class Rows(NamedTuple):
    """Logits of N rows in memory."""

    Logits: Any  # pointer, (N, columns); columns V and beyond are padding
    Bias: Any  # pointer, (columns,), to be added to each row; None: nothing is
    V: Any  # how many classes there are
    columns: Any
    stride_n: Any


class Row(NamedTuple):
    """One row of Rows."""

    Logits: Any  # pointer to its first column
    Bias: Any
    V: Any
    columns: Any


class Upstream(NamedTuple):
    """Gradients of what the rows' losses and lse flow into."""

    DLoss: Any  # pointer, (N,) float32
    stride_n: Any  # of DLoss; 0: one gradient serves all rows
    DLse: Any  # pointer, (N,) float32; None: nothing depends on lse


class Seen(NamedTuple):
    """What the lanes of a program have seen of their row so far, (LANES,) float32 each."""

    m: Any  # max(y)
    s: Any  # Σ exp(y - m)
    pull: Any  # Σ (y - y[t])


class Softmax(NamedTuple):
    """Of a whole row, scalars: exp(y - m - log_sum) are its probabilities, m + log_sum is its lse."""

    m: Any
    log_sum: Any
