"""Device code: the attention forward on Hopper, warp-specialised as in FlashAttention-3 (Shah et al. 2024).

    producer     K(0) | K(1) V(0) | K(2) V(1) | ...      slots of a ring, one after the other, over all of a CTA's items
    consumer 0   QK(i) and PV(i-1) issued together, softmax(i) under PV(i-1) and under the other consumers' products
    consumer 1   the same, half a step later: the consumers take turns at issuing

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

from ..masks import documents_of_sequence, key_bounds, load_documents, tile_runs
from ..structs import Band, Pair, Runs
from .device import (
    FEW,
    LN_2,
    ROWS,
    barriers,
    contain,
    either,
    item_of,
    load_pair,
    marks,
    matrices,
    next_slot,
    nonfinite_in,
    num_items,
    pair_bytes,
    start_product,
    start_scores,
    store_pair,
    tiles_like,
    warpgroup_barrier,
)
from .structs import Bounds, Descriptors, Flight, Held, Place, Poison, Ring, Rows, Sizes, Slot


@gluon.jit(do_not_specialize=["T_q", "T_k", "H", "group", "num_heads", "lower", "upper", "heads_per_section"])
def hopper_forward_kernel(
    QLow, QHigh, KLow, KHigh, VLow, VHigh, OutLow, OutHigh, Lse, masks,
    T_q, T_k, H, group, num_heads, lower, upper, heads_per_section, qk_scale, C: gl.constexpr,
):  # fmt: skip
    """out = softmax(scale · q kᵀ + mask) v and lse, the log of the softmax's denominators. launch.forward calls it.

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
    STAGES: gl.constexpr = C.stages
    CONSUMERS: gl.constexpr = C.consumers
    TALL: gl.constexpr = ROWS * C.consumers
    BYTES: gl.constexpr = pair_bytes(BLOCK, C)
    QUERY_BYTES: gl.constexpr = pair_bytes(ROWS, C)
    num_tiles = gl.cdiv(sizes.T_q, TALL)
    zero = num_tiles * 0
    slot = Slot(zero, zero)
    is_first = zero == 0
    v_b, v_h, v_n = zero, zero, zero  # the tile whose V comes next
    for r in range(num_items(num_tiles, sizes)):
        tile, head = item_of(r, num_tiles, sizes)
        b, h = head // sizes.H, head % sizes.H
        h_kv = h // sizes.group
        runs = key_tiles(masks, sizes, bounds, tile, b, C)
        count = runs.num_left + runs.num_full + runs.num_right
        n = runs.left + (count - 1) * BLOCK
        for t in range(count):
            full = ring.full.index(slot.index)
            mbarrier.wait(ring.empty.index(slot.index), 1 - slot.phase)
            mbarrier.expect(full, BYTES, pred=is_first)
            mbarrier.expect(full, 2 * BYTES, pred=not is_first)
            load_pair(k_desc, b, h_kv, n, full, ring.a, slot.index, True, C)
            load_pair(v_desc, v_b, v_h, v_n, full, ring.b, slot.index, not is_first, C)
            v_b, v_h, v_n = b, h_kv, n
            n -= BLOCK
            is_first = is_first & False
            slot = next_slot(slot, STAGES)
            if (
                t == 0
            ):  # after the values of the last item's last tile: queries are given back when those have been used
                for g in gl.static_range(CONSUMERS):
                    mbarrier.wait(queries.empty.index(g), 1 - r % 2)
                    mbarrier.expect(queries.full.index(g), QUERY_BYTES)
                    load_pair(q_desc, b, h, tile * TALL + g * ROWS, queries.full.index(g), queries.tiles, g, True, C)
    mbarrier.wait(ring.empty.index(slot.index), 1 - slot.phase)
    mbarrier.expect(ring.full.index(slot.index), BYTES)
    load_pair(v_desc, v_b, v_h, v_n, ring.full.index(slot.index), ring.b, slot.index, True, C)


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
        tile, head = item_of(r, num_tiles, sizes)
        b = head // sizes.H
        h = head % sizes.H
        runs = key_tiles(masks, sizes, bounds, tile, b, C)
        count = runs.num_left + runs.num_full + runs.num_right
        first_row = tile * TALL + GROUP * ROWS
        i = first_row + gl.arange(0, ROWS, gl.SliceLayout(1, S))
        rows = rows_of(i, masks, sizes, bounds, b, qk_scale)
        n = runs.left + (count - 1) * BLOCK

        mbarrier.wait(queries.full.index(GROUP), r % 2)
        mbarrier.wait(ring.full.index(slot.index), slot.phase)
        s = start_scores(q, matrices(ring.a, slot.index, BLOCK, C), S, BLOCK, C)
        s = warpgroup_mma_wait(0, deps=[s])
        mbarrier.arrive(ring.empty.index(slot.index), count=1)
        m = gl.full([ROWS], float("-inf"), gl.float32, gl.SliceLayout(1, S))
        l = gl.full([ROWS], 0.0, gl.float32, gl.SliceLayout(1, S))
        acc = Pair(gl.zeros([ROWS, D_LOW], gl.float32, LOW), gl.zeros([ROWS, max(D_HIGH, 16)], gl.float32, HIGH))
        slot = next_slot(slot, STAGES)
        place = Place(slot, turn, n)
        if OVERLAPS:
            flight = Flight(acc, s, m, l)
            flight = weigh(flight, place, q, ring, poison, rows, True, GROUP, S, P, C)
            place = Place(slot, turn, n - BLOCK)
            flight, place = steps_over(flight, place, runs.right, q, ring, turns, poison, rows, True, GROUP, S, C)
            flight, place = steps_over(flight, place, runs.full, q, ring, turns, poison, rows, False, GROUP, S, C)
            if HAS_LEFT:
                flight, place = steps_over(flight, place, runs.left, q, ring, turns, poison, rows, True, GROUP, S, C)
        else:
            flight = Flight(acc, s, m, l)
            last = runs.left + BLOCK  # the last tile is for afterwards
            flight, place = steps_apart(flight, place, gl.maximum(runs.right, last), q, ring, turns, poison, rows, True, GROUP, S, P, C)
            flight, place = steps_apart(flight, place, gl.maximum(runs.full, last), q, ring, turns, poison, rows, False, GROUP, S, P, C)
            if HAS_LEFT:
                flight, place = steps_apart(flight, place, last, q, ring, turns, poison, rows, True, GROUP, S, P, C)
            flight = weigh(flight, place, q, ring, poison, rows, True, GROUP, S, P, C)
        slot, turn = place.slot, place.turn
        if OUT_APART:
            mbarrier.arrive(queries.empty.index(GROUP), count=1)

        # The last tile's weights times its values; the slot is released with the next item's first tile.
        acc = start_product(flight.p, matrices(ring.b, slot.index, BLOCK, C), flight.acc, C)
        # A row that saw nothing has l = 0 and m = -inf: its output is 0 / 1 and its lse -inf + log2(1).
        l = gl.where(flight.l == 0.0, 1.0, flight.l)
        offs = head.to(gl.int64) * sizes.T_q + i
        gl.store(Lse + offs, (flight.m + gl.log2(l)) * LN_2, mask=i < sizes.T_q)
        inverse = 1.0 / l
        acc = wait_for_product(acc, C)
        tma.store_wait(0)  # of the item before: its output has been read
        warpgroup_barrier()
        store_scaled(acc, inverse, out, dtype, LOW, HIGH, C)
        fence_async_shared()
        store_pair(out_desc, b, h, first_row, out_tiles, GROUP, C)
        if not OUT_APART:
            tma.store_wait(0)
            mbarrier.arrive(queries.empty.index(GROUP), count=1)
    tma.store_wait(0)


@gluon.jit
def weigh(flight, place, q, ring, poison, rows, IS_MASKED: gl.constexpr, GROUP: gl.constexpr, S: gl.constexpr, P: gl.constexpr, C: gl.constexpr):
    """Flight with weights in the place of scores, of the tile place.n, whose V is in the slot to come."""
    weights, alpha, m, l = softmax(flight.p, flight.m, flight.l, place.n, rows, IS_MASKED, S, C)
    weights = gl.convert_layout(weights.to(q.low.dtype), P)
    acc = scaled_rows(flight.acc, alpha, C)
    mbarrier.wait(ring.full.index(place.slot.index), place.slot.phase)
    if IS_MASKED:
        v = matrices(ring.b, place.slot.index, C.block, C)
        l = contained(l, v, place.n, rows, poison, GROUP, S, C)
    return Flight(acc, weights, m, l)


@gluon.jit
def steps_apart(
    flight, place, stop, q, ring, turns, poison, rows,
    IS_MASKED: gl.constexpr, GROUP: gl.constexpr, S: gl.constexpr, P: gl.constexpr, C: gl.constexpr,
):  # fmt: skip
    """Tiles of keys from place.n down to `stop`, whose scores are there; and the scores of the tile after them."""
    BLOCK: gl.constexpr = C.block
    STAGES: gl.constexpr = C.stages
    CONSUMERS: gl.constexpr = C.consumers
    while place.n >= stop:
        slot = place.slot
        flight = weigh(flight, place, q, ring, poison, rows, IS_MASKED, GROUP, S, P, C)
        if CONSUMERS > 1:
            mbarrier.wait(turns.index(GROUP), place.turn)
        acc = start_product(flight.p, matrices(ring.b, slot.index, BLOCK, C), flight.acc, C)
        s = start_scores(q, matrices(ring.a, slot.index, BLOCK, C), S, BLOCK, C)
        if CONSUMERS > 1:
            mbarrier.arrive(turns.index((GROUP + 1) % CONSUMERS), count=1)
        acc, s = wait_for_product_beside(acc, s, C)
        mbarrier.arrive(ring.empty.index(slot.index), count=1)
        flight = Flight(acc, s, flight.m, flight.l)
        place = Place(next_slot(slot, STAGES), 1 - place.turn, place.n - BLOCK)
    return flight, place


@gluon.jit
def steps_over(
    flight, place, stop, q, ring, turns, poison, rows,
    IS_MASKED: gl.constexpr, GROUP: gl.constexpr, S: gl.constexpr, C: gl.constexpr,
):  # fmt: skip
    """Tiles of keys from place.n down to `stop`. K of the first is there, beside V of the tile before it."""
    BLOCK: gl.constexpr = C.block
    STAGES: gl.constexpr = C.stages
    CONSUMERS: gl.constexpr = C.consumers
    while place.n >= stop:
        slot = place.slot
        if CONSUMERS > 1:
            mbarrier.wait(turns.index(GROUP), place.turn)
        s = start_scores(q, matrices(ring.a, slot.index, BLOCK, C), S, BLOCK, C)
        acc = start_product(flight.p, matrices(ring.b, slot.index, BLOCK, C), flight.acc, C)
        if CONSUMERS > 1:
            mbarrier.arrive(turns.index((GROUP + 1) % CONSUMERS), count=1)
        s, acc, p = wait_for_scores(s, acc, flight.p, C)  # the product of p and V runs on
        weights, alpha, m, l = softmax(s, flight.m, flight.l, place.n, rows, IS_MASKED, S, C)
        weights = gl.convert_layout(weights.to(p.dtype), p.type.layout)
        slot_after = next_slot(slot, STAGES)
        # ptxas moves the exponentials below the next wait unless a block of code ends here: so the wait for the next
        # slot stands here, and not at the top of the loop.
        mbarrier.wait(ring.full.index(slot_after.index), slot_after.phase)
        if IS_MASKED:
            v = matrices(ring.b, slot_after.index, BLOCK, C)
            l = contained(l, v, place.n, rows, poison, GROUP, S, C)
        acc, weights = wait_for_product_beside(acc, weights, C)
        mbarrier.arrive(ring.empty.index(slot.index), count=1)
        flight = Flight(scaled_rows(acc, alpha, C), weights, m, l)
        place = Place(slot_after, 1 - place.turn, place.n - BLOCK)
    return flight, place


@gluon.jit
def softmax(s, m, l, n, rows, IS_MASKED: gl.constexpr, S: gl.constexpr, C: gl.constexpr):
    """One step of the online softmax over the keys n, n + 1, ...: (p, the factor of what was summed before, m, l)."""
    BLOCK: gl.constexpr = C.block
    if IS_MASKED:
        sees = visible_tile(n, gl.arange(0, BLOCK, gl.SliceLayout(0, S)), rows)
        s = gl.where(sees, s, float("-inf"))  # times a scale that is not 0
    m_new = gl.maximum(m, gl.max(s, axis=1) * rows.qk_scale)
    m_safe = m_new
    if IS_MASKED:  # a row that has seen no key yet: its maximum is -inf, and -inf - -inf would be NaN
        m_safe = gl.where(m_new == float("-inf"), 0.0, m_new)
    p = gl.exp2(s * rows.qk_scale - gl.expand_dims(m_safe, 1))
    alpha = gl.exp2(m - m_safe)
    return p, alpha, m_new, l * alpha + gl.sum(p, axis=1)


@gluon.jit
def rows_of(i, masks, sizes, bounds, b, qk_scale):
    """Rows of the queries i (64,) of sequence b."""
    first_key, end_key = key_bounds(masks, b, sizes.T_k)
    last = gl.zeros_like(i) + end_key - 1
    if bounds.upper is not None:
        last = gl.minimum(last, i + bounds.upper)
    first = None
    if masks.KeyStarts is not None:
        first = gl.zeros_like(i) + first_key
    if bounds.lower is not None:
        first = gl.maximum(i + bounds.lower, first_key)
    Documents, documents = None, None
    if masks.Documents is not None:
        Documents = documents_of_sequence(masks, b, sizes.T_k)
        documents = gl.expand_dims(load_documents(Documents, sizes.T_k - sizes.T_q + i, i < sizes.T_q), 1)
    return Rows(first, last, documents, Documents, sizes.T_k, qk_scale)


@gluon.jit
def visible_tile(n, c, rows):
    """(64, columns) bool: which of the keys n + c, c (columns,), each row sees."""
    c_row = gl.expand_dims(c, 0)
    sees = c_row <= gl.expand_dims(rows.last - n, 1)
    if rows.first is not None:
        sees = sees & (c_row >= gl.expand_dims(rows.first - n, 1))
    if rows.documents is not None:
        j = n + c
        sees = sees & (rows.documents == gl.expand_dims(load_documents(rows.Documents, j, j < rows.T_k), 0))
    return sees


@gluon.jit
def contained(l, v, n, rows, poison, GROUP: gl.constexpr, S: gl.constexpr, C: gl.constexpr):
    """Make v, the values of a masked tile, fit for weights that are 0: inf and NaN must reach only rows that see them.

    They become 0; the sums l of the rows that see them become NaN, and so will their outputs and lse.
    """
    BLOCK: gl.constexpr = C.block
    if nonfinite_in(v, BLOCK, C):
        contain(v, poison.Marks, poison.together, BLOCK, GROUP, C)
        l = gl.where(sees_marked(n, rows, poison.Marks, S, C), float("nan"), l)
    return l


@gluon.jit
def sees_marked(n, rows, Marks, S: gl.constexpr, C: gl.constexpr):
    """(64,) bool: which rows see one of the keys n, n + 1, ... that are marked. Few at a time: registers are held."""
    W: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, FEW, 16])  # rows lie as in S
    few_rows = rows_in(rows, W)
    found = gl.zeros([ROWS], gl.int32, gl.SliceLayout(1, W))
    for c in range(C.block // FEW):
        marked = gl.expand_dims(Marks.index(c).load(gl.SliceLayout(0, W)), 0) != 0
        sees = visible_tile(n + c * FEW, gl.arange(0, FEW, gl.SliceLayout(0, W)), few_rows)
        found = found | gl.reduce((sees & marked).to(gl.int32), 1, either)
    return gl.convert_layout(found, gl.SliceLayout(1, S)) != 0


@gluon.jit
def rows_in(rows, W: gl.constexpr):
    """Rows, laid out for tiles of layout W."""
    first, documents = None, None
    if rows.first is not None:
        first = gl.convert_layout(rows.first, gl.SliceLayout(1, W))
    if rows.documents is not None:
        documents = gl.convert_layout(rows.documents, W)
    last = gl.convert_layout(rows.last, gl.SliceLayout(1, W))
    return Rows(first, last, documents, rows.Documents, rows.T_k, rows.qk_scale)


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
def wait_for_product_beside(acc, weights, C: gl.constexpr):
    """Wait for the product; `weights`, the next one's, are there by then."""
    if C.d_high > 0:
        low, high, weights = warpgroup_mma_wait(0, deps=[acc.low, acc.high, weights])
        return Pair(low, high), weights
    else:
        low, weights = warpgroup_mma_wait(0, deps=[acc.low, weights])
        return Pair(low, acc.high), weights


@gluon.jit
def wait_for_product(acc, C: gl.constexpr):
    """Wait for the product."""
    if C.d_high > 0:
        low, high = warpgroup_mma_wait(0, deps=[acc.low, acc.high])
        return Pair(low, high)
    else:
        low = warpgroup_mma_wait(0, deps=[acc.low])
        return Pair(low, acc.high)


@gluon.jit
def scaled_rows(acc, factor, C: gl.constexpr):
    """Each row of both tiles times its factor."""
    low = acc.low * gl.expand_dims(gl.convert_layout(factor, gl.SliceLayout(1, acc.low.type.layout)), 1)
    high = acc.high
    if C.d_high > 0:
        high = high * gl.expand_dims(gl.convert_layout(factor, gl.SliceLayout(1, high.type.layout)), 1)
    return Pair(low, high)


@gluon.jit
def store_scaled(acc, factor, out, dtype: gl.constexpr, LOW: gl.constexpr, HIGH: gl.constexpr, C: gl.constexpr):
    """acc, its rows times `factor`, into the Pair `out` in shared memory."""
    acc = scaled_rows(acc, factor, C)
    out.low.store(acc.low.to(dtype))
    if C.d_high > 0:
        out.high.store(acc.high.to(dtype))
