"""Settings and targets at the edges of their ranges: integers of any width, caps from 1e-30 to 1e30, extreme logits."""

import pytest
import torch
from torch import Tensor

from fastgpt.kernels import cross_entropy, linear_cross_entropy
from tests.support.compiled import COMPILED

INT32 = torch.int32
FAR = (-(2**63), -(2**40), -(2**31) - 1, 2**31, 2**32, 2**32 + 5, 2**40, 2**63 - 1)  # none fits in int32


def exact_rows(logits: Tensor, target: Tensor, smoothing: float, z_loss: float, softcap: float | None, ignore: int):
    """(losses (N,), their sum's gradient (N, V)) in float64; the slope of a softcap is sech², which keeps digits."""
    x = logits.detach().double()
    y, slope = x, torch.ones_like(x)
    if softcap is not None:
        y, slope = softcap * torch.tanh(x / softcap), saturation(x, softcap).cosh().square().reciprocal()
    lse, target = torch.logsumexp(y, -1), target.long()
    valid = target != ignore
    at = target.masked_fill(~valid, 0)[:, None]
    loss = lse - (1.0 - smoothing) * y.gather(1, at)[:, 0] - smoothing * y.mean(-1) + z_loss * lse.square()
    wanted = torch.full_like(y, smoothing / y.shape[1]).scatter_add(
        1, at, torch.full_like(at, 1.0 - smoothing, dtype=torch.float64)
    )
    d = ((y - lse[:, None]).exp() * (1.0 + 2.0 * z_loss * lse)[:, None] - wanted) * slope
    return loss.masked_fill(~valid, 0.0), d.masked_fill(~valid[:, None], 0.0)


def saturation(logits: Tensor, softcap: float) -> Tensor:
    """|z| = |logits| / softcap in float64, as far as cosh² can follow."""
    return (logits.double() / softcap).abs().clamp_max(350.0)


def approximations(z: Tensor) -> Tensor | float:
    """What the ISA lets a GPU be off besides: 2 ulp of z = x / softcap, of exp(-2|z|) and of what it is part of."""
    return 6 + 4 * z if COMPILED else 0.0


PATHS = (
    "logits",
    "logits in place",
    "linear",
    "linear again",
)  # two ways to make the gradient, with a GEMM and without


def run(path: str, logits: Tensor, target: Tensor, **settings) -> tuple[Tensor, Tensor]:
    """(losses, or their sum where the path has no others; gradient of the sum with respect to the logits)."""
    V = logits.shape[1]
    if path.startswith("logits"):
        leaf = logits.clone().requires_grad_()
        loss = cross_entropy(leaf * 1.0, target, reduction="none", inplace=path.endswith("place"), **settings)
    else:  # the logits are x, once more
        leaf, identity = logits.clone().requires_grad_(), torch.eye(V, dtype=logits.dtype, device=logits.device)
        reduction = "none" if path == "linear again" else "sum"
        loss = linear_cross_entropy(leaf, identity, target, reduction=reduction, num_chunks=1, **settings)
    loss.sum().backward()
    return loss.detach(), leaf.grad


def check(path: str, logits: Tensor, target: Tensor, *, smoothing=0.0, z_loss=0.0, softcap=None, ignore=-100) -> None:
    """Loss and gradient within a few float32 roundings of what is added up to make them."""
    loss, gradient = run(
        path, logits, target, label_smoothing=smoothing, z_loss=z_loss, softcap=softcap, ignore_index=ignore
    )
    losses, d = exact_rows(logits, target, smoothing, z_loss, softcap, ignore)
    u = torch.finfo(torch.float32).eps
    y = logits.double() if softcap is None else softcap * torch.tanh(logits.double() / softcap)
    largest = y.abs().amax(-1)
    lse = torch.logsumexp(y, -1).abs() + largest + 1.0
    scale = lse + z_loss * lse.square()
    expected, bound = (losses, 16 * u * scale) if loss.dim() else (losses.sum(), 16 * u * scale.sum())
    assert ((loss.double() - expected).abs() <= bound).all(), (loss, expected)
    # p = exp(y - lse) has the absolute error of its exponent, and so has the slope, sech²(z) = 4 exp(-2|z|) / ...
    z = torch.zeros_like(y) if softcap is None else saturation(logits, softcap)
    d_scale = (1.0 + 2.0 * z_loss * lse)[:, None] * z.cosh().square().reciprocal()
    roundings = 16 * (1.0 + largest[:, None].clamp_max(100.0)) + 2 * z + approximations(z)
    error = (gradient.double() - d).abs()
    assert (error <= roundings * u * d_scale + 1e-37).all(), error.max()


def logits_and_target(device, N: int = 6, V: int = 40, scale: float = 1.0) -> tuple[Tensor, Tensor]:
    logits = torch.randn(N, V, device=device) * scale
    return logits, torch.randint(V, (N,), device=device)


@pytest.mark.parametrize("ignore_index", FAR)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_ignore_index_outside_of_int32(device, seed, ignore_index, reduction):
    """No int32 target is ignored then: not those either that are equal to it in their last 32 bits."""
    logits, target = logits_and_target(device)
    target[0], target[1] = 0, 5  # 2^32 and 2^32 + 5 modulo 2^32
    x, weight = torch.randn(6, 8, device=device), torch.randn(40, 8, device=device)
    same = {"reduction": reduction, "ignore_index": ignore_index}
    for f, args in ((cross_entropy, (logits,)), (linear_cross_entropy, (x, weight))):
        wide = [a.clone().requires_grad_() for a in args]
        narrow = [a.clone().requires_grad_() for a in args]
        expected, ours = f(*wide, target, **same), f(*narrow, target.to(INT32), **same)
        assert torch.equal(ours, expected)
        for a, b in zip(torch.autograd.grad(ours.sum(), narrow), torch.autograd.grad(expected.sum(), wide)):
            assert torch.equal(a, b)
    plain = torch.nn.functional.cross_entropy(logits.double(), target, reduction=reduction)
    torch.testing.assert_close(cross_entropy(logits, target.to(INT32), **same).double(), plain, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("dtype", [INT32, torch.int64])
@pytest.mark.parametrize("ignore_index", [0, 1, 39, -1, -(2**31), 2**31 - 1])
def test_ignore_index_inside_of_int32(device, seed, dtype, ignore_index):
    """A class may be ignored, too; the mean is over the others."""
    logits, target = logits_and_target(device)
    target[::2] = ignore_index
    ours = cross_entropy(logits, target.to(dtype), ignore_index=ignore_index)
    plain = torch.nn.functional.cross_entropy(logits.double(), target, ignore_index=ignore_index)
    torch.testing.assert_close(ours.double(), plain, rtol=1e-5, atol=1e-6)
    for path in PATHS:
        check(path, logits, target.to(dtype), ignore=ignore_index)


@pytest.mark.parametrize("ignore_index", [-100, 2**32])
def test_bad_int32_targets_are_found_whatever_is_ignored(interpreter, ignore_index):
    """Also one that equals ignore_index modulo 2^32, and so compares equal to it in torch."""
    with pytest.raises(IndexError, match=r"target 40 is out of bounds for 40 classes"):
        cross_entropy(torch.randn(2, 40), torch.tensor([0, 40], dtype=INT32), ignore_index=ignore_index)
    with pytest.raises(IndexError, match=r"target -1 is out of bounds"):
        cross_entropy(torch.randn(2, 40), torch.tensor([0, -1], dtype=INT32), ignore_index=2**32 - 1)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int8, torch.int16, torch.uint16, torch.uint32, torch.bool])
def test_targets_of_other_dtypes_are_refused(interpreter, dtype):
    target = torch.zeros(2, dtype=dtype)
    for f, args in (
        (cross_entropy, (torch.randn(2, 4),)),
        (linear_cross_entropy, (torch.randn(2, 3), torch.eye(4, 3))),
    ):
        with pytest.raises(TypeError, match=rf"{f.__name__}: target is {dtype}.*use target.long\(\)"):
            f(*args, target)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("softcap", [1.2e-38, 1e-30, 1e-3, 0.1, 1.0, 30.0, 1e4, 1e30, 3.4e38])
@pytest.mark.parametrize("z_loss", [0.0, 1.0])
def test_softcaps(device, seed, path, softcap, z_loss):
    logits, target = logits_and_target(device, N=3, scale=3.0)
    logits[0, :6] = torch.tensor([0.0, -0.0, 1e-6, -2e-4, 2e-3, 2.5e-3])  # where even a cap of 0.001 has a slope
    check(path, logits, target, softcap=softcap, z_loss=z_loss, smoothing=0.1)


@pytest.mark.parametrize("softcap", [1e-3, 0.1, 1.0])
def test_a_saturated_softcap_keeps_the_digits_of_its_slope(device, seed, softcap):
    """1 - tanh² in float32 has none left beyond 9 caps, and 1e-3 of them at 5."""
    logits = torch.linspace(4.0, 40.0, 40, device=device)[None] * softcap
    target = torch.tensor([3], device=device)
    _, gradient = run("logits", logits, target, softcap=softcap)
    _, expected = exact_rows(logits, target, 0.0, 0.0, softcap, -100)
    # each of z and of 2|z| costs |z| ulp of exp(-2|z|)
    z = saturation(logits, softcap)
    roundings = 8 + 2 * z + approximations(z)
    assert ((gradient.double() - expected).abs() <= roundings * torch.finfo(torch.float32).eps * expected.abs()).all()


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("smoothing", [0.0, 1e-30, 1.0])
@pytest.mark.parametrize("z_loss", [0.0, 1e-30, 100.0])
def test_smoothing_and_z_loss_at_their_ends(device, seed, path, smoothing, z_loss):
    logits, target = logits_and_target(device, N=3)
    check(path, logits, target, smoothing=smoothing, z_loss=z_loss)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("scale", [0.0, 1e-38, 1e-20, 1e3, 1e18])
@pytest.mark.parametrize("softcap", [None, 30.0])
def test_logits_of_any_scale(device, seed, path, scale, softcap):
    logits, target = logits_and_target(device, N=3, scale=scale)
    check(path, logits, target, softcap=softcap, z_loss=1e-4 if scale < 1e10 else 0.0)


def test_logits_of_an_infinite_exponent(device, seed):
    """-inf rules a class out; under a softcap it is a logit of -softcap, as in torch, with gradient 0."""
    logits, target = logits_and_target(device, N=3)
    logits[:, 7:20] = -float("inf")
    target[:] = 3
    leaf, same = logits.clone().requires_grad_(), logits.double().requires_grad_()
    ours = cross_entropy(leaf, target, softcap=5.0, z_loss=1e-2)
    capped = 5.0 * torch.tanh(same / 5.0)
    theirs = torch.nn.functional.cross_entropy(capped, target) + 1e-2 * capped.logsumexp(-1).square().mean()
    torch.testing.assert_close(ours.double(), theirs, rtol=1e-5, atol=1e-6)
    a, b = torch.autograd.grad(ours, leaf)[0], torch.autograd.grad(theirs, same)[0]
    torch.testing.assert_close(a.double(), b, rtol=1e-5, atol=1e-7)
    assert (a[:, 7:20] == 0).all()


@pytest.mark.parametrize(
    ("settings", "error", "match"),
    [
        ({"softcap": -1.0}, ValueError, "softcap is -1.0"),
        ({"softcap": float("nan")}, ValueError, "softcap is nan"),
        ({"softcap": float("inf")}, ValueError, "softcap is inf"),
        ({"softcap": 1e-46}, ValueError, "softcap is 1e-46"),  # 0 in float32
        ({"softcap": 1e39}, ValueError, r"softcap is 1e\+39"),  # infinite in float32
        ({"softcap": "1"}, TypeError, "softcap is '1'"),
        ({"softcap": torch.tensor(1.0)}, TypeError, r"softcap is tensor\(1.\), expected a number"),
        ({"z_loss": float("nan")}, ValueError, "z_loss is nan"),
        ({"z_loss": float("inf")}, ValueError, "z_loss is inf"),
        ({"z_loss": 1e39}, ValueError, r"z_loss is 1e\+39"),
        ({"z_loss": None}, TypeError, "z_loss is None"),
        ({"label_smoothing": float("nan")}, ValueError, "label_smoothing is nan"),
        ({"label_smoothing": 1.0 + 1e-9}, ValueError, "label_smoothing is 1.000000001"),
        ({"label_smoothing": [0.1]}, TypeError, r"label_smoothing is \[0.1\]"),
        ({"ignore_index": 2**63}, ValueError, "ignore_index is 9223372036854775808, use a number that fits in int64"),
        ({"ignore_index": -(2**63) - 1}, ValueError, "ignore_index is -9223372036854775809"),
        ({"ignore_index": 1.0}, TypeError, "ignore_index is 1.0"),
    ],
)
def test_settings_out_of_range(interpreter, settings, error, match):
    for f, args in (
        (cross_entropy, (torch.randn(2, 4),)),
        (linear_cross_entropy, (torch.randn(2, 3), torch.eye(4, 3))),
    ):
        with pytest.raises(error, match=f"{f.__name__}: {match}"):
            f(*args, torch.zeros(2, dtype=torch.int64), **settings)


def test_more_than_the_kernels_can_number(interpreter):
    """Rows and classes are numbered in 32 bits; what lies beyond is refused before any of it is read."""
    from fastgpt.kernels.linear_cross_entropy import launch

    largest = launch.MAX_EXTENT
    target = torch.zeros(1, dtype=torch.int64)
    assert launch.check_targets(target, largest, -100).tolist() == [1, 1]
    with pytest.raises(ValueError, match=rf"{largest + 1} classes.*split the call"):
        launch.check_targets(target, largest + 1, -100)
    with pytest.raises(ValueError, match=rf"{largest + 1} rows"):
        launch.check_targets(target.expand(largest + 1), 9, -100)
