"""Device code: attention weights rebuilt from the log-sum-exp that the fast path left behind.

The fast path never writes the T_q x T_k weights; it keeps one number a row, lse_i = log Σ_j exp(s_ij). That number is
all a tile needs to know of the rest of its row:

    w_ij = exp(s_ij - lse_i),   s = scale · q kᵀ        (computed as 2^((s - lse) · log2 e))

so every tile is rebuilt alone, in one pass, and only for the heads and rows that somebody wants to look at.
"""

import triton
import triton.language as tl

from ..attention.masks import key_bounds, visible
from ..attention.structs import Band, Mask
from ..device.tf32 import dot_operand
from ..device.tiles import store_tile


# Plain numbers that change from call to call: specialising on them (== 1, % 16) would only compile the kernel again.
@triton.jit(
    do_not_specialize=[
        "num_heads", "num_rows", "group", "head_start", "head_step", "row_start", "row_step", "lower", "upper",
    ]
)  # fmt: skip
def attention_weights_kernel(
    tensors, stride, masks, num_heads, num_rows, T_q, T_k, group, head_start, head_step, row_start, row_step,
    lower, upper, softmax_scale, C: tl.constexpr,
):  # fmt: skip
    """Weights[b, n, r, j] = exp(softmax_scale · q_i · k_j - lse_i) of head h and query i; 0 where i does not see j.

    tensors     Tensors, pointers: Q (B, H, T_q, head_dim); K (B, H / group, T_k, head_dim); Lse (B, H, T_q) float32,
                natural logarithm; Weights (B, num_heads, num_rows, T_k) of Q's dtype, its last dimension contiguous
    stride      Tensors, the strides of each
    n, r        stand for head h = head_start + n · head_step and query i = row_start + r · row_step
    masks, lower, upper    which keys a query sees: see attention's masks.py and structs.py

    One program: block_m rows, which are neighbours in Weights and not in Q, and block_n keys. launch.forward calls it.
    """
    BLOCK_M: tl.constexpr = C.block_m
    BLOCK_N: tl.constexpr = C.block_n
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
    r = row + tl.arange(0, BLOCK_M)  # (block_m,)
    i = row_start + r * row_step  # (block_m,)
    j = column + tl.arange(0, BLOCK_N)  # (block_n,)
    r_ok, j_ok = r < num_rows, j < T_k
    i64, j64 = i.to(tl.int64), j.to(tl.int64)

    first_key, end_key = key_bounds(masks, b, T_k)
    documents_i, documents_j = None, None
    if masks.Documents is not None:
        Keys = masks.Documents + b * T_k
        documents_i = tl.load(Keys + T_k - T_q + i, mask=r_ok, other=0)[:, None]
        documents_j = tl.load(Keys + j, mask=j_ok, other=0)[None, :]
    mask = Mask(first_key, end_key, Band(lower, upper), documents_i, None)
    sees = visible(i[:, None], j[None, :], mask, documents_j)

    # A tile that no query sees skips the product; the band and the padding decide for all of its rows at once.
    last_row = tl.minimum(row + BLOCK_M, num_rows) - 1
    if lower is not None:
        first_key = tl.maximum(first_key, row_start + row * row_step + lower)
    if upper is not None:
        end_key = tl.minimum(end_key, row_start + last_row * row_step + upper + 1)
    is_seen = (column < end_key) & (column + BLOCK_N > first_key)

    Q = tensors.Q + b * stride.Q[0] + h * stride.Q[1]
    K = tensors.K + b * stride.K[0] + h // group * stride.K[1]
    s = product(Q, K, stride.Q, stride.K, i64, j64, r_ok, j_ok, is_seen, C)  # (block_m, block_n)
    Lse = tensors.Lse + b * stride.Lse[0] + h * stride.Lse[1]
    lse = tl.load(Lse + i64 * stride.Lse[2], mask=r_ok, other=0.0)  # (block_m,)
    # Subtract in natural units, where lse was rounded: the difference is small, and so is the error of scaling it.
    w = tl.math.exp2((s * softmax_scale - lse[:, None]) * 1.4426950408889634)
    w = tl.where(sees, w, 0.0)  # also in rows that see nothing, where lse = -inf
    Weights = tensors.Weights + b * stride.Weights[0] + n * stride.Weights[1]
    store_tile(Weights, w, r.to(tl.int64), j, stride.Weights[2], 1, r_ok, j_ok)


@triton.jit
def product(Q, K, stride_q, stride_k, i, j, i_ok, j_ok, is_seen, C: tl.constexpr):
    """q_i · k_j of one head for all i and j, block_d columns of head_dim at a time; 0 unless is_seen."""
    HEAD_DIM: tl.constexpr = C.head_dim
    BLOCK_D: tl.constexpr = C.block_d
    PRECISION: tl.constexpr = C.precision
    s = tl.zeros((i.shape[0], j.shape[0]), tl.float32)
    for d0 in tl.range(0, tl.where(is_seen, HEAD_DIM, 0), BLOCK_D):
        d = (d0 + tl.arange(0, BLOCK_D)).to(tl.int64)  # times a stride that may be that of a transposed view
        d_ok = d < HEAD_DIM
        # Not by load_tile, which makes pointers before masks: here that takes 11 registers more.
        q_ok = i_ok[:, None] & d_ok[None, :]
        q = tl.load(Q + i[:, None] * stride_q[2] + d[None, :] * stride_q[3], mask=q_ok, other=0.0)  # (block_m, block_d)
        k_ok = j_ok[:, None] & d_ok[None, :]
        k = tl.load(K + j[:, None] * stride_k[2] + d[None, :] * stride_k[3], mask=k_ok, other=0.0)  # (block_n, block_d)
        q, k = dot_operand(q, PRECISION), dot_operand(k, PRECISION)
        s = tl.dot(q, tl.trans(k), s, input_precision=PRECISION)
    return s
