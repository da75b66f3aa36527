"""One piece of a ring's attention, forward and backward: some queries, and keys of which they see all, or causally.

"triton" is this package's own operators. For every other implementation it is the same formula in plain PyTorch,
in float32 or better, over blocks of queries: so that memory grows with the tokens and not with their square.

    s = q kᵀ / √D,  lse = log Σ exp(s),  out = exp(s - lse) v
    p = exp(s - lse),  ds = p (dout vᵀ - delta + dlse),  delta = Σ dout · out
    dq = ds k / √D,  dk = dsᵀ q / √D,  dv = pᵀ dout

The backward takes out and lse over *all* keys: then p is a piece's part of the whole softmax, and its gradients are its
terms of a sum (Dao et al. 2022, arXiv 2205.14135, appendix B).

Shapes: q, out, dout (B, H, T_q, D); k, v (B, H_kv, T_k, D) with H a multiple of H_kv; lse, dlse (B, H, T_q).
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from ..kernels.attention import op

BLOCK = 256  # queries whose scores the plain formula holds at a time


def forward(impl: str, q: Tensor, k: Tensor, v: Tensor, *, causal: bool) -> tuple[Tensor, Tensor]:
    """(out, lse): out of q's dtype or wider, in (B, T_q, H, D) memory; lse float32, or float64 for float64 inputs."""
    if impl == "triton":
        out, lse = op.attend(q, k, v, causal=causal, return_lse=True)
        return out, lse
    B, H, T_q, D = q.shape
    kv_heads, wide = k.shape[1], wide_dtype(q)
    k, v = k.to(wide), v.to(wide)
    out = torch.empty((B, T_q, H, D), dtype=wide, device=q.device).transpose(1, 2)
    lse = torch.empty((B, H, T_q), dtype=wide, device=q.device)
    with torch.autocast(q.device.type, enabled=False):
        for start in range(0, T_q, BLOCK):
            rows = slice(start, min(start + BLOCK, T_q))
            scores = _scores(q[:, :, rows].to(wide), k, causal, start)
            row_lse = torch.logsumexp(scores, dim=-1)
            out[:, :, rows] = _apart(scores.sub_(row_lse[..., None]).exp_() @ v, H)
            lse[:, :, rows] = row_lse.unflatten(2, (H // kv_heads, -1)).flatten(1, 2)
    return out, lse


def backward(
    impl: str, dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor,
    *, causal: bool,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    """This piece's terms of dq, dk, dv, of the inputs' dtype or wider; out and lse are those over all keys."""
    scale = 1.0 / math.sqrt(q.shape[3])
    if impl == "triton":
        no_masks = (None, None, None, None)  # no padding, no documents, and no dropout's seed
        return op.attention_bwd(
            dout, dlse, q, k, v, out, lse.contiguous(), *no_masks, scale, 0.0, causal, -1, -1, True, True
        )  # fmt: skip
    H, T_q, kv_heads, wide = q.shape[1], q.shape[2], k.shape[1], wide_dtype(q)
    k, v = k.to(wide), v.to(wide)
    dq = torch.empty(q.shape, dtype=wide, device=q.device)
    dk, dv = torch.zeros_like(k), torch.zeros_like(v)
    with torch.autocast(q.device.type, enabled=False):
        for start in range(0, T_q, BLOCK):
            rows = slice(start, min(start + BLOCK, T_q))
            q_rows, dout_rows = q[:, :, rows].to(wide), dout[:, :, rows].to(wide)
            delta = (dout_rows * out[:, :, rows].to(wide)).sum(-1, keepdim=True)  # (B, H, block, 1)
            if dlse is not None:
                delta = delta - dlse[:, :, rows, None].to(wide)
            weights = _scores(q_rows, k, causal, start)
            weights.sub_(_together(lse[:, :, rows, None], kv_heads)).exp_()
            dout_rows = _together(dout_rows, kv_heads)
            dv += weights.transpose(-2, -1) @ dout_rows
            dscores = weights * (dout_rows @ v.transpose(-2, -1) - _together(delta, kv_heads)) * scale
            dq[:, :, rows] = _apart(dscores @ k, H)
            dk += dscores.transpose(-2, -1) @ _together(q_rows, kv_heads)
    return dq, dk, dv


def wide_dtype(x: Tensor) -> torch.dtype:
    """What statistics and sums of x are kept in: float32, or float64 where x has it."""
    return torch.promote_types(x.dtype, torch.float32)


def _scores(q: Tensor, k: Tensor, causal: bool, start: int) -> Tensor:
    """q kᵀ / √D of the queries from `start` on: (B, H_kv, H / H_kv · block, T_k), -inf where a query sees no key."""
    block, T_k = q.shape[2], k.shape[2]
    scores = (_together(q, k.shape[1]) @ k.transpose(-2, -1)).mul_(1.0 / math.sqrt(q.shape[3]))
    if causal:
        i = torch.arange(start, start + block, device=q.device)[:, None]
        hidden = torch.arange(T_k, device=q.device) > i  # (block, T_k)
        scores.unflatten(2, (-1, block)).masked_fill_(hidden, float("-inf"))
    return scores


def _together(x: Tensor, kv_heads: int) -> Tensor:
    """(B, H, block, n) -> (B, H_kv, H / H_kv · block, n): the query heads of a key head, one after another."""
    return x.unflatten(1, (kv_heads, -1)).flatten(2, 3)


def _apart(x: Tensor, heads: int) -> Tensor:
    """The way back: (B, H_kv, H / H_kv · block, n) -> (B, H, block, n)."""
    return x.unflatten(2, (heads // x.shape[1], -1)).flatten(1, 2)
