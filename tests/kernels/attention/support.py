"""One attention call checked against float64: output, lse and every gradient, within the error budget."""

from __future__ import annotations

import torch
from torch import Tensor

from fastgpt.kernels import reference
from fastgpt.kernels.attention import flash_attention
from tests.support.budget import GRADIENT, assert_all_within_budget, exactly

MASKS = ("key_lengths", "key_starts", "cu_seqlens", "document_ids")


def random_qkv(device, B, H, T_q, T_k, D, *, H_kv=None, dtype=torch.float32) -> tuple[Tensor, Tensor, Tensor]:
    """Leaves of the shapes (B, H, T_q, D), (B, H_kv, T_k, D) twice, that require gradients."""
    H_kv = H if H_kv is None else H_kv
    shapes = (B, H, T_q, D), (B, H_kv, T_k, D), (B, H_kv, T_k, D)
    return tuple(torch.randn(s).to(device, dtype).requires_grad_() for s in shapes)


def forward_and_gradients(function, qkv, d_out, d_lse, **arguments) -> tuple[Tensor, ...]:
    """(out, lse, dq, dk, dv) of `function(q, k, v)` for the upstream gradients d_out and d_lse."""
    q, k, v = qkv
    out, lse = function(q, k, v, return_lse=True, **arguments)
    gradients = torch.autograd.grad((out, lse), (q, k, v), (d_out.to(out), d_lse.to(lse)), allow_unused=True)
    gradients = (torch.zeros_like(x) if g is None else g for x, g in zip((q, k, v), gradients))
    return out, lse, *gradients


def check(device, qkv, *, ours=None, dropout_mask=None, **arguments) -> tuple[Tensor, ...]:
    """Ours, the reference in the same dtype and the reference in float64, compared. Returns ours.

    `ours` replaces the function under test, e.g. by one that feeds it strided views.
    """
    q, _, v = qkv
    d_out = torch.randn(*q.shape[:3], v.shape[3]).to(device, q.dtype)
    d_lse = torch.randn(q.shape[:3]).to(device)
    on_cpu = {n: x.cpu() if isinstance(x, Tensor) else x for n, x in arguments.items()}
    if dropout_mask is not None:
        on_cpu["dropout_mask"] = dropout_mask.cpu()
    with torch.no_grad():
        lse = reference.flash_attention(*(x.detach().cpu().double() for x in qkv), return_lse=True, **on_cpu)[1]
    d_lse = torch.where(lse.isfinite().to(device), d_lse, 0.0)

    mine = forward_and_gradients(ours or flash_attention, qkv, d_out, d_lse, **arguments)

    def plain(qkv, d_out, d_lse):
        return forward_and_gradients(reference.flash_attention, qkv, d_out, d_lse, **on_cpu)

    inputs = [x.detach().cpu().requires_grad_() for x in qkv], d_out.cpu(), d_lse.cpu()
    torchs, exact = plain(*inputs), exactly(plain, *inputs)
    assert_all_within_budget(("out", "lse"), mine[:2], torchs[:2], exact[:2])
    assert_all_within_budget(("dq", "dk", "dv"), mine[2:], torchs[2:], exact[2:], factor=GRADIENT)
    return mine
