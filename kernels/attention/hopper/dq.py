"""Device code: dQ of attention on Hopper, warp-specialised.

    producer     K(0) V(0) | K(1) V(1) | ...       slots of a ring, one after the other, over all of a CTA's items
    consumers    64 queries each, whose q and dout they hold; those of the next item come meanwhile

Keys run from the last tile that a query sees to the first, as in the forward. A step of a tile that a mask cuts:

    s = q kᵀ, dp = dout vᵀ        p = exp2(s - lse2) under dp        ds = p ∘ (dp - delta)        dq += ds k

Full tiles overlap, so that all of a consumer's arithmetic runs under its own products: with p and dp of tile i at hand,

    begin s(i + 1)                         ds(i) under it
    begin dq += ds(i) k(i), dp(i + 1)      wait for s(i + 1); p(i + 1) under them
    wait for both, release the slot of tile i

Each product is waited for in the step that begins it: with one in flight over a loop's back edge, ptxas serialises all.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma_wait

from ..masks import documents_of_sequence, key_bounds
from ..structs import Pair
from .device import (
    LOG2_E,
    ROWS,
    barriers,
    exponent_carries,
    load_pair,
    matrices,
    next_slot,
    nonfinite_in,
    num_items,
    pair_bytes,
    seen_as,
    start_product,
    start_scores,
    store_pair,
    tiles_like,
    warpgroup_barrier,
    words_layout,
    words_shared_layout,
)
from .forward import key_tiles, tile_and_head
from .softmax import first_keys, last_keys, query_documents, visible_tile
from .structs import Bounds, Descriptors, DQItem, DQPlace, HeldQueries, Reach, Ring, Rows, Sizes, Slot, Statistics


@gluon.jit(
    do_not_specialize=["T_q", "T_k", "H", "group", "num_heads", "lower", "upper", "heads_per_section", "row_stride"]
)
def hopper_dq_kernel(
    QLow, QHigh, DOutLow, DOutHigh, KLow, KHigh, VLow, VHigh, DQLow, DQHigh, Lse2, Delta, masks,
    T_q, T_k, H, group, num_heads, lower, upper, heads_per_section, row_stride, softmax_scale, C: gl.constexpr,
):  # fmt: skip
    """dq = scale · ds k. launch.run_dq calls it.

    QLow ... DQHigh   TMA descriptors: of Q, DOut and DQ (B, H, T_q, head_dim), boxes of 64 rows; of K and V
                      (B, H / group, T_k, head_dim), boxes of block rows
    Lse2, Delta       (B, H, T_q) float32, rows row_stride apart, as in the portable kernel
    masks, lower, upper    what weights are 0: see masks.py and structs.py of the portable kernels
    num_heads         B · H

    One CTA: every grid-th item, an item being 64 · consumers queries of one head against all the keys that they see.
    """
    STAGES: gl.constexpr = C.stages
    CONSUMERS: gl.constexpr = C.consumers
    HELD: gl.constexpr = num_sets(C) * C.consumers
    q_desc, dout_desc = Descriptors(QLow, QHigh), Descriptors(DOutLow, DOutHigh)
    k_desc, v_desc, dq_desc = Descriptors(KLow, KHigh), Descriptors(VLow, VHigh), Descriptors(DQLow, DQHigh)
    held = HeldQueries(
        tiles_like(q_desc, HELD, C), tiles_like(dout_desc, HELD, C), barriers(HELD, 1), barriers(HELD, 1)
    )
    ring = Ring(
        tiles_like(k_desc, STAGES, C), tiles_like(v_desc, STAGES, C), barriers(STAGES, 1), barriers(STAGES, CONSUMERS)
    )
    together = barriers(1, CONSUMERS).index(0)
    sizes = Sizes(T_q, T_k, H, group, num_heads, heads_per_section)
    bounds = Bounds(lower, upper)
    stats = Statistics(Lse2, Delta, row_stride)
    # The tuples stand here and not in variables: assigning one turns its constexprs into tensors.
    if CONSUMERS == 1:
        gl.warp_specialize([
            (consumer, (dq_desc, stats, masks, sizes, bounds, softmax_scale, held, ring, together, C, 0)),
            (producer, (q_desc, dout_desc, k_desc, v_desc, masks, sizes, bounds, held, ring, C)),
        ], [1], [40])  # fmt: skip
    else:
        gl.warp_specialize([
            (consumer, (dq_desc, stats, masks, sizes, bounds, softmax_scale, held, ring, together, C, 0)),
            (consumer, (dq_desc, stats, masks, sizes, bounds, softmax_scale, held, ring, together, C, 1)),
            (producer, (q_desc, dout_desc, k_desc, v_desc, masks, sizes, bounds, held, ring, C)),
        ], [4, 1], [232, 40])  # fmt: skip


@gluon.constexpr_function
def num_sets(C):
    """For how many items there is room for queries."""
    return 2 if C.out_apart else 1


@gluon.jit
def producer(q_desc, dout_desc, k_desc, v_desc, masks, sizes, bounds, held, ring, C: gl.constexpr):
    """One warp: the queries of each item, and the slots of the ring: K and V of a tile of keys."""
    BLOCK: gl.constexpr = C.block
    STAGES: gl.constexpr = C.stages
    CONSUMERS: gl.constexpr = C.consumers
    SETS: gl.constexpr = num_sets(C)
    TALL: gl.constexpr = ROWS * C.consumers
    BYTES: gl.constexpr = 2 * pair_bytes(BLOCK, C)
    HELD_BYTES: gl.constexpr = 2 * pair_bytes(ROWS, C)
    num_tiles = gl.cdiv(sizes.T_q, TALL)
    zero = num_tiles * 0
    slot = Slot(zero, zero)
    for r in range(num_items(num_tiles, sizes)):
        tile, head = tile_and_head(r, sizes, bounds, C)
        b, h = head // sizes.H, head % sizes.H
        h_kv = h // sizes.group
        runs = key_tiles(masks, sizes, bounds, tile, b, C)
        count = runs.num_left + runs.num_full + runs.num_right
        for step in range(count):
            full = ring.full.index(slot.index)
            n = runs.left + (count - 1 - step) * BLOCK
            mbarrier.wait(ring.empty.index(slot.index), 1 - slot.phase)
            mbarrier.expect(full, BYTES)
            load_pair(k_desc, b, h_kv, n, full, ring.a, slot.index, True, C)
            load_pair(v_desc, b, h_kv, n, full, ring.b, slot.index, True, C)
            slot = next_slot(slot, STAGES)
            if step == 0:  # behind the first keys, which need not wait until the item before is done
                for g in gl.static_range(CONSUMERS):
                    index, row = r % SETS * CONSUMERS + g, tile * TALL + g * ROWS
                    bar = held.full.index(index)
                    mbarrier.wait(held.empty.index(index), 1 - r // SETS % 2)
                    mbarrier.expect(bar, HELD_BYTES)
                    load_pair(q_desc, b, h, row, bar, held.q, index, True, C)
                    load_pair(dout_desc, b, h, row, bar, held.dout, index, True, C)


@gluon.jit
def consumer(
    dq_desc, stats, masks, sizes, bounds, softmax_scale, held, ring, together, C: gl.constexpr,
    GROUP: gl.constexpr,
):  # fmt: skip
    """A warpgroup: rows 64 · GROUP and the 63 after them of each item."""
    BLOCK: gl.constexpr = C.block
    D_LOW: gl.constexpr = C.d_low
    D_HIGH: gl.constexpr = C.d_high
    OVERLAPS: gl.constexpr = C.overlaps
    HAS_LEFT: gl.constexpr = C.has_left
    Q_FITS: gl.constexpr = q_fits_registers(C)
    DOUT_FITS: gl.constexpr = dout_fits_registers(C)
    CONSUMERS: gl.constexpr = C.consumers
    SETS: gl.constexpr = num_sets(C)
    TALL: gl.constexpr = ROWS * C.consumers
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK, 16])
    LOW: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D_LOW, 16])
    HIGH: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, max(D_HIGH, 16), 16])
    num_tiles = gl.cdiv(sizes.T_q, TALL)
    zero = num_tiles * 0
    slot = Slot(zero, zero)
    for r in range(num_items(num_tiles, sizes)):
        tile, head = tile_and_head(r, sizes, bounds, C)
        b, h = head // sizes.H, head % sizes.H
        runs = key_tiles(masks, sizes, bounds, tile, b, C)
        count = runs.num_left + runs.num_full + runs.num_right
        first_row = tile * TALL + GROUP * ROWS
        i = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, S))
        i_ok = i < sizes.T_q
        offs = head.to(gl.int64) * stats.row_stride + i
        lse2 = gl.load(stats.Lse2 + offs, mask=i_ok, other=0.0)
        delta = gl.load(stats.Delta + offs, mask=i_ok, other=0.0)
        rows = Rows(
            None if masks.KeyStarts is None and bounds.lower is None else first_keys(i, masks, sizes, bounds, b),
            last_keys(i, masks, sizes, bounds, b),
            None if masks.Documents is None else query_documents(i, masks, sizes, b),
            None if masks.Documents is None else documents_of_sequence(masks, b, sizes.T_k),
            sizes.T_k, softmax_scale * LOG2_E,
        )  # fmt: skip
        index = r % SETS * CONSUMERS + GROUP
        mbarrier.wait(held.full.index(index), r // SETS % 2)
        item = DQItem(
            in_registers(held.q, index, S, C) if Q_FITS else held.q,
            in_registers(held.dout, index, S, C) if DOUT_FITS else held.dout,
            index, gl.expand_dims(lse2, 1), gl.expand_dims(delta, 1), rows,
            reach_of(first_row, masks, sizes, bounds, b, C),
            reach_of(tile * TALL + (CONSUMERS - 1 - GROUP) * ROWS, masks, sizes, bounds, b, C), runs.left,
        )  # fmt: skip
        dq = Pair(gl.zeros([ROWS, D_LOW], gl.float32, LOW), gl.zeros([ROWS, max(D_HIGH, 16)], gl.float32, HIGH))

        mbarrier.wait(ring.full.index(slot.index), slot.phase)
        place = DQPlace(slot, runs.left + (count - 1) * BLOCK)
        dq, place = steps(dq, place, runs.right, item, ring, together, True, GROUP, S, C)
        if SETS > 1:  # the item before has been stored by now
            tma.store_wait(0)
            mbarrier.arrive(held.empty.index((r + 1) % SETS * CONSUMERS + GROUP), count=1, pred=r > 0)
        if not OVERLAPS:
            dq, place = steps(dq, place, runs.full, item, ring, together, False, GROUP, S, C)
        elif place.n >= runs.full:
            dq, place = overlapped_steps(dq, place, runs.full, item, ring, S, C)
        if HAS_LEFT:
            dq, place = steps(dq, place, runs.left, item, ring, together, True, GROUP, S, C)
        slot = place.slot

        # A warp has waited for its own quarter of the products only: no other may still read what is written here.
        warpgroup_barrier()
        out = matrices(held.q, index, ROWS, C)
        out.low.store((dq.low * softmax_scale).to(dq_desc.low.dtype))
        if D_HIGH > 0:
            out.high.store((dq.high * softmax_scale).to(dq_desc.low.dtype))
        fence_async_shared()
        store_pair(dq_desc, b, h, first_row, held.q, index, C)
        if SETS == 1:
            tma.store_wait(0)
            mbarrier.arrive(held.empty.index(GROUP), count=1)
    tma.store_wait(0)


@gluon.jit
def steps(
    dq, place, stop, item, ring, together,
    IS_MASKED: gl.constexpr, GROUP: gl.constexpr, S: gl.constexpr, C: gl.constexpr,
):  # fmt: skip
    """Tiles of keys from place.n down to `stop`, one after the other. The first one is there."""
    BLOCK: gl.constexpr = C.block
    STAGES: gl.constexpr = C.stages
    while place.n >= stop:
        slot, n = place.slot, place.n
        after = next_slot(slot, STAGES)
        if not IS_MASKED or meets(item.reach, n):
            dq = step(dq, place, after, item, ring, together, IS_MASKED, GROUP, S, C)
        else:
            mbarrier.wait(ring.full.index(after.index), after.phase, pred=n > item.last)
        mbarrier.arrive(ring.empty.index(slot.index), count=1)
        place = DQPlace(after, n - BLOCK)
    return dq, place


@gluon.jit
def step(
    dq, place, after, item, ring, together,
    IS_MASKED: gl.constexpr, GROUP: gl.constexpr, S: gl.constexpr, C: gl.constexpr,
):  # fmt: skip
    """dQ from one tile of keys. `after` is the slot after it."""
    BLOCK: gl.constexpr = C.block
    PARTS: gl.constexpr = 2 if C.d_high > 0 else 1
    dtype: gl.constexpr = ring.a.low.dtype
    A: gl.constexpr = gl.DotOperandLayout(0, dq.low.type.layout, 2)
    slot, n, rows = place.slot, place.n, item.rows
    q, dout = operands(item, n, C)
    k = matrices(ring.a, slot.index, BLOCK, C)
    s = start_scores(q, k, S, BLOCK, C)
    if IS_MASKED:
        is_bad = nonfinite_in(k, BLOCK, C)
    dp = start_scores(dout, matrices(ring.b, slot.index, BLOCK, C), S, BLOCK, C)
    s = warpgroup_mma_wait(PARTS, deps=[s])
    p = gl.exp2(s * rows.qk_scale - item.lse2)
    # ptxas moves the exponentials below the next wait unless a block of code ends here: so the wait for the next slot
    # stands here, and not at the top of the loop.
    mbarrier.wait(ring.full.index(after.index), after.phase, pred=n > item.last)
    dp, p = warpgroup_mma_wait(0, deps=[dp, p])
    ds = p * (dp - item.delta)
    if IS_MASKED:
        if is_bad:
            contain_keys(k, together, not meets(item.other, n), GROUP, C)
        sees = visible_tile(n, gl.arange(0, BLOCK, gl.SliceLayout(0, S)), rows)
        # T_k's sign: a 0 that the compiler does not know. A constant it would select after the conversion to 16 bits,
        # where that takes three instructions a number. And no x - x: of a product x, fma leaves its rounding error.
        ds = gl.where(sees, ds, (rows.T_k >> 31).to(gl.float32))
    ds = gl.convert_layout(ds.to(dtype), A)
    return wait_for_dq(start_product(ds, k, dq, C), ds, C)


@gluon.jit
def overlapped_steps(dq, place, stop, item, ring, S: gl.constexpr, C: gl.constexpr):
    """Tiles of keys from place.n down to `stop`, one at least, all seen by every query. The first one is there."""
    BLOCK: gl.constexpr = C.block
    STAGES: gl.constexpr = C.stages
    PARTS: gl.constexpr = 2 if C.d_high > 0 else 1
    dtype: gl.constexpr = ring.a.low.dtype
    A: gl.constexpr = gl.DotOperandLayout(0, dq.low.type.layout, 2)
    slot, n, qk_scale = place.slot, place.n, item.rows.qk_scale
    q, dout = operands(item, n, C)
    s = start_scores(q, matrices(ring.a, slot.index, BLOCK, C), S, BLOCK, C)
    dp = start_scores(dout, matrices(ring.b, slot.index, BLOCK, C), S, BLOCK, C)
    s = warpgroup_mma_wait(PARTS, deps=[s])
    p = gl.exp2(s * qk_scale - item.lse2)
    after = next_slot(slot, STAGES)
    mbarrier.wait(ring.full.index(after.index), after.phase, pred=n > item.last)
    dp, p = warpgroup_mma_wait(0, deps=[dp, p])
    n -= BLOCK
    while n >= stop:
        # p and dp are of the tile in `slot`; that of n is in `after`.
        q, dout = operands(item, n, C)
        s = start_scores(q, matrices(ring.a, after.index, BLOCK, C), S, BLOCK, C)
        ds = gl.convert_layout((p * (dp - item.delta)).to(dtype), A)
        dq_next = start_product(ds, matrices(ring.a, slot.index, BLOCK, C), dq, C)
        dp = start_scores(dout, matrices(ring.b, after.index, BLOCK, C), S, BLOCK, C)
        s = warpgroup_mma_wait(2 * PARTS, deps=[s])
        p = gl.exp2(s * qk_scale - item.lse2)
        before, slot = slot, after
        after = next_slot(slot, STAGES)
        mbarrier.wait(ring.full.index(after.index), after.phase, pred=n > item.last)  # here, as in `step`
        dp, dq = wait_for_both(dp, dq_next, ds, C)
        mbarrier.arrive(ring.empty.index(before.index), count=1)
        n -= BLOCK
    ds = gl.convert_layout((p * (dp - item.delta)).to(dtype), A)
    dq = wait_for_dq(start_product(ds, matrices(ring.a, slot.index, BLOCK, C), dq, C), ds, C)
    mbarrier.arrive(ring.empty.index(slot.index), count=1)
    return dq, DQPlace(after, n)


# Products of 64 columns with both operands in shared memory take all the reads that it can serve. As operands in
# registers, q and dout leave it to k and v.
@gluon.constexpr_function
def q_fits_registers(C):
    return C.overlaps and C.d_low + C.d_high <= (64 if C.has_left else 128)  # masks at the left hold registers too


@gluon.constexpr_function
def dout_fits_registers(C):
    return C.overlaps and C.d_low + C.d_high <= 64


@gluon.jit
def in_registers(tiles, index, S: gl.constexpr, C: gl.constexpr):
    """tiles[index], 64 rows of a Pair in shared memory, as left operands of scores laid out as S."""
    A: gl.constexpr = gl.DotOperandLayout(0, S, 2)
    pair = matrices(tiles, index, ROWS, C)
    low = pair.low.load(A)
    high = low
    if C.d_high > 0:
        high = pair.high.load(A)
    return Pair(low, high)


@gluon.jit
def operands(item, n, C: gl.constexpr):
    """q and dout of a consumer, as left operands. n: the first key of a tile."""
    # n is below T_k, which the compiler does not know: so it computes in each step where they lie in shared memory.
    # Else it keeps the descriptors of all products in registers, of which there are too few.
    index = item.held + (n >= item.rows.T_k).to(gl.int32)
    q, dout = item.q, item.dout
    if not q_fits_registers(C):
        q = matrices(q, index, ROWS, C)
    if not dout_fits_registers(C):
        dout = matrices(dout, index, ROWS, C)
    return q, dout


@gluon.jit
def wait_for_dq(dq, ds, C: gl.constexpr):
    """Wait for dQ's product with `ds`."""
    if C.d_high > 0:
        low, high, ds = warpgroup_mma_wait(0, deps=[dq.low, dq.high, ds])
        return Pair(low, high)
    else:
        low, ds = warpgroup_mma_wait(0, deps=[dq.low, ds])
        return Pair(low, dq.high)


@gluon.jit
def wait_for_both(dp, dq, ds, C: gl.constexpr):
    """Wait for dP, and for dQ's product with `ds`."""
    if C.d_high > 0:
        dp, low, high, ds = warpgroup_mma_wait(0, deps=[dp, dq.low, dq.high, ds])
        return dp, Pair(low, high)
    else:
        dp, low, ds = warpgroup_mma_wait(0, deps=[dp, dq.low, ds])
        return dp, Pair(low, dq.high)


@gluon.jit
def reach_of(row, masks, sizes, bounds, b, C: gl.constexpr):
    """The tiles that the queries row ... row + 63 of sequence b may see, but for documents."""
    BLOCK: gl.constexpr = C.block
    start, stop = key_bounds(masks, b, sizes.T_k)
    if bounds.lower is not None:
        start = gl.maximum(start, row + bounds.lower)
    if bounds.upper is not None:
        stop = gl.minimum(stop, gl.minimum(row + ROWS, sizes.T_q) + bounds.upper)
    return Reach(start - BLOCK, gl.where(row < sizes.T_q, stop, 0))


@gluon.jit
def meets(reach, n):
    """Whether the tile whose first key is n is one of them."""
    return (n > reach.start) & (n < reach.stop)


@gluon.jit
def contain_keys(k, together, is_alone, GROUP: gl.constexpr, C: gl.constexpr):
    """0 in the place of inf and NaN in k, in shared memory, once every consumer that multiplies by it has done so.

    Who `is_alone` with this tile meets nobody: the other consumer may be at another one already.
    """
    BLOCK: gl.constexpr = C.block
    D_LOW: gl.constexpr = C.d_low
    D_HIGH: gl.constexpr = C.d_high
    warpgroup_barrier()
    mbarrier.arrive(together, count=1, pred=not is_alone)
    mbarrier.wait(together, 0, pred=not is_alone)
    if is_alone | (GROUP == 0):
        zero_nonfinite(k.low, BLOCK, D_LOW)
        if C.d_high > 0:
            zero_nonfinite(k.high, BLOCK, D_HIGH)
        fence_async_shared()
    warpgroup_barrier()
    mbarrier.arrive(together, count=1, pred=not is_alone)
    mbarrier.wait(together, 1, pred=not is_alone)


@gluon.jit
def zero_nonfinite(tile, NUM_ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """0 in the place of inf and NaN in `tile` (NUM_ROWS, COLUMNS), in shared memory."""
    WORDS: gl.constexpr = COLUMNS // 2
    CHUNK: gl.constexpr = max(8, 1024 // COLUMNS)  # rows at a time: registers are few
    LAYOUT: gl.constexpr = words_layout(WORDS)
    all_words = seen_as(tile, gl.int32, [NUM_ROWS, WORDS], words_shared_layout(tile.layout.swizzle_byte_width))
    for row in gl.static_range(0, NUM_ROWS, CHUNK):
        part = all_words.slice(row, CHUNK)
        words = part.load(LAYOUT)
        carries = exponent_carries(words, tile.dtype)
        words = gl.where((carries & 0x8000) != 0, words & -65536, words)
        part.store(gl.where(carries < 0, words & 0xFFFF, words))
