"""Device code: dK and dV on Hopper, warp-specialised.

    producer     keys and values of an item | q, dout, lse2, delta of tile 0 | of tile 1 | ...    slots of a ring
    consumer 0   a step (dkdv_step.py) on each slot, for the first 64 keys
    consumer 1   the same, for the other 64: it works while consumer 0 waits, and the other way round

An item's queries are those of all heads of the group, in a fixed order: every gradient has one writer, and the same
bits on every run. Tiles that a mask cuts come first, then the full ones. Where head_dim is so large that a warpgroup
has no room for both dK and dV, two share the 64 keys of an item: dkdv_wide.py.
"""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.language.nvidia.hopper import fence_async_shared, mbarrier, tma

from ..masks import documents_of_sequence, key_bounds, load_documents, num_steps, tile_start
from ..structs import Band, KeyValue, Mask, Scores
from .device import (
    LOG2_E,
    ROWS,
    barriers,
    load_by_tma,
    load_pair,
    matrices,
    next_slot,
    num_items,
    pair_bytes,
    store_pair,
    tiles_like,
    warpgroup_barrier,
)
from .dkdv_items import (
    dk_lags,
    is_wide,
    num_sets,
    num_warpgroups,
    query_tiles,
    store_rows,
    tile_and_head,
    zeros,
)
from .dkdv_step import dkdv_step, skip, unseen_tiles, with_owed
from .dkdv_wide import handover, keys_consumer, values_consumer
from .structs import Bounds, Descriptors, HeldKeys, QueryPlace, QueryRing, Sizes, Slot


@gluon.jit(do_not_specialize=["T_q", "T_k", "H_kv", "num_heads", "lower", "upper", "heads_per_section"])
def hopper_dkdv_kernel(
    QLow, QHigh, DOutLow, DOutHigh, KLow, KHigh, VLow, VHigh, DKLow, DKHigh, DVLow, DVHigh, Lse2, Delta, masks,
    T_q, T_k, H_kv, num_heads, lower, upper, heads_per_section, softmax_scale, C: gl.constexpr,
):  # fmt: skip
    """dv = pᵀ dout and dk = scale · dsᵀ q, summed over the heads of a group. launch.run_dkdv calls it.

    QLow ... DVHigh  TMA descriptors: of Q and DOut (B, H, T_q, head_dim), boxes of block rows; of K, V, DK and DV
                     (B, H / group, T_k, head_dim), boxes of 64 rows
    Lse2, Delta      TMA descriptors of (B · H, T_q) float32, boxes of block numbers: what attention_delta_kernel wrote
    masks, lower, upper    what weights are 0: see masks.py and structs.py of the portable kernels; masks.Ranges are of
                     tiles of keys
    num_heads        B · H / group

    One CTA: every grid-th item, an item being 64 · consumers keys of one head, over the queries of all heads of its
    group that see them.
    """
    STAGES: gl.constexpr = C.stages
    CONSUMERS: gl.constexpr = C.consumers
    SETS: gl.constexpr = num_sets(C)
    GROUPS: gl.constexpr = num_warpgroups(C)
    q_desc, dout_desc = Descriptors(QLow, QHigh), Descriptors(DOutLow, DOutHigh)
    k_desc, v_desc = Descriptors(KLow, KHigh), Descriptors(VLow, VHigh)
    dk_desc, dv_desc = Descriptors(DKLow, DKHigh), Descriptors(DVLow, DVHigh)
    keys = HeldKeys(
        tiles_like(k_desc, SETS * CONSUMERS, C), tiles_like(v_desc, SETS * CONSUMERS, C),
        barriers(SETS * GROUPS, 1), barriers(SETS * GROUPS, 1),
    )  # fmt: skip
    ring = QueryRing(
        tiles_like(q_desc, STAGES, C), tiles_like(dout_desc, STAGES, C),
        gl.allocate_shared_memory(gl.float32, [STAGES, 1, C.block], Lse2.layout),
        gl.allocate_shared_memory(gl.float32, [STAGES, 1, C.block], Delta.layout),
        barriers(STAGES, 1), barriers(STAGES, GROUPS),
    )  # fmt: skip
    together = barriers(1, GROUPS)
    out = KeyValue(keys.k, keys.v)
    if SETS == 1 and not is_wide(C):
        out = KeyValue(tiles_like(dk_desc, CONSUMERS, C), tiles_like(dv_desc, CONSUMERS, C))
    sizes = Sizes(T_q, T_k, H_kv, C.group, num_heads, heads_per_section)
    bounds = Bounds(lower, upper)
    # The tuples stand here and not in variables: assigning one turns its constexprs into tensors.
    if is_wide(C):
        hand = handover(C)
        gl.warp_specialize([
            (values_consumer, (dv_desc, masks, sizes, bounds, softmax_scale, keys, ring, hand, together, C)),
            (keys_consumer, (dk_desc, masks, sizes, bounds, softmax_scale, keys, ring, hand, together, C)),
            (producer, (q_desc, dout_desc, Lse2, Delta, k_desc, v_desc, masks, sizes, bounds, keys, ring, C)),
        ], [4, 1], [240, 24])  # fmt: skip
    elif CONSUMERS == 1:
        gl.warp_specialize([
            (consumer, (dk_desc, dv_desc, masks, sizes, bounds, softmax_scale, keys, out, ring, together, C, 0)),
            (producer, (q_desc, dout_desc, Lse2, Delta, k_desc, v_desc, masks, sizes, bounds, keys, ring, C)),
        ], [1], [24])  # fmt: skip
    else:
        gl.warp_specialize([
            (consumer, (dk_desc, dv_desc, masks, sizes, bounds, softmax_scale, keys, out, ring, together, C, 0)),
            (consumer, (dk_desc, dv_desc, masks, sizes, bounds, softmax_scale, keys, out, ring, together, C, 1)),
            (producer, (q_desc, dout_desc, Lse2, Delta, k_desc, v_desc, masks, sizes, bounds, keys, ring, C)),
        ], [4, 1], [240, 24])  # fmt: skip


@gluon.jit
def producer(q_desc, dout_desc, Lse2, Delta, k_desc, v_desc, masks, sizes, bounds, keys, ring, C: gl.constexpr):
    """One warp: the keys of each item, and the slots of the ring: masked tiles of queries, then full ones."""
    BLOCK: gl.constexpr = C.block
    STAGES: gl.constexpr = C.stages
    HEADS: gl.constexpr = C.group
    SETS: gl.constexpr = num_sets(C)
    BYTES: gl.constexpr = 2 * pair_bytes(BLOCK, C) + 2 * BLOCK * 4
    zero = sizes.T_k * 0
    slot = Slot(zero, zero)
    for r in range(num_items(gl.cdiv(sizes.T_k, ROWS * C.consumers), sizes)):
        tile, head = tile_and_head(r, sizes, bounds, C)
        b, h_kv = head // sizes.H, head % sizes.H
        runs = query_tiles(masks, sizes, bounds, tile, b, C)
        num_masked = num_steps(runs, True) * HEADS
        count = num_masked + num_steps(runs, False) * HEADS
        # Keys that go where the last item's are have to wait for it, and slots come before them.
        before_keys = zero
        if SETS == 1:
            before_keys = gl.minimum(count, gl.where(r == 0, 1, STAGES))
        if before_keys == 0:
            load_keys(k_desc, v_desc, b, h_kv, tile, keys, r, C)
        for step in range(count):
            is_masked = step < num_masked
            m = tile_start(step // HEADS, runs, BLOCK, BLOCK, True)
            m = gl.where(is_masked, m, tile_start((step - num_masked) // HEADS, runs, BLOCK, BLOCK, False))
            g = step % HEADS  # num_masked is a multiple of it
            full = ring.full.index(slot.index)
            mbarrier.wait(ring.empty.index(slot.index), 1 - slot.phase)
            mbarrier.expect(full, BYTES)
            load_pair(q_desc, b, h_kv * HEADS + g, m, full, ring.q, slot.index, True, C)
            load_by_tma(Lse2, [head * HEADS + g, m], full, ring.lse2.index(slot.index))
            load_pair(dout_desc, b, h_kv * HEADS + g, m, full, ring.dout, slot.index, True, C)
            load_by_tma(Delta, [head * HEADS + g, m], full, ring.delta.index(slot.index))
            slot = next_slot(slot, STAGES)
            if step + 1 == before_keys:
                load_keys(k_desc, v_desc, b, h_kv, tile, keys, r, C)


@gluon.jit
def load_keys(k_desc, v_desc, b, h_kv, tile, keys, r, C: gl.constexpr):
    """Start to load the keys and values of the r-th item."""
    CONSUMERS: gl.constexpr = C.consumers
    SETS: gl.constexpr = num_sets(C)
    BYTES: gl.constexpr = pair_bytes(ROWS, C)
    IS_WIDE: gl.constexpr = is_wide(C)
    for g in gl.static_range(CONSUMERS):
        row = (tile * CONSUMERS + g) * ROWS
        held = r % SETS * CONSUMERS + g
        full = keys.full.index(held)
        mbarrier.wait(keys.empty.index(held), 1 - r // SETS % 2)
        mbarrier.expect(full, BYTES if IS_WIDE else 2 * BYTES)
        load_pair(k_desc, b, h_kv, row, full, keys.k, held, True, C)
        if IS_WIDE:  # one warpgroup has the keys, the other the values
            full = keys.full.index(1)
            mbarrier.wait(keys.empty.index(1), 1 - r % 2)
            mbarrier.expect(full, BYTES)
        load_pair(v_desc, b, h_kv, row, full, keys.v, held, True, C)


@gluon.jit
def consumer(
    dk_desc, dv_desc, masks, sizes, bounds, softmax_scale, keys, out, ring, together,
    C: gl.constexpr, GROUP: gl.constexpr,
):  # fmt: skip
    """A warpgroup: keys 64 · GROUP and the 63 after them of each item."""
    BLOCK: gl.constexpr = C.block
    CONSUMERS: gl.constexpr = C.consumers
    HEADS: gl.constexpr = C.group
    SETS: gl.constexpr = num_sets(C)
    S: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, BLOCK, 16])
    LOW: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, C.d_low, 16])
    HIGH: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, max(C.d_high, 16), 16])
    dtype: gl.constexpr = dk_desc.low.dtype
    zero = sizes.T_k * 0
    slot = Slot(zero, zero)
    for r in range(num_items(gl.cdiv(sizes.T_k, ROWS * CONSUMERS), sizes)):
        tile, head = tile_and_head(r, sizes, bounds, C)
        b, h_kv = head // sizes.H, head % sizes.H
        runs = query_tiles(masks, sizes, bounds, tile, b, C)
        num_masked = num_steps(runs, True) * HEADS
        num_full = num_steps(runs, False) * HEADS
        first = (tile * CONSUMERS + GROUP) * ROWS
        j = first + gl.arange(0, ROWS, gl.SliceLayout(1, S))
        Documents, documents = None, None
        if masks.Documents is not None:
            Keys = documents_of_sequence(masks, b, sizes.T_k)
            documents = gl.expand_dims(load_documents(Keys, j, j < sizes.T_k), 1)
            Documents = Keys + (sizes.T_k - sizes.T_q)
        # Padding keys need no mask: what is computed for them stays in their own rows, and is dropped at the end.
        mask = Mask(0, 2147483647, Band(bounds.lower, bounds.upper), documents, Documents)
        scores = Scores(gl.expand_dims(j, 1), sizes.T_q, softmax_scale * LOG2_E, mask, None)

        held_at = r % SETS * CONSUMERS + GROUP
        held = KeyValue(matrices(keys.k, held_at, ROWS, C), matrices(keys.v, held_at, ROWS, C))
        grads = KeyValue(zeros(LOW, HIGH), zeros(LOW, HIGH))
        ds = gl.zeros([ROWS, BLOCK], dtype, gl.DotOperandLayout(0, LOW, 2))
        place = QueryPlace(slot, slot.index, zero > 0, num_masked + num_full)
        mbarrier.wait(keys.full.index(held_at), r // SETS % 2)
        mbarrier.wait(ring.full.index(slot.index), slot.phase, pred=place.left > 0)
        # The consumers hold different keys: the first tiles may be of queries that see none of this one's.
        num_skipped = unseen_tiles(runs, first, bounds, C) * HEADS
        for _ in range(num_skipped):
            place = skip(place, ring, together, GROUP, S, C)
        while place.left > num_full:
            m = tile_start((num_masked + num_full - place.left) // HEADS, runs, BLOCK, BLOCK, True)
            grads, ds, place = dkdv_step(grads, ds, place, m, held, ring, scores, together, True, GROUP, S, C)
        if SETS == 2:
            # By now the last item's gradients have left its set of tiles.
            tma.store_wait(0)
            mbarrier.arrive(keys.empty.index((r + 1) % SETS * CONSUMERS + GROUP), count=1, pred=r > 0)
        while place.left > 0:
            grads, ds, place = dkdv_step(grads, ds, place, 0, held, ring, scores, together, False, GROUP, S, C)
        slot = place.slot
        dk, dv = grads.k, grads.v
        if dk_lags(C):
            dk = with_owed(dk, ds, place, ring, C)

        if SETS == 1:
            mbarrier.arrive(keys.empty.index(GROUP), count=1)
            tma.store_wait(0)  # the last item's gradients have left
        # A warp has waited for its own quarter of the products; all do, before the tiles that they read are written.
        warpgroup_barrier()
        first_key, end_key = key_bounds(masks, b, sizes.T_k)
        store_rows(matrices(out.v, held_at, ROWS, C), dv, 1.0, first, first_key, end_key, LOW, HIGH, C)
        store_rows(matrices(out.k, held_at, ROWS, C), dk, softmax_scale, first, first_key, end_key, LOW, HIGH, C)
        fence_async_shared()
        store_pair(dv_desc, b, h_kv, first, out.v, held_at, C)
        store_pair(dk_desc, b, h_kv, first, out.k, held_at, C)
    tma.store_wait(0)
