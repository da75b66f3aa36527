"""Device code: the attention backward."""

import triton
import triton.language as tl

from ..device.dropout import keep_mask
from ..device.sums import sum_of_products
from ..device.tf32 import dot_operand
from .forward import head_offset, load_tile, store_tile, stream_tile, tile_index, without_nonfinite
from .masks import column_tiles, key_bounds, program_tile, tile_start, visible


@triton.jit(do_not_specialize=["T_q", "H"])
def attention_delta(
    Out, D_out, D_lse, Lse, Lse2, Delta, stride_o, stride_do, stride_dlse, T_q, H,
    HEAD_DIM: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_D: tl.constexpr, WIDE: tl.constexpr,
):  # fmt: skip
    """delta_i = sum_d dO_id O_id - dlse_i and lse_i / ln 2, (B, H, T_q) float32.

    A row that saw no key has delta 0 and lse +inf, so that its weights, exp(S - lse), are 0. Where dO is not finite,
    delta is NaN and makes lse NaN too: through it the gradients of exactly those keys that the row sees become NaN.
    """
    num_tiles = tl.cdiv(T_q, BLOCK_M)
    tile, head = tl.program_id(0) % num_tiles, tl.program_id(0) // num_tiles
    b, h = head // H, head % H
    row = tile * BLOCK_M
    i = row + tl.arange(0, BLOCK_M)
    i_ok = i < T_q
    rows, cols = tile_index(BLOCK_M, WIDE), tile_index(BLOCK_D, WIDE)
    Out += head_offset(stride_o, b, h) + row.to(tl.int64) * stride_o[2]
    D_out += head_offset(stride_do, b, h) + row.to(tl.int64) * stride_do[2]
    out = load_tile(Out, rows, cols, stride_o[2], stride_o[3], i_ok, HEAD_DIM, True, BLOCK_D != HEAD_DIM)
    d_out = load_tile(D_out, rows, cols, stride_do[2], stride_do[3], i_ok, HEAD_DIM, True, BLOCK_D != HEAD_DIM)
    delta = sum_of_products(out.to(tl.float32), d_out.to(tl.float32), 1)
    offs = head.to(tl.int64) * T_q + i
    if D_lse is not None:
        D_lse += head_offset(stride_dlse, b, h) + row.to(tl.int64) * stride_dlse[2]
        delta -= tl.load(D_lse + rows * stride_dlse[2], mask=i_ok, other=0.0).to(tl.float32)
    lse = tl.load(Lse + offs, mask=i_ok, other=0.0)
    empty = lse == -float("inf")
    tl.store(Delta + offs, tl.where(empty, 0.0, delta), mask=i_ok)
    tl.store(Lse2 + offs, tl.where(empty, float("inf"), lse * 1.4426950408889634 + delta * 0.0), mask=i_ok)


@triton.jit
def dkdv_step(
    dk_a, dk_b, dv_a, dv_b, k_a, k_b, v_a, v_b, Q, D_out, Q_a, Q_b, D_out_a, D_out_b, Lse2, Delta, b, h, m, j, rows_m,
    cols_a, cols_b, stride_q, stride_do, document_j, Documents, T_q, lower, upper, qk_scale, head_dim, seed, offset,
    head, threshold, keep_scale,
    HAS_LOWER: tl.constexpr, HAS_UPPER: tl.constexpr, HAS_DOCUMENTS: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    D_A: tl.constexpr, D_B: tl.constexpr, MASK_A: tl.constexpr, MASK_B: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Queries [m, m + block_m) of one head."""
    i = m + tl.arange(0, rows_m.shape[0])  # (block_m,)
    i_ok = i < T_q
    if MASKED:
        # Rows with inf or NaN read as 0: 0 · NaN would carry them to keys that they do not see. The keys that they do
        # see get NaN through lse.
        lse = tl.load(Lse2 + i, mask=i_ok, other=float("inf"))
        i_ok = tl.abs(lse) < float("inf")
    q_a = stream_tile(Q, Q_a, b, h, m, rows_m, cols_a, stride_q, i_ok, head_dim, 0, MASKED, MASK_A)
    q_a = dot_operand(q_a, PRECISION)
    sT = tl.dot(k_a, tl.trans(q_a), input_precision=PRECISION)  # (block_n, block_m)
    if D_B > 0:
        q_b = stream_tile(Q, Q_b, b, h, m, rows_m, cols_b, stride_q, i_ok, head_dim, D_A, MASKED, MASK_B)
        q_b = dot_operand(q_b, PRECISION)
        sT = tl.dot(k_b, tl.trans(q_b), sT, input_precision=PRECISION)
    if not MASKED:
        lse = tl.load(Lse2 + i)
    do_a = stream_tile(D_out, D_out_a, b, h, m, rows_m, cols_a, stride_do, i_ok, head_dim, 0, MASKED, MASK_A)
    do_a = dot_operand(do_a, PRECISION)
    if D_B > 0:
        do_b = stream_tile(D_out, D_out_b, b, h, m, rows_m, cols_b, stride_do, i_ok, head_dim, D_A, MASKED, MASK_B)
        do_b = dot_operand(do_b, PRECISION)
    pT = tl.math.exp2(sT * qk_scale - lse[None, :])
    if MASKED:
        document_i = 0
        if HAS_DOCUMENTS:
            document_i = tl.load(Documents + i, mask=i < T_q, other=0)[None, :]
        sees = visible(
            i[None, :], j[:, None], 0, 2147483647, document_i, document_j, lower, upper,
            HAS_LOWER, HAS_UPPER, HAS_DOCUMENTS,
        )  # fmt: skip
        pT = tl.where(sees, pT, 0.0)
    pT_kept = pT
    if HAS_DROPOUT:
        keep = keep_mask(seed, offset, head, i[None, :], j[:, None], threshold)
        pT_kept = tl.where(keep, pT * keep_scale, 0.0)
    pT_kept = dot_operand(pT_kept.to(do_a.dtype), PRECISION)
    dv_a = tl.dot(pT_kept, do_a, dv_a, input_precision=PRECISION)
    dpT = tl.dot(v_a, tl.trans(do_a), input_precision=PRECISION)  # (block_n, block_m)
    if D_B > 0:
        dv_b = tl.dot(pT_kept, do_b, dv_b, input_precision=PRECISION)
        dpT = tl.dot(v_b, tl.trans(do_b), dpT, input_precision=PRECISION)
    if HAS_DROPOUT:
        dpT = tl.where(keep, dpT * keep_scale, 0.0)
    if MASKED:
        delta = tl.load(Delta + i, mask=i < T_q, other=0.0)
    else:
        delta = tl.load(Delta + i)
    dsT = pT * (dpT - delta[None, :])
    if MASKED:
        dsT = tl.where(sees, dsT, 0.0)  # 0 · NaN
    dsT = dot_operand(dsT.to(q_a.dtype), PRECISION)
    dk_a = tl.dot(dsT, q_a, dk_a, input_precision=PRECISION)
    if D_B > 0:
        dk_b = tl.dot(dsT, q_b, dk_b, input_precision=PRECISION)
    return dk_a, dk_b, dv_a, dv_b


@triton.jit(
    do_not_specialize=[
        "T_q",
        "T_k",
        "H_kv",
        "lower",
        "upper",
        "num_heads",
        "heads_per_section",
        "threshold",
        "stride_document",
    ],
)
def attention_dkdv(
    Q, K, V, D_out, Q_a, Q_b, D_out_a, D_out_b, Lse2, Delta, D_k, D_v,
    stride_q, stride_k, stride_v, stride_do, stride_dk, stride_dv,
    KeyStarts, KeyLengths, Documents, stride_document, Ranges, Seed,
    T_q, T_k, H_kv, lower, upper, num_heads, heads_per_section, softmax_scale, threshold, keep_scale,
    GROUP: tl.constexpr, HEAD_DIM: tl.constexpr, D_A: tl.constexpr, D_B: tl.constexpr, BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr, EDGE: tl.constexpr, HAS_LOWER: tl.constexpr, HAS_UPPER: tl.constexpr,
    HAS_DROPOUT: tl.constexpr, WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: dK and dV of BLOCK_N keys of one key head, over the queries of all GROUP heads that see them."""
    HAS_DOCUMENTS: tl.constexpr = Documents is not None
    MASK_A: tl.constexpr = HEAD_DIM < D_A
    MASK_B: tl.constexpr = HEAD_DIM < D_A + D_B
    num_tiles = tl.cdiv(T_k, BLOCK_N)
    tile, kv_head = program_tile(num_tiles, num_heads, heads_per_section)
    if HAS_LOWER and not HAS_UPPER:
        tile = num_tiles - 1 - tile
    b, h_kv = kv_head // H_kv, kv_head % H_kv
    column = tile * BLOCK_N

    rows_m, rows_n, rows_edge = tile_index(BLOCK_M, WIDE), tile_index(BLOCK_N, WIDE), tile_index(EDGE, WIDE)
    cols_a, cols_b = tile_index(D_A, WIDE), D_A + tile_index(max(D_B, 16), WIDE)
    j = column + tl.arange(0, BLOCK_N)  # (BLOCK_N,) key index
    j_ok = j < T_k
    Q += head_offset(stride_q, b, h_kv * GROUP)
    D_out += head_offset(stride_do, b, h_kv * GROUP)
    K += head_offset(stride_k, b, h_kv) + column.to(tl.int64) * stride_k[2]
    V += head_offset(stride_v, b, h_kv) + column.to(tl.int64) * stride_v[2]
    first_head = kv_head * GROUP  # = b * H + h of the first query head
    Lse2 += first_head.to(tl.int64) * T_q
    Delta += first_head.to(tl.int64) * T_q

    first_key, end_key = key_bounds(KeyStarts, KeyLengths, b, T_k)
    key_ok = (j >= first_key) & (j < end_key)
    k_a = load_tile(K, rows_n, cols_a, stride_k[2], stride_k[3], j_ok, HEAD_DIM, True, MASK_A)
    v_a = load_tile(V, rows_n, cols_a, stride_v[2], stride_v[3], j_ok, HEAD_DIM, True, MASK_A)
    k_a, v_a = dot_operand(k_a, PRECISION), dot_operand(v_a, PRECISION)
    k_b, v_b = k_a, v_a
    if D_B > 0:
        k_b = load_tile(K, rows_n, cols_b, stride_k[2], stride_k[3], j_ok, HEAD_DIM, True, MASK_B)
        v_b = load_tile(V, rows_n, cols_b, stride_v[2], stride_v[3], j_ok, HEAD_DIM, True, MASK_B)
        k_b, v_b = dot_operand(k_b, PRECISION), dot_operand(v_b, PRECISION)
    dk_a = tl.zeros((BLOCK_N, D_A), tl.float32)
    dv_a = tl.zeros((BLOCK_N, D_A), tl.float32)
    dk_b = tl.zeros((BLOCK_N, max(D_B, 16)), tl.float32)
    dv_b = tl.zeros((BLOCK_N, max(D_B, 16)), tl.float32)
    seed, offset = 0, 0
    if HAS_DROPOUT:
        seed, offset = tl.load(Seed), tl.load(Seed + 1)
    document_j = 0
    if HAS_DOCUMENTS:
        Documents += b.to(tl.int64) * stride_document
        document_j = tl.load(Documents + j, mask=j_ok, other=0)[:, None]
        Documents += T_k - T_q

    # Key j is seen by the queries j - upper <= i <= j - lower. A tile whose keys are all padding has nothing to do.
    some_key = (column < end_key) & (column + BLOCK_N > first_key)
    left, num_left, full, num_full, right, num_right = column_tiles(
        column, tl.minimum(column + BLOCK_N, T_k) - 1, -upper, -lower, 0, tl.where(some_key, T_q, 0), Ranges,
        b * num_tiles + tile, BLOCK_M, EDGE, HAS_UPPER, HAS_LOWER, HAS_DOCUMENTS,
    )  # fmt: skip
    qk_scale = softmax_scale * 1.4426950408889634
    for MASKED in tl.static_range(2):  # in this order for the reason given in the forward
        tiles = num_left + num_right if MASKED else num_full
        for step in tl.range(0, tiles * GROUP, num_stages=1 if MASKED else None):
            # The heads of the group take turns at a tile, so that both divisions are by a constant. The number of tiles
            # may be 0, and the loads of the first step are issued before the loop, whether or not it has a step: what
            # they depend on must be defined then.
            g = step % GROUP
            m = tile_start(step // GROUP, left, num_left, full, right, BLOCK_M, EDGE, MASKED)
            g64 = tl.zeros([], tl.int64) + g
            dk_a, dk_b, dv_a, dv_b = dkdv_step(
                dk_a, dk_b, dv_a, dv_b, k_a, k_b, v_a, v_b, Q + g64 * stride_q[1], D_out + g64 * stride_do[1],
                None if MASKED else Q_a, None if MASKED else Q_b, None if MASKED else D_out_a,
                None if MASKED else D_out_b, Lse2 + g64 * T_q, Delta + g64 * T_q, b, h_kv * GROUP + g, m, j,
                rows_edge if MASKED else rows_m, cols_a, cols_b, stride_q, stride_do, document_j, Documents, T_q,
                lower, upper, qk_scale, HEAD_DIM, seed, offset, first_head + g, threshold, keep_scale,
                HAS_LOWER, HAS_UPPER, HAS_DOCUMENTS, HAS_DROPOUT, D_A, D_B, MASK_A, MASK_B, MASKED, PRECISION,
            )  # fmt: skip

    D_k += head_offset(stride_dk, b, h_kv) + column.to(tl.int64) * stride_dk[2]
    D_v += head_offset(stride_dv, b, h_kv) + column.to(tl.int64) * stride_dv[2]
    # Padding keys were computed like the others, each in its own row; their gradient is 0.
    dk_a = tl.where(key_ok[:, None], dk_a * softmax_scale, 0.0)
    dv_a = tl.where(key_ok[:, None], dv_a, 0.0)
    store_tile(D_k, dk_a, rows_n, cols_a, stride_dk[2], stride_dk[3], j_ok, HEAD_DIM, MASK_A)
    store_tile(D_v, dv_a, rows_n, cols_a, stride_dv[2], stride_dv[3], j_ok, HEAD_DIM, MASK_A)
    if D_B > 0:
        dk_b = tl.where(key_ok[:, None], dk_b * softmax_scale, 0.0)
        dv_b = tl.where(key_ok[:, None], dv_b, 0.0)
        store_tile(D_k, dk_b, rows_n, cols_b, stride_dk[2], stride_dk[3], j_ok, HEAD_DIM, MASK_B)
        store_tile(D_v, dv_b, rows_n, cols_b, stride_dv[2], stride_dv[3], j_ok, HEAD_DIM, MASK_B)


@triton.jit
def dq_step(
    dq_a, dq_b, q_a, q_b, do_a, do_b, lse, delta, K, V, K_a, K_b, V_a, V_b, b, h_kv, n, i, rows_n, cols_a, cols_b,
    stride_k, stride_v, document_i, Documents, T_k, first_key, end_key, lower, upper, qk_scale, head_dim,
    seed, offset, head, threshold, keep_scale,
    HAS_LOWER: tl.constexpr, HAS_UPPER: tl.constexpr, HAS_DOCUMENTS: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    D_A: tl.constexpr, D_B: tl.constexpr, MASK_A: tl.constexpr, MASK_B: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Keys [n, n + block_n)."""
    j = n + tl.arange(0, rows_n.shape[0])  # (block_n,)
    j_ok = j < T_k
    k_a = stream_tile(K, K_a, b, h_kv, n, rows_n, cols_a, stride_k, j_ok, head_dim, 0, MASKED, MASK_A)
    v_a = stream_tile(V, V_a, b, h_kv, n, rows_n, cols_a, stride_v, j_ok, head_dim, 0, MASKED, MASK_A)
    k_a, v_a = dot_operand(k_a, PRECISION), dot_operand(v_a, PRECISION)
    s = tl.dot(q_a, tl.trans(k_a), input_precision=PRECISION)  # (block_m, block_n)
    dp = tl.dot(do_a, tl.trans(v_a), input_precision=PRECISION)  # (block_m, block_n)
    if D_B > 0:
        k_b = stream_tile(K, K_b, b, h_kv, n, rows_n, cols_b, stride_k, j_ok, head_dim, D_A, MASKED, MASK_B)
        v_b = stream_tile(V, V_b, b, h_kv, n, rows_n, cols_b, stride_v, j_ok, head_dim, D_A, MASKED, MASK_B)
        k_b, v_b = dot_operand(k_b, PRECISION), dot_operand(v_b, PRECISION)
        s = tl.dot(q_b, tl.trans(k_b), s, input_precision=PRECISION)
        dp = tl.dot(do_b, tl.trans(v_b), dp, input_precision=PRECISION)
    p = tl.math.exp2(s * qk_scale - lse[:, None])
    if HAS_DROPOUT:
        keep = keep_mask(seed, offset, head, i[:, None], j[None, :], threshold)
        dp = tl.where(keep, dp * keep_scale, 0.0)
    ds = p * (dp - delta[:, None])
    if MASKED:
        document_j = 0
        if HAS_DOCUMENTS:
            document_j = tl.load(Documents + j, mask=j_ok, other=0)[None, :]
        sees = visible(
            i[:, None], j[None, :], first_key, end_key, document_i, document_j, lower, upper,
            HAS_LOWER, HAS_UPPER, HAS_DOCUMENTS,
        )  # fmt: skip
        ds = tl.where(sees, ds, 0.0)
        k_a = without_nonfinite(k_a)
        if D_B > 0:
            k_b = without_nonfinite(k_b)
    ds = dot_operand(ds.to(k_a.dtype), PRECISION)
    dq_a = tl.dot(ds, k_a, dq_a, input_precision=PRECISION)
    if D_B > 0:
        dq_b = tl.dot(ds, k_b, dq_b, input_precision=PRECISION)
    return dq_a, dq_b


@triton.jit(
    do_not_specialize=[
        "T_q",
        "T_k",
        "H",
        "group",
        "lower",
        "upper",
        "num_heads",
        "heads_per_section",
        "threshold",
        "stride_document",
    ],
)
def attention_dq(
    Q, K, V, D_out, K_a, K_b, V_a, V_b, Lse2, Delta, D_q, stride_q, stride_k, stride_v, stride_do, stride_dq,
    KeyStarts, KeyLengths, Documents, stride_document, Ranges, Seed,
    T_q, T_k, H, group, lower, upper, num_heads, heads_per_section, softmax_scale, threshold, keep_scale,
    HEAD_DIM: tl.constexpr, D_A: tl.constexpr, D_B: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    EDGE: tl.constexpr, HAS_LOWER: tl.constexpr, HAS_UPPER: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: dQ of BLOCK_M queries of one head, over all the keys that they see."""
    HAS_DOCUMENTS: tl.constexpr = Documents is not None
    MASK_A: tl.constexpr = HEAD_DIM < D_A
    MASK_B: tl.constexpr = HEAD_DIM < D_A + D_B
    num_tiles = tl.cdiv(T_q, BLOCK_M)
    tile, head = program_tile(num_tiles, num_heads, heads_per_section)
    if HAS_UPPER:
        tile = num_tiles - 1 - tile
    b, h = head // H, head % H
    row = tile * BLOCK_M

    rows_m, rows_n, rows_edge = tile_index(BLOCK_M, WIDE), tile_index(BLOCK_N, WIDE), tile_index(EDGE, WIDE)
    cols_a, cols_b = tile_index(D_A, WIDE), D_A + tile_index(max(D_B, 16), WIDE)
    i = row + tl.arange(0, BLOCK_M)  # (BLOCK_M,) query index
    i_ok = i < T_q
    Q += head_offset(stride_q, b, h) + row.to(tl.int64) * stride_q[2]
    D_out += head_offset(stride_do, b, h) + row.to(tl.int64) * stride_do[2]
    K += head_offset(stride_k, b, h // group)
    V += head_offset(stride_v, b, h // group)
    offs = head.to(tl.int64) * T_q + i

    q_a = load_tile(Q, rows_m, cols_a, stride_q[2], stride_q[3], i_ok, HEAD_DIM, True, MASK_A)
    do_a = load_tile(D_out, rows_m, cols_a, stride_do[2], stride_do[3], i_ok, HEAD_DIM, True, MASK_A)
    q_a, do_a = dot_operand(q_a, PRECISION), dot_operand(do_a, PRECISION)
    q_b, do_b = q_a, do_a
    if D_B > 0:
        q_b = load_tile(Q, rows_m, cols_b, stride_q[2], stride_q[3], i_ok, HEAD_DIM, True, MASK_B)
        do_b = load_tile(D_out, rows_m, cols_b, stride_do[2], stride_do[3], i_ok, HEAD_DIM, True, MASK_B)
        q_b, do_b = dot_operand(q_b, PRECISION), dot_operand(do_b, PRECISION)
    lse = tl.load(Lse2 + offs, mask=i_ok, other=0.0)
    delta = tl.load(Delta + offs, mask=i_ok, other=0.0)
    dq_a = tl.zeros((BLOCK_M, D_A), tl.float32)
    dq_b = tl.zeros((BLOCK_M, max(D_B, 16)), tl.float32)
    seed, offset = 0, 0
    if HAS_DROPOUT:
        seed, offset = tl.load(Seed), tl.load(Seed + 1)
    document_i = 0
    if HAS_DOCUMENTS:
        Documents += b.to(tl.int64) * stride_document
        document_i = tl.load(Documents + T_k - T_q + i, mask=i_ok, other=0)[:, None]

    first_key, end_key = key_bounds(KeyStarts, KeyLengths, b, T_k)
    left, num_left, full, num_full, right, num_right = column_tiles(
        row, tl.minimum(row + BLOCK_M, T_q) - 1, lower, upper, first_key, end_key, Ranges, b * num_tiles + tile,
        BLOCK_N, EDGE, HAS_LOWER, HAS_UPPER, HAS_DOCUMENTS,
    )  # fmt: skip
    qk_scale = softmax_scale * 1.4426950408889634
    for MASKED in tl.static_range(2):  # in this order for the reason given in the forward
        steps = num_left + num_right if MASKED else num_full
        for step in tl.range(0, steps, num_stages=1 if MASKED else None):
            n = tile_start(step, left, num_left, full, right, BLOCK_N, EDGE, MASKED)
            dq_a, dq_b = dq_step(
                dq_a, dq_b, q_a, q_b, do_a, do_b, lse, delta, K, V, None if MASKED else K_a, None if MASKED else K_b,
                None if MASKED else V_a, None if MASKED else V_b, b, h // group, n, i, rows_edge if MASKED else rows_n,
                cols_a, cols_b, stride_k, stride_v, document_i, Documents, T_k, first_key, end_key, lower, upper,
                qk_scale, HEAD_DIM, seed, offset, head, threshold, keep_scale, HAS_LOWER, HAS_UPPER, HAS_DOCUMENTS,
                HAS_DROPOUT, D_A, D_B, MASK_A, MASK_B, MASKED, PRECISION,
            )  # fmt: skip
    D_q += head_offset(stride_dq, b, h) + row.to(tl.int64) * stride_dq[2]
    store_tile(D_q, dq_a * softmax_scale, rows_m, cols_a, stride_dq[2], stride_dq[3], i_ok, HEAD_DIM,
               MASK_A)  # fmt: skip
    if D_B > 0:
        store_tile(D_q, dq_b * softmax_scale, rows_m, cols_b, stride_dq[2], stride_dq[3], i_ok, HEAD_DIM, MASK_B)
