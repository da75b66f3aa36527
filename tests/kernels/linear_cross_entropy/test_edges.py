"""Ignored rows, empty inputs, infinities, targets out of range, and arguments that do not fit."""

import functools

import pytest
import torch
import torch.nn.functional as F

from fastgpt.kernels import cross_entropy, linear_cross_entropy, reference
from tests.support.budget import assert_within_budget, exactly

from .cases import check, problem, run

REDUCTIONS = ("mean", "sum", "none")


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("smoothing", [0.0, 0.1])
def test_all_rows_ignored(device, seed, reduction, smoothing):
    """As torch: the mean is NaN, the sum 0, and all gradients are 0."""
    p = problem(device, torch.float32)
    p.target.fill_(-100)
    settings = {"reduction": reduction, "label_smoothing": smoothing}
    ours, our_grads = run(linear_cross_entropy, p, z_loss=1e-2, num_chunks=2, **settings)
    theirs, their_grads = run(reference.linear_cross_entropy, p.to(torch.float32), **settings)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    for a, b in zip(our_grads, their_grads):
        assert torch.equal(b, torch.zeros_like(b))
        assert torch.equal(a, b)
    logits = torch.randn(4, 9, device=device, requires_grad=True)
    loss = cross_entropy(logits, p.target.view(-1)[:4], **settings)
    loss.sum().backward()
    assert torch.equal(logits.grad, torch.zeros_like(logits))
    assert torch.equal(loss.isnan().all(), torch.tensor(reduction == "mean", device=device))


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_ignored_rows_get_zero(device, seed, reduction):
    p = problem(device, torch.float32, ignored=0.5)
    loss, (dx, _, _) = run(linear_cross_entropy, p, reduction=reduction)
    hidden = p.target == -100
    assert hidden.any()
    assert (dx[hidden] == 0).all()
    assert (dx[~hidden] != 0).any()
    if reduction == "none":
        assert (loss[hidden] == 0).all()


@pytest.mark.parametrize("reduction", REDUCTIONS)
def test_no_rows(device, reduction):
    p = problem(device, torch.float32, (1,), 9, 4)
    p.x, p.target = p.x[:0].detach().requires_grad_(), p.target[:0]
    ours, our_grads = run(linear_cross_entropy, p, reduction=reduction, label_smoothing=0.1)
    theirs, their_grads = run(reference.linear_cross_entropy, p.to(torch.float32), reduction=reduction)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    for a, b in zip(our_grads, their_grads):
        torch.testing.assert_close(a, b, atol=0.0, rtol=0.0)
    logits = torch.empty(0, 9, device=device, requires_grad=True)
    torch.testing.assert_close(cross_entropy(logits, p.target, reduction=reduction), theirs, equal_nan=True)


@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(2, 3), (), (2, 0)])
def test_no_features(device, seed, reduction, dtype, shape):
    """Logits that are the bias alone: the sizes of the other dimensions are not to be told from x's elements."""
    p = problem(device, dtype, shape or (1,), 9, 0)
    if not shape:
        p.x, p.target = p.x.detach()[0].requires_grad_(), p.target[0]
    ours, our_grads = run(linear_cross_entropy, p, reduction=reduction, num_chunks=2)
    theirs, their_grads = run(reference.linear_cross_entropy, p.to(dtype), reduction=reduction)
    torch.testing.assert_close(ours, theirs, equal_nan=True)
    for a, b in zip(our_grads, their_grads):
        torch.testing.assert_close(a, b)
    torch.testing.assert_close(
        linear_cross_entropy(p.x, p.weight, p.target, reduction=reduction),
        reference.linear_cross_entropy(p.x, p.weight, p.target, reduction=reduction), equal_nan=True,
    )  # fmt: skip


def test_nan_stays_in_its_row(device, seed):
    p = problem(device, torch.float32, (6,), bias=False, ignored=0.0)
    p.x = p.x.detach().clone()
    p.x[2, 3] = float("nan")
    p.x.requires_grad_()
    loss, (dx, dweight) = run(linear_cross_entropy, p, reduction="none", num_chunks=2)
    expected = torch.arange(6, device=device) == 2
    assert torch.equal(loss.isnan(), expected)
    assert torch.equal(dx.isnan().any(-1), expected)
    assert dweight.isnan().all()  # every class is pulled by that row


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("V", [9, 9001])
def test_masked_classes(device, seed, V, smoothing):
    """Logits of -inf (classes ruled out): those classes have probability 0; a whole first tile of them is no NaN."""
    logits = torch.randn(3, V, device=device)
    logits[:, : V - 4] = -float("inf")
    logits.requires_grad_()
    target = torch.tensor([V - 1, V - 2, 0], device=device)

    def results(function, logits):
        loss = function(logits, target, reduction="none", label_smoothing=smoothing)
        return [loss] if smoothing else [loss, *torch.autograd.grad(loss.sum(), logits)]

    ours, torchs = results(cross_entropy, logits), results(F.cross_entropy, logits)
    exact = exactly(functools.partial(results, F.cross_entropy), logits)
    for name, *three in zip(("loss", "dlogits"), ours, torchs, exact):
        assert_within_budget(name, *three)
    assert ours[0][2] == float("inf")


def test_softcap_of_large_logits(device, seed):
    check(problem(device, torch.float32, scale=100.0), reduction="sum", softcap=30.0)


@pytest.mark.parametrize("bad", [-1, 9, 2**40, -(2**40)])
@pytest.mark.parametrize("function", ["linear_cross_entropy", "cross_entropy"])
def test_target_out_of_range_on_a_cpu(device, function, bad):
    if device.type == "cuda":
        pytest.skip("on CUDA it is a device-side assertion, which ends the process's CUDA context")
    target = torch.tensor([0, bad, 3])
    if function == "cross_entropy":
        arguments = cross_entropy, torch.randn(3, 9)
    else:
        arguments = linear_cross_entropy, torch.randn(3, 4), torch.randn(9, 4)
    with pytest.raises(IndexError, match=rf"target {bad} is out of bounds for 9 classes"):
        arguments[0](*arguments[1:], target)


@pytest.mark.gpu
def test_target_out_of_range_on_cuda():
    """In a process of its own, since a device-side assertion is the end of the CUDA context."""
    import subprocess
    import sys

    code = (
        "import torch; from fastgpt.kernels import linear_cross_entropy as f\n"
        "x, w = torch.randn(3, 16, device='cuda'), torch.randn(9, 16, device='cuda')\n"
        "f(x, w, torch.tensor([0, 9, 3], device='cuda')); torch.cuda.synchronize()"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode != 0
    assert "assert" in done.stderr


def _linear(**changes):
    arguments = {"x": torch.randn(3, 4), "weight": torch.randn(9, 4), "target": torch.zeros(3, dtype=torch.int64)}
    return linear_cross_entropy(**{**arguments, **changes})


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"x": torch.randn(3, 4).double()}, TypeError, r"x is torch.float64.*reference.linear_cross_entropy"),
        ({"weight": torch.randn(9, 4).half()}, TypeError, r"weight is torch.float16 but x is torch.float32.*autocast"),
        ({"bias": torch.randn(9).half()}, TypeError, r"bias is torch.float16 but x is torch.float32"),
        ({"target": torch.zeros(3)}, TypeError, r"target is torch.float32.*class indices"),
        ({"target": torch.zeros(3, dtype=torch.uint8)}, TypeError, r"target is torch.uint8"),
        ({"target": torch.zeros(4, dtype=torch.int64)}, ValueError, r"target has shape \(4,\), expected \(3,\)"),
        ({"target": torch.zeros(3, 1, dtype=torch.int64)}, ValueError, r"target has shape \(3, 1\)"),
        ({"weight": torch.randn(9, 5)}, ValueError, r"weight has shape \(9, 5\), expected \(V, 4\)"),
        ({"weight": torch.randn(4)}, ValueError, r"weight has shape \(4,\)"),
        ({"weight": torch.randn(0, 4)}, ValueError, r"at least one class"),
        ({"x": torch.tensor(1.0)}, ValueError, r"x is a scalar"),
        ({"bias": torch.randn(8)}, ValueError, r"bias has shape \(8,\), expected \(9,\)"),
        ({"reduction": "average"}, ValueError, r"reduction is 'average'"),
        ({"ignore_index": None}, TypeError, r"ignore_index is None"),
        ({"label_smoothing": 1.5}, ValueError, r"label_smoothing is 1.5"),
        ({"z_loss": -1.0}, ValueError, r"z_loss is -1.0"),
        ({"softcap": 0.0}, ValueError, r"softcap is 0.0"),
        ({"num_chunks": 0}, ValueError, r"num_chunks is 0"),
        ({"weight": torch.randn(9, 4, device="meta")}, ValueError, r"weight is on meta but x is on cpu"),
    ],
)
def test_bad_arguments_of_linear_cross_entropy(changes, error, match):
    with pytest.raises(error, match=f"linear_cross_entropy: .*{match}"):
        _linear(**changes)


@pytest.mark.parametrize(
    ("changes", "error", "match"),
    [
        ({"logits": torch.randn(3, 9).double()}, TypeError, r"logits is torch.float64.*reference.cross_entropy"),
        ({"logits": torch.randn(3, 0)}, ValueError, r"logits has shape \(3, 0\)"),
        ({"logits": torch.tensor(0.0)}, ValueError, r"logits has shape \(\)"),
        ({"target": torch.zeros(3, 9)}, TypeError, r"class probabilities"),
        ({"target": torch.zeros(2, dtype=torch.int64)}, ValueError, r"target has shape \(2,\), expected \(3,\)"),
        ({"reduction": None}, ValueError, r"reduction is None"),
        ({"label_smoothing": -0.1}, ValueError, r"label_smoothing is -0.1"),
        ({"logits": torch.randn(1, 9).expand(3, 9), "inplace": True}, ValueError, r"share memory"),
        ({"logits": torch.randn(25).unfold(0, 9, 8), "inplace": True}, ValueError, r"share memory.*strides \(8, 1\)"),
        ({"logits": torch.randn(11).as_strided((3, 9), (1, 1)), "inplace": True}, ValueError, r"share memory"),
        ({"logits": torch.randn(3, 9, requires_grad=True), "inplace": True}, ValueError, r"a leaf"),
    ],
)
def test_bad_arguments_of_cross_entropy(changes, error, match):
    arguments = {"logits": torch.randn(3, 9), "target": torch.zeros(3, dtype=torch.int64)}
    with pytest.raises(error, match=f"cross_entropy: .*{match}"):
        cross_entropy(**{**arguments, **changes})


def test_a_cpu_without_the_interpreter_is_refused():
    from fastgpt.kernels import _runtime

    if _runtime.is_interpreting():
        pytest.skip("this process interprets every kernel")
    with pytest.raises(RuntimeError, match=r"linear_cross_entropy: .*interpret"):
        _linear()
    with pytest.raises(RuntimeError, match=r"cross_entropy: .*interpret"):
        cross_entropy(torch.randn(3, 9), torch.zeros(3, dtype=torch.int64))
