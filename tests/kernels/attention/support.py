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


def forward_and_gradients(function, qkv, dout, dlse, **arguments) -> tuple[Tensor, ...]:
    """(out, lse, dq, dk, dv) of `function(q, k, v)` for the upstream gradients dout and dlse."""
    q, k, v = qkv
    out, lse = function(q, k, v, return_lse=True, **arguments)
    gradients = torch.autograd.grad((out, lse), (q, k, v), (dout.to(out), dlse.to(lse)), allow_unused=True)
    gradients = (torch.zeros_like(x) if g is None else g for x, g in zip((q, k, v), gradients))
    return out, lse, *gradients


def check(device, qkv, *, ours=None, dropout_mask=None, **arguments) -> tuple[Tensor, ...]:
    """Ours, the reference in the same dtype and the reference in float64, compared. Returns ours.

    `ours` replaces the function under test, e.g. by one that feeds it strided views.
    """
    q, _, v = qkv
    dout = torch.randn(*q.shape[:3], v.shape[3]).to(device, q.dtype)
    dlse = torch.randn(q.shape[:3]).to(device)
    on_cpu = {n: x.cpu() if isinstance(x, Tensor) else x for n, x in arguments.items()}
    if dropout_mask is not None:
        on_cpu["dropout_mask"] = dropout_mask.cpu()
    with torch.no_grad():
        lse = reference.flash_attention(*(x.detach().cpu().double() for x in qkv), return_lse=True, **on_cpu)[1]
    dlse = torch.where(lse.isfinite().to(device), dlse, 0.0)

    mine = forward_and_gradients(ours or flash_attention, qkv, dout, dlse, **arguments)

    def plain(qkv, dout, dlse):
        return forward_and_gradients(reference.flash_attention, qkv, dout, dlse, **on_cpu)

    inputs = [x.detach().cpu().requires_grad_() for x in qkv], dout.cpu(), dlse.cpu()
    torchs, exact = plain(*inputs), exactly(plain, *inputs)
    assert_all_within_budget(("out", "lse"), mine[:2], torchs[:2], exact[:2])
    assert_all_within_budget(("dq", "dk", "dv"), mine[2:], torchs[2:], exact[2:], factor=GRADIENT)
    return mine
