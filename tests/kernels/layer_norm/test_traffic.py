"""LayerNorm is nothing but traffic: every element is read once and written once, counted in the interpreter."""

import pytest
import torch

from fastgpt.kernels import _runtime
from fastgpt.kernels.layer_norm import launch, tiles
from tests.support.traffic import Traffic

from .cases import bf16, fp16, fp32, parameters

pytest.importorskip("triton")


def all_equal(counts: torch.Tensor, times: int) -> bool:
    return bool((counts == times).all())


@pytest.mark.parametrize("dtype", [fp32, bf16])
@pytest.mark.parametrize("N", [1, 100, 768, 8192, 32768, 32769, 40000, 65535, 65536])
def test_forward_reads_x_once_up_to_65536_columns(interpreter, seed, N, dtype):
    x, weight, bias = torch.randn(2, N).to(dtype), *parameters(N, dtype, interpreter)
    with Traffic() as traffic:
        y, _, stats = launch.forward(x, None, weight, bias, None, 1, 1e-5, 0.0, dtype)
    assert all_equal(traffic.reads(x), 1)
    assert all_equal(traffic.writes(y), 1)
    assert all_equal(traffic.writes(stats), 1)
    assert all_equal(traffic.reads(y), 0)


def test_longer_rows_are_walked_over_twice(interpreter, seed):
    x = torch.randn(1, 65537).to(fp16)
    with Traffic() as traffic:
        launch.forward(x, None, None, None, None, 1, 1e-5, 0.0, fp16)
    assert all_equal(traffic.reads(x), 2)


@pytest.mark.parametrize("N", [64, 768, 16384, 16400, 33000, 70000])
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
def test_add_layer_norm_reads_x_and_the_residual_once(interpreter, seed, N, dropout_p):
    x, residual = torch.randn(2, N).to(bf16), torch.randn(2, N)
    key = torch.tensor([1, 2]) if dropout_p else None
    with Traffic() as traffic:
        y, new, _ = launch.forward(x, residual, None, None, key, 1, 1e-5, dropout_p, bf16)
    assert all_equal(traffic.reads(x), 1)
    assert all_equal(traffic.reads(residual), 1)
    assert all_equal(traffic.writes(y), 1)
    assert all_equal(traffic.writes(new), 1)
    long = tiles.forward_tile(N, (2, 4), dropout_p > 0, _runtime.target_of(x)).long
    assert all_equal(traffic.reads(new), int(long))  # rows too long to be held are taken up again where they were put


@pytest.mark.parametrize("N", [100, 768, 5000, 8192, 12288])
@pytest.mark.parametrize("added", [False, True])
def test_backward_reads_each_tensor_once(interpreter, seed, N, added):
    h, dy, dh_out = torch.randn(3, 5, N).unbind()
    weight, _ = parameters(N, fp32, interpreter)
    with Traffic() as traffic:
        dh, *_ = launch.backward(
            dy, dh_out if added else None, h, weight, torch.rand(2, 5), None, 1, 0.0, fp32, None, fp32, fp32
        )
    for tensor in (h, dy, *([dh_out] if added else [])):
        assert all_equal(traffic.reads(tensor), 1)
    assert all_equal(traffic.writes(dh), 1)
