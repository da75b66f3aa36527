"""Block shapes by GPU, dtype and head_dim: a table, nothing is tuned at run time. Plain Python, no Triton."""

from __future__ import annotations

from typing import NamedTuple

from .. import _runtime


class Tile(NamedTuple):
    """block_m queries by block_n keys per step, and the launch options.

    The loop runs over keys (over queries in dK/dV), and where a mask cuts it takes steps of `edge` instead.
    """

    block_m: int
    block_n: int
    edge: int
    num_warps: int
    num_stages: int


def split_head_dim(head_dim: int) -> tuple[int, int]:
    """(d_a, d_b) powers of two (d_b may be 0) whose sum is at least head_dim, with the least padding.

    Tiles have power-of-two sides, so that one tile of 128 would spend 60 % more tensor-core work than head_dim 80 needs.
    Two tiles side by side, 64 + 16, spend none: 80 = 64+16, 96 = 64+32, 160 = 128+32, 192 = 128+64. Head dims with more
    than two ones in binary are rounded up a little: 112 -> 64+64.
    """
    padded = -(-head_dim // 16) * 16
    d_a = 1 << (padded.bit_length() - 1)
    rest = padded - d_a
    return (d_a, 0) if rest == 0 else (d_a, max(16, 1 << (rest - 1).bit_length()))


def forward(target: _runtime.Target, itemsize: int, head_dim: int, T_q: int) -> Tile:
    return Tile(64, 64, 32, 4, 2)


def dkdv(target: _runtime.Target, itemsize: int, head_dim: int, T_q: int) -> Tile:
    return Tile(64, 64, 32, 4, 2)


def dq(target: _runtime.Target, itemsize: int, head_dim: int, T_q: int) -> Tile:
    return Tile(64, 64, 32, 4, 2)


# Fewer rows than this are not worth building a TMA descriptor for (microseconds of Python).
MIN_TMA_ROWS = 256

# Bytes of L2 cache (vendors' data sheets): how many heads' K and V may be in flight at once.
L2_BYTES = {
    "sm_75": 4 << 20, "sm_80": 40 << 20, "sm_86": 6 << 20, "sm_89": 48 << 20, "sm_90": 50 << 20, "sm_100": 126 << 20,
    "sm_120": 96 << 20, "gfx942": 256 << 20, "gfx950": 256 << 20,
}  # fmt: skip


def heads_per_section(target: _runtime.Target, bytes_per_head: int, group: int) -> int:
    """How many query heads share L2 with half of it kept free; whole groups, as they read the same K and V."""
    return group * max(1, L2_BYTES.get(target.arch, 32 << 20) // 2 // max(1, bytes_per_head))
