"""Device code: the attention forward."""

import triton
import triton.language as tl

from ..device.dropout import keep_mask
from ..device.tf32 import dot_operand
from .masks import column_tiles, key_bounds, program_tile, tile_start, visible


@triton.jit
def load_tile(Base, rows, columns, stride_row, stride_column, row_ok, head_dim,
              MASK_ROWS: tl.constexpr, MASK_COLUMNS: tl.constexpr):  # fmt: skip
    """(rows, columns) tile at scalar pointer Base; what is masked out reads as 0."""
    pointers = Base + rows[:, None] * stride_row + columns[None, :] * stride_column
    if MASK_ROWS and MASK_COLUMNS:
        return tl.load(pointers, mask=row_ok[:, None] & (columns < head_dim)[None, :], other=0.0)
    if MASK_ROWS:
        return tl.load(pointers, mask=row_ok[:, None], other=0.0)
    if MASK_COLUMNS:
        return tl.load(pointers, mask=(columns < head_dim)[None, :], other=0.0)
    return tl.load(pointers)


@triton.jit
def stream_tile(Base, Descriptor, b, h, row, rows, columns, strides, row_ok, head_dim,
                COLUMN: tl.constexpr, MASK_ROWS: tl.constexpr, MASK_COLUMNS: tl.constexpr):  # fmt: skip
    """(rows, columns) tile from `row` of head h: by TMA if there is a Descriptor, else by pointers from Base.

    Base is the head's first row. The copy engine computes addresses by itself, which frees 16 to 60 registers a thread.
    """
    if Descriptor is not None:
        return Descriptor.load([b, h, row, COLUMN]).reshape(rows.shape[0], columns.shape[0])
    else:
        row64 = tl.zeros([], tl.int64) + row
        return load_tile(
            Base + row64 * strides[2], rows, columns, strides[2], strides[3], row_ok, head_dim, MASK_ROWS, MASK_COLUMNS
        )


@triton.jit
def without_nonfinite(tile):
    """0 in the place of inf and NaN. In a masked product 0 · NaN would carry them to rows that do not see them."""
    return tl.where(tl.abs(tile.to(tl.float32)) < float("inf"), tile, 0.0)


@triton.jit
def store_tile(Base, tile, rows, columns, stride_row, stride_column, row_ok, head_dim, MASK_COLUMNS: tl.constexpr):
    """Store a (rows, columns) tile at scalar pointer Base, in the type that Base points to."""
    pointers = Base + rows[:, None] * stride_row + columns[None, :] * stride_column
    mask = row_ok[:, None]
    if MASK_COLUMNS:
        mask = mask & (columns < head_dim)[None, :]
    tl.store(pointers, tile.to(Base.dtype.element_ty), mask=mask)


@triton.jit
def tile_index(N: tl.constexpr, WIDE: tl.constexpr):
    """0 ... N - 1 for offsets inside a tile: int64 only when a stride is so large that 256 of it overflow int32."""
    if WIDE:
        return tl.arange(0, N).to(tl.int64)
    else:
        return tl.arange(0, N)


@triton.jit
def head_offset(strides, b, h):
    """Offset of head h of sequence b, in elements: int64."""
    return b.to(tl.int64) * strides[0] + h.to(tl.int64) * strides[1]


@triton.jit
def forward_step(
    acc_a, acc_b, l, m, q_a, q_b, K, V, K_a, K_b, V_a, V_b, b, h_kv, n, i, rows_n, cols_a, cols_b, stride_k, stride_v,
    document_i, Documents, T_k, first_key, end_key, lower, upper, qk_scale, head_dim, seed, offset, head, threshold,
    HAS_LOWER: tl.constexpr, HAS_UPPER: tl.constexpr, HAS_DOCUMENTS: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    D_A: tl.constexpr, D_B: tl.constexpr, MASK_A: tl.constexpr, MASK_B: tl.constexpr, MASKED: tl.constexpr,
    PRECISION: tl.constexpr,
):  # fmt: skip
    """Keys [n, n + block_n): one step of the online softmax."""
    j = n + tl.arange(0, rows_n.shape[0])  # (block_n,)
    j_ok = j < T_k
    k_a = stream_tile(K, K_a, b, h_kv, n, rows_n, cols_a, stride_k, j_ok, head_dim, 0, MASKED, MASK_A)
    k_a = dot_operand(k_a, PRECISION)
    s = tl.dot(q_a, tl.trans(k_a), input_precision=PRECISION)  # (block_m, block_n)
    if D_B > 0:
        k_b = stream_tile(K, K_b, b, h_kv, n, rows_n, cols_b, stride_k, j_ok, head_dim, D_A, MASKED, MASK_B)
        k_b = dot_operand(k_b, PRECISION)
        s = tl.dot(q_b, tl.trans(k_b), s, input_precision=PRECISION)
    v_a = stream_tile(V, V_a, b, h_kv, n, rows_n, cols_a, stride_v, j_ok, head_dim, 0, MASKED, MASK_A)
    v_a = dot_operand(v_a, PRECISION)
    if D_B > 0:
        v_b = stream_tile(V, V_b, b, h_kv, n, rows_n, cols_b, stride_v, j_ok, head_dim, D_A, MASKED, MASK_B)
        v_b = dot_operand(v_b, PRECISION)
    if MASKED:
        document_j = 0
        if HAS_DOCUMENTS:
            document_j = tl.load(Documents + j, mask=j_ok, other=0)[None, :]
        sees = visible(
            i[:, None], j[None, :], first_key, end_key, document_i, document_j, lower, upper,
            HAS_LOWER, HAS_UPPER, HAS_DOCUMENTS,
        )  # fmt: skip
        # NaN (or inf) in V must reach the rows that see it, through their scores, and no others.
        poison = tl.sum(v_a.to(tl.float32) * 0.0, 1)
        v_a = without_nonfinite(v_a)
        if D_B > 0:
            poison += tl.sum(v_b.to(tl.float32) * 0.0, 1)
            v_b = without_nonfinite(v_b)
        s = tl.where(sees, s * qk_scale + poison[None, :], -float("inf"))
        m_new = tl.maximum(m, tl.max(s, 1))
        # A row that has seen no key yet: its maximum is -inf, and -inf - -inf would be NaN.
        m_safe = tl.where(m_new == -float("inf"), 0.0, m_new)
        p = tl.math.exp2(s - m_safe[:, None])
    else:
        m_new = tl.maximum(m, tl.max(s, 1) * qk_scale)
        m_safe = m_new
        p = tl.math.exp2(s * qk_scale - m_safe[:, None])
    alpha = tl.math.exp2(m - m_safe)
    l = l * alpha + tl.sum(p, 1)
    if HAS_DROPOUT:
        keep = keep_mask(seed, offset, head, i[:, None], j[None, :], threshold)
        p = tl.where(keep, p, 0.0)  # the constant 1 / (1 - dropout_p) waits until the end
    p = dot_operand(p.to(v_a.dtype), PRECISION)
    acc_a = tl.dot(p, v_a, acc_a * alpha[:, None], input_precision=PRECISION)
    if D_B > 0:
        acc_b = tl.dot(p, v_b, acc_b * alpha[:, None], input_precision=PRECISION)
    return acc_a, acc_b, l, m_new


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
def attention_forward(
    Q, K, V, K_a, K_b, V_a, V_b, Out, Lse, stride_q, stride_k, stride_v, stride_o,
    KeyStarts, KeyLengths, Documents, stride_document, Ranges, Seed,
    T_q, T_k, H, group, lower, upper, num_heads, heads_per_section, qk_scale, threshold, out_scale,
    HEAD_DIM: tl.constexpr, D_A: tl.constexpr, D_B: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr,
    EDGE: tl.constexpr, HAS_LOWER: tl.constexpr, HAS_UPPER: tl.constexpr, HAS_DROPOUT: tl.constexpr,
    WIDE: tl.constexpr, PRECISION: tl.constexpr,
):  # fmt: skip
    """One program: BLOCK_M queries of one head against all the keys that they see."""
    HAS_DOCUMENTS: tl.constexpr = Documents is not None
    MASK_A: tl.constexpr = HEAD_DIM < D_A
    MASK_B: tl.constexpr = HEAD_DIM < D_A + D_B
    num_tiles = tl.cdiv(T_q, BLOCK_M)
    tile, head = program_tile(num_tiles, num_heads, heads_per_section)
    if HAS_UPPER:
        tile = num_tiles - 1 - tile  # causal: the last queries see most keys
    b, h = head // H, head % H
    row = tile * BLOCK_M

    rows_m, rows_n, rows_edge = tile_index(BLOCK_M, WIDE), tile_index(BLOCK_N, WIDE), tile_index(EDGE, WIDE)
    cols_a, cols_b = tile_index(D_A, WIDE), D_A + tile_index(max(D_B, 16), WIDE)
    i = row + tl.arange(0, BLOCK_M)  # (BLOCK_M,) query index
    i_ok = i < T_q
    Q += head_offset(stride_q, b, h) + row.to(tl.int64) * stride_q[2]
    K += head_offset(stride_k, b, h // group)
    V += head_offset(stride_v, b, h // group)
    Lse += head.to(tl.int64) * T_q

    q_a = load_tile(Q, rows_m, cols_a, stride_q[2], stride_q[3], i_ok, HEAD_DIM, True, MASK_A)
    q_a = dot_operand(q_a, PRECISION)
    q_b = q_a
    if D_B > 0:
        q_b = load_tile(Q, rows_m, cols_b, stride_q[2], stride_q[3], i_ok, HEAD_DIM, True, MASK_B)
        q_b = dot_operand(q_b, PRECISION)
    acc_a = tl.zeros((BLOCK_M, D_A), tl.float32)
    acc_b = tl.zeros((BLOCK_M, max(D_B, 16)), tl.float32)
    m = tl.full((BLOCK_M,), -float("inf"), tl.float32)
    l = tl.zeros((BLOCK_M,), tl.float32)
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
    # Mask-free tiles first, then the ones at the edges of the mask. In this order, with the second loop not pipelined,
    # ptxas keeps the wgmma of both asynchronous; a first loop that masks makes it serialize them (C7515).
    for MASKED in tl.static_range(2):
        steps = num_left + num_right if MASKED else num_full
        for step in tl.range(0, steps, num_stages=1 if MASKED else None):
            n = tile_start(step, left, num_left, full, right, BLOCK_N, EDGE, MASKED)
            acc_a, acc_b, l, m = forward_step(
                acc_a, acc_b, l, m, q_a, q_b, K, V, None if MASKED else K_a, None if MASKED else K_b,
                None if MASKED else V_a, None if MASKED else V_b, b, h // group, n, i, rows_edge if MASKED else rows_n,
                cols_a, cols_b, stride_k, stride_v, document_i, Documents, T_k, first_key, end_key, lower, upper,
                qk_scale, HEAD_DIM, seed, offset, head, threshold, HAS_LOWER, HAS_UPPER, HAS_DOCUMENTS, HAS_DROPOUT,
                D_A, D_B, MASK_A, MASK_B, MASKED, PRECISION,
            )  # fmt: skip

    # A row that saw nothing has l = 0 and m = -inf: its output is 0 / 1 and its lse -inf + log2(1).
    l = tl.where(l == 0.0, 1.0, l)
    inverse = out_scale / l
    tl.store(Lse + i, (m + tl.math.log2(l)) * 0.6931471805599453, mask=i_ok)
    Out += head_offset(stride_o, b, h) + row.to(tl.int64) * stride_o[2]
    store_tile(Out, acc_a * inverse[:, None], rows_m, cols_a, stride_o[2], stride_o[3], i_ok, HEAD_DIM,
               MASK_A)  # fmt: skip
    if D_B > 0:
        store_tile(Out, acc_b * inverse[:, None], rows_m, cols_b, stride_o[2], stride_o[3], i_ok, HEAD_DIM, MASK_B)
