"""Calls of operators skip torch's dispatcher exactly where nobody would see them there."""

import functools

import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from fastgpt.kernels import _library, layer_norm, reference
from fastgpt.kernels.layer_norm import op
from tests.support.budget import assert_within_budget, exactly

pytest.importorskip("triton")


@pytest.fixture
def through_torch(monkeypatch):
    """The operators of layer_norm that are called by way of torch's dispatcher from here on."""
    seen = []
    for operator in (op._layer_norm_fwd, op._layer_norm_bwd):
        original = operator.op
        spy = lambda *args, original=original: seen.append(original.name()) or original(*args)  # noqa: E731
        monkeypatch.setattr(operator, "op", spy)
    return seen


@pytest.fixture
def x(device, seed):
    return torch.randn(3, 20, device=device, requires_grad=True)


class Watching(TorchDispatchMode):
    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        return func(*args, **(kwargs or {}))


class Subclass(torch.Tensor):
    pass


def test_plain_tensors_go_straight_to_the_launch(x, through_torch):
    y = layer_norm(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    with torch.no_grad():
        again = layer_norm(torch.nn.Parameter(x))
    with torch.inference_mode():
        third = layer_norm(x)
    assert not through_torch
    assert torch.equal(again, y)
    assert torch.equal(third, y)
    assert dx.shape == x.shape
    assert not again.requires_grad
    plain = functools.partial(reference.layer_norm, normalized_shape=20)
    assert_within_budget("y", y, plain(x), *exactly(plain, x))


def test_the_switch_sends_every_call_through_torch(x, through_torch, monkeypatch):
    y = layer_norm(x)
    (dx,) = torch.autograd.grad(y, x, torch.ones_like(y))
    monkeypatch.setattr(_library, "detour", False)
    again = layer_norm(x)
    assert torch.equal(again, y)
    assert torch.equal(torch.autograd.grad(again, x, torch.ones_like(y))[0], dx)
    assert {*through_torch} == {"fastgpt::layer_norm_fwd", "fastgpt::layer_norm_bwd"}


@pytest.mark.parametrize("watcher", [Watching, torch.profiler.profile])
def test_modes_and_the_profiler_see_forward_and_backward(x, through_torch, watcher):
    expected = layer_norm(x)
    with watcher():
        y = layer_norm(x)
        torch.autograd.grad(y, x, torch.ones_like(y))
    assert torch.equal(y, expected)
    assert set(through_torch) == {"fastgpt::layer_norm_fwd", "fastgpt::layer_norm_bwd"}


def test_function_modes_see_the_forward(x, through_torch):
    with torch.device("cpu"):
        layer_norm(x)
    assert set(through_torch) == {"fastgpt::layer_norm_fwd"}


def test_the_profiler_names_the_operator(x):
    with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as profile:
        layer_norm(x)
    assert "fastgpt::layer_norm_fwd" in {event.key for event in profile.key_averages()}


@pytest.mark.parametrize("kind", ["meta", "subclass"])
def test_other_tensors_are_dispatched(x, through_torch, kind):
    other = x.detach().to("meta") if kind == "meta" else x.detach().as_subclass(Subclass)
    y = layer_norm(other)
    assert y.shape == x.shape
    assert y.is_meta == (kind == "meta")
    assert through_torch


def test_arguments_alone_decide(x):
    assert _library.takes_detour((x, None, 1, 1e-5, torch.float32))
    assert not _library.takes_detour((x, x.detach().to("meta")))
    assert not _library.takes_detour((None, x.as_subclass(Subclass)))
