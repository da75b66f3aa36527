"""layer_norm and its gradients against float64, within twice (thrice) torch's own error."""

import dataclasses

import pytest
import torch

from fastgpt.kernels import layer_norm
from fastgpt.kernels.layer_norm import tiles

from .cases import DTYPES, bf16, fp16, fp32, layer_norm_case, parameters

pytest.importorskip("triton")


@pytest.mark.parametrize("N", [1, 2, 17, 64, 100, 768])
@pytest.mark.parametrize("dtype", DTYPES)
def test_dtypes_and_widths(device, seed, dtype, N):
    x = (2 * torch.randn(9, N) + 0.5).to(device, dtype)
    layer_norm_case(x, *parameters(N, dtype, device))


@pytest.mark.parametrize("N", [1600, 2048, 4096])
def test_gpt_widths(device, seed, N):
    layer_norm_case(torch.randn(3, N).to(device, bf16), *parameters(N, bf16, device))


@pytest.mark.parametrize(("x_dtype", "weight_dtype"), [(bf16, fp32), (fp16, fp32), (fp32, bf16), (bf16, fp16)], ids=str)
def test_mixed_dtypes(device, seed, x_dtype, weight_dtype):
    x = torch.randn(5, 96).to(device, x_dtype)
    weight, bias = parameters(96, weight_dtype, device)
    layer_norm_case(x, weight, bias)
    y = layer_norm(x, 96, weight, bias)
    assert y.dtype == x_dtype
    torch.testing.assert_close(y, layer_norm(x.float(), 96, weight.float(), bias.float()).to(x_dtype))


@pytest.mark.parametrize("has_weight", [True, False])
@pytest.mark.parametrize("has_bias", [True, False])
def test_weight_and_bias_are_optional(device, seed, has_weight, has_bias):
    weight, bias = parameters(50, fp32, device)
    layer_norm_case(torch.randn(7, 50, device=device), weight if has_weight else None, bias if has_bias else None)


@pytest.mark.parametrize("shape", [(2, 3, 5, 8), (4, 3, 5, 8)])
@pytest.mark.parametrize("d", [1, 2, 3, 4])
def test_several_normalised_dimensions(device, seed, shape, d):
    layer_norm_case(torch.randn(shape, device=device), *parameters(shape[4 - d :], fp32, device), d=d)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [100, 768])
def test_mean_1000_variance_1(device, seed, dtype, N):
    layer_norm_case((1000 + torch.randn(4, N)).to(device, dtype), *parameters(N, dtype, device))


@pytest.mark.parametrize("N", [40000, 70000])
@pytest.mark.parametrize("dtype", [fp32, fp16])
def test_long_rows_at_mean_1000(device, seed, dtype, N):
    x = (1000 + torch.randn(1, N)).to(device, dtype)
    layer_norm_case(x, *parameters(N, fp32, device), grad=False)


@pytest.mark.parametrize("value", [0.0, 0.1, -1234.567])
@pytest.mark.parametrize("N", [100, 40000, 70000])
def test_constant_rows_give_the_bias(device, seed, value, N):
    x = torch.full((3, N), value, device=device, requires_grad=True)
    weight, bias = parameters(N, fp32, device)
    y = layer_norm(x, N, weight, bias)
    assert torch.equal(y, bias.expand(3, N))
    if N == 100:
        (dx,) = torch.autograd.grad(y.sum(), x)
        assert dx.isfinite().all()


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, where the last program's empty rows divide by zero
@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-5, 1.0])
def test_eps(device, seed, eps):
    layer_norm_case(torch.randn(4, 33, device=device), *parameters(33, fp32, device), eps=eps)


@pytest.mark.parametrize(
    ("N", "dtype"), [(8192, bf16), (8193, fp32), (12288, bf16), (12288, fp32), (12289, fp16), (16385, fp16)]
)
def test_both_sides_of_the_backward_limits(device, seed, N, dtype):
    layer_norm_case(torch.randn(2, N).to(device, dtype), *parameters(N, dtype, device))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [32768, 32769, 65535, 65536, 65537])
def test_both_sides_of_the_forward_limits(device, seed, N, dtype):
    weight, bias = parameters(N, dtype, device)
    layer_norm_case(torch.randn(2, N).to(device, dtype), weight, bias, grad=False)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("N", [40, 500, 1024])
def test_held_rows(device, seed, monkeypatch, N, dtype):
    """Rows that are held if a program has 64 columns: one tile and many, the last one full or not; 5 programs."""
    held = tiles.Tile(1, 64, 4, programs=5, held=True)
    monkeypatch.setattr(tiles, "forward_tile", lambda *args: held)
    monkeypatch.setattr(tiles, "backward_tile", lambda *args: held)
    layer_norm_case((10 + torch.randn(13, N)).to(device, dtype), *parameters(N, dtype, device))


@pytest.mark.parametrize(("N", "programs"), [(40, 3), (1000, 70)])
def test_programs_that_walk_over_many_rows(device, seed, monkeypatch, N, programs):
    """As with 100 000 rows: several tiles for each program, the last one half empty; more partials than fit a tile."""
    rule = tiles.backward_tile
    monkeypatch.setattr(tiles, "backward_tile", lambda *args: dataclasses.replace(rule(*args), programs=programs))
    layer_norm_case(torch.randn(133, N, device=device), *parameters(N, fp32, device))


@pytest.mark.parametrize("N", [40, 100])
def test_kernels_of_long_rows_on_many_rows(device, seed, monkeypatch, N):
    """Rows that are long if a program holds 64 columns: one chunk and two, three blocks of rows in the sums."""
    long = tiles.Tile(1, 64, 4, long=True)
    monkeypatch.setattr(tiles, "forward_tile", lambda *args: dataclasses.replace(long, stages=3))
    monkeypatch.setattr(tiles, "backward_tile", lambda *args: long)
    monkeypatch.setattr(tiles, "LONGEST_SUMMED", 1)
    layer_norm_case(10 + torch.randn(133, N, device=device), *parameters(N, fp32, device))


@pytest.mark.slow
def test_more_rows_than_programs(device, seed):
    layer_norm_case(torch.randn(101, 4100).to(device, bf16), *parameters(4100, bf16, device))


@pytest.mark.slow
@pytest.mark.parametrize("N", [768, 1024, 1600, 4096, 8192, 12288, 40000])
@pytest.mark.parametrize("dtype", DTYPES)
def test_many_rows(device, seed, dtype, N):
    M = 4099 if device.type == "cuda" else 40
    layer_norm_case(torch.randn(M, N).to(device, dtype), *parameters(N, dtype, device))
