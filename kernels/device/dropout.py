"""Device code: the dropout mask, recomputed wherever it is needed and never stored.

An element's fate depends only on (seed, offset) and on its own coordinates, so forward, backward and recomputation
under activation checkpointing agree whatever their tiles are. The generator is Philox4x32-10 (Salmon et al. 2011,
"Parallel random numbers: as easy as 1, 2, 3").
"""

from typing import Any, NamedTuple

import triton
import triton.language as tl


class Dropout(NamedTuple):
    """How a call drops elements; made by the launch, or at a kernel's head."""

    Seed: Any  # (2,) int64, seed and offset of `_random.new_seed`; None: no dropout
    threshold: Any  # round(dropout_p * 2^32)
    scale: Any  # 1 / (1 - dropout_p)


@triton.jit
def keep_mask(seed, offset, plane, row, column, threshold):
    """Which elements survive: bool, of the broadcast shape of `plane`, `row` and `column`.

    seed, offset   int64 scalars, loaded from the pair that `kernels/_random.py: new_seed` draws
    plane, row     int32 or int64 coordinates, e.g. b * H + h and the query index
    column         int32 coordinates of the last dimension
    threshold      uint32 round(dropout_p * 2^32), of `_random.drop_threshold`: words below it drop

    Counter (c0, c1, c2, c3) = (column, row, plane, offset); the first Philox word decides. Called by each family's own
    step: `keeps` (attention), `dropout_factor` (layer_norm), `drop` (ffn).
    """
    zero = (column + row + plane).to(tl.uint32) * 0  # broadcasts, and keeps every counter 32 bits wide
    word, _, _, _ = tl.philox(
        seed, column.to(tl.uint32) + zero, row.to(tl.uint32) + zero, plane.to(tl.uint32) + zero,
        offset.to(tl.uint32) + zero,
    )  # fmt: skip
    return word >= threshold
