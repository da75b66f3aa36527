"""Rung 6: what the mask would throw away is not computed. The loop over keys ends at the diagonal.

    key tiles left of the diagonal    every query sees every key: no mask, no compare
    the one tile on the diagonal      masked, element by element
    key tiles right of it             not visited

Of N x N tiles N (N + 1) / 2 are left, about half, and all but N of them need no mask. The last, ragged block needs no
more care: keys past T lie right of the diagonal. (Dao, "FlashAttention-2", 2023, section 3.1.1.)
"""

from __future__ import annotations

import math

import torch
import triton
import triton.language as tl
from torch import Tensor

from ... import _runtime
from .arguments import block_of, check_kernel


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q, k, v (B, H, T, D), D 16, 32, 64 or 128, on a CUDA GPU or in `interpret()`.

    Raises:
        TypeError, ValueError, RuntimeError: see `arguments.py: check_kernel`.
    """
    B, H, T, D = check_kernel("tile_skipping", q, k, v)
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = torch.empty_like(q)
    block = block_of(q)
    grid = (B * H * _runtime.cdiv(T, block),)
    with _runtime.on_device_of(q):
        causal_tiles_kernel[grid](q, k, v, out, T, 1 / math.sqrt(D), D, block, num_warps=4 if D < 128 else 8)
    return out


@triton.jit
def causal_tiles_kernel(Q, K, V, Out, T, scale, D: tl.constexpr, BLOCK: tl.constexpr):
    """out = softmax(scale · q kᵀ, causal) v. Q, K, V, Out: pointers to (B * H, T, D), contiguous.

    One program: BLOCK queries of one head against the keys up to the diagonal. `attention` launches it.
    """
    num_blocks = tl.cdiv(T, BLOCK)
    head = tl.program_id(0) // num_blocks
    row = tl.program_id(0) % num_blocks * BLOCK
    start = head.to(tl.int64) * T * D  # where this head begins; past 2^31 in large tensors
    i = row + tl.arange(0, BLOCK)
    at_i = start + i[:, None].to(tl.int64) * D + tl.arange(0, D)[None, :]  # (BLOCK, D)
    q = tl.load(Q + at_i, mask=i[:, None] < T, other=0.0)
    m = tl.full((BLOCK,), -float("inf"), tl.float32)
    l = tl.zeros((BLOCK,), tl.float32)
    o = tl.zeros((BLOCK, D), tl.float32)
    for column in tl.range(0, row, BLOCK):
        m, l, o = one_tile(m, l, o, q, K, V, start, column, i, T, scale, False, D, BLOCK)
    for column in tl.range(row, row + BLOCK, BLOCK, num_stages=1):  # once
        m, l, o = one_tile(m, l, o, q, K, V, start, column, i, T, scale, True, D, BLOCK)
    tl.store(Out + at_i, o / l[:, None], mask=i[:, None] < T)


@triton.jit
def one_tile(m, l, o, q, K, V, start, column, i, T, scale, IS_DIAGONAL: tl.constexpr, D: tl.constexpr,
             BLOCK: tl.constexpr):  # fmt: skip
    """The online softmax over BLOCK keys from `column`: m, l (BLOCK,) and o (BLOCK, D) after them."""
    j = column + tl.arange(0, BLOCK)
    at_j = start + j[:, None].to(tl.int64) * D + tl.arange(0, D)[None, :]  # (BLOCK, D)
    if IS_DIAGONAL:
        k = tl.load(K + at_j, mask=j[:, None] < T, other=0.0)
        v = tl.load(V + at_j, mask=j[:, None] < T, other=0.0)
    else:
        k, v = tl.load(K + at_j), tl.load(V + at_j)
    s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # (BLOCK, BLOCK)
    if IS_DIAGONAL:
        s = tl.where(j[None, :] <= i[:, None], s, -float("inf"))
    m_new = tl.maximum(m, tl.max(s, 1))
    alpha = tl.exp(m - m_new)
    p = tl.exp(s - m_new[:, None])
    l = alpha * l + tl.sum(p, 1)
    o = alpha[:, None] * o + tl.dot(p.to(v.dtype), v, input_precision="ieee")
    return m_new, l, o
