"""What Hopper's attention kernels hand on together: NamedTuples, made by the launch or at a kernel's head.

A warpgroup (4 warps) that multiplies is a consumer; it holds 64 rows of the CTA's tile. One producer warp loads for
all. A head_dim that is no power of two lies in two tiles side by side, of d_low and d_high columns: a `Pair` of them.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Config(NamedTuple):
    """What a kernel is compiled for, all of it as one constexpr. Plain Python numbers."""

    head_dim: int
    d_low: int  # columns of the two tiles that hold a row of head_dim numbers,
    d_high: int  # powers of two; 0: one tile is enough
    block: int  # rows of a streamed tile: keys, or queries in dK/dV
    stages: int  # slots of the ring
    consumers: int  # warpgroups that multiply, of 64 rows each
    overlaps: bool  # a consumer's softmax runs under its own products too, for which it holds a tile's weights longer
    out_apart: bool  # the output is staged in shared memory of its own, not over the tile that is held
    has_left: bool  # tiles to the left of those without a mask may need one: a window, key_starts, documents
    group: int  # query heads that share a key head, where a loop divides by it (dK/dV); 0: an argument


class Descriptors(NamedTuple):
    """TMA descriptors of a tensor (B, heads, T, head_dim), one for each tile of a Pair; high is None without one."""

    low: Any
    high: Any


class Held(NamedTuple):
    """Tiles in shared memory that the CTA holds while it works on an item, 64 rows for each consumer."""

    tiles: Any  # Pair of (consumers, 1, 1, 64, columns)
    full: Any  # (consumers) mbarriers: they have come
    empty: Any  # (consumers) mbarriers: they have been read


class Ring(NamedTuple):
    """Slots of shared memory that the producer fills and the consumers empty, in order."""

    a: Any  # Pair of (stages, 1, 1, block, columns)
    b: Any  # Pair of the same
    full: Any  # (stages) mbarriers: what the slot holds has come
    empty: Any  # (stages) mbarriers: every consumer has read it


class Slot(NamedTuple):
    """A place in the ring, and which round it is: the parity that its `full` will have."""

    index: Any
    phase: Any


class Sizes(NamedTuple):
    """Sizes of a call, int32."""

    T_q: Any
    T_k: Any
    H: Any  # query heads
    group: Any  # query heads that share a key head
    num_heads: Any  # B · heads, of which each has as many tiles as the grid's kind of item
    heads_per_section: Any  # see masks.tile_of


class Bounds(NamedTuple):
    """Diagonals of the band that a query sees; None: no bound (masks.py)."""

    lower: Any
    upper: Any


class KeyTile(NamedTuple):
    """A tile of keys: its first row n, in key head h of sequence b."""

    b: Any
    h: Any
    n: Any


class Flight(NamedTuple):
    """What a consumer of the forward carries from step to step."""

    acc: Any  # Pair of (64, columns) float32: sum of p v so far, but for the last tile's
    p: Any  # (64, block) weights of the last tile, an operand in registers; or its scores, float32
    m: Any  # (64,) maximum of the scaled scores, in base 2
    l: Any  # (64,) sum of p


class Place(NamedTuple):
    """Where a consumer is: its slot, whose turn it is, and the tile that it works on."""

    slot: Any  # Slot
    turn: Any  # parity of its next turn
    n: Any  # first key of the tile


class Rows(NamedTuple):
    """What decides the weights of a consumer's 64 queries: each sees the keys from first to last, of its document."""

    first: Any  # (64,) int32; None: 0
    last: Any  # (64,) int32
    documents: Any  # (64, 1) document ids of the queries; None: no documents
    Documents: Any  # pointer to the document ids of the keys
    T_k: Any
    qk_scale: Any  # softmax_scale · log2(e)


class Poison(NamedTuple):
    """Shared memory for keys (queries, in dK/dV) of a masked tile that hold inf or NaN; device.contain."""

    Marks: Any  # (block,) int32, not 0 for those
    together: Any  # mbarrier at which all consumers arrive


class HeldKeys(NamedTuple):
    """Tiles in shared memory that a CTA of dK/dV holds while it works on an item, 64 keys for each consumer."""

    k: Any  # Pair of (sets * consumers, 1, 1, 64, columns)
    v: Any  # Pair of the same
    full: Any  # (sets * consumers) mbarriers: both have come; or two where two warpgroups share them, for k and for v
    empty: Any  # as many: they have been read, and what was staged over them


class QueryRing(NamedTuple):
    """A `Ring` of queries for dK/dV."""

    q: Any  # Pair of (stages, 1, 1, block, columns)
    dout: Any  # Pair of the same
    lse2: Any  # (stages, 1, block) float32
    delta: Any  # the same
    full: Any
    empty: Any


class QueryPlace(NamedTuple):
    """Where a consumer of dK/dV is in the ring."""

    slot: Any  # Slot
    before: Any  # index of the slot before it, or where that was not read its own
    is_owed: Any  # whether dK is still to come of the slot before it
    left: Any  # how many steps of the item are left, this one included


class Handover(NamedTuple):
    """Weights that one warpgroup computes and another one needs too, in shared memory."""

    p: Any  # (64, block) float32
    full: Any  # mbarrier: they are there
    empty: Any  # mbarrier: they have been read


class HandoverPlace(NamedTuple):
    """Where one of those warpgroups is in the ring."""

    slot: Any  # Slot
    turn: Any  # parity of the handover
    left: Any  # how many steps of the item are left, this one included


class HeldQueries(NamedTuple):
    """Tiles in shared memory that a CTA of dQ holds while it works on an item, 64 rows for each consumer."""

    q: Any  # Pair of (sets * consumers, 1, 1, 64, columns)
    dout: Any  # Pair of the same
    full: Any  # (sets * consumers) mbarriers: both have come
    empty: Any  # (sets * consumers) mbarriers: both have been read, and what was staged over q


class Statistics(NamedTuple):
    """What the backward knows of each query: pointers to (B, H, T_q) float32, rows `row_stride` apart."""

    Lse2: Any
    Delta: Any
    row_stride: Any


class Reach(NamedTuple):
    """The tiles of keys that a row of a consumer may see: those with start < n < stop, n being a tile's first key."""

    start: Any
    stop: Any


class DQItem(NamedTuple):
    """What a consumer of dQ works on: 64 queries of one head."""

    q: Any  # Pair of (64, columns), operands in registers, or HeldQueries.q
    dout: Any  # the same of dout
    held: Any  # which of HeldQueries they are
    lse2: Any  # (64, 1) lse / ln 2
    delta: Any  # (64, 1)
    rows: Rows
    reach: Reach
    other: Reach  # of the other consumer
    last: Any  # first key of the tile that comes last


class DQPlace(NamedTuple):
    """Where a consumer of dQ is."""

    slot: Any  # Slot
    n: Any  # first key of its tile
