"""add_layer_norm: both outputs, every path of its gradient, and its dropout against a mask drawn independently."""

import pytest
import torch
import torch.nn.functional as F

from fastgpt.kernels import add_layer_norm, layer_norm, reference
from fastgpt.kernels.layer_norm import op
from tests.support import philox

from .cases import DTYPES, add_layer_norm_case, bf16, check, fp16, fp32, parameters

pytest.importorskip("triton")


@pytest.mark.parametrize("N", [17, 64, 768])
@pytest.mark.parametrize(
    ("x_dtype", "residual_dtype"), [(fp32, fp32), (fp16, fp16), (bf16, bf16), (bf16, fp32), (fp16, fp32)], ids=str
)
def test_dtypes(device, seed, x_dtype, residual_dtype, N):
    x, residual = torch.randn(5, N).to(device, x_dtype), torch.randn(5, N).to(device, residual_dtype)
    results = add_layer_norm_case(x, residual, *parameters(N, x_dtype, device))
    normed, new_residual = results.outputs
    assert normed.dtype == x_dtype
    assert new_residual.dtype == residual_dtype
    assert torch.equal(new_residual, (residual.float() + x.float()).to(residual_dtype))


@pytest.mark.parametrize("upstream", [(True, True), (True, False), (False, True)], ids=str)
@pytest.mark.parametrize("x_dtype", [fp32, bf16])
def test_either_output_may_be_unused(device, seed, upstream, x_dtype):
    x, residual = torch.randn(2, 3, 40).to(device, x_dtype), torch.randn(2, 3, 40, device=device)
    weight, bias = parameters(40, fp32, device) if upstream[0] else (None, None)
    add_layer_norm_case(x, residual, weight, bias, upstream=upstream)


@pytest.mark.parametrize("N", [4100, 8200, 33000])
def test_long_rows(device, seed, N):
    x, residual = torch.randn(1, N).to(device, bf16), torch.randn(1, N, device=device)
    add_layer_norm_case(x, residual, *parameters(N, bf16, device))


def test_shapes_of_several_dimensions(device, seed):
    x, residual = torch.randn(4, 3, 8, device=device), torch.randn(4, 3, 8, device=device)
    add_layer_norm_case(x, residual, *parameters((3, 8), fp32, device))


def test_equals_its_two_halves_bit_for_bit(device, seed):
    x, residual = torch.randn(5, 96).to(device, bf16), torch.randn(5, 96).to(device, bf16)
    weight, bias = parameters(96, bf16, device)
    normed, new_residual = add_layer_norm(x, residual, weight, bias)
    assert torch.equal(new_residual, residual + x)
    assert torch.equal(normed, layer_norm(new_residual, 96, weight, bias))


@pytest.mark.parametrize("dropout_p", [0.1, 0.5, 0.9])
@pytest.mark.parametrize(
    ("x_dtype", "residual_dtype", "N"),
    [(fp32, fp32, 50), (bf16, bf16, 64), (bf16, fp32, 300), (fp32, fp32, 8200)],
    ids=str,
)
def test_dropout_is_exact(device, seed, monkeypatch, dropout_p, x_dtype, residual_dtype, N):
    """Forward and backward use the mask that an independent Philox draws from the seed, at (0, row, column)."""
    shape = (2, 3, N) if N < 8000 else (1, 1, N)
    x, residual = torch.randn(shape).to(device, x_dtype), torch.randn(shape).to(device, residual_dtype)
    weight, bias = parameters(N, x_dtype, device)
    key = torch.tensor([123456789, 987654321], device=device)
    monkeypatch.setattr(op, "new_seed", lambda _: key)
    mask = philox.keep_mask(key, dropout_p, 1, shape[0] * shape[1], N).view(shape)

    def torchs(x, residual, weight, bias):
        new = (residual + x * mask / (1 - dropout_p)).to(residual.dtype)
        return F.layer_norm(new, (N,), weight.to(new.dtype), bias.to(new.dtype)).to(x.dtype), new

    inputs = [t.requires_grad_() for t in (x, residual, weight, bias)]
    results = check(
        lambda *tensors: add_layer_norm(*tensors, dropout_p=dropout_p),
        torchs,
        lambda *tensors: reference.add_layer_norm(*tensors, dropout_p=dropout_p, dropout_mask=mask),
        inputs, [torch.randn(shape).to(x), torch.randn(shape).to(residual)], ["dx", "dresidual", "dweight", "dbias"],
    )  # fmt: skip
    dropped = ~mask.to(device)
    assert torch.equal(results.outputs[1][dropped], residual.detach()[dropped])
    assert (results.gradients[0][dropped] == 0).all()


def test_dropout_draws_anew_and_obeys_manual_seed(device):
    x, residual = torch.ones(4, 64, device=device), torch.zeros(4, 64, device=device)

    def draw():
        return add_layer_norm(x, residual, dropout_p=0.5)[1]

    torch.manual_seed(5)
    first, second = draw(), draw()
    torch.manual_seed(5)
    assert torch.equal(first, draw())
    assert not torch.equal(first, second)


def test_dropped_nan_stays_nan_as_in_torch(device):
    x, residual = torch.full((1, 64), float("nan"), device=device), torch.zeros(1, 64, device=device)
    assert add_layer_norm(x, residual, dropout_p=0.5)[1].isnan().all()


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_gradient_tensor_serves_both_addends(device, seed, monkeypatch, dtype):
    from fastgpt.kernels.layer_norm import launch

    backward, asked = launch.backward, []
    monkeypatch.setattr(launch, "backward", lambda *args: asked.append(args[8:12]) or backward(*args))
    x, residual = (torch.randn(3, 32).to(device, dtype).requires_grad_() for _ in range(2))
    sum(o.sum() for o in add_layer_norm(x, residual)).backward()
    assert asked == [(dtype, None, None, None)]
    assert torch.equal(x.grad, residual.grad)
    x.grad.zero_()
    assert (residual.grad != 0).any(), "the two gradients must not share memory that the user sees"
