"""Rung 3: blocks of queries. The T x T matrix is never whole: BLOCK rows of it are made, used and forgotten.

    for each block I of queries:    O_I = softmax(Q_I Kᵀ / √D) V

A row's softmax needs its own row of scores and no other, so rows can be worked on one block after the other: the same
arithmetic as before, in memory for BLOCK x T scores. (Rabe & Staats, "Self-attention Does Not Need O(n²) Memory",
2021.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .arguments import check

BLOCK = 64  # queries


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q, k, v (B, H, T, D), by way of matrices (B, H, BLOCK, T).

    Raises:
        TypeError, ValueError: see `arguments.py: check`.
    """
    _, _, T, D = check("tiled", q, k, v)
    out = torch.empty_like(q)
    j = torch.arange(T, device=q.device)
    for row in range(0, T, BLOCK):
        rows = slice(row, min(row + BLOCK, T))
        scores = q[:, :, rows] @ k.transpose(-2, -1)  # (B, H, BLOCK, T)
        scores = scores / math.sqrt(D)
        scores = scores.masked_fill(j[None, :] > j[rows, None], -math.inf)
        weights = scores.softmax(-1)
        out[:, :, rows] = weights @ v
    return out
