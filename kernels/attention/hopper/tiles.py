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
    cycles: int  # of a step of all consumers, were L2 never in the way: the loop report's estimate, for the rule below

    @property
    def rows(self) -> int:
        """Queries that a CTA holds, or keys in dK/dV."""
        return ROWS * self.consumers


# kernel -> largest head_dim -> tiles that the rule below chooses from
TABLE: dict[str, dict[int, tuple[Tile, ...]]] = {
    "forward": {
        64: (Tile(128, 3, 3, False, True, 2250), Tile(128, 3, 2, False, True, 1960), Tile(128, 3, 1, True, True, 1560)),
        96: (Tile(64, 3, 3, False, True, 1510), Tile(128, 2, 2, False, True, 2120), Tile(128, 2, 1, True, True, 1900)),
        128: (Tile(64, 3, 3, False, True, 2030), Tile(128, 2, 2, True, True, 2420), Tile(128, 2, 1, True, True, 2100)),
        192: (Tile(64, 2, 2, False, True, 1980), Tile(64, 3, 1, True, True, 1540)),
        256: (Tile(64, 2, 2, False, False, 2660), Tile(64, 2, 1, True, True, 1820)),
    },
    "dkdv": {
        64: (Tile(64, 4, 2, True, True, 1340), Tile(64, 4, 1, True, True, 1170)),
        96: (Tile(64, 4, 2, True, True, 2110), Tile(64, 4, 1, True, True, 1470)),
        128: (Tile(64, 3, 2, True, True, 2510), Tile(64, 3, 1, True, True, 1760)),
        # From here on two warpgroups share one consumer's rows: dkdv_wide.py.
        192: (Tile(64, 3, 1, True, False, 2120),),
        256: (Tile(64, 2, 1, True, False, 2700),),
    },
    "dq": {
        64: (Tile(64, 4, 2, True, True, 890), Tile(64, 4, 1, True, True, 830)),
        96: (Tile(64, 4, 2, True, True, 1380), Tile(64, 4, 1, True, True, 1040)),
        128: (Tile(64, 3, 2, True, True, 1760), Tile(64, 3, 1, True, True, 1270)),
        192: (Tile(64, 2, 2, False, False, 2600), Tile(64, 2, 1, False, True, 1910)),
        256: (Tile(32, 3, 2, False, False, 2320), Tile(32, 3, 1, False, True, 1600)),
    },
}

# What the rule knows of the GPU: an estimate, like the cycles in the table. An H100's L2 gives each of its 132 SMs this
# many bytes a cycle when all of them load.
L2_BYTES_PER_CYCLE = 23.3
# Cycles of an item outside its steps: its first loads, scores that nothing runs beside, results.
OUTSIDE = 2500


@functools.lru_cache(maxsize=4096)
def tile(
    kernel: str, head_dim: int, rows: int, columns: int, heads: int, causal: bool, num_sms: int,
    has_documents: bool = False,
) -> Tile:  # fmt: skip
    """For `rows` queries (of dK/dV: keys) against `columns` keys (queries), in each of `heads` heads."""
    candidates = next(tiles for largest, tiles in TABLE[kernel].items() if head_dim <= largest)
    if has_documents:  # ids take registers, of which three consumers have least: up to 2 KB a thread would spill
        candidates = tuple(tile for tile in candidates if tile.consumers < 3)
    return min(candidates, key=lambda tile: estimated_cycles(tile, head_dim, rows, columns, heads, causal, num_sms))


def estimated_cycles(
    tile: Tile, head_dim: int, rows: int, columns: int, heads: int, causal: bool, num_sms: int
) -> float:
    """Of the whole kernel. Windows and other masks are not looked at.

    A tall tile keeps the tensor cores busy and asks little of L2; a low one leaves fewer rows past the end, fewer steps
    beyond the diagonal, and more CTAs, without which SMs stand idle.
    """
    num_tiles = cdiv(rows, tile.rows)
    items = num_tiles * heads
    most = cdiv(columns, tile.block)
    least = min(most, cdiv(max(1, tile.rows + columns - rows), tile.block)) if causal else most
    loaded = 2 * tile.block * head_dim * 2  # bytes of a step
    step = max(tile.cycles, loaded / L2_BYTES_PER_CYCLE * min(1.0, items / num_sms))
    if not causal:  # all items are alike
        return cdiv(items, num_sms) * (most * step + OUTSIDE)
    longest = most * step + OUTSIDE
    return max(longest, items / num_sms * ((most + least) / 2 * step + OUTSIDE))


def programs(items: int, num_sms: int) -> int:
    """The grid of a kernel whose CTAs, one on each SM, take one item after the other."""
    return min(items, num_sms)
