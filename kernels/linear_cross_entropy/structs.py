"""What this family's kernels hand on together: NamedTuples, made at a kernel's head."""

from __future__ import annotations

from typing import Any, NamedTuple


class Row(NamedTuple):
    """One row of logits in memory."""

    Logits: Any  # pointer to its first column
    Bias: Any  # pointer, (columns,), to be added to each row; None: nothing is
    V: Any  # how many classes there are
    columns: Any  # V, and the padding after it


class Seen(NamedTuple):
    """What the lanes of a program have seen of their row so far, (LANES,) float32 each."""

    m: Any  # max(y)
    s: Any  # Σ exp(y - m)
    pull: Any  # Σ (y - y[t])


class Softmax(NamedTuple):
    """Of a whole row, scalars: exp(y - m - log_sum) are its probabilities, m + log_sum is its lse."""

    m: Any
    log_sum: Any
