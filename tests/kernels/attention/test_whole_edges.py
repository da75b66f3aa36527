"""Tiles that a mask cuts, where TMA loads them whole: right values, and NaN only where it is seen."""

import math

import pytest
import torch

from fastgpt.kernels import _runtime, reference
from fastgpt.kernels.attention import flash_attention, tiles
from fastgpt.kernels.attention.hopper import choice
from tests.support.budget import GRADIENT, assert_all_within_budget, exactly
from tests.support.compiled import COMPILED

from .support import check, random_qkv

T = 270  # the least that TMA loads, and a ragged end


@pytest.fixture(autouse=True)
def whole_edges(device, monkeypatch):
    """The portable kernels, on a GPU whose tiles at the edges come whole; the interpreter takes the path of sm_90."""
    monkeypatch.setattr(choice, "setting", "triton")
    if COMPILED:
        monkeypatch.setattr(tiles, "_for_rows", lambda large_and_small, kernel, *_: large_and_small[0][kernel])
        if tiles.dq(_runtime.target_of(torch.empty(0, device=device)), 2, 64, T_q=T, heads=1).edge_stages == 0:
            pytest.skip("this GPU's tiles have no whole edges")
        yield
        return
    monkeypatch.setattr(tiles, "_for_rows", lambda *_: tiles.Tile(64, 64, 32, 4, 2, 2))
    with _runtime.pretend(_runtime.KNOWN_TARGETS["sm_90"]):
        yield


def lengths(*values):
    return torch.tensor(values)


CASES = {
    "causal": {},
    "full": {"causal": False},
    "float16": {"dtype": torch.float16},
    "grouped": {"H": 4, "H_kv": 2},
    "grouped by three": {"H": 3, "H_kv": 1},
    "two parts": {"D": 80},
    "fewer queries than keys": {"T_k": 333},
    "more queries than keys": {"T_q": 333, "T_k": 280},
    "a scale of 0": {"softmax_scale": 0.0},
    "large scores": {"softmax_scale": 40.0},
    "window": {"window": 50},
    "window on both sides": {"causal": False, "window": (40, 90)},
    "key lengths": {"key_lengths": lengths(150), "key_starts": lengths(77)},
    "no key at all": {"key_lengths": lengths(0)},
    "documents": {"document_ids": torch.arange(T)[None] // 60},
}


@pytest.mark.parametrize("name", CASES)
def test_values(device, seed, name):
    case = {"T_q": T, "T_k": T, "H": 1, "H_kv": None, "D": 64, "dtype": torch.bfloat16} | CASES[name]
    T_q, T_k, H, H_kv, D, dtype = (case.pop(key) for key in ("T_q", "T_k", "H", "H_kv", "D", "dtype"))
    qkv = random_qkv(device, 1, H, T_q, T_k, D, H_kv=H_kv, dtype=dtype)
    check(device, qkv, **{key: x.to(device) if isinstance(x, torch.Tensor) else x for key, x in case.items()})


def assert_same_where(untouched, dirty, qkv, dout, **masks):
    """`dirty` = (out, dq, dk, dv), in the rows `untouched` of each, is what the clean tensors give."""

    def function(q, k, v, dout):
        q, k, v = (x.detach().requires_grad_() for x in (q, k, v))
        out = reference.flash_attention(q, k, v, **masks)
        return out, *torch.autograd.grad(out, (q, k, v), dout.to(out))

    inputs = [x.detach().cpu() for x in (*qkv, dout)]
    masks = {key: x.cpu() for key, x in masks.items()}
    plain, exact = function(*inputs), exactly(function, *inputs)
    parts = [[x[:, :, rows] for x, rows in zip(xs, untouched)] for xs in (dirty, plain, exact)]
    assert_all_within_budget(("out", "dq", "dk", "dv"), *parts, factor=GRADIENT)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("which", ["q", "k", "v", "dout"])
def test_nan_stays_where_it_is_seen(device, seed, which, value):
    """Causal: row `at` sees the keys up to `at`, and key `at` is seen by the rows from `at` on."""
    at = 70
    qkv = random_qkv(device, 1, 1, T, T, 64, dtype=torch.bfloat16)
    dout = torch.randn(1, 1, T, 64).to(device, torch.bfloat16)
    dirty = {name: x.detach().clone() for name, x in zip(("q", "k", "v", "dout"), (*qkv, dout))}
    dirty[which][0, 0, at, 3] = value
    q, k, v = (dirty[name].requires_grad_() for name in "qkv")
    out = flash_attention(q, k, v)
    gradients = torch.autograd.grad(out, (q, k, v), dirty["dout"])

    i = torch.arange(T)
    of_rows = {"q": i != at, "dout": i != at}.get(which, i < at)
    of_out = torch.ones_like(i, dtype=torch.bool) if which == "dout" else of_rows
    of_keys = i > at if which in ("q", "dout") else torch.zeros_like(i, dtype=torch.bool)
    assert_same_where((of_out, of_rows, of_keys, of_keys), (out, *gradients), qkv, dout)
    if math.isnan(value):
        assert out[0, 0, ~of_out].isnan().any(dim=-1).all()
        assert gradients[0][0, 0, ~of_rows].isnan().any(dim=-1).all()
        for g in gradients[1:]:
            assert g[0, 0, ~of_keys].isnan().any(dim=-1).all()


@pytest.mark.parametrize("side", ["right", "left"])
def test_padding_may_hold_nan(device, seed, side):
    qkv = random_qkv(device, 1, 1, T, T, 64, dtype=torch.bfloat16)
    dout = torch.randn(1, 1, T, 64).to(device, torch.bfloat16)
    j = torch.arange(T)
    masks, hidden = {
        "right": ({"key_lengths": lengths(150)}, j >= 150),
        "left": ({"key_starts": lengths(70)}, j < 70),
    }[side]
    masks = {key: x.to(device) for key, x in masks.items()}
    q, k, v = (x.detach().clone() for x in qkv)
    k[0, :, hidden.to(device)], v[0, :, hidden.to(device)] = math.nan, math.nan
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    out = flash_attention(q, k, v, **masks)
    everywhere = torch.ones(T, dtype=torch.bool)
    assert_same_where([everywhere] * 4, (out, *torch.autograd.grad(out, (q, k, v), dout)), qkv, dout, **masks)


def test_a_row_that_sees_nothing_may_hold_nan(device, seed):
    T_q, T_k, blind = 333, 280, 53
    qkv = random_qkv(device, 1, 1, T_q, T_k, 64, dtype=torch.bfloat16)
    dout = torch.randn(1, 1, T_q, 64).to(device, torch.bfloat16)
    q, k, v = (x.detach().clone() for x in qkv)
    q[:, :, :blind] = math.nan
    q, k, v = (x.requires_grad_() for x in (q, k, v))
    out = flash_attention(q, k, v)
    everywhere = [torch.ones(n, dtype=torch.bool) for n in (T_q, T_q, T_k, T_k)]
    assert_same_where(everywhere, (out, *torch.autograd.grad(out, (q, k, v), dout)), qkv, dout)
