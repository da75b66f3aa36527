"""What is not finite in q, k, v or dout reaches the rows and keys that see it; all others keep their bits."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from fastgpt.kernels import flash_attention
from fastgpt.kernels.attention.hopper import choice
from tests.kernels.attention.support import random_qkv

H, H_KV, T = 2, 1, 193
DOCUMENTS = torch.arange(T).reshape(1, T) // 80
CASES = {  # head_dim and arguments
    "causal": (64, {"causal": True}),
    "a window both ways": (64, {"window": (40, 20)}),
    "head_dim in two parts, a window": (96, {"causal": True, "window": 70}),
    "two warpgroups for the same keys": (192, {"causal": True}),
    "documents, padding, a window": (
        64,
        {
            "causal": True, "window": 100, "document_ids": DOCUMENTS, "key_starts": torch.tensor([3]),
            "key_lengths": torch.tensor([T - 9]),
        },
    ),
}  # fmt: skip


def seen(arguments) -> Tensor:
    """(T, T) bool: which keys each query sees, by the definitions."""
    i, j = torch.arange(T)[:, None], torch.arange(T)[None, :]
    window = arguments.get("window", (-1, -1))
    left, right = (window - 1, 0) if isinstance(window, int) else window
    sees = torch.ones(T, T, dtype=torch.bool)
    if arguments.get("causal", False):
        right = 0
    sees &= (j >= i - left) if left >= 0 else sees
    sees &= (j <= i + right) if right >= 0 else sees
    if "document_ids" in arguments:
        ids = arguments["document_ids"][0]
        sees &= ids[:, None] == ids[None, :]
        sees &= (j >= arguments["key_starts"]) & (j < arguments["key_lengths"])
    return sees


@pytest.mark.parametrize("value", [torch.nan, -torch.inf], ids=["nan", "inf"])
@pytest.mark.parametrize("name", CASES)
def test_what_is_not_finite_reaches_what_sees_it_alone(hopper, seed, monkeypatch, name, value):
    monkeypatch.setattr(choice, "setting", "gluon")
    head_dim, arguments = CASES[name]
    arguments = {"causal": False} | arguments
    sees = seen(arguments)
    arguments = {n: x.to(hopper) if isinstance(x, Tensor) else x for n, x in arguments.items()}
    q, k, v = random_qkv(hopper, 1, H, T, T, head_dim, H_kv=H_KV, dtype=torch.bfloat16)
    dout = torch.randn(q.shape).to(q)

    def results():
        out = flash_attention(q, k, v, **arguments)
        return [x.detach().cpu() for x in (out, *torch.autograd.grad(out, (q, k, v), dout))]

    clean = results()
    for x, at in ((q, 70), (dout, 128), (v, 0), (v, 127), (k, 64), (v, T - 1), (k, T - 5)):
        before = x.detach().clone()
        with torch.no_grad():
            x[0, 0, at, 5] = value
        of_keys = x is k or x is v
        hit = torch.zeros(H, T, dtype=torch.bool)  # queries whose results it may change
        if of_keys:
            hit[:] = sees[:, at]
        else:
            hit[0, at] = sees[at].any()
        keys = (hit[:, :, None] & sees).any(1).any(0)  # that one of those sees
        for result, was, may in zip(
            results(), clean, (hit & (x is not dout), hit, keys[None], keys[None]), strict=True
        ):
            assert torch.equal(result[0, ~may], was[0, ~may])
            if value != value or x is v or x is dout:
                assert result[0, may].isfinite().logical_not().any(-1).all()
        with torch.no_grad():
            x.copy_(before)
