"""Device code: the attention backward, as three kernels: row statistics, dK and dV, dQ.

With p = softmax(scale · q kᵀ + mask) and dp = dout vᵀ (Dao 2023, algorithm 2; with dropout, p and dp of what is kept):

    dv = pᵀ dout      ds = p ∘ (dp - delta)      dq = scale · ds k      dk = scale · dsᵀ q
"""

import triton
import triton.language as tl

from ..device.sums import sum_of_products
from ..device.tf32 import dot_operand
from ..device.tiles import load_tile
from .device import (
    add_product,
    all_finite,
    at_head,
    at_row,
    keeps,
    load_dropout,
    load_two_pairs,
    pair_without_nonfinite,
    scaled,
    store_pair,
    stream_pair,
    stream_part,
    stream_product,
    stream_rows,
    tile_index,
    where_pair,
    zeros,
)
from .masks import (
    all_cut,
    documents_of_sequence,
    key_bounds,
    load_documents,
    num_steps,
    program_tile,
    stages,
    tile_runs,
    tile_start,
    visible,
)
from .structs import Band, KeyValue, Mask, Matrix, Pair, QueryRows, RowStream, Scores, Stream


@triton.jit(do_not_specialize=["stride_row", "T_q", "H"])
def attention_delta_kernel(
    Out, DOut, DLse, Lse, Lse2, Delta, stride_out, stride_dout, stride_row, T_q, H,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, IS_WIDE: tl.constexpr,
):  # fmt: skip
    """delta_i = Σ_d dout_id out_id - dlse_i and lse2_i = lse_i / ln 2. launch.backward calls it.

    Out, DOut         (B, H, T_q, head_dim); their strides come after all pointers, as in structs.py: with each pointer
                      before its strides, one CTA in nine is lost (float32, sm_90)
    DLse              Matrix (B, H, T_q) of any float type, or None
    Lse               (B, H, T_q) float32, contiguous
    Lse2, Delta       (B, H, T_q) float32, rows stride_row apart

    A row that saw no key has delta 0 and lse2 +inf, so that its weights, exp(s - lse), are 0. Where dout is not finite,
    delta is NaN and makes lse2 NaN too: through it the gradients of exactly those keys that the row sees become NaN.

    One program: BLOCK_M queries of one head.
    """
    num_tiles = tl.cdiv(T_q, BLOCK_M)
    tile, head = tl.program_id(0) % num_tiles, tl.program_id(0) // num_tiles
    b, h = head // H, head % H
    row = tile * BLOCK_M
    i = row + tl.arange(0, BLOCK_M)
    i_ok = i < T_q
    rows, columns = tile_index(BLOCK_M, IS_WIDE), tile_index(BLOCK_D, IS_WIDE)
    column_ok = columns < HEAD_DIM if BLOCK_D != HEAD_DIM else None
    Out, DOut = at_row(Matrix(Out, stride_out), b, h, row), at_row(Matrix(DOut, stride_dout), b, h, row)
    out = load_tile(Out, rows, columns, stride_out[2], stride_out[3], i_ok, column_ok)
    dout = load_tile(DOut, rows, columns, stride_dout[2], stride_dout[3], i_ok, column_ok)
    delta = sum_of_products(out.to(tl.float32), dout.to(tl.float32), 1)
    offs = head.to(tl.int64) * stride_row + i
    if DLse is not None:
        delta -= tl.load(at_row(DLse, b, h, row) + rows * DLse.stride[2], mask=i_ok, other=0.0).to(tl.float32)
    lse = tl.load(Lse + head.to(tl.int64) * T_q + i, mask=i_ok, other=0.0)
    empty = lse == -float("inf")
    tl.store(Delta + offs, tl.where(empty, 0.0, delta), mask=i_ok)
    tl.store(Lse2 + offs, tl.where(empty, float("inf"), lse * 1.4426950408889634 + delta * 0.0), mask=i_ok)


@triton.jit(do_not_specialize=["stride_row", "T_q", "T_k", "H_kv", "lower", "upper", "heads_per_section"])
def attention_dkdv_kernel(
    tensors, stride, QLow, QHigh, DOutLow, DOutHigh, Statistics, Lse2, Delta, masks, dropout,
    stride_row, T_q, T_k, H_kv, lower, upper, heads_per_section, softmax_scale, C: tl.constexpr,
):  # fmt: skip
    """dv = pᵀ dout and dk = scale · dsᵀ q, summed over the heads of a group. launch.backward calls it.

    tensors             DKDVTensors: pointers to Q and DOut (B, H, T_q, head_dim), K, V, DK and DV
                        (B, H / group, T_k, head_dim)
    stride              DKDVTensors: the four strides of each
    QLow ... DOutHigh   TMA descriptors of Q and DOut, boxes of block_m rows; or None
    Statistics          TMA descriptor of Lse2 and Delta, (2, B * H, T_q), boxes of block_m numbers; or None
    Lse2, Delta         (B, H, T_q) float32 of attention_delta_kernel, rows stride_row apart
    masks, lower, upper, dropout    as in the forward; masks.Ranges of tiles of keys

    One program: block_n keys of one key head, over the queries of all heads of its group that see them.
    """
    BLOCK_M: tl.constexpr = C.block_m
    BLOCK_N: tl.constexpr = C.block_n
    EDGE: tl.constexpr = C.edge
    GROUP: tl.constexpr = C.group
    num_tiles = tl.cdiv(T_k, BLOCK_N)
    tile, kv_head = program_tile(num_tiles, heads_per_section)
    if lower is not None and upper is None:
        tile = num_tiles - 1 - tile
    b, h_kv = kv_head // H_kv, kv_head % H_kv
    first_h, first_head = h_kv * GROUP, kv_head * GROUP  # of the group's query heads; head = b * H + h
    column = tile * BLOCK_N
    j = column + tl.arange(0, BLOCK_N)  # (block_n,) key index
    j_ok = j < T_k

    K, V = Matrix(tensors.K, stride.K), Matrix(tensors.V, stride.V)
    Q = at_head(Matrix(tensors.Q, stride.Q), b, first_h)
    DOut = at_head(Matrix(tensors.DOut, stride.DOut), b, first_h)
    Lse2 += first_head.to(tl.int64) * stride_row
    Delta += first_head.to(tl.int64) * stride_row
    first_key, end_key = key_bounds(masks, b, T_k)
    key_ok = (j >= first_key) & (j < end_key)
    k, v = load_two_pairs(K, V, b, h_kv, column, j_ok, C)
    held = KeyValue(k, v)
    head_dropout = load_dropout(dropout, first_head) if dropout.Seed is not None else None
    Documents, documents = None, None
    if masks.Documents is not None:
        Keys = documents_of_sequence(masks, b, T_k)
        documents = load_documents(Keys, j, j_ok)[:, None]
        Documents = Keys + T_k - T_q
    # Padding keys need no mask: what is computed for them stays in their own rows, and is dropped at the end. Without
    # bounds that hide nothing, narrow steps spill.
    HAS_WHOLE_EDGE: tl.constexpr = C.edge_stages > 0
    first, end = (None, None) if HAS_WHOLE_EDGE else (0, 2147483647)
    mask = Mask(first, end, Band(lower, upper), documents, Documents)
    # A tile whose keys are all padding has nothing to do.
    some_key = (column < end_key) & (column + BLOCK_N > first_key)
    # Key j is seen by the queries j - upper <= i <= j - lower.
    band = Band(None if upper is None else -upper, None if lower is None else -lower)
    runs = tile_runs(
        column, tl.minimum(column + BLOCK_N, T_k) - 1, band, 0, tl.where(some_key, T_q, 0),
        masks.Ranges, b * num_tiles + tile, BLOCK_M, BLOCK_M if HAS_WHOLE_EDGE else EDGE,
    )  # fmt: skip
    queries = QueryRows(
        Stream(Q, stride.Q, QLow, QHigh, b, first_h), Stream(DOut, stride.DOut, DOutLow, DOutHigh, b, first_h),
        RowStream(Lse2, Statistics, 0, first_head), RowStream(Delta, Statistics, 1, first_head),
    )  # fmt: skip
    scores = Scores(j, T_q, softmax_scale * 1.4426950408889634, mask, head_dropout)
    # Before the loops, and these in this order, for the reasons given in the forward.
    queries_of_tile, queries_of_edge = tl.arange(0, BLOCK_M), tl.arange(0, EDGE)
    queries_of_cut = queries_of_tile if HAS_WHOLE_EDGE else queries_of_edge
    nothing = KeyValue(zeros(BLOCK_N, C), zeros(BLOCK_N, C))
    grads = add_queries(nothing, held, queries, queries_of_tile, stride_row, scores, runs, False, False, C)
    grads = add_queries(grads, held, queries, queries_of_cut, stride_row, scores, runs, True, not HAS_WHOLE_EDGE, C)
    if HAS_WHOLE_EDGE:  # noqa: SIM102 (known when compiled)
        if not (all_finite(grads.k, C) & all_finite(grads.v, C)):
            cut = all_cut(runs, BLOCK_M, EDGE)
            grads = add_queries(nothing, held, queries, queries_of_edge, stride_row, scores, cut, True, True, C)

    DK, DV = Matrix(tensors.DK, stride.DK), Matrix(tensors.DV, stride.DV)
    store_pair(DK, b, h_kv, column, j_ok, where_pair(key_ok[:, None], scaled(grads.k, softmax_scale)), C)
    store_pair(DV, b, h_kv, column, j_ok, where_pair(key_ok[:, None], grads.v), C)


@triton.jit
def add_queries(
    grads, held, queries, queries_of_tile, stride_row, scores, runs,
    IS_MASKED: tl.constexpr, IS_CAREFUL: tl.constexpr, C: tl.constexpr,
):  # fmt: skip
    """`grads`, and what the queries of `runs` that need no mask, or (IS_MASKED) one, add to dK and dV: those of all
    heads of the group, whose first is that of `queries`."""
    BLOCK_M: tl.constexpr = C.block_m
    WIDTH: tl.constexpr = queries_of_tile.shape[0]
    STAGES: tl.constexpr = stages(IS_MASKED, IS_CAREFUL, C.edge_stages)
    GROUP: tl.constexpr = C.group
    q, dout, lse2, delta = queries.q, queries.dout, queries.lse2, queries.delta
    for step in tl.range(0, num_steps(runs, IS_MASKED) * GROUP, num_stages=STAGES):
        # The heads of the group take turns at a tile, so that both divisions are by a constant. The number of tiles
        # may be 0, and the loads of the first step are issued before the loop, whether or not it has a step: what
        # they depend on must be defined then.
        g = step % GROUP
        m = tile_start(step // GROUP, runs, BLOCK_M, WIDTH, IS_MASKED)
        g64 = tl.zeros([], tl.int64) + g
        of_head = QueryRows(
            Stream(q.Base + g64 * q.stride[1], q.stride, q.Low, q.High, q.b, q.h + g),
            Stream(dout.Base + g64 * dout.stride[1], dout.stride, dout.Low, dout.High, dout.b, dout.h + g),
            RowStream(lse2.Base + g64 * stride_row, lse2.Descriptor, lse2.index, lse2.head + g),
            RowStream(delta.Base + g64 * stride_row, delta.Descriptor, delta.index, delta.head + g),
        )  # fmt: skip
        grads = dkdv_step(grads, held, of_head, m, m + queries_of_tile, g, scores, IS_MASKED, IS_CAREFUL, C)
    return grads


@triton.jit
def dkdv_step(
    grads, held, queries, m, i, g, scores, IS_MASKED: tl.constexpr, IS_CAREFUL: tl.constexpr, C: tl.constexpr
):
    """dK and dV from the queries i, m and those after it, of the group's g-th head. Scores are (keys, queries) here."""
    PRECISION: tl.constexpr = C.precision
    j = scores.held[:, None]  # (block_n, 1)
    i_ok = i < scores.num_streamed
    row_ok = i_ok
    if IS_CAREFUL:
        # Rows with inf or NaN read as 0: 0 · NaN would carry them to keys that they do not see. The keys that they do
        # see get NaN through lse.
        lse2 = tl.load(queries.lse2.Base + i, mask=i_ok, other=float("inf"))
        row_ok = tl.abs(lse2) < float("inf")
    sT, q = stream_product(held.k, queries.q, m, row_ok, IS_CAREFUL, C)  # sT (block_n, num_queries)
    if not IS_CAREFUL:
        lse2 = stream_rows(queries.lse2, m, i, IS_MASKED, C)
    dout = stream_pair(queries.dout, m, row_ok, IS_CAREFUL, C)
    pT = tl.math.exp2(sT * scores.qk_scale - lse2[None, :])
    if IS_MASKED:
        documents = None
        if scores.mask.Streamed is not None:
            documents = load_documents(scores.mask.Streamed, i, i_ok)[None, :]
        sees = visible(i[None, :], j, scores.mask, documents)
        pT = tl.where(sees, pT, 0.0)
    pT_kept = pT
    if scores.dropout is not None:
        keep = keeps(scores.dropout, g, i[None, :], j)
        pT_kept = tl.where(keep, pT * scores.dropout.scale, 0.0)
    weights = dot_operand(pT_kept.to(dout.low.dtype), PRECISION)
    # One tile after the other: both of dv before those of dpT would hold more registers.
    dv_low, dv_high = tl.dot(weights, dout.low, grads.v.low, input_precision=PRECISION), grads.v.high
    dpT = tl.dot(held.v.low, tl.trans(dout.low), input_precision=PRECISION)  # (block_n, num_queries)
    if C.d_high > 0:
        dv_high = tl.dot(weights, dout.high, grads.v.high, input_precision=PRECISION)
        dpT = tl.dot(held.v.high, tl.trans(dout.high), dpT, input_precision=PRECISION)
    if scores.dropout is not None:
        dpT = tl.where(keep, dpT * scores.dropout.scale, 0.0)
    if IS_CAREFUL:
        delta = tl.load(queries.delta.Base + i, mask=i_ok, other=0.0)
    else:
        delta = stream_rows(queries.delta, m, i, IS_MASKED, C)
    dsT = pT * (dpT - delta[None, :])
    if IS_CAREFUL:
        dsT = tl.where(sees, dsT, 0.0)  # 0 · NaN
    return KeyValue(add_product(grads.k, dot_operand(dsT.to(q.low.dtype), PRECISION), q, C), Pair(dv_low, dv_high))


@triton.jit(do_not_specialize=["stride_row", "T_q", "T_k", "H", "group", "lower", "upper", "heads_per_section"])
def attention_dq_kernel(
    tensors, stride, KLow, KHigh, VLow, VHigh, Lse2, Delta, masks, dropout,
    stride_row, T_q, T_k, H, group, lower, upper, heads_per_section, softmax_scale, C: tl.constexpr,
):  # fmt: skip
    """dq = scale · ds k. launch.backward calls it.

    tensors           DQTensors: pointers to Q, DOut and DQ (B, H, T_q, head_dim), K and V (B, H / group, T_k, head_dim)
    stride            DQTensors: the four strides of each
    KLow ... VHigh    TMA descriptors of K and V, boxes of block_n rows; or None
    Lse2, Delta       (B, H, T_q) float32 of attention_delta_kernel, rows stride_row apart
    masks, lower, upper, dropout    as in the forward

    One program: block_m queries of one head, over all the keys that they see.
    """
    BLOCK_M: tl.constexpr = C.block_m
    BLOCK_N: tl.constexpr = C.block_n
    EDGE: tl.constexpr = C.edge
    num_tiles = tl.cdiv(T_q, BLOCK_M)
    tile, head = program_tile(num_tiles, heads_per_section)
    if upper is not None:
        tile = num_tiles - 1 - tile
    b, h = head // H, head % H
    row = tile * BLOCK_M
    i = row + tl.arange(0, BLOCK_M)  # (block_m,) query index
    i_ok = i < T_q

    Q, DOut = Matrix(tensors.Q, stride.Q), Matrix(tensors.DOut, stride.DOut)
    K, V = Matrix(tensors.K, stride.K), Matrix(tensors.V, stride.V)
    offs = head.to(tl.int64) * stride_row + i
    q, dout = load_two_pairs(Q, DOut, b, h, row, i_ok, C)
    lse2, delta = tl.load(Lse2 + offs, mask=i_ok, other=0.0), tl.load(Delta + offs, mask=i_ok, other=0.0)
    held = QueryRows(q, dout, lse2, delta)
    h_kv = h // group
    keys = KeyValue(
        Stream(at_head(K, b, h_kv), K.stride, KLow, KHigh, b, h_kv),
        Stream(at_head(V, b, h_kv), V.stride, VLow, VHigh, b, h_kv),
    )
    head_dropout = load_dropout(dropout, head) if dropout.Seed is not None else None
    Documents, documents = None, None
    if masks.Documents is not None:
        Documents = documents_of_sequence(masks, b, T_k)
        documents = load_documents(Documents, T_k - T_q + i, i_ok)[:, None]
    first_key, end_key = key_bounds(masks, b, T_k)
    mask = Mask(first_key, end_key, Band(lower, upper), documents, Documents)
    scores = Scores(i, T_k, softmax_scale * 1.4426950408889634, mask, head_dropout)
    HAS_WHOLE_EDGE: tl.constexpr = C.edge_stages > 0
    runs = tile_runs(
        row, tl.minimum(row + BLOCK_M, T_q) - 1, mask.band, first_key, end_key, masks.Ranges,
        b * num_tiles + tile, BLOCK_N, BLOCK_N if HAS_WHOLE_EDGE else EDGE,
    )  # fmt: skip
    # Before the loops, and these in this order, for the reasons given in the forward.
    keys_of_tile, keys_of_edge = tl.arange(0, BLOCK_N), tl.arange(0, EDGE)
    keys_of_cut = keys_of_tile if HAS_WHOLE_EDGE else keys_of_edge
    dq = add_keys(zeros(BLOCK_M, C), held, keys, keys_of_tile, scores, runs, False, False, C)
    dq = add_keys(dq, held, keys, keys_of_cut, scores, runs, True, not HAS_WHOLE_EDGE, C)
    if HAS_WHOLE_EDGE:  # noqa: SIM102 (known when compiled)
        if not all_finite(dq, C):
            cut = all_cut(runs, BLOCK_N, EDGE)
            dq = add_keys(zeros(BLOCK_M, C), held, keys, keys_of_edge, scores, cut, True, True, C)
    store_pair(Matrix(tensors.DQ, stride.DQ), b, h, row, i_ok, scaled(dq, softmax_scale), C)


@triton.jit
def add_keys(
    dq, held, keys, keys_of_tile, scores, runs, IS_MASKED: tl.constexpr, IS_CAREFUL: tl.constexpr, C: tl.constexpr
):
    """`dq`, and what the keys of `runs` that need no mask, or (IS_MASKED) one, add to it, not yet scaled."""
    BLOCK_N: tl.constexpr = C.block_n
    WIDTH: tl.constexpr = keys_of_tile.shape[0]
    STAGES: tl.constexpr = stages(IS_MASKED, IS_CAREFUL, C.edge_stages)
    for step in tl.range(0, num_steps(runs, IS_MASKED), num_stages=STAGES):
        n = tile_start(step, runs, BLOCK_N, WIDTH, IS_MASKED)
        dq = dq_step(dq, held, keys, n, n + keys_of_tile, scores, IS_MASKED, IS_CAREFUL, C)
    return dq


@triton.jit
def dq_step(dq, held, keys, n, j, scores, IS_MASKED: tl.constexpr, IS_CAREFUL: tl.constexpr, C: tl.constexpr):
    """dQ from the keys j, n and those after it."""
    PRECISION: tl.constexpr = C.precision
    i = scores.held[:, None]  # (block_m, 1)
    j_ok = j < scores.num_streamed
    # The low tiles are multiplied before the high ones are loaded: all four at once would fill the registers.
    low = stream_part(keys.k, keys.k.Low, n, j_ok, 0, IS_CAREFUL, C)
    v_low = stream_part(keys.v, keys.v.Low, n, j_ok, 0, IS_CAREFUL, C)
    high = low
    s = tl.dot(held.q.low, tl.trans(low), input_precision=PRECISION)  # (block_m, num_keys)
    dp = tl.dot(held.dout.low, tl.trans(v_low), input_precision=PRECISION)  # (block_m, num_keys)
    if C.d_high > 0:
        high = stream_part(keys.k, keys.k.High, n, j_ok, 1, IS_CAREFUL, C)
        v_high = stream_part(keys.v, keys.v.High, n, j_ok, 1, IS_CAREFUL, C)
        s = tl.dot(held.q.high, tl.trans(high), s, input_precision=PRECISION)
        dp = tl.dot(held.dout.high, tl.trans(v_high), dp, input_precision=PRECISION)
    k = Pair(low, high)
    p = tl.math.exp2(s * scores.qk_scale - held.lse2[:, None])
    if IS_MASKED:
        documents = None
        if scores.mask.Streamed is not None:
            documents = load_documents(scores.mask.Streamed, j, j_ok)[None, :]
        sees = visible(i, j[None, :], scores.mask, documents)
        if not IS_CAREFUL:
            p = tl.where(sees, p, 0.0)
    if scores.dropout is not None:
        dp = tl.where(keeps(scores.dropout, 0, i, j[None, :]), dp * scores.dropout.scale, 0.0)
    ds = p * (dp - held.delta[:, None])
    if IS_CAREFUL:
        ds = tl.where(sees, ds, 0.0)
        k = pair_without_nonfinite(k, C)
    return add_product(dq, dot_operand(ds.to(k.low.dtype), PRECISION), k, C)
