"""Attention in plain torch with all that transformers' models put into theirs, and the weights that go with it."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def plain_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    mask: Tensor | None = None,
    *,
    scale: float | None = None,
    dropout_p: float = 0.0,
    position_bias: Tensor | None = None,
    softcap: float | None = None,
    sinks: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """softmax(softcap · tanh(q kᵀ · scale / softcap) + position_bias + mask) v, and the weights before dropout.

    Args:
        q: (B, H, T_q, D). k: (B, H_kv, T_k, D), v: (B, H_kv, T_k, D_v), H a multiple of H_kv.
        mask: bool, True where a query sees a key, or numbers that are added; broadcasts to (B, H, T_q, T_k).
        scale: default 1 / sqrt(D).
        position_bias: broadcasts to (B, H, T_q, T_k).
        sinks: (H,), or (B, H, T_q, 1): the score of one more key for each head, which has no value.

    Returns:
        out (B, H, T_q, D_v), and weights (B, H, T_q, T_k), both in q's dtype; softmax is taken in float32 or better. A
        row for which a bool mask keeps no key has weights and output 0.
    """
    scale = 1.0 / math.sqrt(q.shape[-1]) if scale is None else scale
    k, v = (x.repeat_interleave(q.shape[1] // max(1, x.shape[1]), dim=1) for x in (k, v))
    scores = (q @ k.transpose(-2, -1)) * scale
    if softcap is not None:
        scores = torch.tanh(scores / softcap) * softcap
    if position_bias is not None:
        scores = scores + position_bias
    empty = None
    if mask is not None and mask.dtype == torch.bool:
        empty = ~mask.any(dim=-1, keepdim=True)
        scores = scores.masked_fill(~(mask | empty), float("-inf"))
    elif mask is not None:
        scores = scores + mask
    wide = torch.promote_types(scores.dtype, torch.float32)
    if sinks is None:
        weights = torch.softmax(scores, dim=-1, dtype=wide)
    else:
        column = (sinks.reshape(1, -1, 1, 1) if sinks.dim() == 1 else sinks).expand(*scores.shape[:-1], 1)
        weights = torch.softmax(torch.cat([scores, column.to(scores.dtype)], dim=-1), dim=-1, dtype=wide)[..., :-1]
    if empty is not None:
        weights = weights.masked_fill(empty, 0.0)
    weights = weights.to(q.dtype)
    return F.dropout(weights, dropout_p) @ v, weights
