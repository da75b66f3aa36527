"""Device code: dK and dV on Hopper, warp-specialised.

Scores stand transposed here, keys by queries, so that the weights and their gradients are left operands of products and
never leave the registers. A step of a consumer, for the tile c of queries:

    start S(c) = K Qᵀ, dK += dS(c - 1) Q(c - 1), dP(c) = V dOᵀ
    wait for S             P(c) = exp2(S - lse2), under the other two products
    wait for those         start dV += P(c) dO(c)
                           dS(c) = P ∘ (dP - delta), under it
    wait for dV            give slot c - 1 back

So each product has other work of its own warpgroup beside it, and none is in flight from one step to the next: ptxas
would serialise all of them. Where dK's lag takes more registers than there are (`dk_lags`), dK follows dS in its own step,
and the other consumer's products fill the gap.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import (
    fence_async_shared,
    mbarrier,
    tma,
    warpgroup_mma_wait,
)

from ..masks import documents_of_sequence, key_bounds, load_documents, num_steps, tile_runs, tile_start, visible
from ..structs import Band, KeyValue, Mask, Pair, Scores
from .device import (
    LOG2_E,
    ROWS,
    barriers,
    item_of,
    load_by_tma,
    load_pair,
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
from .structs import Bounds, Descriptors, HeldKeys, QueryPlace, QueryRing, Sizes, Slot


@gluon.jit(do_not_specialize=["T_q", "T_k", "H_kv", "num_heads", "lower", "upper", "heads_per_section"])
def hopper_dkdv_kernel(
    QLow, QHigh, DOutLow, DOutHigh, KLow, KHigh, VLow, VHigh, DKLow, DKHigh, DVLow, DVHigh, Lse2, Delta, masks,
    T_q, T_k, H_kv, num_heads, lower, upper, heads_per_section, softmax_scale, C: gl.constexpr,
):  # fmt: skip
    """dv = pᵀ dout and dk = scale · dsᵀ q, summed over the heads of a group. launch.backward calls it.

    QLow ... DVHigh  TMA descriptors: of Q and DOut (B, H, T_q, head_dim), boxes of block rows; of K, V, DK and DV
                     (B, H / group, T_k, head_dim), boxes of 64 rows
    Lse2, Delta      TMA descriptors of (B · H, T_q) float32, boxes of block numbers: what attention_delta_kernel wrote
    masks, lower, upper    what weights are 0: see masks.py and structs.py of the portable kernels; masks.Ranges of tiles of
                     keys
    num_heads        B · H / group

    One CTA: every grid-th item, an item being 64 · consumers keys of one head, over the queries of all heads of its group
    that see them.
    """
    STAGES: gl.constexpr = C.stages
    CONSUMERS: gl.constexpr = C.consumers
    SETS: gl.constexpr = num_sets(C)
    q_desc, dout_desc = Descriptors(QLow, QHigh), Descriptors(DOutLow, DOutHigh)
    k_desc, v_desc = Descriptors(KLow, KHigh), Descriptors(VLow, VHigh)
    dk_desc, dv_desc = Descriptors(DKLow, DKHigh), Descriptors(DVLow, DVHigh)
    keys = HeldKeys(
        tiles_like(k_desc, SETS * CONSUMERS, C), tiles_like(v_desc, SETS * CONSUMERS, C),
        barriers(SETS * CONSUMERS, 1), barriers(SETS * CONSUMERS, 1),
    )  # fmt: skip
    ring = QueryRing(
        tiles_like(q_desc, STAGES, C), tiles_like(dout_desc, STAGES, C),
        gl.allocate_shared_memory(gl.float32, [STAGES, 1, C.block], Lse2.layout),
        gl.allocate_shared_memory(gl.float32, [STAGES, 1, C.block], Delta.layout),
        barriers(STAGES, 1), barriers(STAGES, CONSUMERS),
    )  # fmt: skip
    meeting = barriers(1, CONSUMERS)
    sizes = Sizes(T_q, T_k, H_kv, C.group, num_heads, heads_per_section)
    bounds = Bounds(lower, upper)
    # The tuples stand here and not in variables: assigning one turns its constexprs into tensors.
    if CONSUMERS == 1:
        gl.warp_specialize([
            (consumer, (dk_desc, dv_desc, masks, sizes, bounds, softmax_scale, keys, ring, meeting, C, 0)),
            (producer, (q_desc, dout_desc, Lse2, Delta, k_desc, v_desc, masks, sizes, bounds, keys, ring, C)),
        ], [1], [24])  # fmt: skip
    else:
        gl.warp_specialize([
            (consumer, (dk_desc, dv_desc, masks, sizes, bounds, softmax_scale, keys, ring, meeting, C, 0)),
            (consumer, (dk_desc, dv_desc, masks, sizes, bounds, softmax_scale, keys, ring, meeting, C, 1)),
            (producer, (q_desc, dout_desc, Lse2, Delta, k_desc, v_desc, masks, sizes, bounds, keys, ring, C)),
        ], [4, 1], [240, 24])  # fmt: skip


@gluon.constexpr_function
def num_sets(C):
    """How many items' keys there is room for."""
    return 2 if C.out_apart else 1


@gluon.constexpr_function
def dk_lags(C):
    """Whether registers hold the gradients of a step's scores until the next one."""
    return C.d_low + C.d_high <= 96


@gluon.jit
def tile_and_head(r, sizes, bounds, C: gl.constexpr):
    """(tile, key head) of this CTA's r-th item; those that most queries see go first."""
    num_tiles = gl.cdiv(sizes.T_k, ROWS * C.consumers)
    tile, head = item_of(r, num_tiles, sizes)
    if bounds.lower is not None and bounds.upper is None:
        tile = num_tiles - 1 - tile
    return tile, head


@gluon.jit
def query_tiles(masks, sizes, bounds, tile, b, C: gl.constexpr):
    """The tiles of queries that see keys of an item, as Runs."""
    BLOCK: gl.constexpr = C.block
    TALL: gl.constexpr = ROWS * C.consumers
    num_tiles = gl.cdiv(sizes.T_k, TALL)
    column = tile * TALL
    first_key, end_key = key_bounds(masks, b, sizes.T_k)
    # A tile whose keys are all padding has nothing to do. Rows past the last query are zeros, which add nothing: the tile
    # that holds them needs no mask on their account.
    some_key = (column < end_key) & (column + TALL > first_key)
    end = gl.where(some_key, gl.cdiv(sizes.T_q, BLOCK) * BLOCK, 0)
    # Key j is seen by the queries j - upper <= i <= j - lower.
    band = Band(
        None if bounds.upper is None else -bounds.upper, None if bounds.lower is None else -bounds.lower
    )  # fmt: skip
    return tile_runs(
        column, gl.minimum(column + TALL, sizes.T_k) - 1, band, 0, end, masks.Ranges, b * num_tiles + tile, BLOCK, BLOCK
    )


@gluon.jit
def producer(q_desc, dout_desc, Lse2, Delta, k_desc, v_desc, masks, sizes, bounds, keys, ring, C: gl.constexpr):
    """One warp: the keys of each item, and the slots of the ring: masked tiles of queries, then full ones."""
    BLOCK: gl.constexpr = C.block
    STAGES: gl.constexpr = C.stages
    CONSUMERS: gl.constexpr = C.consumers
    GROUP: gl.constexpr = C.group
    SETS: gl.constexpr = num_sets(C)
    TALL: gl.constexpr = ROWS * C.consumers
    BYTES: gl.constexpr = 2 * pair_bytes(BLOCK, C) + 2 * BLOCK * 4
    KEY_BYTES: gl.constexpr = 2 * pair_bytes(ROWS, C)
    zero = sizes.T_k * 0
    slot = Slot(zero, zero)
    for r in range(num_items(gl.cdiv(sizes.T_k, TALL), sizes)):
        tile, head = tile_and_head(r, sizes, bounds, C)
        b, h_kv = head // sizes.H, head % sizes.H
        runs = query_tiles(masks, sizes, bounds, tile, b, C)
        for n in gl.static_range(CONSUMERS):
            held = r % SETS * CONSUMERS + n
            mbarrier.wait(keys.empty.index(held), 1 - r // SETS % 2)
            mbarrier.expect(keys.full.index(held), KEY_BYTES)
            load_pair(k_desc, b, h_kv, tile * TALL + n * ROWS, keys.full.index(held), keys.k, held, True, C)
            load_pair(v_desc, b, h_kv, tile * TALL + n * ROWS, keys.full.index(held), keys.v, held, True, C)
        num_masked = num_steps(runs, True) * GROUP
        for step in range(num_masked + num_steps(runs, False) * GROUP):
            is_masked = step < num_masked
            m = tile_start(step // GROUP, runs, BLOCK, BLOCK, True)
            m = gl.where(is_masked, m, tile_start((step - num_masked) // GROUP, runs, BLOCK, BLOCK, False))
            g = step % GROUP  # num_masked is a multiple of GROUP
            full = ring.full.index(slot.index)
            mbarrier.wait(ring.empty.index(slot.index), 1 - slot.phase)
            mbarrier.expect(full, BYTES)
            load_pair(q_desc, b, h_kv * GROUP + g, m, full, ring.q, slot.index, True, C)
            load_by_tma(Lse2, [head * GROUP + g, m], full, ring.lse2.index(slot.index))
            load_pair(dout_desc, b, h_kv * GROUP + g, m, full, ring.dout, slot.index, True, C)
            load_by_tma(Delta, [head * GROUP + g, m], full, ring.delta.index(slot.index))
            slot = next_slot(slot, STAGES)


@gluon.jit
def consumer(
    dk_desc, dv_desc, masks, sizes, bounds, softmax_scale, keys, ring, meeting, C: gl.constexpr, CONSUMER: gl.constexpr
):
    """A warpgroup: keys 64 · CONSUMER and the 63 after them of each item."""
    BLOCK: gl.constexpr = C.block
    CONSUMERS: gl.constexpr = C.consumers
    GROUP: gl.constexpr = C.group
    OUT_APART: gl.constexpr = C.out_apart
    SETS: gl.constexpr = num_sets(C)
    TALL: gl.constexpr = ROWS * C.consumers
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK, 16])
    LOW: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, C.d_low, 16])
    HIGH: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, max(C.d_high, 16), 16])
    dtype: gl.constexpr = dk_desc.low.dtype
    zero = sizes.T_k * 0
    slot = Slot(zero, zero)
    for r in range(num_items(gl.cdiv(sizes.T_k, TALL), sizes)):
        tile, head = tile_and_head(r, sizes, bounds, C)
        b, h_kv = head // sizes.H, head % sizes.H
        runs = query_tiles(masks, sizes, bounds, tile, b, C)
        first = tile * TALL + CONSUMER * ROWS
        j = first + gl.arange(0, ROWS, gl.SliceLayout(1, S))
        Documents, documents = None, None
        if masks.Documents is not None:
            Keys = documents_of_sequence(masks, b, sizes.T_k)
            documents = gl.expand_dims(load_documents(Keys, j, j < sizes.T_k), 1)
            Documents = Keys + (sizes.T_k - sizes.T_q)
        # Padding keys need no mask: what is computed for them stays in their own rows, and is dropped at the end.
        mask = Mask(0, 2147483647, Band(bounds.lower, bounds.upper), documents, Documents)
        scores = Scores(gl.expand_dims(j, 1), sizes.T_q, softmax_scale * LOG2_E, mask, None)

        num_masked = num_steps(runs, True) * GROUP
        num_full = num_steps(runs, False) * GROUP
        held = r % SETS * CONSUMERS + CONSUMER
        k, v = matrices(keys.k, held, ROWS, C), matrices(keys.v, held, ROWS, C)
        place = QueryPlace(slot, slot.index, num_masked + num_full)
        ds = gl.zeros([ROWS, BLOCK], dtype, gl.DotOperandLayout(0, LOW, 2))
        grads = KeyValue(zeros(LOW, HIGH), zeros(LOW, HIGH))
        mbarrier.wait(keys.full.index(held), r // SETS % 2)
        mbarrier.wait(ring.full.index(slot.index), slot.phase, pred=place.left > 0)
        # The consumers hold different keys: the first tiles may be of queries that see none of this one's.
        num_skipped = unseen_tiles(runs, first, bounds, C) * GROUP
        for step in range(num_skipped):
            place = skip(place, ring, meeting, CONSUMER, S, C)
        for step in range(num_skipped, num_masked):
            m = tile_start(step // GROUP, runs, BLOCK, BLOCK, True)
            grads, ds, place = dkdv_step(grads, ds, place, step == num_skipped, m, k, v, ring, scores, meeting, True, CONSUMER, S, C)
        if OUT_APART:
            # By now the last item's gradients have left its set of tiles.
            tma.store_wait(0)
            mbarrier.arrive(keys.empty.index((r + 1) % SETS * CONSUMERS + CONSUMER), count=1, pred=r > 0)
        for step in range(num_full):
            is_first = (step == 0) & (num_masked == num_skipped)
            grads, ds, place = dkdv_step(grads, ds, place, is_first, 0, k, v, ring, scores, meeting, False, CONSUMER, S, C)
        dk, dv = grads.k, grads.v
        if dk_lags(C):
            if num_masked + num_full > num_skipped:
                dk = start_product(ds, matrices(ring.q, place.before, BLOCK, C), dk, C)
                dk, ds = wait_for_product(dk, ds, C)
                mbarrier.arrive(ring.empty.index(place.before), count=1)
        slot = place.slot

        # A warp has waited for its own quarter of the products; all of them, before the tiles that they read are written.
        warpgroup_barrier()
        first_key, end_key = key_bounds(masks, b, sizes.T_k)
        store_rows(v, dv, 1.0, first, first_key, end_key, LOW, HIGH, C)
        store_rows(k, dk, softmax_scale, first, first_key, end_key, LOW, HIGH, C)
        fence_async_shared()
        store_pair(dv_desc, b, h_kv, first, keys.v, held, C)
        store_pair(dk_desc, b, h_kv, first, keys.k, held, C)
        if not OUT_APART:
            tma.store_wait(0)
            mbarrier.arrive(keys.empty.index(CONSUMER), count=1)
    tma.store_wait(0)


@gluon.jit
def dkdv_step(
    grads, ds, place, is_first, m, k, v, ring, scores, meeting, IS_MASKED: gl.constexpr, CONSUMER: gl.constexpr,
    S: gl.constexpr, C: gl.constexpr,
):  # fmt: skip
    """dK and dV from the queries m, m + 1, ... in this slot, which has come; `ds` and dK as in the head of this file."""
    BLOCK: gl.constexpr = C.block
    LAGS: gl.constexpr = dk_lags(C)
    QUERIES: gl.constexpr = gl.SliceLayout(0, S)
    PARTS: gl.constexpr = 1 if C.d_high == 0 else 2
    slot = place.slot
    q, dout = matrices(ring.q, slot.index, BLOCK, C), matrices(ring.dout, slot.index, BLOCK, C)
    lse2 = ring.lse2.index(slot.index).reshape([BLOCK])
    delta = ring.delta.index(slot.index).reshape([BLOCK])
    dk = grads.k
    if IS_MASKED:
        clear_rows(q, dout, lse2, meeting, CONSUMER, S, C)
    sT = start_scores(k, q, S, BLOCK, C)  # (64, block)
    if LAGS:
        dk = start_product(ds, matrices(ring.q, place.before, BLOCK, C), dk, C)
    dpT = start_scores(v, dout, S, BLOCK, C)
    documents = None
    if IS_MASKED and scores.mask.Streamed is not None:
        # One id a thread, each of which comes to those that compare it through shared memory: 16 a thread would spill.
        i = m + gl.arange(0, BLOCK, gl.BlockedLayout([1], [32], [4], [0]))
        documents = load_documents(scores.mask.Streamed, i, i < scores.num_streamed)
    lse2 = lse2.load(QUERIES)
    sT = warpgroup_mma_wait(PARTS * (2 if LAGS else 1), deps=[sT])
    pT = gl.exp2(sT * scores.qk_scale - gl.expand_dims(lse2, 0))
    if IS_MASKED:
        i = m + gl.arange(0, BLOCK, QUERIES)
        if scores.mask.Streamed is not None:
            documents = gl.expand_dims(gl.convert_layout(documents, QUERIES), 0)
        pT = gl.where(visible(gl.expand_dims(i, 0), scores.held, scores.mask, documents), pT, 0.0)
    weights = gl.convert_layout(pT.to(ds.dtype), ds.type.layout)
    dv = start_product(weights, dout, grads.v, C)
    dk, dv, dpT, weights = wait_for_gradients(dk, dv, dpT, weights, LAGS, C)
    dsT = pT * (dpT - gl.expand_dims(delta.load(QUERIES), 0))
    if IS_MASKED:
        dsT = gl.where(pT == 0.0, 0.0, dsT)  # 0 · NaN
    ds = gl.convert_layout(dsT.to(ds.dtype), ds.type.layout)
    after = next_slot(slot, C.stages)
    mbarrier.wait(ring.full.index(after.index), after.phase, pred=place.left > 1)
    if LAGS:
        mbarrier.arrive(ring.empty.index(place.before), count=1, pred=not is_first)
        dv, ds = wait_for_product(dv, ds, C)
    else:
        dk = start_product(ds, q, dk, C)
        dk, dv = wait_for_products(dk, dv, C)
        mbarrier.arrive(ring.empty.index(slot.index), count=1)
    return KeyValue(dk, dv), ds, QueryPlace(after, slot.index, place.left - 1)


@gluon.jit
def unseen_tiles(runs, first, bounds, C: gl.constexpr):
    """How many of the masked tiles, from the first one, hold no query that sees the key `first` or a later one."""
    BLOCK: gl.constexpr = C.block
    if bounds.upper is None:
        return runs.left * 0
    else:
        start = tile_start(0, runs, BLOCK, BLOCK, True)
        unseen = (gl.maximum(first - bounds.upper, start) - start) // BLOCK
        return gl.minimum(unseen, num_steps(runs, True))


@gluon.jit
def skip(place, ring, meeting, CONSUMER: gl.constexpr, S: gl.constexpr, C: gl.constexpr):
    """Give a slot back unread."""
    BLOCK: gl.constexpr = C.block
    index = place.slot.index
    q, dout = matrices(ring.q, index, BLOCK, C), matrices(ring.dout, index, BLOCK, C)
    clear_rows(q, dout, ring.lse2.index(index).reshape([BLOCK]), meeting, CONSUMER, S, C)
    mbarrier.arrive(ring.empty.index(index), count=1)
    after = next_slot(place.slot, C.stages)
    mbarrier.wait(ring.full.index(after.index), after.phase, pred=place.left > 1)
    return QueryPlace(after, after.index, place.left - 1)


@gluon.jit
def clear_rows(q, dout, lse2, meeting, CONSUMER: gl.constexpr, S: gl.constexpr, C: gl.constexpr):
    """Where lse2 is not finite, 0 in the row's q and dout: 0 · NaN would carry them to keys that the row does not see.

    The keys that it does see get NaN through lse2. All consumers come here for the same slots, before they read them.
    """
    BLOCK: gl.constexpr = C.block
    is_good = gl.abs(lse2.load(gl.SliceLayout(0, S))) < float("inf")
    if gl.min(is_good.to(gl.int32), 0) == 0:
        meet(meeting, 0)
        if CONSUMER == 0:
            clear_part(q.low, lse2, BLOCK, C.d_low)
            clear_part(dout.low, lse2, BLOCK, C.d_low)
            if C.d_high > 0:
                clear_part(q.high, lse2, BLOCK, C.d_high)
                clear_part(dout.high, lse2, BLOCK, C.d_high)
            fence_async_shared()
        meet(meeting, 1)


@gluon.jit
def meet(meeting, PHASE: gl.constexpr):
    """Wait until all consumers are here."""
    mbarrier.arrive(meeting.index(0), count=1)
    mbarrier.wait(meeting.index(0), PHASE)


@gluon.jit
def clear_part(tile, lse2, BLOCK: gl.constexpr, COLUMNS: gl.constexpr):
    """One tile of `clear_rows`."""
    THREADS: gl.constexpr = COLUMNS // 8
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [32 // THREADS, THREADS], [4, 1], [1, 0])
    is_good = gl.abs(lse2.load(gl.SliceLayout(1, LAYOUT))) < float("inf")
    x = tile.load(LAYOUT)
    tile.store(gl.where(gl.expand_dims(is_good, 1), x, gl.zeros_like(x)))


@gluon.jit
def wait_for_gradients(dk, dv, dpT, weights, LAGS: gl.constexpr, C: gl.constexpr):
    """Wait for dpT, and for dK if it lags; dV, which was started last, runs on."""
    if not LAGS:
        if C.d_high > 0:
            dv_low, dv_high, dpT, weights = warpgroup_mma_wait(2, deps=[dv.low, dv.high, dpT, weights])
            return dk, Pair(dv_low, dv_high), dpT, weights
        else:
            dv_low, dpT, weights = warpgroup_mma_wait(1, deps=[dv.low, dpT, weights])
            return dk, Pair(dv_low, dv.high), dpT, weights
    else:
        if C.d_high > 0:
            dk_low, dk_high, dv_low, dv_high, dpT, weights = warpgroup_mma_wait(2, deps=[dk.low, dk.high, dv.low, dv.high, dpT, weights])
            return Pair(dk_low, dk_high), Pair(dv_low, dv_high), dpT, weights
        else:
            dk_low, dv_low, dpT, weights = warpgroup_mma_wait(1, deps=[dk.low, dv.low, dpT, weights])
            return Pair(dk_low, dk.high), Pair(dv_low, dv.high), dpT, weights


@gluon.jit
def wait_for_products(dk, dv, C: gl.constexpr):
    """Wait for both products."""
    if C.d_high > 0:
        dk_low, dk_high, dv_low, dv_high = warpgroup_mma_wait(0, deps=[dk.low, dk.high, dv.low, dv.high])
        return Pair(dk_low, dk_high), Pair(dv_low, dv_high)
    else:
        dk_low, dv_low = warpgroup_mma_wait(0, deps=[dk.low, dv.low])
        return Pair(dk_low, dk.high), Pair(dv_low, dv.high)


@gluon.jit
def wait_for_product(acc, beside, C: gl.constexpr):
    """Wait for the product, and for all before it; `beside` is computed by then."""
    if C.d_high > 0:
        low, high, beside = warpgroup_mma_wait(0, deps=[acc.low, acc.high, beside])
        return Pair(low, high), beside
    else:
        low, beside = warpgroup_mma_wait(0, deps=[acc.low, beside])
        return Pair(low, acc.high), beside


@gluon.jit
def zeros(LOW: gl.constexpr, HIGH: gl.constexpr):
    """A Pair of accumulators of 64 rows, in these layouts."""
    WIDTH_LOW: gl.constexpr = LOW.instr_shape[1]
    WIDTH_HIGH: gl.constexpr = HIGH.instr_shape[1]
    return Pair(gl.zeros([ROWS, WIDTH_LOW], gl.float32, LOW), gl.zeros([ROWS, WIDTH_HIGH], gl.float32, HIGH))


@gluon.jit
def store_rows(tiles, acc, factor, first, first_key, end_key, LOW: gl.constexpr, HIGH: gl.constexpr, C: gl.constexpr):
    """acc · factor into the Pair `tiles` in shared memory, 0 for padding keys."""
    store_part(tiles.low, acc.low, factor, first, first_key, end_key, LOW)
    if C.d_high > 0:
        store_part(tiles.high, acc.high, factor, first, first_key, end_key, HIGH)


@gluon.jit
def store_part(tile, acc, factor, first, first_key, end_key, LAYOUT: gl.constexpr):
    """One tile of `store_rows`."""
    j = first + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    is_key = gl.expand_dims((j >= first_key) & (j < end_key), 1)
    tile.store(gl.where(is_key, acc * factor, 0.0).to(tile.dtype))
