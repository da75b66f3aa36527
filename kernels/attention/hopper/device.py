"""Device code that Hopper's attention kernels share: the ring, the items of a CTA, products of Pairs, NaN in tiles."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    mbarrier,
    tma,
    warpgroup_mma,
)

from ..masks import tile_of
from ..structs import Pair
from .structs import Slot

# Names that changed: between Triton 3.6 and 3.7, and in 3.8.
warpgroup_barrier = getattr(gl, "barrier", None) or gl.thread_barrier
load_by_tma = getattr(tma, "async_load", None) or tma.async_copy_global_to_shared
store_by_tma = getattr(tma, "async_store", None) or tma.async_copy_shared_to_global

ROWS = gl.constexpr(64)  # of a consumer's tile: what one wgmma of a warpgroup multiplies
LOG2_E = gl.constexpr(1.4426950408889634)
LN_2 = gl.constexpr(0.6931471805599453)


# ---- The ring ----


@gluon.jit
def next_slot(slot, STAGES: gl.constexpr):
    """The slot after this one."""
    wraps = slot.index == STAGES - 1
    return Slot(gl.where(wraps, 0, slot.index + 1), gl.where(wraps, 1 - slot.phase, slot.phase))


@gluon.jit
def barriers(COUNT: gl.constexpr, ARRIVALS: gl.constexpr):
    """COUNT mbarriers, each of which turns after ARRIVALS arrivals."""
    bars = gl.allocate_shared_memory(gl.int64, [COUNT, 1], mbarrier.MBarrierLayout())
    for i in gl.static_range(COUNT):
        mbarrier.init(bars.index(i), count=ARRIVALS)
    return bars


@gluon.jit
def tiles_like(descriptors, COUNT: gl.constexpr, C: gl.constexpr):
    """Shared memory for COUNT Pairs of what these descriptors load."""
    block: gl.constexpr = descriptors.low.block_shape
    low = gl.allocate_shared_memory(descriptors.low.dtype, [COUNT, 1, 1, block[2], block[3]], descriptors.low.layout)
    high = low
    if C.d_high > 0:
        other: gl.constexpr = descriptors.high.block_shape
        high = gl.allocate_shared_memory(
            descriptors.high.dtype, [COUNT, 1, 1, other[2], other[3]], descriptors.high.layout
        )
    return Pair(low, high)


@gluon.jit
def load_pair(descriptors, b, h, row, bar, tiles, index, pred, C: gl.constexpr):
    """Start to load rows row + 0, 1, ... of head h into tiles[index]; `bar` learns when they have come."""
    D_LOW: gl.constexpr = C.d_low
    load_by_tma(descriptors.low, [b, h, row, 0], bar, tiles.low.index(index), pred=pred)
    if C.d_high > 0:
        load_by_tma(descriptors.high, [b, h, row, D_LOW], bar, tiles.high.index(index), pred=pred)


@gluon.jit
def store_pair(descriptors, b, h, row, tiles, index, C: gl.constexpr):
    """Start to store tiles[index] to rows row + 0, 1, ... of head h; those past the end are left out."""
    D_LOW: gl.constexpr = C.d_low
    store_by_tma(descriptors.low, [b, h, row, 0], tiles.low.index(index))
    if C.d_high > 0:
        store_by_tma(descriptors.high, [b, h, row, D_LOW], tiles.high.index(index))


@gluon.jit
def matrices(tiles, index, NUM_ROWS: gl.constexpr, C: gl.constexpr):
    """tiles[index] as operands of products: a Pair of (NUM_ROWS, columns) in shared memory."""
    D_LOW: gl.constexpr = C.d_low
    D_HIGH: gl.constexpr = C.d_high
    low = tiles.low.index(index).reshape([NUM_ROWS, D_LOW])
    high = low
    if C.d_high > 0:
        high = tiles.high.index(index).reshape([NUM_ROWS, D_HIGH])
    return Pair(low, high)


@gluon.constexpr_function
def pair_bytes(rows, C):
    """Bytes of a Pair of so many rows: what a barrier is told to expect."""
    return rows * (C.d_low + C.d_high) * 2


# ---- Items ----


@gluon.jit
def num_items(num_tiles, sizes):
    """How many items this CTA has, of num_tiles a head; `item_of` says which."""
    ctas = gl.num_programs(0)
    total = num_tiles * sizes.num_heads
    rounds = total // ctas
    position = gl.program_id(0)
    position = gl.where(rounds % 2 == 1, ctas - 1 - position, position)
    return rounds + (position < total - rounds * ctas).to(gl.int32)


@gluon.jit
def item_of(r, num_tiles, sizes):
    """(tile, head) of this CTA's r-th item; head = b * H + h.

    Items go out in rounds, the longest first, and every second round in reverse: who had the longest item of a round
    has the shortest of the next.
    """
    ctas = gl.num_programs(0)
    position = gl.program_id(0)
    position = gl.where(r % 2 == 1, ctas - 1 - position, position)
    return tile_of(r * ctas + position, sizes.num_heads, num_tiles, sizes.heads_per_section)


# ---- Products ----


@gluon.jit
def start_scores(rows, columns, LAYOUT: gl.constexpr, BLOCK: gl.constexpr, C: gl.constexpr):
    """rows · columnsᵀ (64, BLOCK) float32, in flight. Both are Pairs in shared memory, of 64 rows and of BLOCK."""
    nothing = gl.zeros([ROWS, BLOCK], gl.float32, LAYOUT)
    s = warpgroup_mma(rows.low, columns.low.permute((1, 0)), nothing, use_acc=False, is_async=True)
    if C.d_high > 0:
        s = warpgroup_mma(rows.high, columns.high.permute((1, 0)), s, is_async=True)
    return s


@gluon.jit
def start_product(weights, x, acc, C: gl.constexpr):
    """acc + weights · x, in flight: weights (64, rows of x) in registers, x and acc Pairs."""
    low = warpgroup_mma(weights, x.low, acc.low, is_async=True)
    high = acc.high
    if C.d_high > 0:
        high = warpgroup_mma(weights, x.high, acc.high, is_async=True)
    return Pair(low, high)
