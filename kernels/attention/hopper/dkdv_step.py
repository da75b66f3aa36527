"""Device code: one step of a consumer of dK and dV, and the steps that it leaves out.

Scores stand transposed here, keys by queries, so that the weights and their gradients are left operands of products and
never leave the registers. The step for the tile c of queries:

    start S(c) = K Qᵀ, dK += dS(c - 1) Q(c - 1), dP(c) = V dOᵀ
    wait for S             P(c) = exp2(S - lse2), under the other two
    start dV += P(c) dO(c)
    wait for dK and dP     dS(c) = P ∘ (dP - delta), under dV
    wait for dV            give slot c - 1 back

So every product has work of its own warpgroup beside it, and none is in flight from one step to the next, where ptxas
would serialise all of them. A product that needs what a warp has just computed keeps ptxas from moving that below the
wait. Where there are no registers for dS to stay in until the next step (`dk_lags`), dK follows it at once, and has the
other consumer's work beside it.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, warpgroup_mma_wait

from ..masks import load_documents, num_steps, tile_start
from ..structs import KeyValue, Pair
from .device import matrices, next_slot, start_product, start_scores
from .dkdv_items import dk_lags
from .structs import QueryPlace


@gluon.jit
def dkdv_step(
    grads, ds, place, m, held, ring, scores, together,
    IS_MASKED: gl.constexpr, GROUP: gl.constexpr, S: gl.constexpr, C: gl.constexpr,
):  # fmt: skip
    """dK and dV from the queries m, m + 1, ... of this slot, which has come.

    grads  KeyValue of accumulators        ds  (64, block), of the step before
    held   KeyValue of Pairs in shared memory: this consumer's 64 keys and values
    """
    BLOCK: gl.constexpr = C.block
    LAGS: gl.constexpr = dk_lags(C)
    PARTS: gl.constexpr = 1 if C.d_high == 0 else 2  # of a product
    QUERIES: gl.constexpr = gl.SliceLayout(0, S)
    index = place.slot.index
    q, dout = matrices(ring.q, index, BLOCK, C), matrices(ring.dout, index, BLOCK, C)
    dk = grads.k
    if IS_MASKED:
        clear_rows(q, dout, numbers(ring.lse2, index, C), together, GROUP, S, C)
    sT = start_scores(held.k, q, S, BLOCK, C)  # (64, block)
    if LAGS:
        dk = start_product(ds, matrices(ring.q, place.before, BLOCK, C), dk, C)
    dpT = start_scores(held.v, dout, S, BLOCK, C)  # (64, block)
    documents = streamed_documents(m, scores, IS_MASKED, C)
    lse2 = numbers(ring.lse2, index, C).load(QUERIES)
    sT = warpgroup_mma_wait(PARTS * (2 if LAGS else 1), deps=[sT])
    pT = weights_of(sT, lse2, m, documents, scores, IS_MASKED, S, C)
    weights = gl.convert_layout(pT.to(ds.dtype), ds.type.layout)
    dv = start_product(weights, dout, grads.v, C)
    dk, dv, dpT = wait_beside_dv(dk, dv, dpT, weights, LAGS, C)
    dsT = score_gradients(pT, dpT, numbers(ring.delta, index, C).load(QUERIES), IS_MASKED)
    ds = gl.convert_layout(dsT.to(ds.dtype), ds.type.layout)
    after = next_slot(place.slot, C.stages)
    mbarrier.wait(ring.full.index(after.index), after.phase, pred=place.left > 1)
    if LAGS:
        # Here, where it ends a block of code: ptxas would move dS below the wait.
        mbarrier.arrive(ring.empty.index(place.before), count=1, pred=place.is_owed)
        dv, ds = wait_for_product(dv, ds, C)
    else:
        dk, ds = wait_for_product(start_product(ds, q, dk, C), ds, C)
        dv, ds = wait_for_product(dv, ds, C)
        mbarrier.arrive(ring.empty.index(index), count=1)
    return KeyValue(dk, dv), ds, QueryPlace(after, index, place.left > 0, place.left - 1)


@gluon.jit
def with_owed(dk, ds, place, ring, C: gl.constexpr):
    """dK, complete, where it lags."""
    BLOCK: gl.constexpr = C.block
    if place.is_owed:
        dk = start_product(ds, matrices(ring.q, place.before, BLOCK, C), dk, C)
        dk, ds = wait_for_product(dk, ds, C)
        mbarrier.arrive(ring.empty.index(place.before), count=1)
    return dk


@gluon.jit
def numbers(rows, index, C: gl.constexpr):
    """(block,) float32 in shared memory: lse2 or delta of a slot."""
    BLOCK: gl.constexpr = C.block
    return rows.index(index).reshape([BLOCK])


@gluon.jit
def streamed_documents(m, scores, IS_MASKED: gl.constexpr, C: gl.constexpr):
    """Document ids of the queries m, m + 1, ..., one a thread, where they are needed.

    From memory each is read once; the 16 that a thread compares come through shared memory, in `weights_of`.
    """
    BLOCK: gl.constexpr = C.block
    i = m + gl.arange(0, BLOCK, gl.BlockedLayout([1], [32], [4], [0]))
    if IS_MASKED and scores.mask.Streamed is not None:
        return load_documents(scores.mask.Streamed, i, i < scores.num_streamed)
    else:
        return i


@gluon.jit
def weights_of(sT, lse2, m, documents, scores, IS_MASKED: gl.constexpr, S: gl.constexpr, C: gl.constexpr):
    """(64, block) weights of the queries m, m + 1, ..., whose `streamed_documents` these are."""
    BLOCK: gl.constexpr = C.block
    QUERIES: gl.constexpr = gl.SliceLayout(0, S)
    pT = gl.exp2(sT * scores.qk_scale - gl.expand_dims(lse2, 0))
    if IS_MASKED:
        i = gl.expand_dims(m + gl.arange(0, BLOCK, QUERIES), 0)
        band = scores.mask.band
        if scores.mask.Streamed is not None:
            pT = of_document(pT, documents, scores.mask.held, S)
            if documents.dtype.primitive_bitwidth > 32:
                # By halves: all of each id at once, 16 of them a thread, would spill.
                pT = of_document(pT, documents >> 32, scores.mask.held >> 32, S)
        if band.upper is not None:
            pT = gl.where(i >= scores.held - band.upper, pT, 0.0)
        if band.lower is not None:
            pT = gl.where(i <= scores.held - band.lower, pT, 0.0)
    return pT


@gluon.jit
def of_document(pT, documents, held, S: gl.constexpr):
    """pT where the last 32 bits of both ids are the same, 0 elsewhere."""
    documents = gl.convert_layout(documents.to(gl.int32), gl.SliceLayout(0, S))
    return gl.where(gl.expand_dims(documents, 0) == held.to(gl.int32), pT, 0.0)


@gluon.jit
def score_gradients(pT, dpT, delta, IS_MASKED: gl.constexpr):
    """pT ∘ (dpT - delta), of the shape of pT."""
    difference = dpT - gl.expand_dims(delta, 0)
    if IS_MASKED:
        difference = gl.where(pT == 0.0, 0.0, difference)  # 0 · NaN
    return pT * difference


@gluon.jit
def wait_beside_dv(dk, dv, dpT, weights, LAGS: gl.constexpr, C: gl.constexpr):
    """Wait for dpT, and for dK where it lags. dV, which was started last, runs on, as its operand `weights` does."""
    if C.d_high == 0:
        if LAGS:
            dk_low, dv_low, dpT, weights = warpgroup_mma_wait(1, deps=[dk.low, dv.low, dpT, weights])
            return Pair(dk_low, dk.high), Pair(dv_low, dv.high), dpT
        else:
            dv_low, dpT, weights = warpgroup_mma_wait(1, deps=[dv.low, dpT, weights])
            return dk, Pair(dv_low, dv.high), dpT
    elif LAGS:
        dk_low, dk_high, dv_low, dv_high, dpT, weights = warpgroup_mma_wait(
            2, deps=[dk.low, dk.high, dv.low, dv.high, dpT, weights]
        )
        return Pair(dk_low, dk_high), Pair(dv_low, dv_high), dpT
    else:
        dv_low, dv_high, dpT, weights = warpgroup_mma_wait(2, deps=[dv.low, dv.high, dpT, weights])
        return dk, Pair(dv_low, dv_high), dpT


@gluon.jit
def wait_for_product(acc, beside, C: gl.constexpr):
    """Wait for all products; `beside` is computed by then."""
    if C.d_high > 0:
        low, high, beside = warpgroup_mma_wait(0, deps=[acc.low, acc.high, beside])
        return Pair(low, high), beside
    else:
        low, beside = warpgroup_mma_wait(0, deps=[acc.low, beside])
        return Pair(low, acc.high), beside


# ---- Tiles of which a consumer sees nothing ----


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
def skip(place, ring, together, GROUP: gl.constexpr, S: gl.constexpr, C: gl.constexpr):
    """Give a slot back unread."""
    BLOCK: gl.constexpr = C.block
    index = place.slot.index
    q, dout = matrices(ring.q, index, BLOCK, C), matrices(ring.dout, index, BLOCK, C)
    clear_rows(q, dout, numbers(ring.lse2, index, C), together, GROUP, S, C)
    mbarrier.arrive(ring.empty.index(index), count=1)
    after = next_slot(place.slot, C.stages)
    mbarrier.wait(ring.full.index(after.index), after.phase, pred=place.left > 1)
    return QueryPlace(after, after.index, place.is_owed, place.left - 1)


# ---- Rows that are not finite ----


@gluon.jit
def clear_rows(q, dout, lse2, together, GROUP: gl.constexpr, S: gl.constexpr, C: gl.constexpr):
    """Where lse2 is not finite, 0 in the row's q and dout: 0 · NaN would carry them to keys that the row does not see.

    The keys that it does see get NaN through lse2. All consumers come here for the same slots, before they read them;
    the first one clears for all. `together` turns when all have arrived, twice here: its parity is 0 and then 1.
    """
    BLOCK: gl.constexpr = C.block
    if gl.sum(lse2.load(gl.SliceLayout(0, S)) * 0.0, 0) != 0.0:  # NaN: one of them is not finite
        mbarrier.arrive(together.index(0), count=1)
        mbarrier.wait(together.index(0), 0)
        if GROUP == 0:
            clear_part(q.low, lse2, BLOCK, C.d_low)
            clear_part(dout.low, lse2, BLOCK, C.d_low)
            if C.d_high > 0:
                clear_part(q.high, lse2, BLOCK, C.d_high)
                clear_part(dout.high, lse2, BLOCK, C.d_high)
            fence_async_shared()
        mbarrier.arrive(together.index(0), count=1)
        mbarrier.wait(together.index(0), 1)


@gluon.jit
def clear_part(tile, lse2, NUM_ROWS: gl.constexpr, COLUMNS: gl.constexpr):
    """One tile of `clear_rows`."""
    CHUNK: gl.constexpr = min(NUM_ROWS, 2048 // COLUMNS)  # rows at a time: 16 numbers a thread
    THREADS: gl.constexpr = min(COLUMNS // 8, 32)
    LAYOUT: gl.constexpr = gl.BlockedLayout([1, 8], [32 // THREADS, THREADS], [4, 1], [1, 0])
    for row in gl.static_range(0, NUM_ROWS, CHUNK):
        is_finite = gl.abs(lse2.slice(row, CHUNK).load(gl.SliceLayout(1, LAYOUT))) < float("inf")
        part = tile.slice(row, CHUNK)
        part.store(gl.where(gl.expand_dims(is_finite, 1), part.load(LAYOUT), 0.0))
