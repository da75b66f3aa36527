"""Device code: attention weights rebuilt from the log-sum-exp that the fast path left behind.

The fast path never writes the T_q x T_k weights; it keeps one number a row, lse_i = log Σ_j exp(s_ij). That number is
all a tile needs to know of the rest of its row:

    w_ij = exp(s_ij - lse_i),   s = scale · q kᵀ        (computed as 2^((s - lse) · log2 e))

so every tile is rebuilt alone, in one pass, and only for the heads and rows that somebody wants to look at.
"""

import triton
import triton.language as tl

from ..attention.masks import key_bounds, visible
from ..attention.structs import Band, Mask, Masks
from ..device.tf32 import dot_operand


# Plain numbers that change from call to call: specialising on them (== 1, % 16) would only compile the kernel again.
@triton.jit(
    do_not_specialize=[
        "num_heads", "num_rows", "group", "head_start", "head_step", "row_start", "row_step", "lower", "upper",
    ]
)  # fmt: skip
def attention_weights_kernel(
    Q, K, Lse, Weights, KeyLengths, KeyStarts, Documents, stride_q, stride_k, stride_l, stride_w, stride_d,
    num_heads, num_rows, T_q, T_k, group, head_start, head_step, row_start, row_step, lower, upper, softmax_scale,
    HAS_LOWER: tl.constexpr, HAS_UPPER: tl.constexpr, HEAD_DIM: tl.constexpr, PRECISION: tl.constexpr,
    BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr, BLOCK_D: tl.constexpr,
):  # fmt: skip
    """One program writes one (BLOCK_M, BLOCK_N) tile of Weights (B, num_heads, num_rows, T_k).

    Output head n is head head_start + n * head_step of q, output row r is query row_start + r * row_step; query i sees
    keys i + lower ... i + upper. The rows of a tile are neighbours in the output, not in q.
    """
    HAS_DOCUMENTS: tl.constexpr = Documents is not None
    # The tiles along a row come one after another, so that q stays in L2 and the stores run on.
    tiles_n = tl.cdiv(T_k, BLOCK_N)
    tiles_m = tl.cdiv(num_rows, BLOCK_M)
    pid = tl.program_id(0)
    column = (pid % tiles_n) * BLOCK_N
    row = (pid // tiles_n % tiles_m) * BLOCK_M
    plane = pid // tiles_n // tiles_m
    n = (plane % num_heads).to(tl.int64)
    b = (plane // num_heads).to(tl.int64)
    h = head_start + n * head_step

    r = row + tl.arange(0, BLOCK_M)  # (BLOCK_M,) row of the output
    i = row_start + r * row_step  # (BLOCK_M,) query
    j = column + tl.arange(0, BLOCK_N)  # (BLOCK_N,) key
    r_ok, j_ok = r < num_rows, j < T_k
    i64, j64 = i.to(tl.int64), j.to(tl.int64)

    first_key, end_key = key_bounds(Masks(KeyStarts, KeyLengths, None, None), b, T_k)
    document_i, document_j = None, None
    if HAS_DOCUMENTS:
        Documents += b * stride_d[0]
        document_i = tl.load(Documents + (i64 + T_k - T_q) * stride_d[1], mask=r_ok, other=0)[:, None]
        document_j = tl.load(Documents + j64 * stride_d[1], mask=j_ok, other=0)[None, :]
    band = Band(lower if HAS_LOWER else None, upper if HAS_UPPER else None)
    sees = visible(i[:, None], j[None, :], Mask(first_key, end_key, band, document_i, None), document_j)

    # A tile that no query sees skips the product; the band and the padding decide for all of its rows at once.
    if HAS_LOWER:
        first_key = tl.maximum(first_key, row_start + row * row_step + lower)
    if HAS_UPPER:
        last_r = tl.minimum(row + BLOCK_M, num_rows) - 1
        end_key = tl.minimum(end_key, row_start + last_r * row_step + upper + 1)
    some = (column < end_key) & (column + BLOCK_N > first_key)

    Q += b * stride_q[0] + h * stride_q[1]
    K += b * stride_k[0] + h // group * stride_k[1]
    s = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    for d0 in tl.range(0, tl.where(some, HEAD_DIM, 0), BLOCK_D):
        d = (d0 + tl.arange(0, BLOCK_D)).to(tl.int64)  # times a stride that may be that of a transposed view
        d_ok = d < HEAD_DIM
        q = tl.load(
            Q + i64[:, None] * stride_q[2] + d[None, :] * stride_q[3], mask=r_ok[:, None] & d_ok[None, :], other=0.0
        )  # (BLOCK_M, BLOCK_D)
        k = tl.load(
            K + j64[:, None] * stride_k[2] + d[None, :] * stride_k[3], mask=j_ok[:, None] & d_ok[None, :], other=0.0
        )  # (BLOCK_N, BLOCK_D)
        q, k = dot_operand(q, PRECISION), dot_operand(k, PRECISION)
        s = tl.dot(q, tl.trans(k), s, input_precision=PRECISION)

    lse = tl.load(Lse + b * stride_l[0] + h * stride_l[1] + i64 * stride_l[2], mask=r_ok, other=0.0)  # (BLOCK_M,)
    # Subtract in natural units, where lse was rounded: the difference is small, and so is the error of scaling it.
    w = tl.math.exp2((s * softmax_scale - lse[:, None]) * 1.4426950408889634)
    w = tl.where(sees, w, 0.0)  # also in rows that see nothing, where lse = -inf
    Weights += b * stride_w[0] + n * stride_w[1]
    pointers = Weights + r.to(tl.int64)[:, None] * stride_w[2] + j[None, :]
    tl.store(pointers, w.to(Weights.dtype.element_ty), mask=r_ok[:, None] & j_ok[None, :])
