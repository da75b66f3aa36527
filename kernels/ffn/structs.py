"""What the FFN's kernels take and hand on together: NamedTuples, made by the launch.

A product is C (M, N) = A (M, K) · B (K, N), accumulated in float32. Descriptors are arguments of their own: Triton's
launcher looks for them nowhere else.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Config(NamedTuple):
    """What a product's kernel is compiled for, all of it as one constexpr."""

    block_m: int
    block_n: int
    block_k: int
    parts: int  # the epilogue handles the tile's columns in so many bands (`device.band_of`)
    group_m: int  # tile rows that are walked through together (`device.tile_at`)
    is_tma: bool  # A and B are TMA descriptors, not pointers
    is_tma_out: bool  # so are the matrices of the epilogue
    is_tanh: bool  # GELU by tanh, not by erf
    precision: str  # of the product: tl.dot's input_precision


class Strides(NamedTuple):
    """Of a product's matrices, in elements; no one reads those of descriptors. None: the kernel has no such matrix."""

    am: Any
    ak: Any
    bk: Any
    bn: Any
    bias: Any = None
    pre: Any = None  # these three over rows; their columns are contiguous
    dpre: Any = None
    act: Any = None
