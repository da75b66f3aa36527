"""Device code that Hopper's attention kernels share: the ring, the items of a CTA, products of Pairs, NaN in tiles."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
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
_Shared = gl.shared_memory_descriptor
seen_as = getattr(_Shared, "reinterpret", None) or _Shared._reinterpret  # the same memory, another dtype, shape, layout

ROWS = gl.constexpr(64)  # of a consumer's tile: what one wgmma of a warpgroup multiplies
FEW = gl.constexpr(32)  # rows of a streamed tile that the rare path looks at together
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


# ---- What is not finite, where a mask makes weights 0: 0 · inf and 0 · NaN are NaN ----


@gluon.constexpr_function
def words_layout(columns):
    """A warp reads whole rows of `columns` 32-bit words, 16 bytes a thread."""
    threads = min(columns // 4, 32)
    return gl.BlockedLayout([1, 4], [32 // threads, threads], [4, 1], [1, 0])


@gluon.constexpr_function
def words_shared_layout(swizzle):
    """32-bit words where a tile of 16-bit numbers lies."""
    return gl.NVMMASharedLayout(swizzle, 32, 2)


@gluon.jit
def marks(C: gl.constexpr):
    """Shared memory for a number of each row of a streamed tile, FEW of them together."""
    return gl.allocate_shared_memory(gl.int32, [C.block // FEW, FEW], gl.SwizzledSharedLayout(1, 1, 1, [0]))


@gluon.jit
def either(a, b):
    return a | b


@gluon.jit
def exponent_carries(words, dtype: gl.constexpr):
    """32-bit words of two numbers each, of `dtype`: the sign of each half is set where its exponent is all ones."""
    # An exponent of all ones plus its last bit carries into the sign, and no other does.
    EXPONENT: gl.constexpr = 0x7F807F80 if dtype == gl.bfloat16 else 0x7C007C00
    LAST: gl.constexpr = 0x00800080 if dtype == gl.bfloat16 else 0x04000400
    return (words & EXPONENT) + LAST


@gluon.jit
def nonfinite_in_part(tile, NUM_ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """Not 0 if a number in `tile` (NUM_ROWS, COLUMNS), in shared memory, is inf or NaN: two at a time, by exponents."""
    WORDS: gl.constexpr = COLUMNS // 2
    CHUNK: gl.constexpr = min(NUM_ROWS, max(8, 1024 // COLUMNS))  # rows at a time: swizzled by eights
    SHARED: gl.constexpr = words_shared_layout(tile.layout.swizzle_byte_width)
    LAYOUT: gl.constexpr = words_layout(WORDS)
    words = seen_as(tile, gl.int32, [NUM_ROWS, WORDS], SHARED)
    found = gl.zeros([CHUNK, WORDS], gl.int32, LAYOUT)
    for row in gl.static_range(0, NUM_ROWS, CHUNK):
        found = found | exponent_carries(words.slice(row, CHUNK).load(LAYOUT), tile.dtype)
    found = gl.reduce(gl.reshape(found, [CHUNK * WORDS]), 0, either)
    return (found >> 15) & 0x00010001


@gluon.jit
def nonfinite_in(tiles, NUM_ROWS: gl.constexpr, C: gl.constexpr):
    """Whether a number in the Pair `tiles`, in shared memory, is inf or NaN. The same for the whole warpgroup."""
    D_LOW: gl.constexpr = C.d_low
    D_HIGH: gl.constexpr = C.d_high
    found = nonfinite_in_part(tiles.low, NUM_ROWS, D_LOW)
    if C.d_high > 0:
        found = found | nonfinite_in_part(tiles.high, NUM_ROWS, D_HIGH)
    return found != 0


@gluon.jit
def clean_part(tile, Marks, NUM_ROWS: gl.constexpr, COLUMNS: gl.constexpr, IS_FIRST: gl.constexpr):
    """0 in the place of inf and NaN in `tile`, and a mark, not 0, for its rows: added to others unless IS_FIRST."""
    CHUNK: gl.constexpr = min(FEW, max(8, 1024 // COLUMNS))  # rows at a time
    THREADS: gl.constexpr = min(COLUMNS // 8, 32)
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [32 // THREADS, THREADS], [4, 1], [1, 0])
    for row in gl.static_range(0, NUM_ROWS, CHUNK):
        part = tile.slice(row, CHUNK)
        marks = Marks.index(row // FEW).slice(row % FEW, CHUNK)
        x = part.load(LAYOUT)
        is_finite = gl.abs(x.to(gl.float32)) < float("inf")
        part.store(gl.where(is_finite, x, 0.0))
        mark = gl.reduce((~is_finite).to(gl.int32), 1, either)
        if not IS_FIRST:
            mark = mark | marks.load(gl.SliceLayout(1, LAYOUT))
        marks.store(mark)


@gluon.jit
def contain(tiles, Marks, together, NUM_ROWS: gl.constexpr, GROUP: gl.constexpr, C: gl.constexpr):
    """0 in the place of inf and NaN in the Pair `tiles`, in shared memory, and marks for the rows that had them.

    Every consumer calls it, having found `nonfinite_in` them: the first one cleans for all. `together` turns when all
    have arrived, which they do twice here, so its parity is 0 and then 1.
    """
    D_LOW: gl.constexpr = C.d_low
    D_HIGH: gl.constexpr = C.d_high
    mbarrier.arrive(together, count=1)
    mbarrier.wait(together, 0)  # all have looked
    if GROUP == 0:
        clean_part(tiles.low, Marks, NUM_ROWS, D_LOW, True)
        if C.d_high > 0:
            clean_part(tiles.high, Marks, NUM_ROWS, D_HIGH, False)
        fence_async_shared()
    mbarrier.arrive(together, count=1)
    mbarrier.wait(together, 1)
