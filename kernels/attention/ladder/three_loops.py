"""Rung 1: the formula, in three loops of plain Python.

    out_i = Σ_j p_ij v_j,    p_ij = exp(s_ij - m_i) / l_i,    s_ij = q_i · k_j / √D,    j <= i

m_i is the largest score of row i and l_i the sum of its exp(s_ij - m_i): the softmax of Vaswani et al., "Attention Is
All You Need" (2017), with the maximum taken off so that no exponential overflows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .arguments import check

Rows = Sequence[Sequence[float]]


def attention(q: Tensor, k: Tensor, v: Tensor) -> Tensor:
    """Causal attention of q, k, v (B, H, T, D), computed in Python's float64 and rounded to q's dtype.

    Raises:
        TypeError, ValueError: see `arguments.py: check`.
    """
    B, H, T, D = check("three_loops", q, k, v)
    out = [[[[0.0] * D for _ in range(T)] for _ in range(H)] for _ in range(B)]
    for b in range(B):
        for h in range(H):
            one_head(q[b, h].tolist(), k[b, h].tolist(), v[b, h].tolist(), out[b][h])
    return torch.tensor(out, dtype=torch.float64).to(q.device, q.dtype)


def one_head(q: Rows, k: Rows, v: Rows, out: list[list[float]]) -> None:
    """Add the attention of one head to `out`, which holds zeros. All are T rows of D numbers."""
    T, D = len(q), len(q[0])
    for i in range(T):  # each query
        scores = []
        for j in range(i + 1):  # each key that it sees
            dot = 0.0
            for d in range(D):  # each dimension
                dot += q[i][d] * k[j][d]
            scores.append(dot / math.sqrt(D))
        m = max(scores)
        weights = [math.exp(s - m) for s in scores]
        l = sum(weights)
        for j in range(i + 1):
            p = weights[j] / l
            for d in range(D):
                out[i][d] += p * v[j][d]
