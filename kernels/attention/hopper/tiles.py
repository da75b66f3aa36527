"""Tiles of the Gluon kernels: a table by kernel and head_dim, and the rule for problems that do not fill the GPU.

A CTA has one warp that loads and up to three consumers, warpgroups of 64 rows each: queries in the forward and dQ, keys
in dK/dV. What consumers hold and the slots of what is streamed must fit into 227 KB of shared memory.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from ..._runtime import cdiv

ROWS = 64  # of one consumer: what a warpgroup's wgmma multiplies at a time


class Tile(NamedTuple):
    """How a CTA shares its work."""

    block: int  # rows of a streamed tile: keys, or queries in dK/dV
    stages: int  # slots of the ring through which they come
    consumers: int
    overlaps: bool  # the forward's softmax runs under its consumer's own products too, for registers; or by turns only
    out_apart: bool  # results have memory of their own (dK/dV: the next item's keys), and the next item comes meanwhile

    @property
    def rows(self) -> int:
        """Queries that a CTA holds, or keys in dK/dV."""
        return ROWS * self.consumers


# kernel -> largest head_dim -> tiles that the rule below chooses from
TABLE: dict[str, dict[int, tuple[Tile, ...]]] = {
    "forward": {
        64: (Tile(128, 3, 3, False, True), Tile(128, 3, 2, False, True), Tile(128, 3, 1, True, True)),
        96: (Tile(128, 2, 2, False, True), Tile(128, 2, 1, True, True)),
        128: (Tile(128, 2, 2, True, True), Tile(128, 2, 1, True, True)),
        192: (Tile(64, 2, 2, False, True), Tile(64, 3, 1, True, True)),
        256: (Tile(64, 2, 2, True, False), Tile(64, 2, 1, True, True)),
    },
    "dkdv": {
        64: (Tile(64, 4, 2, True, True), Tile(64, 4, 1, True, True)),
        96: (Tile(64, 4, 2, True, True), Tile(64, 4, 1, True, True)),
        128: (Tile(64, 3, 2, True, True), Tile(64, 3, 1, True, True)),
        192: (Tile(64, 3, 1, True, False),),  # from here on two warpgroups share one consumer's rows: dkdv_wide.py
        256: (Tile(64, 2, 1, True, False),),
    },
    "dq": {
        64: (Tile(64, 4, 2, True, True), Tile(64, 4, 1, True, True)),
        96: (Tile(64, 4, 2, True, True), Tile(64, 4, 1, True, True)),
        128: (Tile(64, 3, 2, True, True), Tile(64, 3, 1, True, True)),
        192: (Tile(64, 2, 2, False, False), Tile(64, 2, 1, False, True)),
        256: (Tile(32, 3, 2, False, False), Tile(32, 3, 1, False, True)),
    },
}

# Time of a CTA's step over that of one whose tensor cores never wait, by consumers: two take turns, so that one's
# exponentials run under the other's products, and one alone leaves gaps. Estimates; ratios matter, not values.
SLOWNESS = {1: 1.5, 2: 1.05, 3: 1.0}


@functools.lru_cache(maxsize=1024)
def tile(kernel: str, head_dim: int, rows: int, heads: int, num_sms: int) -> Tile:
    """For `rows` queries (of dK/dV: keys) in each of `heads` heads."""
    candidates = next(tiles for largest, tiles in TABLE[kernel].items() if head_dim <= largest)
    return min(candidates, key=lambda tile: estimated_time(tile, rows, heads, num_sms))


def estimated_time(tile: Tile, rows: int, heads: int, num_sms: int) -> float:
    """Rounds of CTAs times the time of one, in units of 64 rows' products.

    A tall tile keeps the tensor cores busy; a low one leaves fewer rows past the end, and more CTAs: a GPU that a last
    round fills by half stands still for half of it.
    """
    items = cdiv(rows, tile.rows) * heads
    return cdiv(items, num_sms) * tile.consumers * SLOWNESS[tile.consumers]


def programs(items: int, num_sms: int) -> int:
    """The grid of a kernel whose CTAs, one on each SM, take one item after the other."""
    return min(items, num_sms)
