"""What the kernel is handed together, beside attention's own structs."""

from __future__ import annotations

from typing import Any, NamedTuple


class Config(NamedTuple):
    """What the kernel is compiled for, all of it as one constexpr. Plain Python numbers."""

    head_dim: int
    block_m: int  # rows of a tile
    block_n: int  # keys of a tile
    block_d: int  # columns of head_dim multiplied at a time; head_dim, rounded up to 16, is a multiple of it
    precision: str  # of products: tl.dot's input_precision


class Tensors(NamedTuple):
    """What the kernel reads and writes: pointers, or the strides of each. Pointers first, as in attention's structs."""

    Q: Any  # (B, H, T_q, head_dim)
    K: Any  # (B, H_kv, T_k, head_dim)
    Lse: Any  # (B, H, T_q)
    Weights: Any  # (B, num_heads, num_rows, T_k)
