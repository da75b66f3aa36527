"""The truth itself: equal to torch where torch has the function, differentiable twice, of our signatures."""

import inspect

import pytest
import torch
import torch.nn.functional as F

from fastgpt import kernels
from fastgpt.kernels import reference


@pytest.mark.parametrize("shape", [(8,), (3, 8)])
def test_equals_torch_in_float64(seed, shape):
    x, weight, bias = (torch.randn(s, dtype=torch.float64) for s in ((2, 3, 8), shape, shape))
    expected = F.layer_norm(x, shape, weight, bias, 1e-3)
    torch.testing.assert_close(reference.layer_norm(x, shape, weight, bias, 1e-3), expected)
    torch.testing.assert_close(reference.layer_norm(x, None, weight, bias, 1e-3), expected)
    torch.testing.assert_close(
        reference.layer_norm(x, None, None, bias, 1e-3), F.layer_norm(x, shape, None, bias, 1e-3)
    )


def test_gradients_of_gradients(seed):
    tensors = [torch.randn(s, dtype=torch.float64, requires_grad=True) for s in ((2, 5), (2, 5), 5, 5)]
    mask = torch.rand(2, 5) > 0.3
    function = lambda *t: reference.add_layer_norm(*t, dropout_p=0.3, dropout_mask=mask)  # noqa: E731
    assert torch.autograd.gradcheck(function, tensors)
    assert torch.autograd.gradgradcheck(function, tensors)


@pytest.mark.parametrize("name", ["layer_norm", "add_layer_norm"])
def test_takes_the_arguments_of_the_kernel(name):
    ours, truth = (inspect.signature(getattr(module, name)).parameters for module in (kernels, reference))
    assert [p for p in truth if p != "dropout_mask"] == list(ours)
    assert all(ours[p].default == truth[p].default and ours[p].kind == truth[p].kind for p in ours)


@pytest.mark.parametrize("shape", [7, (3, 7), (), (1, 2, 3, 8)])
def test_refuses_what_are_not_the_last_dimensions(shape):
    with pytest.raises(ValueError, match=r"^reference.layer_norm: normalized_shape .* \(2, 3, 8\)"):
        reference.layer_norm(torch.zeros(2, 3, 8), shape)


@pytest.mark.parametrize("shape", [8.0, (8.0,), "8", torch.tensor([8])])
def test_refuses_sizes_that_are_no_integers(shape):
    with pytest.raises(TypeError, match=r"^reference.layer_norm: normalized_shape is .*expected an int"):
        reference.layer_norm(torch.zeros(2, 3, 8), shape)


def test_out_dtype_rounds_once():
    x = torch.randn(4, 64).bfloat16()
    normed, new = reference.add_layer_norm(x, torch.randn(4, 64), out_dtype=torch.float16)
    assert (normed.dtype, new.dtype) == (torch.float16, torch.float32)
    assert torch.equal(normed, reference.layer_norm(new, 64).half())
