"""The kernels' dropout mask equals an independent Philox, element for element, and keeps the right share."""

import pytest
import torch

from fastgpt.kernels._random import check_dropout, drop_threshold, new_seed
from tests.support import philox

triton = pytest.importorskip("triton")
import triton.language as tl  # noqa: E402

from fastgpt.kernels.device.dropout import keep_mask  # noqa: E402


@triton.jit
def _write_mask(Mask, Seed, rows, columns, threshold, block_m: tl.constexpr, block_n: tl.constexpr):
    row = tl.program_id(1) * block_m + tl.arange(0, block_m)[:, None]
    column = tl.arange(0, block_n)[None, :]
    keep = keep_mask(tl.load(Seed), tl.load(Seed + 1), tl.program_id(0), row, column, threshold)
    offsets = (tl.program_id(0) * rows + row) * columns + column
    tl.store(Mask + offsets, keep.to(tl.int8), mask=(row < rows) & (column < columns))


@pytest.mark.parametrize("p", [0.0, 0.1, 0.5, 0.999])
def test_mask_is_philox(device, seed, p):
    key = new_seed(device)
    mask = torch.empty(3, 37, 50, dtype=torch.int8, device=device)
    _write_mask[(3, 3)](mask, key, 37, 50, drop_threshold(p), block_m=16, block_n=64)
    expected = philox.keep_mask(key, p, 3, 37, 50)
    assert torch.equal(mask.bool().cpu(), expected)
    share, n = expected.float().mean().item(), expected.numel()
    assert abs(share - (1 - p)) <= 4 * (p * (1 - p) / n) ** 0.5


def test_known_answer():
    # Random123's published vector for philox4x32-10 with counter 0 and key 0.
    assert philox.philox_word(0, 0, 0, 0, 0) == 0x6627E8D5


def test_seeds_follow_torch_manual_seed(device):
    torch.manual_seed(1)
    a = new_seed(device)
    torch.manual_seed(1)
    assert torch.equal(a, new_seed(device))
    assert not torch.equal(a, new_seed(device))


@pytest.mark.parametrize("p", [-0.1, 1.0, 2.0, float("nan")])
def test_dropout_outside_range_raises(p):
    with pytest.raises(ValueError, match="dropout_p"):
        check_dropout("f", p)
