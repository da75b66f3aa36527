"""GELUFFN is nn.Sequential(Linear, GELU, Linear[, Dropout]): parameters, state dict, results, and polite fallbacks."""

import copy
import logging
import pickle

import pytest
import torch
from torch import nn

import fastgpt
from fastgpt.kernels import _notice
from fastgpt.nn import GELUFFN
from fastgpt.nn import impl as choices
from tests.support.modules import assert_same_module

KEYS = ["0.weight", "0.bias", "2.weight", "2.bias"]


def sequential(d=24, hidden=40, out=16, dropout=None, approximate="none", bias=True, **options):
    children = [nn.Linear(d, hidden, bias, **options), nn.GELU(approximate), nn.Linear(hidden, out, bias, **options)]
    return nn.Sequential(*children, *([] if dropout is None else [nn.Dropout(dropout)]))


@pytest.mark.parametrize("impl", ["auto", "triton", "torch", "reference"])
@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("bias", [True, False])
def test_same_as_sequential(device, seed, impl, approximate, bias):
    plain = sequential(approximate=approximate, bias=bias).to(device)
    ours = GELUFFN(24, 40, 16, bias=bias, approximate=approximate, impl=impl).to(device)
    assert list(ours.state_dict()) == list(plain.state_dict()) == [k for k in KEYS if bias or "bias" not in k]
    ours.load_state_dict(plain.state_dict())
    assert_same_module(ours, plain, torch.randn(3, 7, 24, device=device, requires_grad=True))
    plain.load_state_dict(ours.state_dict())  # and back


def test_triton_is_what_runs_when_named(device, seed, monkeypatch):
    seen = []
    monkeypatch.setattr("fastgpt.nn.ffn.gelu_ffn", lambda *a, **k: seen.append(k) or a[0])
    GELUFFN(8, impl="triton", recompute=True, device=device)(torch.ones(2, 8, device=device))
    assert seen == [{"residual": None, "recompute": True}]


@pytest.mark.parametrize("impl", ["triton", "torch", "reference"])
def test_dropout_in_training_only_and_residual_after_it(device, seed, impl):
    module = GELUFFN(24, dropout=0.5, impl=impl, device=device)
    x, residual = (torch.randn(6, 24, device=device) for _ in range(2))
    zeros = (module(x) == 0).float().mean()
    assert 0.2 < zeros < 0.8
    added = module(x, residual) == residual
    assert 0.2 < added.float().mean() < 0.8
    module.eval()
    y = module(x)
    assert not (y == 0).any()
    torch.testing.assert_close(module(x, residual), y + residual)


def test_default_sizes_and_initialisation_are_the_sequentials():
    torch.manual_seed(0)
    ours = GELUFFN(8)
    torch.manual_seed(0)
    plain = sequential(8, 32, 8)
    assert all(torch.equal(a, b) for a, b in zip(ours.parameters(), plain.parameters()))
    assert [type(c) for c in ours] == [type(c) for c in plain]
    assert len(GELUFFN(8, dropout=0.1)) == 4
    assert all(p.dtype == torch.bfloat16 for p in GELUFFN(8, dtype=torch.bfloat16).parameters())


def test_converted_in_place_copied_and_pickled(device, seed):
    module = sequential(dropout=0.1).to(device).eval()
    x = torch.randn(5, 24, device=device)
    want = module(x)
    module.__class__ = GELUFFN
    for m in (module, copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(m) is GELUFFN
        assert m.impl == "auto"
        torch.testing.assert_close(m(x), want)
    assert type(module[:2]) is nn.Sequential
    assert len(module[:2]) == 2
    assert module[0] is next(iter(module))
    assert "impl='auto'" in repr(module)


def test_a_model_is_patched_and_explained(device, seed):
    model = nn.ModuleList([sequential(), sequential(dropout=0.2)])
    fastgpt.patch(model, attention=False, layer_norm=False, loss=False)
    assert [type(m) for m in model] == [GELUFFN, GELUFFN]
    assert {row.part for row in fastgpt.implementations(model)} == {"ffn"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="about machines without a GPU")
def test_falls_back_to_torch_and_says_why_once(caplog, monkeypatch):
    monkeypatch.setattr("fastgpt.kernels._runtime.is_interpreting", lambda: False)
    choices.forget()
    _notice._said.clear()
    module, x = GELUFFN(8), torch.ones(2, 8)
    with caplog.at_level(logging.INFO, "fastgpt"):
        module(x)
        GELUFFN(8)(x)
    said = [r.message for r in caplog.records if "ffn" in r.message]
    assert len(said) == 1
    assert "torch" in said[0]
    with pytest.raises(RuntimeError, match="triton"):
        GELUFFN(8, impl="triton")(x)


def test_float64_and_changed_children_run_as_they_are(device, seed, caplog):
    _notice._said.clear()
    x = torch.randn(3, 8, device=device)
    double = GELUFFN(8, device=device).double()
    assert double(x.double()).dtype == torch.float64

    class Doubled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    module = GELUFFN(8, impl="triton", device=device)
    plain = nn.Sequential(*module)
    module[2] = plain[2] = Doubled(32, 8, device=device)
    with caplog.at_level(logging.WARNING, "fastgpt"):
        assert_same_module(module, plain, x)
        module(x)
    assert sum("a Linear has become a" in r.message for r in caplog.records) == 1

    hooked, calls = GELUFFN(8, impl="triton", device=device), []
    hooked[0].register_forward_hook(lambda *_: calls.append(1))
    hooked(x)
    assert calls == [1]
    everything = GELUFFN(8, dropout=1.0, impl="triton", device=device)
    assert not everything(x).any()


@pytest.mark.parametrize(
    ("options", "message"),
    [({"impl": "fast"}, "fast"), ({"approximate": "erf"}, "approximate"), ({"dropout": 1.5}, "probability")],
)
def test_bad_arguments(options, message):
    with pytest.raises(ValueError, match=message):
        GELUFFN(8, **options)


def test_compiles_in_one_graph(device, seed):
    for impl in ("torch", "triton"):
        module = GELUFFN(16, impl=impl, dropout=0.0, device=device)
        x = torch.randn(4, 16, device=device)
        compiled = torch.compile(module, fullgraph=True, backend="aot_eager")
        torch.testing.assert_close(compiled(x), module(x))


def test_autocast_gives_the_autocast_dtype(device, seed):
    module, x = GELUFFN(16, impl="triton", device=device), torch.randn(4, 16, device=device)
    with torch.autocast(device.type, torch.bfloat16):
        assert module(x).dtype == torch.bfloat16
        assert module(x, x).dtype == torch.float32  # a float32 residual stream stays one
