"""Device code: dK and dV where head_dim is above 128. Two warpgroups share the 64 keys of an item.

One has the keys and dV, the other one the values and dK, and neither computes anything twice:

    values_consumer    S = K Qᵀ      P = exp2(S - lse2), handed on      dV += P dO
    keys_consumer      dP = V dOᵀ    dS = P ∘ (dP - delta)              dK += dS Q

Each one's products run while the other one waits.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma, warpgroup_mma_wait

from ..masks import documents_of_sequence, key_bounds, load_documents, num_steps, tile_start
from ..structs import Band, Mask, Scores
from .device import (
    LOG2_E,
    ROWS,
    barriers,
    matrices,
    next_slot,
    num_items,
    start_product,
    start_scores,
    store_pair,
    warpgroup_barrier,
)
from .dkdv_items import query_tiles, store_rows, tile_and_head, zeros
from .dkdv_step import clear_rows, numbers, score_gradients, streamed_documents, wait_for_product, weights_of
from .structs import Handover, HandoverPlace, Slot


@gluon.jit
def handover(C: gl.constexpr):
    """What the two warpgroups share."""
    BLOCK: gl.constexpr = C.block
    p = gl.allocate_shared_memory(gl.float32, [ROWS, BLOCK], gl.NVMMASharedLayout(128, 32, 2))
    return Handover(p, barriers(1, 1), barriers(1, 1))


@gluon.jit
def values_consumer(dv_desc, masks, sizes, bounds, softmax_scale, keys, ring, hand, together, C: gl.constexpr):
    """The weights, and dV."""
    BLOCK: gl.constexpr = C.block
    HEADS: gl.constexpr = C.group
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK, 16])
    LOW: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, C.d_low, 16])
    HIGH: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, max(C.d_high, 16), 16])
    zero = sizes.T_k * 0
    slot, turn = Slot(zero, zero), zero
    k = matrices(keys.k, 0, ROWS, C)
    for r in range(num_items(gl.cdiv(sizes.T_k, ROWS), sizes)):
        tile, head = tile_and_head(r, sizes, bounds, C)
        b = head // sizes.H
        runs = query_tiles(masks, sizes, bounds, tile, b, C)
        num_masked = num_steps(runs, True) * HEADS
        num_full = num_steps(runs, False) * HEADS
        j = tile * ROWS + gl.arange(0, ROWS, gl.SliceLayout(1, S))
        Documents, documents = None, None
        if masks.Documents is not None:
            Keys = documents_of_sequence(masks, b, sizes.T_k)
            documents = gl.expand_dims(load_documents(Keys, j, j < sizes.T_k), 1)
            Documents = Keys + (sizes.T_k - sizes.T_q)
        mask = Mask(0, 2147483647, Band(bounds.lower, bounds.upper), documents, Documents)
        scores = Scores(gl.expand_dims(j, 1), sizes.T_q, softmax_scale * LOG2_E, mask, None)
        dv = zeros(LOW, HIGH)
        place = HandoverPlace(slot, turn, num_masked + num_full)
        mbarrier.wait(keys.full.index(0), r % 2)
        mbarrier.wait(ring.full.index(slot.index), slot.phase, pred=place.left > 0)
        for step in range(num_masked):
            m = tile_start(step // HEADS, runs, BLOCK, BLOCK, True)
            dv, place = dv_step(dv, place, m, k, ring, hand, scores, together, True, S, C)
        for _ in range(num_full):
            dv, place = dv_step(dv, place, 0, k, ring, hand, scores, together, False, S, C)
        slot, turn = place.slot, place.turn
        store_item(dv_desc, dv, 1.0, keys.k, masks, sizes, tile, head, LOW, HIGH, C)
        mbarrier.arrive(keys.empty.index(0), count=1)


@gluon.jit
def keys_consumer(dk_desc, masks, sizes, bounds, softmax_scale, keys, ring, hand, together, C: gl.constexpr):
    """The scores' gradients, and dK."""
    BLOCK: gl.constexpr = C.block
    HEADS: gl.constexpr = C.group
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK, 16])
    LOW: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, C.d_low, 16])
    HIGH: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, max(C.d_high, 16), 16])
    zero = sizes.T_k * 0
    slot, turn = Slot(zero, zero), zero
    v = matrices(keys.v, 0, ROWS, C)
    for r in range(num_items(gl.cdiv(sizes.T_k, ROWS), sizes)):
        tile, head = tile_and_head(r, sizes, bounds, C)
        runs = query_tiles(masks, sizes, bounds, tile, head // sizes.H, C)
        num_masked = num_steps(runs, True) * HEADS
        num_full = num_steps(runs, False) * HEADS
        dk = zeros(LOW, HIGH)
        place = HandoverPlace(slot, turn, num_masked + num_full)
        mbarrier.wait(keys.full.index(1), r % 2)
        mbarrier.wait(ring.full.index(slot.index), slot.phase, pred=place.left > 0)
        for _ in range(num_masked):
            dk, place = dk_step(dk, place, v, ring, hand, together, True, S, C)
        for _ in range(num_full):
            dk, place = dk_step(dk, place, v, ring, hand, together, False, S, C)
        slot, turn = place.slot, place.turn
        store_item(dk_desc, dk, softmax_scale, keys.v, masks, sizes, tile, head, LOW, HIGH, C)
        mbarrier.arrive(keys.empty.index(1), count=1)


@gluon.jit
def dv_step(dv, place, m, k, ring, hand, scores, together, IS_MASKED: gl.constexpr, S: gl.constexpr, C: gl.constexpr):
    """The weights of the queries m, m + 1, ... of this slot, which has come, and what they add to dV."""
    BLOCK: gl.constexpr = C.block
    LOW: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, C.d_low, 16])
    index = place.slot.index
    q, dout = matrices(ring.q, index, BLOCK, C), matrices(ring.dout, index, BLOCK, C)
    lse2 = numbers(ring.lse2, index, C)
    if IS_MASKED:
        clear_rows(q, dout, lse2, together, 0, S, C)
    sT = start_scores(k, q, S, BLOCK, C)  # (64, block)
    documents = streamed_documents(m, scores, IS_MASKED, C)
    lse2 = lse2.load(gl.SliceLayout(0, S))
    sT = warpgroup_mma_wait(0, deps=[sT])
    pT = weights_of(sT, lse2, m, documents, scores, IS_MASKED, S, C)
    weights = gl.convert_layout(pT.to(q.low.dtype), gl.DotOperandLayout(0, LOW, 2))
    dv = start_product(weights, dout, dv, C)
    mbarrier.wait(hand.empty.index(0), 1 - place.turn)  # passes at once in the first round
    hand.p.store(pT)
    mbarrier.arrive(hand.full.index(0), count=1)
    dv, place = end_of_step(dv, weights, place, ring, C)
    return dv, place


@gluon.jit
def dk_step(dk, place, v, ring, hand, together, IS_MASKED: gl.constexpr, S: gl.constexpr, C: gl.constexpr):
    """What the queries of this slot, which has come, add to dK."""
    BLOCK: gl.constexpr = C.block
    LOW: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, C.d_low, 16])
    index = place.slot.index
    q, dout = matrices(ring.q, index, BLOCK, C), matrices(ring.dout, index, BLOCK, C)
    if IS_MASKED:
        clear_rows(q, dout, numbers(ring.lse2, index, C), together, 1, S, C)
    dpT = start_scores(v, dout, S, BLOCK, C)  # (64, block)
    mbarrier.wait(hand.full.index(0), place.turn)
    pT = hand.p.load(S)
    mbarrier.arrive(hand.empty.index(0), count=1)
    delta = numbers(ring.delta, index, C).load(gl.SliceLayout(0, S))
    dpT = warpgroup_mma_wait(0, deps=[dpT])
    dsT = score_gradients(pT, dpT, delta, IS_MASKED)
    ds = gl.convert_layout(dsT.to(q.low.dtype), gl.DotOperandLayout(0, LOW, 2))
    dk = start_product(ds, q, dk, C)
    dk, place = end_of_step(dk, ds, place, ring, C)
    return dk, place


@gluon.jit
def end_of_step(acc, operand, place, ring, C: gl.constexpr):
    """Wait for the product that was started last, and for the next slot; give this one back."""
    after = next_slot(place.slot, C.stages)
    mbarrier.wait(ring.full.index(after.index), after.phase, pred=place.left > 1)
    acc, operand = wait_for_product(acc, operand, C)
    mbarrier.arrive(ring.empty.index(place.slot.index), count=1)
    return acc, HandoverPlace(after, 1 - place.turn, place.left - 1)


@gluon.jit
def store_item(
    desc, acc, factor, tiles, masks, sizes, tile, head, LOW: gl.constexpr, HIGH: gl.constexpr, C: gl.constexpr
):
    """Store an item's gradient, acc · factor, by way of the tile that this warpgroup alone has read; and wait."""
    b = head // sizes.H
    first_key, end_key = key_bounds(masks, b, sizes.T_k)
    # A warp has waited for its own quarter of the products; all do, before the tile that they read is written.
    warpgroup_barrier()
    store_rows(matrices(tiles, 0, ROWS, C), acc, factor, tile * ROWS, first_key, end_key, LOW, HIGH, C)
    fence_async_shared()
    store_pair(desc, b, head % sizes.H, tile * ROWS, tiles, 0, C)
    tma.store_wait(0)
