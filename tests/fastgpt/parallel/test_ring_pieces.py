"""Pieces of a ring's attention without a ring: the plain formula, its memory, and how parts are merged."""

from __future__ import annotations

import itertools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastgpt.kernels import reference
from fastgpt.parallel import ring, ring_pieces


def tensors(B, H, H_kv, T, D, dtype=torch.float64):
    shapes = (B, H, T, D), (B, H_kv, T, D), (B, H_kv, T, D), (B, H, T, D)
    return tuple(torch.randn(shape, dtype=dtype) for shape in shapes)


@pytest.mark.parametrize("causal", [True, False])
def test_the_plain_formula_over_blocks_of_queries(causal, seed, monkeypatch):
    monkeypatch.setattr(ring_pieces, "BLOCK", 5)
    q, k, v, dout = tensors(2, 6, 2, 13, 7)
    dlse = torch.randn(2, 6, 13, dtype=torch.float64)
    leaves = [x.clone().requires_grad_() for x in (q, k, v)]
    out, lse = reference.flash_attention(*leaves, causal=causal, return_lse=True)
    expected = torch.autograd.grad((out, lse), leaves, (dout, dlse))
    mine = ring_pieces.forward("reference", q, k, v, causal=causal)
    torch.testing.assert_close(mine, (out.detach(), lse.detach()), rtol=1e-12, atol=1e-12)
    assert mine[0].transpose(1, 2).is_contiguous()
    found = ring_pieces.backward("reference", dout, dlse, q, k, v, *mine, causal=causal)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_parts_merge_in_any_order(seed):
    q, k, v, _ = tensors(1, 2, 2, 8, 4)
    q = 30 * q  # softmaxes whose parts weigh nearly nothing, or nearly all
    out, lse = reference.flash_attention(q, k, v, causal=False, return_lse=True)
    parts = [
        ring_pieces.forward("reference", q, k[:, :, at : at + 2], v[:, :, at : at + 2], causal=False)
        for at in (0, 2, 4, 6)
    ]
    for order in itertools.permutations(range(4)):
        first, *others = (parts[number] for number in order)
        merged = first[0].clone(), first[1].clone()
        for part in others:
            ring._merge(*merged, *part)
        torch.testing.assert_close(merged, (out, lse), rtol=1e-12, atol=1e-12)


class _Largest(TorchDispatchMode):
    """The most numbers that one result has."""

    most = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        for x in result if isinstance(result, (tuple, list)) else (result,):
            if isinstance(x, torch.Tensor):
                self.most = max(self.most, x.numel())
        return result


def test_no_square_of_the_tokens_is_held(seed):
    T, D = 1024, 4
    q, k, v, dout = tensors(1, 1, 1, T, D, torch.float32)
    with _Largest() as largest:
        out, lse = ring_pieces.forward("sdpa", q, k, v, causal=True)
        ring_pieces.backward("sdpa", dout, None, q, k, v, out, lse, causal=True)
    assert largest.most <= T * T // 4
