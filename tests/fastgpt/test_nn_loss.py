"""`fastgpt.nn.LinearCrossEntropyLoss` against torch's class of that name, and F.linear + F.cross_entropy."""

import copy
import logging
import pickle

import pytest
import torch
import torch.nn.functional as F
from torch import nn

import fastgpt.impl
from fastgpt.nn import LinearCrossEntropyLoss


def inputs(device="cpu", dtype=torch.float32):
    hidden = torch.randn(2, 5, 8, device=device, dtype=dtype, requires_grad=True)
    target = torch.randint(0, 33, (2, 5), device=device)
    target[0, 0] = -100
    return hidden, target


@pytest.mark.parametrize("impl", ["triton", "torch", "reference"])
@pytest.mark.parametrize("bias", [False, True])
def test_equals_torch(device, seed, impl, bias):
    hidden, target = inputs(device)
    criterion = LinearCrossEntropyLoss(8, 33, bias=bias, label_smoothing=0.1, impl=impl, device=device)
    loss = criterion(hidden, target)
    logits = criterion.linear(hidden)
    expected = F.cross_entropy(logits.flatten(0, 1), target.flatten(), label_smoothing=0.1)
    torch.testing.assert_close(loss, expected)
    parameters = [hidden, *criterion.parameters()]
    torch.testing.assert_close(torch.autograd.grad(loss, parameters), torch.autograd.grad(expected, parameters))


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_every_setting_arrives(device, seed, impl):
    from fastgpt.kernels import reference

    hidden, target = inputs(device)
    target[0, 1] = 5
    settings = {"reduction": "none", "ignore_index": 5, "label_smoothing": 0.2, "z_loss": 0.1, "softcap": 2.0}
    target[target == -100] = 7
    criterion = LinearCrossEntropyLoss(8, 33, impl=impl, device=device, num_chunks=3, **settings)
    loss = criterion(hidden, target)
    assert loss.shape == (2, 5)
    torch.testing.assert_close(
        loss, reference.linear_cross_entropy(hidden, criterion.linear.weight, target, **settings)
    )


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_tied_and_borrowed_weights(device, seed, impl):
    hidden, target = inputs(device)
    embedding = nn.Embedding(33, 8, device=device)
    tied = LinearCrossEntropyLoss(8, 33, impl=impl, device=device)
    tied.linear.weight = embedding.weight
    borrowed = LinearCrossEntropyLoss(impl=impl)
    assert not list(borrowed.parameters())
    ids = target.clamp(min=0)
    expected = F.cross_entropy(F.linear(hidden, embedding.weight).flatten(0, 1), target.flatten())
    loss = tied(hidden + embedding(ids), target)  # the weight is used twice, and gets both gradients
    again = borrowed(hidden + embedding(ids), target, embedding.weight)
    torch.testing.assert_close(loss, again)
    both = [torch.autograd.grad(of, embedding.weight)[0] for of in (loss, again)]
    torch.testing.assert_close(*both)
    torch.testing.assert_close(borrowed(hidden, target, embedding.weight), expected)


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason="this torch has no nn.LinearCrossEntropyLoss")
@pytest.mark.parametrize("bias", [False, True])
def test_takes_the_place_of_torchs_own_class(seed, bias):
    theirs = nn.LinearCrossEntropyLoss(8, 33, bias=bias, reduction="sum", label_smoothing=0.1)
    ours = LinearCrossEntropyLoss(8, 33, bias=bias, reduction="sum", label_smoothing=0.1)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    hidden, target = torch.randn(6, 8), torch.randint(0, 33, (6,))
    torch.testing.assert_close(ours(hidden, target), theirs(hidden, target))
    torch.testing.assert_close(ours(hidden[0], target[0]), theirs(hidden[0], target[0]))
    torch.manual_seed(0)
    theirs = nn.LinearCrossEntropyLoss(8, 33, bias=bias)
    torch.manual_seed(0)
    for a, b in zip(LinearCrossEntropyLoss(8, 33, bias=bias).parameters(), theirs.parameters()):
        assert torch.equal(a, b)


def test_auto_falls_back_and_says_why_once(caplog, monkeypatch):
    hidden, target = inputs()
    criterion = LinearCrossEntropyLoss(8, 33)
    fastgpt.impl._log_once.cache_clear()
    fastgpt.impl._explain.cache_clear()
    with caplog.at_level(logging.INFO, "fastgpt"):
        for _ in range(2):
            criterion(hidden, target)
    said = [r.getMessage() for r in caplog.records if 'loss_impl="auto"' in r.getMessage()]
    assert len(said) == 1
    assert '"torch"' in said[0]
    double = LinearCrossEntropyLoss(8, 33, dtype=torch.float64)
    assert double(hidden.double(), target).dtype == torch.float64
    assert fastgpt.implementations(nn.Sequential(criterion))[0].used == "torch"


def test_triton_where_it_cannot_run_raises(monkeypatch):
    from fastgpt.kernels import _runtime

    monkeypatch.setattr(_runtime, "is_interpreting", lambda: False)
    with pytest.raises(RuntimeError, match=r'loss_impl="triton" cannot run here: .*interpret'):
        LinearCrossEntropyLoss(8, 33, impl="triton")(*inputs())


def test_bad_construction_and_calls():
    with pytest.raises(ValueError, match="num_classes is None"):
        LinearCrossEntropyLoss(8)
    with pytest.raises(ValueError, match="impl"):
        LinearCrossEntropyLoss(impl="cuda")
    with pytest.raises(ValueError, match="has its own weight"):
        LinearCrossEntropyLoss(8, 33)(*inputs(), torch.randn(33, 8))
    with pytest.raises(ValueError, match="needs a weight"):
        LinearCrossEntropyLoss()(*inputs())


def test_is_an_ordinary_module(device, seed):
    criterion = LinearCrossEntropyLoss(8, 33, bias=True, z_loss=0.1, impl="triton", device=device)
    assert list(criterion.state_dict()) == ["linear.weight", "linear.bias"]
    assert "z_loss=0.1" in repr(criterion)
    assert "softcap" not in repr(criterion)
    hidden, target = inputs(device)
    for twin in (copy.deepcopy(criterion), pickle.loads(pickle.dumps(criterion))):
        assert torch.equal(twin(hidden, target), criterion(hidden, target))
    doubled = {name: 2 * p for name, p in criterion.named_parameters()}
    in_torch = LinearCrossEntropyLoss(8, 33, bias=True, z_loss=0.1, impl="torch", device=device)
    called = [torch.func.functional_call(m, doubled, (hidden, target)) for m in (criterion, in_torch)]
    torch.testing.assert_close(*called)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden, target), criterion(hidden, target))
