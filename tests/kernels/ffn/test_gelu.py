"""GELU itself: the polynomial's derivation, its error, the tails and what is not a number."""

import inspect
import re

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from tests.kernels.ffn.fit_gelu import coefficients
from tests.support.budget import assert_within_budget, errors, exactly
from tests.support.compiled import COMPILED

pytest.importorskip("triton")
from fastgpt.kernels.ffn import device as device_code
from fastgpt.kernels.ffn import launch

# The bound that normal_cdf states; ex2.approx on a GPU adds at most 2^-22 of Φ(-t) <= 1/2.
CDF_BOUND = 9e-8 + (2**-23 if COMPILED else 0)
SPECIAL = [0.0, -0.0, float("inf"), float("-inf"), float("nan"), 30.0, -30.0, 3e38, -3e38, 1e-30, -1e-30]


def gelu_and_slope(x, tanh):
    """gelu(x) and gelu'(x) by the kernels, for a flat tensor."""
    pre = F.pad(x, (0, -len(x) % 128)).view(-1, 128)
    slope, act = torch.empty_like(pre), torch.empty_like(pre)
    launch.gelu_pass(pre, act, tanh)
    rebuilt, _ = launch.dgelu_pass(torch.ones_like(pre), pre, slope, True, False, tanh)
    torch.testing.assert_close(rebuilt, act, rtol=0, atol=0, equal_nan=True)  # backward rebuilds the very activation
    return act.flatten()[: len(x)], slope.flatten()[: len(x)]


def torch_gelu_and_slope(x, approximate):
    out = F.gelu(x, approximate=approximate)
    return out, torch.autograd.grad(out.sum(), x)[0]


def test_polynomial_is_the_minimax_one():
    source = inspect.getsource(device_code.normal_cdf.fn)
    body = source[source.index("t = tl.abs(x)") : source.index("lower = tl.exp2")]
    found = re.findall(r"(?:q = |q \* t )([+-]?) ?(\d\S*)\n", body)
    shipped = np.array([float(sign + digits) for sign, digits in found])  # highest power first, without Q(0) = -1
    fitted = coefficients()[:0:-1]
    assert shipped.shape == fitted.shape
    np.testing.assert_allclose(shipped, fitted, rtol=2e-3)


@pytest.mark.parametrize("tanh", [False, True], ids=["none", "tanh"])
def test_error_and_tails(device, tanh):
    x = torch.cat([torch.linspace(-30, 30, 60001), torch.randn(20000)]).to(device)
    ours, plain = gelu_and_slope(x, tanh), lambda x: torch_gelu_and_slope(x, "tanh" if tanh else "none")
    theirs, exact = plain(x.requires_grad_()), exactly(plain, x.requires_grad_())
    for name, a, b, c in zip(("gelu", "slope"), ours, theirs, exact):
        near = x.abs() <= 5  # where rounding of large x does not drown the rest
        assert_within_budget(name, a[near], b[near], c[near])
        assert_within_budget(name, a, b, c)
    # Left of the zeros of gelu and gelu', where eager's 1 + erf is a difference of ones: small, and never noise.
    left = x < -6
    assert errors(ours[0][left], exact[0].value[left]).max <= 1e-8
    assert errors(ours[1][left], exact[1].value[left]).max <= 1e-8
    right = x > 6
    assert torch.equal(ours[0][right], x[right])
    if not tanh:
        assert errors(ours[1][right], exact[1].value[right]).max <= 1.2e-7


def test_cdf_within_the_stated_bound(device):
    x = torch.linspace(-8, 8, 40001).to(device)
    act, _ = gelu_and_slope(x, False)
    exact = x.double() * torch.special.ndtr(x.double())
    error = (act.double() - exact).abs()
    limit = x.double().abs() * CDF_BOUND + exact.abs() * 2**-24 + 1e-45  # and one rounding of the product
    assert (error <= limit).all()


@pytest.mark.parametrize("approximate", ["none", "tanh"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16], ids=str)
def test_special_values_are_torchs(device, dtype, approximate):
    x = torch.tensor(SPECIAL, device=device).to(dtype)
    ours = gelu_and_slope(x, approximate == "tanh")
    exact = torch_gelu_and_slope(x.double().requires_grad_(), approximate)  # float32 gives NaN at inf for "none"
    for a, b in zip(ours, exact):
        b = b.detach()
        assert torch.equal(a.isnan(), b.isnan()), (a, b)
        assert torch.equal(a.isinf(), b.to(dtype).isinf()), (a, b)
        finite = ~b.isnan() & ~b.to(dtype).isinf()
        torch.testing.assert_close(a[finite].double(), b[finite], rtol=2 * torch.finfo(dtype).eps, atol=1e-30)
    assert ((ours[1][:2] - 0.5).abs() <= (2**-23 if COMPILED else 0)).all()  # Φ(0), of which CDF_BOUND speaks
    assert torch.equal(torch.signbit(ours[0][:2]), torch.tensor([False, True], device=device))
