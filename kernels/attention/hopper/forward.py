"""Device code: the attention forward on Hopper, warp-specialised as in FlashAttention-3 (Shah et al. 2024).

    producer     K(0) | K(1) V(0) | K(2) V(1) | ...      slots of a ring, one after the other, over all of a CTA's items
    consumer 0   QK(i) and PV(i-1) issued together, softmax(i) under PV(i-1) and under the other consumers' products;
                 or (in turn) PV(i) and QK(i+1) together, softmax under the other consumers' products only
    consumer 1   the same, a little later: the consumers take turns at issuing

Keys run from the last tile that a query sees to the first: tiles at the diagonal and at the end, which need a mask,
then the full ones, then those that a window or padding cuts on the left.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma_wait,
)

from ..masks import documents_of_sequence, key_bounds, tile_runs
from ..structs import Band, Pair, Runs
from .device import (
    LN_2,
    ROWS,
    barriers,
    item_of,
    load_pair,
    marks,
    matrices,
    next_slot,
    num_items,
    pair_bytes,
    start_product,
    start_scores,
    store_pair,
    tiles_like,
    warpgroup_barrier,
)
from .softmax import contain_together, contained, first_keys, last_keys, query_documents, softmax
from .structs import Bounds, Descriptors, Flight, Held, KeyTile, Place, Poison, Ring, Rows, Sizes, Slot


@gluon.jit(do_not_specialize=["T_q", "T_k", "H", "group", "num_heads", "lower", "upper", "heads_per_section"])
def hopper_forward_kernel(
    QLow, QHigh, KLow, KHigh, VLow, VHigh, OutLow, OutHigh, Lse, masks,
    T_q, T_k, H, group, num_heads, lower, upper, heads_per_section, qk_scale, C: gl.constexpr,
):  # fmt: skip
    """out = softmax(scale · q kᵀ + mask) v and lse, the log of the softmax's denominators. launch.run_forward calls it.

    QLow ... OutHigh  TMA descriptors: of Q and Out (B, H, T_q, head_dim), boxes of 64 rows; of K and V
                      (B, H / group, T_k, head_dim), boxes of block rows
    Lse               (B, H, T_q) float32, contiguous, natural logarithm
    masks, lower, upper    what weights are 0: see masks.py and structs.py of the portable kernels
    num_heads         B · H
    qk_scale          scale · log2(e): the softmax is computed in base 2

    One CTA: every grid-th item, an item being 64 · consumers queries of one head against all the keys that they see.
    """
    STAGES: gl.constexpr = C.stages
    CONSUMERS: gl.constexpr = C.consumers
    OUT_APART: gl.constexpr = C.out_apart
    q_desc, k_desc, v_desc = Descriptors(QLow, QHigh), Descriptors(KLow, KHigh), Descriptors(VLow, VHigh)
    out_desc = Descriptors(OutLow, OutHigh)
    queries = Held(tiles_like(q_desc, CONSUMERS, C), barriers(CONSUMERS, 1), barriers(CONSUMERS, 1))
    ring = Ring(
        tiles_like(k_desc, STAGES, C), tiles_like(v_desc, STAGES, C), barriers(STAGES, 1), barriers(STAGES, CONSUMERS)
    )
    out_tiles = queries.tiles
    if OUT_APART:
        out_tiles = tiles_like(out_desc, CONSUMERS, C)
    turns = ring.full
    if CONSUMERS > 1:
        turns = barriers(CONSUMERS, 1)
        mbarrier.arrive(turns.index(0), count=1)  # consumer 0 goes first
    poison = Poison(marks(C), barriers(1, CONSUMERS).index(0))
    sizes = Sizes(T_q, T_k, H, group, num_heads, heads_per_section)
    bounds = Bounds(lower, upper)
    # The tuples stand here and not in variables: assigning one turns its constexprs into tensors.
    if CONSUMERS == 1:
        gl.warp_specialize([
            (consumer, (out_desc, Lse, masks, sizes, bounds, qk_scale, queries, out_tiles, ring, turns, poison, C, 0)),
            (producer, (q_desc, k_desc, v_desc, masks, sizes, bounds, queries, ring, C)),
        ], [1], [24])  # fmt: skip
    elif CONSUMERS == 2:
        gl.warp_specialize([
            (consumer, (out_desc, Lse, masks, sizes, bounds, qk_scale, queries, out_tiles, ring, turns, poison, C, 0)),
            (consumer, (out_desc, Lse, masks, sizes, bounds, qk_scale, queries, out_tiles, ring, turns, poison, C, 1)),
            (producer, (q_desc, k_desc, v_desc, masks, sizes, bounds, queries, ring, C)),
        ], [4, 1], [232, 40])  # fmt: skip
    else:
        gl.warp_specialize([
            (consumer, (out_desc, Lse, masks, sizes, bounds, qk_scale, queries, out_tiles, ring, turns, poison, C, 0)),
            (consumer, (out_desc, Lse, masks, sizes, bounds, qk_scale, queries, out_tiles, ring, turns, poison, C, 1)),
            (consumer, (out_desc, Lse, masks, sizes, bounds, qk_scale, queries, out_tiles, ring, turns, poison, C, 2)),
            (producer, (q_desc, k_desc, v_desc, masks, sizes, bounds, queries, ring, C)),
        ], [4, 4, 1], [160, 160, 32])  # fmt: skip


@gluon.jit
def tile_and_head(r, sizes, bounds, C: gl.constexpr):
    """(tile, head) of this CTA's r-th item."""
    num_tiles = gl.cdiv(sizes.T_q, ROWS * C.consumers)
    tile, head = item_of(r, num_tiles, sizes)
    if bounds.upper is not None:  # causal: the last queries see most keys
        tile = num_tiles - 1 - tile
    return tile, head


@gluon.jit
def key_tiles(masks, sizes, bounds, tile, b, C: gl.constexpr):
    """The tiles of keys that an item's queries see, as Runs; at least one, be it masked whole."""
    BLOCK: gl.constexpr = C.block
    TALL: gl.constexpr = ROWS * C.consumers
    first_key, end_key = key_bounds(masks, b, sizes.T_k)
    row = tile * TALL
    num_tiles = gl.cdiv(sizes.T_q, TALL)
    runs = tile_runs(
        row, gl.minimum(row + TALL, sizes.T_q) - 1, Band(bounds.lower, bounds.upper), first_key, end_key, masks.Ranges,
        b * num_tiles + tile, BLOCK, BLOCK,
    )  # fmt: skip
    none = runs.num_left + runs.num_full + runs.num_right == 0
    left, num_right = gl.where(none, 0, runs.left), gl.where(none, 1, runs.num_right)
    return Runs(left, runs.num_left, runs.full, runs.num_full, runs.right, num_right)


@gluon.jit
def producer(q_desc, k_desc, v_desc, masks, sizes, bounds, queries, ring, C: gl.constexpr):
    """One warp: the queries of each item, and the slots of the ring: K of a tile beside V of the one before."""
    BLOCK: gl.constexpr = C.block
    CONSUMERS: gl.constexpr = C.consumers
    TALL: gl.constexpr = ROWS * C.consumers
    BYTES: gl.constexpr = pair_bytes(BLOCK, C)
    QUERY_BYTES: gl.constexpr = pair_bytes(ROWS, C)
    zero = sizes.T_k * 0
    slot = Slot(zero, zero)
    # What comes before the first tile lies past the last key: zeros, for which nothing is read.
    before = KeyTile(zero, zero, sizes.T_k)
    for r in range(num_items(gl.cdiv(sizes.T_q, TALL), sizes)):
        tile, head = tile_and_head(r, sizes, bounds, C)
        b, h = head // sizes.H, head % sizes.H
        runs = key_tiles(masks, sizes, bounds, tile, b, C)
        count = runs.num_left + runs.num_full + runs.num_right
        keys = KeyTile(b, h // sizes.group, runs.left + (count - 1) * BLOCK)
        # The first slot first: it holds the last values of the item before, whose queries are given back after them.
        slot = fill(k_desc, v_desc, keys, before, ring, slot, C)
        for g in gl.static_range(CONSUMERS):
            mbarrier.wait(queries.empty.index(g), 1 - r % 2)
            mbarrier.expect(queries.full.index(g), QUERY_BYTES)
            load_pair(q_desc, b, h, tile * TALL + g * ROWS, queries.full.index(g), queries.tiles, g, True, C)
        for _ in range(count - 1):
            before = keys
            keys = KeyTile(keys.b, keys.h, keys.n - BLOCK)
            slot = fill(k_desc, v_desc, keys, before, ring, slot, C)
        before = keys
    mbarrier.wait(ring.empty.index(slot.index), 1 - slot.phase)
    mbarrier.expect(ring.full.index(slot.index), BYTES)
    load_pair(v_desc, before.b, before.h, before.n, ring.full.index(slot.index), ring.b, slot.index, True, C)


@gluon.jit
def fill(k_desc, v_desc, keys, before, ring, slot, C: gl.constexpr):
    """Start to load K of the tile `keys` and V of the tile `before` into `slot`; the slot after it."""
    BYTES: gl.constexpr = 2 * pair_bytes(C.block, C)
    full = ring.full.index(slot.index)
    mbarrier.wait(ring.empty.index(slot.index), 1 - slot.phase)
    mbarrier.expect(full, BYTES)
    load_pair(k_desc, keys.b, keys.h, keys.n, full, ring.a, slot.index, True, C)
    load_pair(v_desc, before.b, before.h, before.n, full, ring.b, slot.index, True, C)
    return next_slot(slot, C.stages)


@gluon.jit
def consumer(
    out_desc,
    Lse,
    masks,
    sizes,
    bounds,
    qk_scale,
    queries,
    out_tiles,
    ring,
    turns,
    poison,
    C: gl.constexpr,
    GROUP: gl.constexpr,
):
    """A warpgroup: rows 64 · GROUP and the 63 after them of each item."""
    BLOCK: gl.constexpr = C.block
    STAGES: gl.constexpr = C.stages
    D_LOW: gl.constexpr = C.d_low
    D_HIGH: gl.constexpr = C.d_high
    OUT_APART: gl.constexpr = C.out_apart
    OVERLAPS: gl.constexpr = C.overlaps
    HAS_LEFT: gl.constexpr = C.has_left
    TALL: gl.constexpr = ROWS * C.consumers
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK, 16])
    LOW: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, D_LOW, 16])
    HIGH: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, max(D_HIGH, 16), 16])
    P: gl.constexpr = gl.DotOperandLayout(0, LOW, 2)
    dtype: gl.constexpr = out_desc.low.dtype
    num_tiles = gl.cdiv(sizes.T_q, TALL)
    zero = num_tiles * 0
    slot = Slot(zero, zero)
    turn = zero
    q = matrices(queries.tiles, GROUP, ROWS, C)
    out = matrices(out_tiles, GROUP, ROWS, C)
    for r in range(num_items(num_tiles, sizes)):
        tile, head = tile_and_head(r, sizes, bounds, C)
        b, h = head // sizes.H, head % sizes.H
        runs = key_tiles(masks, sizes, bounds, tile, b, C)
        count = runs.num_left + runs.num_full + runs.num_right
        first_row = tile * TALL + GROUP * ROWS
        i = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, S))
        rows = Rows(
            None if masks.KeyStarts is None and bounds.lower is None else first_keys(i, masks, sizes, bounds, b),
            last_keys(i, masks, sizes, bounds, b),
            None if masks.Documents is None else query_documents(i, masks, sizes, b),
            None if masks.Documents is None else documents_of_sequence(masks, b, sizes.T_k),
            sizes.T_k, qk_scale,
        )  # fmt: skip
        n = runs.left + (count - 1) * BLOCK

        mbarrier.wait(queries.full.index(GROUP), r % 2)
        mbarrier.wait(ring.full.index(slot.index), slot.phase)
        place = Place(slot, turn, n)
        if C.consumers > GROUP + 1 and bounds.upper is not None:
            last = first_row + ROWS - 1 + bounds.upper
            place = skip_unseen(place, last, runs.left, ring, turns, poison, GROUP, C)
        slot = place.slot
        s = start_scores(q, matrices(ring.a, slot.index, BLOCK, C), S, BLOCK, C)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(ring.empty.index(slot.index), count=1)
        acc = Pair(gl.zeros([ROWS, D_LOW], gl.float32, LOW), gl.zeros([ROWS, max(D_HIGH, 16)], gl.float32, HIGH))
        m = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, S))
        l = gl.full([ROWS], 0.0, gl.float32, gl.SliceLayout(1, S))
        flight = Flight(acc, s, m, l)
        place = Place(next_slot(slot, STAGES), place.turn, place.n)
        # One tile, the first or the last, is by itself: it may have a mask, and need none. The others: masked, full,
        # masked.
        if OVERLAPS:
            p, _, m, l = weigh(flight, s, place, dtype, ring, poison, rows, True, GROUP, S, P, C)
            flight = Flight(acc, p, m, l)
            place = Place(place.slot, place.turn, place.n - BLOCK)
            flight, place = steps_overlapped(
                flight, place, runs.right, q, ring, turns, poison, rows, True, GROUP, S, P, C
            )
            flight, place = steps_overlapped(
                flight, place, runs.full, q, ring, turns, poison, rows, False, GROUP, S, P, C
            )
            if HAS_LEFT:
                flight, place = steps_overlapped(
                    flight, place, runs.left, q, ring, turns, poison, rows, True, GROUP, S, P, C
                )
        else:
            stop = runs.left + BLOCK
            flight, place = steps_in_turn(
                flight, place, gl.maximum(runs.right, stop), q, ring, turns, poison, rows, True, GROUP, S, P, C
            )
            flight, place = steps_in_turn(
                flight, place, gl.maximum(runs.full, stop), q, ring, turns, poison, rows, False, GROUP, S, P, C
            )
            if HAS_LEFT:
                flight, place = steps_in_turn(flight, place, stop, q, ring, turns, poison, rows, True, GROUP, S, P, C)
            p, alpha, m, l = weigh(flight, flight.p, place, dtype, ring, poison, rows, True, GROUP, S, P, C)
            flight = Flight(scaled_rows(flight.acc, alpha, C), p, m, l)
        slot, turn = place.slot, place.turn
        if OUT_APART:
            mbarrier.arrive(queries.empty.index(GROUP), count=1)

        # The last tile's weights times its values; the slot is released with the next item's first tile.
        acc = start_product(flight.p, matrices(ring.b, slot.index, BLOCK, C), flight.acc, C)
        # A row that saw nothing has l = 0 and m = -inf: its output is 0 / 1 and its lse -inf + log2(1).
        l = gl.where(flight.l == 0.0, 1.0, flight.l)
        offs = head.to(gl.int64) * sizes.T_q + i
        gl.store(Lse + offs, (flight.m + gl.log2(l)) * LN_2, mask=i < sizes.T_q)
        acc, inverse = wait_for_product(acc, 1.0 / l, C)
        tma.store_wait(0)  # of the item before: its output has been read
        warpgroup_barrier()
        store_rows(scaled_rows(acc, inverse, C), out, C)
        fence_async_shared()
        store_pair(out_desc, b, h, first_row, out_tiles, GROUP, C)
        if not OUT_APART:
            tma.store_wait(0)
            mbarrier.arrive(queries.empty.index(GROUP), count=1)
    tma.store_wait(0)


@gluon.jit
def skip_unseen(place, last, first, ring, turns, poison, GROUP: gl.constexpr, C: gl.constexpr):
    """Give back, unread, the slots of tiles after the key `last`, which other consumers see; not that of `first`."""
    BLOCK: gl.constexpr = C.block
    while (place.n > last) & (place.n > first):
        slot = place.slot
        mbarrier.arrive(ring.empty.index(slot.index), count=1)
        take_turn(turns, place.turn, GROUP, C)
        give_turn(turns, GROUP, C)
        slot = next_slot(slot, C.stages)
        mbarrier.wait(ring.full.index(slot.index), slot.phase)
        contain_together(matrices(ring.b, slot.index, BLOCK, C), poison, GROUP, C)
        place = Place(slot, 1 - place.turn, place.n - BLOCK)
    return place


@gluon.jit
def weigh(
    flight, s, place, dtype: gl.constexpr, ring, poison, rows,
    IS_MASKED: gl.constexpr, GROUP: gl.constexpr, S: gl.constexpr, P: gl.constexpr, C: gl.constexpr,
):  # fmt: skip
    """The scores s of the tile place.n become weights; its V comes with the slot of `place`, which is waited for."""
    weights, alpha, m, l = softmax(s, flight.m, flight.l, place.n, rows, IS_MASKED, S, C)
    weights = gl.convert_layout(weights.to(dtype), P)
    # ptxas moves exponentials below the next wait for products unless a block of code ends here: so this wait, whose
    # slot nobody needs yet, comes before that one.
    mbarrier.wait(ring.full.index(place.slot.index), place.slot.phase)
    if IS_MASKED:
        l = contained(l, matrices(ring.b, place.slot.index, C.block, C), place.n, rows, poison, GROUP, S, C)
    return weights, alpha, m, l


@gluon.jit
def steps_overlapped(
    flight, place, stop, q, ring, turns, poison, rows,
    IS_MASKED: gl.constexpr, GROUP: gl.constexpr, S: gl.constexpr, P: gl.constexpr, C: gl.constexpr,
):  # fmt: skip
    """Tiles of keys from place.n down to `stop`; flight.p are the weights of the tile before.

    place.slot holds K of the first beside V of the tile before. A softmax runs under that tile's product: its weights
    are held for as long.
    """
    BLOCK: gl.constexpr = C.block
    STAGES: gl.constexpr = C.stages
    while place.n >= stop:
        slot = place.slot
        take_turn(turns, place.turn, GROUP, C)
        s = start_scores(q, matrices(ring.a, slot.index, BLOCK, C), S, BLOCK, C)
        acc = start_product(flight.p, matrices(ring.b, slot.index, BLOCK, C), flight.acc, C)
        give_turn(turns, GROUP, C)
        s, acc, p = wait_for_scores(s, acc, flight.p, C)  # the product of p and V runs on
        place = Place(next_slot(slot, STAGES), 1 - place.turn, place.n)
        weights, alpha, m, l = weigh(flight, s, place, p.dtype, ring, poison, rows, IS_MASKED, GROUP, S, P, C)
        acc, weights = wait_for_product(acc, weights, C)
        mbarrier.arrive(ring.empty.index(slot.index), count=1)
        flight = Flight(scaled_rows(acc, alpha, C), weights, m, l)
        place = Place(place.slot, place.turn, place.n - BLOCK)
    return flight, place


@gluon.jit
def steps_in_turn(
    flight, place, stop, q, ring, turns, poison, rows,
    IS_MASKED: gl.constexpr, GROUP: gl.constexpr, S: gl.constexpr, P: gl.constexpr, C: gl.constexpr,
):  # fmt: skip
    """Tiles of keys from place.n down to `stop`; flight.p are the scores of the first, and then of the one after them.

    place.slot holds V of the first beside K of the next. A softmax runs under the other consumers' products only.
    """
    BLOCK: gl.constexpr = C.block
    STAGES: gl.constexpr = C.stages
    dtype: gl.constexpr = q.low.dtype
    while place.n >= stop:
        slot = place.slot
        weights, alpha, m, l = weigh(flight, flight.p, place, dtype, ring, poison, rows, IS_MASKED, GROUP, S, P, C)
        acc = scaled_rows(flight.acc, alpha, C)
        take_turn(turns, place.turn, GROUP, C)
        acc = start_product(weights, matrices(ring.b, slot.index, BLOCK, C), acc, C)
        s = start_scores(q, matrices(ring.a, slot.index, BLOCK, C), S, BLOCK, C)
        give_turn(turns, GROUP, C)
        acc, s = wait_for_product(acc, s, C)
        mbarrier.arrive(ring.empty.index(slot.index), count=1)
        flight = Flight(acc, s, m, l)
        place = Place(next_slot(slot, STAGES), 1 - place.turn, place.n - BLOCK)
    return flight, place


@gluon.jit
def take_turn(turns, turn, GROUP: gl.constexpr, C: gl.constexpr):
    """Wait until the consumer before this one has started its products."""
    if C.consumers > 1:
        mbarrier.wait(turns.index(GROUP), turn)


@gluon.jit
def give_turn(turns, GROUP: gl.constexpr, C: gl.constexpr):
    """Let the next consumer start its products."""
    if C.consumers > 1:
        mbarrier.arrive(turns.index((GROUP + 1) % C.consumers), count=1)


@gluon.jit
def wait_for_scores(s, acc, p, C: gl.constexpr):
    """Wait for the scores, not for the product that was started after them."""
    if C.d_high > 0:
        s, low, high, p = warpgroup_mma_wait(2, deps=[s, acc.low, acc.high, p])
        return s, Pair(low, high), p
    else:
        s, low, p = warpgroup_mma_wait(1, deps=[s, acc.low, p])
        return s, Pair(low, acc.high), p


@gluon.jit
def wait_for_product(acc, beside, C: gl.constexpr):
    """Wait for all products that are in flight; `beside` is there by then too."""
    if C.d_high > 0:
        low, high, beside = warpgroup_mma_wait(0, deps=[acc.low, acc.high, beside])
        return Pair(low, high), beside
    else:
        low, beside = warpgroup_mma_wait(0, deps=[acc.low, beside])
        return Pair(low, acc.high), beside


@gluon.jit
def scaled_rows(acc, factor, C: gl.constexpr):
    """Each row of both tiles times its factor."""
    low = acc.low * gl.expand_dims(gl.convert_layout(factor, gl.SliceLayout(1, acc.low.type.layout)), 1)
    high = acc.high
    if C.d_high > 0:
        high = high * gl.expand_dims(gl.convert_layout(factor, gl.SliceLayout(1, high.type.layout)), 1)
    return Pair(low, high)


@gluon.jit
def store_rows(acc, tiles, C: gl.constexpr):
    """acc into the Pair `tiles` in shared memory, in its type."""
    tiles.low.store(acc.low.to(tiles.low.dtype))
    if C.d_high > 0:
        tiles.high.store(acc.high.to(tiles.high.dtype))
