"""Rung 4: blocks of keys too. A running maximum m, a running sum l and a running output are all that a row remembers.

    m' = max(m, max_j s_ij)    α = exp(m - m')    p_ij = exp(s_ij - m')
    l ← α l + Σ_j p_ij         o ← α o + Σ_j p_ij v_j         m ← m'             and in the end out = o / l

When a larger score comes, everything so far was scaled by the wrong maximum, exp(-m) in place of exp(-m'): α mends it.
(Milakov & Gimelshein, "Online normalizer calculation for softmax", 2018; with V, Dao et al., "FlashAttention", 2022.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .arguments import check

BLOCK = 64  # queries, and keys


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q, k, v (B, H, T, D), by way of matrices (B, H, BLOCK, BLOCK); m, l and o are float32.

    Raises:
        TypeError, ValueError: see `arguments.py: check`.
    """
    B, H, T, D = check("online_softmax", q, k, v)
    out = torch.empty_like(q)
    position = torch.arange(T, device=q.device)
    wide = torch.promote_types(q.dtype, torch.float32)
    for row in range(0, T, BLOCK):
        rows = slice(row, min(row + BLOCK, T))
        i = position[rows]
        m = torch.full((B, H, len(i), 1), -math.inf, dtype=wide, device=q.device)
        l = torch.zeros_like(m)
        o = torch.zeros((B, H, len(i), D), dtype=wide, device=q.device)
        for column in range(0, T, BLOCK):
            columns = slice(column, min(column + BLOCK, T))
            s = (q[:, :, rows] @ k[:, :, columns].transpose(-2, -1)).to(wide) / math.sqrt(D)  # (B, H, BLOCK, BLOCK)
            s = s.masked_fill(position[columns] > i[:, None], -math.inf)
            m_new = torch.maximum(m, s.amax(-1, keepdim=True))
            alpha = torch.exp(m - m_new)
            p = torch.exp(s - m_new)
            l = alpha * l + p.sum(-1, keepdim=True)
            o = alpha * o + (p.to(v.dtype) @ v[:, :, columns]).to(wide)
            m = m_new
        out[:, :, rows] = (o / l).to(out.dtype)
    return out
