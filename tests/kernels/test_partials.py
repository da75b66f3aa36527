"""The one sum of partial sums that all families end with: values, shapes, bits."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from fastgpt.kernels._partials import FEW, sum_partials
from tests.support.budget import GRADIENT, assert_within_budget, exactly

fp32, fp16, bf16 = torch.float32, torch.float16, torch.bfloat16

pytestmark = pytest.mark.numeric


def summed(partials, dtype=fp32):
    return sum_partials(partials, torch.empty(partials.shape[1:], dtype=dtype, device=partials.device))


@pytest.mark.parametrize("dtype", [fp32, fp16, bf16], ids=str)
@pytest.mark.parametrize("P", [1, 2, FEW, FEW + 1, 63, 64, 65, 384])
def test_values(device, seed, P, dtype):
    partials = torch.randn(P, 5, 33, device=device)
    (exact,) = exactly(lambda t: t.sum(0), partials.cpu())
    assert_within_budget("sum", summed(partials, dtype), partials.cpu().sum(0).to(dtype), exact, factor=GRADIENT)


@pytest.mark.parametrize("P", [3, 70])
def test_two_sums_in_one_launch_have_the_bits_of_two_launches(device, seed, P):
    partials = torch.randn(2, P, 1100, device=device)
    first, second = (torch.empty(1100, dtype=dtype, device=device) for dtype in (fp32, bf16))
    assert sum_partials(partials, first, second) is first
    assert torch.equal(first, summed(partials[0]))
    assert torch.equal(second, summed(partials[1], bf16))


@pytest.mark.parametrize("P", [FEW, 100])
def test_a_columns_bits_do_not_depend_on_the_other_columns(device, seed, P):
    """So the gradient of a layer whose weight is cut into columns is that of the whole."""
    partials = torch.randn(P, 1500, device=device)
    assert torch.equal(summed(partials)[700:733], summed(partials[:, 700:733].contiguous()))


def test_few_partials_are_added_one_after_another(device, seed):
    partials = torch.randn(FEW, 50, device=device)
    total = torch.zeros(50, device=device)
    for partial in partials:
        total += partial
    assert torch.equal(summed(partials), total)


def test_nothing_to_sum(device):
    assert summed(torch.empty(3, 0, device=device)).shape == (0,)
    assert torch.equal(summed(torch.empty(0, 4, device=device)), torch.zeros(4, device=device))


def test_nan_stays_in_its_column(device):
    partials = torch.ones(70, 40, device=device)
    partials[69, 7] = float("nan")
    assert torch.isnan(summed(partials)).nonzero().flatten().tolist() == [7]
