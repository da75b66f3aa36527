"""Rung 5: the loop over keys as one kernel. Scores, weights, m, l and o stay on the chip; memory sees Q, K, V and Out.

One program takes one block of queries of one head, as one turn of the outer loop did before, and all programs run at
once. The formula is that of rung 4, line by line. (Dao et al., "FlashAttention", 2022; loop order of FlashAttention-2,
Dao 2023: queries outside, keys inside, so that no two programs write to the same row.)
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
    B, H, T, D = check_kernel("triton_forward", q, k, v)
    q, k, v = q.contiguous(), k.contiguous(), v.contiguous()
    out = torch.empty_like(q)
    block = block_of(q)
    grid = (B * H * _runtime.cdiv(T, block),)
    with _runtime.on_device_of(q):
        online_softmax_kernel[grid](q, k, v, out, T, 1 / math.sqrt(D), D, block, num_warps=4 if D < 128 else 8)
    return out


@triton.jit
def online_softmax_kernel(Q, K, V, Out, T, scale, D: tl.constexpr, BLOCK: tl.constexpr):
    """out = softmax(scale · q kᵀ, causal) v. Q, K, V, Out: pointers to (B * H, T, D), contiguous.

    One program: BLOCK queries of one head against all keys, BLOCK at a time. `attention` launches it.
    """
    num_blocks = tl.cdiv(T, BLOCK)
    head = tl.program_id(0) // num_blocks
    start = head.to(tl.int64) * T * D  # where this head begins; past 2^31 in large tensors
    d = tl.arange(0, D)
    i = tl.program_id(0) % num_blocks * BLOCK + tl.arange(0, BLOCK)
    at_i = start + i[:, None].to(tl.int64) * D + d[None, :]  # (BLOCK, D)
    q = tl.load(Q + at_i, mask=i[:, None] < T, other=0.0)
    m = tl.full((BLOCK,), -float("inf"), tl.float32)
    l = tl.zeros((BLOCK,), tl.float32)
    o = tl.zeros((BLOCK, D), tl.float32)
    for column in tl.range(0, T, BLOCK):
        j = column + tl.arange(0, BLOCK)
        at_j = start + j[:, None].to(tl.int64) * D + d[None, :]  # (BLOCK, D)
        k = tl.load(K + at_j, mask=j[:, None] < T, other=0.0)
        v = tl.load(V + at_j, mask=j[:, None] < T, other=0.0)
        s = tl.dot(q, tl.trans(k), input_precision="ieee") * scale  # (BLOCK, BLOCK)
        s = tl.where(j[None, :] <= i[:, None], s, -float("inf"))
        m_new = tl.maximum(m, tl.max(s, 1))  # key 0 is in the first block and seen by all: never -inf
        alpha = tl.exp(m - m_new)
        p = tl.exp(s - m_new[:, None])
        l = alpha * l + tl.sum(p, 1)
        o = alpha[:, None] * o + tl.dot(p.to(v.dtype), v, input_precision="ieee")
        m = m_new
    tl.store(Out + at_i, o / l[:, None], mask=i[:, None] < T)
