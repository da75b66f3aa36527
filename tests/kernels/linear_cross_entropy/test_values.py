"""Loss and gradients against float64, for every option, dtype, reduction and shape."""

import functools

import pytest
import torch
import torch.nn.functional as F

from fastgpt.kernels import cross_entropy, linear_cross_entropy, reference
from tests.support.budget import GRADIENT, OUTPUT, assert_within_budget, errors, exactly

from .cases import FLOAT_DTYPES, check, problem

OPTIONS = {
    "plain": {},
    "smoothing": {"label_smoothing": 0.1},
    "z_loss": {"z_loss": 1e-2},
    "softcap": {"softcap": 3.0},
    "all": {"label_smoothing": 0.2, "z_loss": 1e-3, "softcap": 5.0},
}


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_loss_and_gradients(device, seed, dtype, reduction):
    upstream = torch.randn(3, 5, device=device) if reduction == "none" else torch.randn((), device=device)
    check(problem(device, dtype), upstream, num_chunks=4, reduction=reduction)


@pytest.mark.parametrize("reduction", ["mean", "none"])
@pytest.mark.parametrize("options", OPTIONS.values(), ids=OPTIONS.keys())
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_options(device, seed, dtype, options, reduction):
    upstream = torch.randn(3, 5, device=device) if reduction == "none" else None
    check(problem(device, dtype, bias=False), upstream, num_chunks=2, reduction=reduction, **options)


@pytest.mark.parametrize("V", [1, 2, 64, 127, 128, 129, 1000, 9001, 20000])
@pytest.mark.parametrize("reduction", ["sum", "none"])
def test_any_vocabulary(device, seed, V, reduction):
    """Rows held in registers, rows read twice, with and without a tail; torch pads nothing and neither do we."""
    p = problem(device, torch.float32, (4,), V, 8)
    upstream = torch.randn(4, device=device) if reduction == "none" else None
    check(p, upstream, reduction=reduction, label_smoothing=0.1)
    assert p.weight.shape == (V, 8)


@pytest.mark.parametrize("target_place", ["first", "last"])
def test_targets_at_the_ends_of_the_vocabulary(device, seed, target_place):
    p = problem(device, torch.bfloat16, (3,), 17000, 8, bias=False)
    p.target.fill_(0 if target_place == "first" else 16999)
    check(p, reduction="sum")
    check(p, torch.randn(3, device=device), reduction="none")


@pytest.mark.slow
@pytest.mark.parametrize("V", [50257, 256000])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_large_vocabularies(device, seed, dtype, V):
    check(problem(device, dtype, (3,), V, 4), reduction="sum", softcap=30.0)


def test_wide_model(device, seed):
    check(problem(device, torch.bfloat16, (4,), 33, 8192), reduction="mean")


@pytest.mark.parametrize("shape", [(), (1,), (7,), (2, 3), (2, 1, 3)])
def test_any_leading_shape(device, seed, shape):
    for reduction in ("mean", "none"):
        check(problem(device, torch.float32, shape, 33, 8, ignored=0.0), reduction=reduction)


@pytest.mark.parametrize("num_chunks", [1, 2, 3, 7, 15, 100])
def test_any_number_of_chunks(device, seed, num_chunks):
    check(problem(device, torch.float16, ignored=0.5), num_chunks=num_chunks, reduction="mean")


def test_strided_inputs(device, seed):
    p = problem(device, torch.float32, (6, 4), 33, 8)
    p.x = torch.randn(4, 16, 6, device=device).permute(2, 0, 1)[..., ::2].detach().requires_grad_()
    p.weight = torch.randn(8, 66, device=device).t()[::2].detach().requires_grad_()
    p.target = torch.randint(0, 33, (6, 8), device=device)[:, ::2]
    assert not p.x.is_contiguous()
    assert not p.weight.is_contiguous()
    assert not p.target.is_contiguous()
    check(p, reduction="mean")
    check(p, torch.randn(6, 4, device=device), reduction="none")


def test_stride_0_upstream_gradient(device, seed):
    check(problem(device, torch.float32), torch.ones((), device=device).expand(3, 5), reduction="none")


def test_int32_targets_and_other_ignore_index(device, seed):
    p = problem(device, torch.float32, ignore_index=7)
    p.target = p.target.int()
    check(p, ignore_index=7)
    p.target = p.target.masked_fill(p.target == 7, -1)
    check(p, ignore_index=-1)


@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
def test_confident_predictions_lose_nothing(device, seed, dtype):
    """Logits of ±60: losses from 0 to 100, probabilities from 1 to 1e-50."""
    check(problem(device, dtype, scale=15.0), reduction="sum")


def test_cross_entropy_of_logits_with_a_large_offset(device, seed):
    """What a row's logits have in common cancels exactly: lse alone, rounded to float32, could not do that."""
    logits = (torch.randn(5, 99, device=device) + 4096.0).requires_grad_()
    target = torch.randint(0, 99, (5,), device=device)
    for settings in ({}, {"label_smoothing": 0.3}):

        def results(function, logits, settings=settings):
            loss = function(logits, target, **settings)
            return [loss, *torch.autograd.grad(loss, logits)]

        exact = exactly(functools.partial(results, F.cross_entropy), logits)
        loss, dlogits = zip(results(cross_entropy, logits), results(F.cross_entropy, logits), exact)
        assert_within_budget("loss", *loss)
        assert_within_budget("dlogits", *dlogits, factor=GRADIENT)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("dtype", FLOAT_DTYPES)
@pytest.mark.parametrize("V", [99, 9001])
def test_cross_entropy_of_logits(device, seed, dtype, reduction, V):
    logits = (torch.randn(2, 3, V, device=device) * 3).to(dtype).requires_grad_()
    target = torch.randint(0, V, (2, 3), device=device)
    target[0, 1] = -100
    settings = {"reduction": reduction, "label_smoothing": 0.1, "z_loss": 1e-3, "softcap": 7.0, "return_lse": True}

    def results(function, logits):
        loss, lse = function(logits, target, **settings)
        total = (loss * torch.arange(1, loss.numel() + 1, device=device).view(loss.shape)).sum() + 0.1 * lse.sum()
        return [loss, lse, *torch.autograd.grad(total, logits)]

    exact = exactly(functools.partial(results, reference.cross_entropy), logits)
    ours, torchs = results(cross_entropy, logits), results(reference.cross_entropy, logits)
    for name, *three, factor in zip(("loss", "lse", "dlogits"), ours, torchs, exact, (OUTPUT, OUTPUT, GRADIENT)):
        assert_within_budget(name, *three, factor=factor)


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_reference_is_torch(seed, reduction):
    """The twin that everything here is compared with is F.linear and F.cross_entropy, to the bit."""
    x, weight, bias = torch.randn(6, 8), torch.randn(11, 8), torch.randn(11)
    target = torch.tensor([0, 10, -100, 3, 3, -100])
    for smoothing in (0.0, 0.1):
        settings = {"reduction": reduction, "label_smoothing": smoothing}
        theirs = F.cross_entropy(F.linear(x, weight, bias), target, **settings)
        torch.testing.assert_close(reference.linear_cross_entropy(x, weight, target, bias, **settings), theirs)


def test_weight_gradient_is_summed_in_float32(device, seed):
    """96 rows pull one class the same way: a bfloat16 running sum over chunks would stall, ours is rounded once."""
    p = problem(device, torch.bfloat16, (96,), 5, 16, bias=False, ignored=0.0)
    p.x = p.x.detach().abs()
    p.target.zero_()
    (ours,) = torch.autograd.grad(
        linear_cross_entropy(p.x, p.weight, p.target, reduction="sum", num_chunks=48), p.weight
    )
    q = p.to(torch.float64)
    (exact,) = torch.autograd.grad(reference.linear_cross_entropy(q.x, q.weight, q.target, reduction="sum"), q.weight)
    assert errors(ours, exact).max < torch.finfo(torch.bfloat16).eps * exact.abs().max().item()


def test_float16_probabilities_are_not_divided_by_the_number_of_rows(device, seed):
    """In float16, p = 1e-4 is exact to 1e-3 and p / N is not: the mean's 1 / N is applied in float32, at the end."""
    x, weight = torch.randn(16, 8, device=device) * 0.05, torch.randn(9001, 8, device=device, requires_grad=True)
    target = torch.zeros(16, dtype=torch.int64, device=device)
    with torch.autocast(device.type, torch.float16):  # so that dweight comes in float32
        (ours,) = torch.autograd.grad(linear_cross_entropy(x, weight, target), weight)
    wide = weight.detach().half().double().requires_grad_()
    (exact,) = torch.autograd.grad(reference.linear_cross_entropy(x.half().double(), wide, target), wide)
    assert ours.dtype == torch.float32
    assert errors(ours[1:], exact[1:]).rms < 1e-3 * exact[1:].square().mean().sqrt().item()
