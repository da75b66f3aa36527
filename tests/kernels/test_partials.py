"""The one sum of partial sums that all families end with: values, shapes, bits."""

from __future__ import annotations

import pytest
import torch

pytest.importorskip("triton")

from fastgpt.kernels._partials import FEW, sum_partials
from fastgpt.kernels.device.partials import sum_partials_kernel
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


def test_a_columns_bits_do_not_depend_on_the_other_columns_where_partials_are_few(device, seed):
    """They are added one after another; of more, lanes are added, laid out by the number of columns."""
    partials = torch.randn(FEW, 1500, device=device)
    assert torch.equal(summed(partials)[700:733], summed(partials[:, 700:733].contiguous()))


@pytest.mark.parametrize("N", [1500, 33])
def test_many_partials_have_the_same_bits_in_every_run(device, seed, N):
    partials = torch.randn(100, N, device=device)
    first = summed(partials)
    assert all(torch.equal(first, summed(partials.clone())) for _ in range(5))


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


@pytest.mark.parametrize("is_wide", [False, True])
def test_wide_indices_read_the_same_partials(device, seed, is_wide):
    partials, out = torch.randn(2, 70, 40, device=device), torch.empty(2, 40, device=device)
    sum_partials_kernel[(2, 2)](partials, *out, 70, N=40, IS_WIDE=is_wide, BLOCK_P=64, BLOCK_N=32, num_warps=4)
    assert torch.equal(out, torch.stack([summed(partials[0]), summed(partials[1])]))


@pytest.mark.parametrize(("P", "N", "is_wide"), [(2**15 - 65, 2**16, False), (2**15 - 64, 2**16, True)])
def test_indices_are_wide_where_32_bits_do_not_hold_them(monkeypatch, P, N, is_wide):
    """The last tile looks up to 64 partials past the last; nothing runs here: the tensors have no memory."""
    launched = {}
    kind = type(sum_partials_kernel)
    monkeypatch.setattr(kind, "run", lambda kernel, *args, grid, **settings: launched.update(settings))
    sum_partials(torch.empty(P, N, device="meta"), torch.empty(N, device="meta"))
    assert launched["IS_WIDE"] == is_wide
