"""Block shapes by GPU, dtype and head_dim: a table, nothing is tuned at run time. Plain Python, no Triton.

Each row was compiled for every GPU that uses it (gate.txt) and is the largest of those tried whose operands stay in
registers; VARIANTS.md lists what was tried. Three rules behind it:

- An SM's shared memory holds the resident tiles and num_stages of the streamed ones; its registers the accumulators.
- Hopper's wgmma wants block_m (block_n in dK/dV) >= 64 per 4 warps; 8 warps share a tile of 128.
- The steps at the edges of a mask hold more (indices, the mask, operands cleaned of NaN): they are narrower.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

from .. import _runtime


class Tile(NamedTuple):
    """block_m queries by block_n keys per step, and the launch options.

    The loop runs over keys (over queries in dK/dV), and where a mask cuts it takes steps of `edge` instead; with
    edge_stages, where TMA loads, whole ones, of which so many are on their way at a time.
    """

    block_m: int
    block_n: int
    edge: int
    num_warps: int
    num_stages: int
    edge_stages: int = 0


class Tiles(NamedTuple):
    """The three kernels' tiles for one kind of GPU, size of number and largest head_dim."""

    forward: Tile
    dkdv: Tile
    dq: Tile


# kind of GPU -> bytes per number -> largest head_dim -> tiles
TABLE: dict[str, dict[int, dict[int, Tiles]]] = {
    # mma.sync: sm_80, and sm_86, sm_89, sm_120 with 99 KB of shared memory per CTA
    "mma": {
        2: {
            64: Tiles(Tile(128, 64, 32, 8, 3), Tile(64, 128, 16, 8, 2), Tile(64, 64, 32, 8, 2)),
            80: Tiles(Tile(64, 64, 32, 8, 2), Tile(64, 64, 32, 8, 2), Tile(64, 64, 32, 8, 2)),
            127: Tiles(Tile(64, 64, 32, 8, 2), Tile(32, 64, 16, 8, 2), Tile(64, 64, 32, 8, 2)),
            128: Tiles(Tile(64, 64, 16, 8, 2), Tile(64, 64, 16, 8, 2), Tile(64, 64, 32, 8, 2)),
            256: Tiles(Tile(64, 32, 16, 8, 2), Tile(32, 32, 16, 8, 2), Tile(32, 32, 16, 4, 2)),
        },
        4: {
            64: Tiles(Tile(32, 32, 16, 8, 1), Tile(16, 32, 16, 4, 1), Tile(32, 32, 16, 4, 1)),
            128: Tiles(Tile(32, 16, 16, 4, 1), Tile(16, 32, 16, 4, 1), Tile(32, 16, 16, 4, 1)),
            256: Tiles(Tile(32, 16, 16, 8, 1), Tile(16, 16, 16, 4, 1), Tile(16, 16, 16, 4, 1)),
        },
    },
    # wgmma: sm_90
    "wgmma": {
        2: {
            64: Tiles(Tile(128, 128, 64, 8, 1), Tile(128, 128, 32, 8, 2, 2), Tile(128, 128, 64, 8, 3, 3)),
            128: Tiles(Tile(128, 128, 64, 8, 3, 3), Tile(64, 64, 16, 4, 2, 1), Tile(128, 128, 64, 8, 2, 2)),
            256: Tiles(Tile(128, 64, 16, 8, 2), Tile(64, 64, 16, 8, 1), Tile(64, 64, 16, 8, 1)),
        },
    },
    # tcgen05: sm_100
    "tcgen05": {
        2: {
            128: Tiles(Tile(128, 128, 64, 8, 2), Tile(64, 128, 32, 8, 2), Tile(128, 64, 32, 8, 2)),
            256: Tiles(Tile(128, 64, 32, 8, 2), Tile(64, 64, 16, 8, 1), Tile(64, 64, 32, 8, 1)),
        },
    },
    # mfma: gfx942 with 64 KB of LDS, gfx950
    "mfma": {
        2: {
            64: Tiles(Tile(128, 64, 32, 4, 2), Tile(64, 64, 32, 4, 1), Tile(64, 64, 32, 4, 1)),
            128: Tiles(Tile(128, 64, 32, 8, 1), Tile(32, 64, 32, 4, 1), Tile(64, 64, 32, 4, 1)),
            256: Tiles(Tile(64, 32, 16, 4, 1), Tile(32, 32, 16, 4, 1), Tile(32, 32, 16, 4, 1)),
        },
    },
}
for _kind in ("wgmma", "tcgen05", "mfma"):
    TABLE[_kind][4] = TABLE["mma"][4]

# With dropout, ten rounds of Philox need registers too; so do document ids in dQ.
ROOMY: dict[str, dict[int, Tiles]] = {
    "wgmma": {
        64: Tiles(Tile(128, 128, 64, 8, 2), Tile(64, 128, 32, 8, 2), Tile(128, 64, 32, 8, 2)),
        128: Tiles(Tile(128, 128, 64, 8, 2), Tile(64, 64, 16, 8, 2), Tile(128, 64, 32, 8, 2)),
    },
    "tcgen05": {
        128: Tiles(Tile(128, 128, 64, 8, 2), Tile(64, 128, 32, 8, 2), Tile(64, 64, 16, 4, 2)),
    },
}

# When the table's tiles do not give every SM a program: half as tall.
SMALL: dict[str, dict[int, Tiles]] = {
    "wgmma": {
        64: Tiles(Tile(64, 64, 32, 4, 2, 2), Tile(64, 64, 16, 4, 2, 2), Tile(64, 64, 32, 4, 2, 2)),
        128: Tiles(Tile(64, 64, 32, 4, 2, 2), Tile(64, 64, 16, 4, 2, 1), Tile(64, 64, 32, 4, 2, 2)),
    },
}

# Fewer rows than this are not worth building a TMA descriptor for (microseconds of Python).
MIN_TMA_ROWS = 256

# Bytes of L2 cache (vendors' data sheets): how many heads' K and V may be in flight at once.
L2_BYTES = {
    "sm_75": 4 << 20, "sm_80": 40 << 20, "sm_86": 6 << 20, "sm_89": 48 << 20, "sm_90": 50 << 20, "sm_100": 126 << 20,
    "sm_120": 96 << 20, "gfx942": 256 << 20, "gfx950": 256 << 20,
}  # fmt: skip


@functools.cache
def kind_of(target: _runtime.Target) -> str:
    """Which part of TABLE serves `target`: named after its tensor-core instruction."""
    if target.backend == "hip":
        return "mfma"
    if 90 <= target.capability < 100:
        return "wgmma"
    return "tcgen05" if 100 <= target.capability < 120 else "mma"


def loads_by_tma(target: _runtime.Target, itemsize: int, rows: int) -> bool:
    """Whether K and V (Q and dO in dK/dV) of this length are loaded by the copy engine, alignment permitting.

    Not float32: its products run on the CUDA cores, whose operands go through registers, and a tile that arrives whole
    spills (up to 2.7 KB a thread).

    sm_120 has one too, but feeds mma.sync from registers: there the loads that TMA replaces are not what limits it, and
    ptxas spilled up to 60 bytes with it and none without.
    """
    return rows >= MIN_TMA_ROWS and itemsize == 2 and kind_of(target) in ("wgmma", "tcgen05")


def forward(
    target: _runtime.Target, itemsize: int, head_dim: int, *, roomy: bool = False, T_q: int, heads: int
) -> Tile:
    """Tile of the forward for T_q queries in each of `heads` = B · H heads."""
    return _for_rows(_large_and_small(target, itemsize, head_dim, roomy), 0, target, T_q, heads)


def dkdv(target: _runtime.Target, itemsize: int, head_dim: int, *, roomy: bool = False, T_k: int, heads: int) -> Tile:
    """Tile of dK/dV for T_k keys in each of `heads` = B · H_kv heads."""
    return _for_rows(_large_and_small(target, itemsize, head_dim, roomy), 1, target, T_k, heads)


def dq(target: _runtime.Target, itemsize: int, head_dim: int, *, roomy: bool = False, T_q: int, heads: int) -> Tile:
    """Tile of dQ for T_q queries in each of `heads` = B · H heads."""
    return _for_rows(_large_and_small(target, itemsize, head_dim, roomy), 2, target, T_q, heads)


@functools.cache
def _large_and_small(target: _runtime.Target, itemsize: int, head_dim: int, roomy: bool) -> tuple[Tiles, Tiles]:
    kind = kind_of(target)
    rows = TABLE[kind][itemsize]
    if target.arch == "sm_75":  # 64 KB of shared memory: the tiles of twice the head_dim
        head_dim = min(2 * head_dim, 256)
    if itemsize == 2 and head_dim > 64 and head_dim % 16:  # masks of the head_dim take registers too
        head_dim = 256
    # Two halves need more tensor memory than a whole.
    if itemsize == 2 and kind == "tcgen05" and split_head_dim(head_dim) == (64, 64):
        head_dim = 256
    large = rows[min(d for d in rows if d >= head_dim)]
    if roomy and itemsize == 2:
        large = next((t for d, t in ROOMY.get(kind, {}).items() if d >= head_dim), large)
    small = next((t for d, t in SMALL.get(kind, {}).items() if d >= head_dim), large) if itemsize == 2 else large
    return large, small


def _for_rows(tiles: tuple[Tiles, Tiles], kernel: int, target: _runtime.Target, rows: int, heads: int) -> Tile:
    """The large tile, unless it leaves SMs idle and the small one leaves fewer."""
    large, small = tiles[0][kernel], tiles[1][kernel]
    side = 1 if kernel == 1 else 0  # dK/dV tiles its programs by keys, the others by queries
    if kernel != 1 and rows <= 16:  # decoding: one tile of the least height that tensor cores take
        return small._replace(block_m=16, num_warps=4)
    return small if _runtime.cdiv(rows, large[side]) * heads < target.num_sms else large


def num_stages(target: _runtime.Target, tile: Tile, head_dim: int, *, by_tma: bool) -> int:
    """How many of the streamed tiles are on their way at a time.

    On sm_100, where a step has products of both parts of head_dim, Triton leaves out the proxy fence between the wait
    for a cp.async and the second product (tests/benchmarks/softgpu/test_blackwell.py). So without TMA nothing is
    prefetched there.
    """
    fenced = by_tma or kind_of(target) != "tcgen05" or not split_head_dim(head_dim)[1]
    return tile.num_stages if fenced else 1


def edge_stages(tile: Tile, head_dim: int, *, by_tma: bool, has_documents: bool, group: int = 1) -> int:
    """How many whole tiles that a mask cuts are on their way at a time; 0: narrower steps, read by pointers.

    The ids of documents take registers. So does dividing dK/dV's steps by a `group` that is no power of two.
    """
    spills = has_documents or (head_dim > 64 and group & (group - 1))
    return tile.edge_stages if by_tma and not spills else 0


@functools.cache
def split_head_dim(head_dim: int) -> tuple[int, int]:
    """(d_low, d_high) powers of two (d_high may be 0) whose sum is at least head_dim, with the least padding.

    Tiles have power-of-two sides, and one tile of 128 would spend 60 % more tensor-core work than head_dim 80 needs.
    Two tiles side by side, 64 + 16, waste none: 80 = 64+16, 96 = 64+32, 160 = 128+32, 192 = 128+64. Head dims with
    more than two ones in binary are rounded up a little: 112 -> 64+64.
    """
    padded = _runtime.cdiv(head_dim, 16) * 16
    d_low = 1 << (padded.bit_length() - 1)
    rest = padded - d_low
    return (d_low, 0) if rest == 0 else (d_low, max(16, _runtime.power_of_two(rest)))


@functools.lru_cache(maxsize=1024)
def heads_per_section(target: _runtime.Target, bytes_per_head: int, group: int) -> int:
    """How many query heads share L2 with half of it kept free; whole groups, as they read the same K and V."""
    return group * max(1, L2_BYTES.get(target.arch, 32 << 20) // 2 // max(1, bytes_per_head))
