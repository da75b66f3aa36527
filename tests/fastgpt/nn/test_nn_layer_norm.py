"""fastgpt.nn.LayerNorm stands in for torch's: constructor, repr, state dict, results, conversion, fallback."""

import copy
import logging
import pickle

import pytest
import torch
from torch import nn

import fastgpt.nn
from fastgpt.kernels import _notice, reference
from tests.support.modules import assert_same_module

CONSTRUCTIONS = [
    ((32,), {}),
    ((32, 1e-3), {}),
    ((32,), {"bias": False}),
    ((32,), {"elementwise_affine": False}),
    ((32,), {"eps": 0.1, "dtype": torch.bfloat16}),
    (((3, 32), 1e-5, True, False), {}),
    (([3, 32],), {"device": "cpu"}),
    ((torch.Size([32]), 1e-5, True, True, "cpu", torch.float16), {}),
]


@pytest.mark.parametrize(("args", "kwargs"), CONSTRUCTIONS, ids=str)
def test_same_constructor_repr_and_state_dict(args, kwargs):
    ours, torchs = fastgpt.nn.LayerNorm(*args, **kwargs), nn.LayerNorm(*args, **kwargs)
    assert repr(ours) == repr(torchs)
    assert isinstance(ours, nn.LayerNorm)
    assert {k: (v.shape, v.dtype) for k, v in ours.state_dict().items()} == {
        k: (v.shape, v.dtype) for k, v in torchs.state_dict().items()
    }
    assert (ours.eps, ours.normalized_shape, ours.elementwise_affine) == (
        torchs.eps, torchs.normalized_shape, torchs.elementwise_affine,
    )  # fmt: skip
    ours.load_state_dict(torchs.state_dict(), strict=True)
    torchs.load_state_dict(ours.state_dict(), strict=True)


@pytest.mark.parametrize(("args", "kwargs"), CONSTRUCTIONS, ids=str)
@pytest.mark.parametrize("impl", ["auto", "triton", "torch", "reference"])
def test_same_results(device, seed, args, kwargs, impl):
    torchs = nn.LayerNorm(*args, **kwargs).to(device)
    for parameter in torchs.parameters():
        nn.init.normal_(parameter)
    ours = fastgpt.nn.LayerNorm(*args, **kwargs, impl=impl).to(device)
    ours.load_state_dict(torchs.state_dict())
    x = torch.randn(5, 3, 32, dtype=kwargs.get("dtype") or (args[5] if len(args) > 5 else None)).to(device)
    assert ours(x).dtype == torchs(x).dtype
    assert_same_module(ours, torchs, x.requires_grad_())


def test_input_and_parameters_of_different_dtypes(device, seed):
    module = fastgpt.nn.LayerNorm(32, impl="triton").to(device)
    y = module(torch.randn(3, 32, device=device).bfloat16())
    assert y.dtype == torch.bfloat16
    y.sum().backward()
    assert module.weight.grad.dtype == torch.float32


@pytest.fixture
def messages(caplog, monkeypatch):
    monkeypatch.setattr(_notice, "_said", set())
    caplog.set_level(logging.INFO, logger="fastgpt")
    return lambda: [record.getMessage() for record in caplog.records]


def test_auto_falls_back_to_torch_and_says_why_once(messages, monkeypatch):
    from fastgpt.kernels import _runtime

    monkeypatch.setattr(_runtime, "is_interpreting", lambda: False)
    module, x = fastgpt.nn.LayerNorm(32), torch.randn(3, 32)
    for _ in range(2):
        assert torch.equal(module(x), nn.LayerNorm(32)(x))
    assert len(messages()) == 1
    assert "torch's own implementation is used, because" in messages()[0]
    assert "'cpu'" in messages()[0]


def test_auto_falls_back_for_float64_and_half_converted_modules(device, messages):
    x = torch.randn(3, 32, dtype=torch.float64, device=device)
    module = fastgpt.nn.LayerNorm(32, dtype=torch.float64, device=device)
    torch.testing.assert_close(module(x), reference.layer_norm(x, 32))
    assert torch.autograd.gradcheck(module, x.requires_grad_())
    assert len(messages()) == 1
    assert "float64" in messages()[0]


def test_triton_where_it_cannot_run_raises_and_says_what_to_do(monkeypatch):
    from fastgpt.kernels import _runtime

    monkeypatch.setattr(_runtime, "is_interpreting", lambda: False)
    with pytest.raises(RuntimeError, match="move them to a GPU"):
        fastgpt.nn.LayerNorm(32, impl="triton")(torch.randn(3, 32))
    with pytest.raises(TypeError, match="float64"):
        fastgpt.nn.LayerNorm(32, impl="triton")(torch.randn(3, 32, dtype=torch.float64))


@pytest.mark.parametrize("shape", [16.0, (16.0,), None, "16"])
def test_sizes_that_are_no_integers_raise(shape):
    with pytest.raises(TypeError, match=r"^LayerNorm: normalized_shape is .*, expected an int or a sequence of ints"):
        fastgpt.nn.LayerNorm(shape, elementwise_affine=False)


def test_unknown_impl_raises():
    with pytest.raises(ValueError, match=r"impl must be one of .*'cuda'"):
        fastgpt.nn.LayerNorm(32, impl="cuda")


def test_a_trained_module_converts_in_place(device, seed):
    module = nn.LayerNorm(32).to(device)
    trained = copy.deepcopy(module)
    module.__class__ = fastgpt.nn.LayerNorm
    assert_same_module(module, trained, torch.randn(3, 32, device=device, requires_grad=True))


def test_deepcopy_and_pickle():
    module = fastgpt.nn.LayerNorm(32, impl="torch")
    for again in (copy.deepcopy(module), pickle.loads(pickle.dumps(module))):
        assert type(again) is fastgpt.nn.LayerNorm
        assert again.impl == "torch"
        assert torch.equal(again.weight, module.weight)


@pytest.mark.parametrize("impl", ["auto", "triton"])
def test_compiles_as_one_graph(device, seed, impl):
    torch._dynamo.reset()
    module = fastgpt.nn.LayerNorm(32, impl=impl).to(device)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    for rows in (3, 5):
        x = torch.randn(rows, 32, device=device)
        torch.testing.assert_close(compiled(x), module(x))


def test_falling_back_compiles_as_one_graph(messages, monkeypatch):
    from fastgpt.kernels import _runtime

    monkeypatch.setattr(_runtime, "is_interpreting", lambda: False)
    torch._dynamo.reset()
    module, x = fastgpt.nn.LayerNorm(32), torch.randn(3, 32)
    compiled = torch.compile(module, backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(x), module(x))
    assert len(messages()) == 1


def test_shapes_on_meta():
    module = fastgpt.nn.LayerNorm(32, device="meta")
    assert module(torch.empty(5, 32, device="meta")).shape == (5, 32)


def test_functional_call(device, seed):
    module = fastgpt.nn.LayerNorm(32).to(device)
    weights = {"weight": torch.randn(32, device=device), "bias": torch.randn(32, device=device)}
    x = torch.randn(3, 32, device=device)
    expected = reference.layer_norm(x, 32, weights["weight"], weights["bias"])
    torch.testing.assert_close(torch.func.functional_call(module, weights, (x,)), expected)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_autocast_gives_float32_as_torch_does(dtype):
    ours, torchs = (kind(64, device="cuda") for kind in (fastgpt.nn.LayerNorm, nn.LayerNorm))
    x = torch.randn(5, 64, device="cuda", dtype=dtype)
    with torch.autocast("cuda", torch.bfloat16):
        a, b = ours(x), torchs(x)
    assert a.dtype == b.dtype == torch.float32
    torch.testing.assert_close(a, b)
