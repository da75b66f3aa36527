"""`fastgpt.nn.LinearCrossEntropyLoss` against torch's class of that name, and F.linear + F.cross_entropy."""

import copy
import logging
import pickle

import pytest
import torch
from torch import nn

import fastgpt.nn.impl
from fastgpt.kernels import _notice, reference
from fastgpt.nn import LinearCrossEntropyLoss
from tests.support.modules import assert_same_module


class Plain(nn.Module):
    """A criterion's linear layer and the loss, in plain PyTorch."""

    def __init__(self, criterion, **settings):
        super().__init__()
        self.linear, self.settings = criterion.linear, settings

    def forward(self, hidden, target):
        return reference.linear_cross_entropy(hidden, self.linear.weight, target, self.linear.bias, **self.settings)


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
    assert_same_module(criterion, Plain(criterion, label_smoothing=0.1), hidden, target)


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_every_setting_arrives(device, seed, impl):
    hidden, target = inputs(device)
    target[0, 1] = 5
    settings = {"reduction": "none", "ignore_index": 5, "label_smoothing": 0.2, "z_loss": 0.1, "softcap": 2.0}
    target[target == -100] = 7
    criterion = LinearCrossEntropyLoss(8, 33, impl=impl, device=device, num_chunks=3, **settings)
    assert criterion(hidden, target).shape == (2, 5)
    assert_same_module(criterion, Plain(criterion, **settings), hidden, target)


@pytest.mark.parametrize("impl", ["triton", "torch"])
def test_tied_and_borrowed_weights(device, seed, impl):
    hidden, target = inputs(device)
    embedding = nn.Embedding(33, 8, device=device)
    tied = LinearCrossEntropyLoss(8, 33, impl=impl, device=device)
    tied.linear.weight = embedding.weight
    borrowed = LinearCrossEntropyLoss(impl=impl)
    assert not list(borrowed.parameters())
    ids = target.clamp(min=0)
    loss = tied(hidden + embedding(ids), target)  # the weight is used twice, and gets both gradients
    again = borrowed(hidden + embedding(ids), target, embedding.weight)
    assert torch.equal(loss, again)
    assert torch.equal(*(torch.autograd.grad(of, embedding.weight)[0] for of in (loss, again)))
    assert torch.equal(borrowed(hidden, target, embedding.weight), tied(hidden, target))
    assert_same_module(tied, Plain(tied), hidden, target)


@pytest.mark.skipif(not hasattr(nn, "LinearCrossEntropyLoss"), reason="this torch has no nn.LinearCrossEntropyLoss")
@pytest.mark.parametrize("bias", [False, True])
def test_takes_the_place_of_torchs_own_class(seed, bias):
    theirs = nn.LinearCrossEntropyLoss(8, 33, bias=bias, reduction="sum", label_smoothing=0.1)
    ours = LinearCrossEntropyLoss(8, 33, bias=bias, reduction="sum", label_smoothing=0.1)
    ours.load_state_dict(theirs.state_dict(), strict=True)
    hidden, target = torch.randn(6, 8), torch.randint(0, 33, (6,))
    assert_same_module(ours, theirs, hidden.requires_grad_(), target)
    assert_same_module(ours, theirs, hidden[0].detach().requires_grad_(), target[0])
    torch.manual_seed(0)
    theirs = nn.LinearCrossEntropyLoss(8, 33, bias=bias)
    torch.manual_seed(0)
    for a, b in zip(LinearCrossEntropyLoss(8, 33, bias=bias).parameters(), theirs.parameters()):
        assert torch.equal(a, b)


def test_auto_falls_back_and_says_why_once(caplog, monkeypatch):
    hidden, target = inputs()
    criterion = LinearCrossEntropyLoss(8, 33)
    _notice._said.clear()
    fastgpt.nn.impl.forget()
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
    called = torch.func.functional_call(criterion, doubled, (hidden, target))
    twin.load_state_dict(doubled)
    assert torch.equal(called, twin(hidden, target))
    assert_same_module(twin, Plain(twin, z_loss=0.1), hidden, target)
    compiled = torch.compile(criterion, fullgraph=True, backend="aot_eager")
    torch.testing.assert_close(compiled(hidden, target), criterion(hidden, target))
