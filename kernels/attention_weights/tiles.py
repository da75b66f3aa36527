"""Tiles of the one kernel: what fits in registers, by rule."""

from __future__ import annotations

from typing import NamedTuple


class Tile(NamedTuple):
    """One program's rows and keys, and how many columns of head_dim it multiplies at a time."""

    block_m: int
    block_n: int
    block_d: int
    num_warps: int
    num_stages: int


def forward(row_count: int, head_dim: int, itemsize: int) -> Tile:
    """A few rows, the common case of looking at the newest queries, do with the smallest tile of tensor cores."""
    padded = (head_dim + 15) // 16 * 16  # tensor cores work in steps of 16
    # float32 products run on registers, so that a wide step would spill.
    block_d = next(size for size in (64, 32, 16) if padded % size == 0 and size * itemsize <= 128)
    return Tile(16 if row_count <= 16 else 64, 128, block_d, num_warps=4, num_stages=2)
