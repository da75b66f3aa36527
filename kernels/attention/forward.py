"""Device code: the attention forward."""

import triton
import triton.language as tl

from ..device.tf32 import dot_operand
from .device import (
    all_finite,
    at_head,
    keeps,
    load_dropout,
    load_pair,
    pair_without_nonfinite,
    scaled,
    store_pair,
    stream_pair,
    stream_product,
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
from .structs import Band, KeyValue, Mask, Matrix, Pair, Scores, Softmax, Stream


@triton.jit(do_not_specialize=["T_q", "T_k", "H", "group", "lower", "upper", "heads_per_section"])
def attention_forward_kernel(
    tensors, stride, Lse, KLow, KHigh, VLow, VHigh, masks, dropout,
    T_q, T_k, H, group, lower, upper, heads_per_section, qk_scale, C: tl.constexpr,
):  # fmt: skip
    """out = softmax(scale · q kᵀ + mask) v and lse, the log of the softmax's denominators. launch.forward calls it.

    tensors       ForwardTensors: pointers to Q and Out (B, H, T_q, head_dim), K and V (B, H / group, T_k, head_dim)
    stride        ForwardTensors: the four strides of each
    Lse           (B, H, T_q) float32, contiguous, natural logarithm
    KLow ... VHigh  TMA descriptors of K and V, boxes of block_n rows; or None
    masks, lower, upper, dropout    what weights are 0: see masks.py and structs.py
    qk_scale      scale · log2(e): the softmax is computed in base 2

    One program: block_m queries of one head against all the keys that they see.
    """
    BLOCK_M: tl.constexpr = C.block_m
    BLOCK_N: tl.constexpr = C.block_n
    EDGE: tl.constexpr = C.edge
    num_tiles = tl.cdiv(T_q, BLOCK_M)
    tile, head = program_tile(num_tiles, heads_per_section)
    if upper is not None:
        tile = num_tiles - 1 - tile  # causal: the last queries see most keys
    b, h = head // H, head % H
    row = tile * BLOCK_M
    i = row + tl.arange(0, BLOCK_M)  # (block_m,) query index
    i_ok = i < T_q
    Q, K, V = Matrix(tensors.Q, stride.Q), Matrix(tensors.K, stride.K), Matrix(tensors.V, stride.V)
    q = load_pair(Q, b, h, row, i_ok, C)
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
    scores = Scores(i, T_k, qk_scale, mask, head_dropout)
    HAS_WHOLE_EDGE: tl.constexpr = C.edge_stages > 0
    runs = tile_runs(
        row, tl.minimum(row + BLOCK_M, T_q) - 1, mask.band, first_key, end_key, masks.Ranges,
        b * num_tiles + tile, BLOCK_N, BLOCK_N if HAS_WHOLE_EDGE else EDGE,
    )  # fmt: skip
    # Made before the loops: ptxas may spill where the narrow one is made between them.
    keys_of_tile, keys_of_edge = tl.arange(0, BLOCK_N), tl.arange(0, EDGE)
    # Mask-free tiles first, then the ones at the edges of the mask: a first loop that masks makes ptxas serialize the
    # wgmma of both (C7515).
    state = over_tiles(nothing_seen(C), q, keys, keys_of_tile, scores, runs, False, False, C)
    keys_of_cut = keys_of_tile if HAS_WHOLE_EDGE else keys_of_edge
    state = over_tiles(state, q, keys, keys_of_cut, scores, runs, True, not HAS_WHOLE_EDGE, C)
    if HAS_WHOLE_EDGE:  # noqa: SIM102 (known when compiled)
        if not all_finite(state.acc, C):
            cut = all_cut(runs, BLOCK_N, EDGE)
            state = over_tiles(nothing_seen(C), q, keys, keys_of_edge, scores, cut, True, True, C)

    # A row that saw nothing has l = 0 and m = -inf: its output is 0 / 1 and its lse -inf + log2(1).
    l = tl.where(state.l == 0.0, 1.0, state.l)
    inverse = dropout.scale / l
    tl.store(Lse + head.to(tl.int64) * T_q + i, (state.m + tl.math.log2(l)) * 0.6931471805599453, mask=i_ok)
    store_pair(Matrix(tensors.Out, stride.Out), b, h, row, i_ok, scaled(state.acc, inverse[:, None]), C)


@triton.jit
def nothing_seen(C: tl.constexpr):
    """The Softmax of queries that have met no key yet."""
    BLOCK_M: tl.constexpr = C.block_m
    return Softmax(zeros(BLOCK_M, C), tl.full((BLOCK_M,), -float("inf"), tl.float32), tl.zeros((BLOCK_M,), tl.float32))


@triton.jit
def over_tiles(
    state, q, keys, keys_of_tile, scores, runs, IS_MASKED: tl.constexpr, IS_CAREFUL: tl.constexpr, C: tl.constexpr
):
    """`state`, and what the keys of `runs` that need no mask, or (IS_MASKED) one, add to it. keys_of_tile: 0, 1, ..."""
    BLOCK_N: tl.constexpr = C.block_n
    WIDTH: tl.constexpr = keys_of_tile.shape[0]
    STAGES: tl.constexpr = stages(IS_MASKED, IS_CAREFUL, C.edge_stages)
    for step in tl.range(0, num_steps(runs, IS_MASKED), num_stages=STAGES):
        n = tile_start(step, runs, BLOCK_N, WIDTH, IS_MASKED)
        state = forward_step(state, q, keys, n, n + keys_of_tile, scores, IS_MASKED, IS_CAREFUL, C)
    return state


@triton.jit
def forward_step(state, q, keys, n, j, scores, IS_MASKED: tl.constexpr, IS_CAREFUL: tl.constexpr, C: tl.constexpr):
    """The online softmax over the keys j, n and those after it: p = 2^(s - m), acc += p v, l += Σ p."""
    PRECISION: tl.constexpr = C.precision
    j_ok = j < scores.num_streamed
    s, _ = stream_product(q, keys.k, n, j_ok, IS_CAREFUL, C)  # (block_m, num_keys)
    v = stream_pair(keys.v, n, j_ok, IS_CAREFUL, C)
    if IS_MASKED:
        documents = None
        if scores.mask.Streamed is not None:
            documents = load_documents(scores.mask.Streamed, j, j_ok)[None, :]
        sees = visible(scores.held[:, None], j[None, :], scores.mask, documents)
        s = s * scores.qk_scale
        if IS_CAREFUL:
            # NaN (or inf) in V must reach the rows that see it, through their scores, and no others.
            poison = tl.sum(v.low.to(tl.float32) * 0.0, 1)
            if C.d_high > 0:
                poison += tl.sum(v.high.to(tl.float32) * 0.0, 1)
            v = pair_without_nonfinite(v, C)
            s += poison[None, :]
        s = tl.where(sees, s, -float("inf"))
        m = tl.maximum(state.m, tl.max(s, 1))
        # A row that has seen no key yet: its maximum is -inf, and -inf - -inf would be NaN.
        m_safe = tl.where(m == -float("inf"), 0.0, m)
        p = tl.math.exp2(s - m_safe[:, None])
    else:
        m = tl.maximum(state.m, tl.max(s, 1) * scores.qk_scale)
        m_safe = m
        p = tl.math.exp2(s * scores.qk_scale - m_safe[:, None])
    alpha = tl.math.exp2(state.m - m_safe)
    l = state.l * alpha + tl.sum(p, 1)
    if scores.dropout is not None:
        # Its constant 1 / (1 - dropout_p) waits for the end.
        p = tl.where(keeps(scores.dropout, 0, scores.held[:, None], j[None, :]), p, 0.0)
    p = dot_operand(p.to(v.low.dtype), PRECISION)
    return Softmax(decay_and_add(state.acc, alpha[:, None], p, v, C), m, l)


@triton.jit
def decay_and_add(acc, decay, weights, x, C: tl.constexpr):
    """acc · decay + weights · x, tile by tile. A high tile that is not there is left alone: a loop would compute it."""
    PRECISION: tl.constexpr = C.precision
    low, high = tl.dot(weights, x.low, acc.low * decay, input_precision=PRECISION), acc.high
    if C.d_high > 0:
        high = tl.dot(weights, x.high, acc.high * decay, input_precision=PRECISION)
    return Pair(low, high)
