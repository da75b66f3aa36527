"""What rounding makes of a computation, where it can be worked out by hand."""

import math

import pytest
import torch
import torch.nn.functional as F
from torch.utils._python_dispatch import TorchDispatchMode

from fastgpt.tools.budget import exactly
from fastgpt.tools.rounding import Coins, Rounded, deviations

UNIT = {torch.float32: 2**-24, torch.float16: 2**-11, torch.bfloat16: 2**-8}
DTYPES = list(UNIT)


def moved(function, *inputs):
    """Deviations of the one result, in units of the roundoff of the first input's dtype."""
    (exact,) = exactly(function, *inputs)
    (draws,) = deviations(function, inputs, [exact.value])
    return draws / UNIT[inputs[0].dtype], exact.value


@pytest.mark.parametrize("dtype", DTYPES)
def test_one_operation_is_off_by_one_rounding_up_or_down(seed, dtype):
    a, b = (torch.randn(50).to(dtype) for _ in range(2))
    for function in (torch.add, torch.mul, torch.div, torch.sub):
        draws, exact = moved(function, a, b)
        torch.testing.assert_close(draws.abs(), exact.abs().expand_as(draws), rtol=1e-5, atol=0.0)
        assert (draws > 0).any()
        assert (draws < 0).any()


@pytest.mark.parametrize("dtype", DTYPES)
def test_sums_and_products_of_matrices_round_on_the_way(seed, dtype):
    """Two large numbers cancel: in the accumulator's dtype they were there, in the stored result they are not."""
    one = torch.tensor([[1000.0, -1000.0, 1.0]], dtype=dtype)
    accumulator = 2**-24 / UNIT[dtype]
    for function in (lambda x: x.sum(), lambda x: x @ torch.ones_like(x).mT, lambda x: F.linear(x, torch.ones_like(x))):
        draws, _ = moved(function, one)
        assert draws.abs().max().item() == pytest.approx(1.0 + 2001.0 * accumulator, rel=1e-4)


def test_long_sums_of_one_sign_round_as_often_as_they_have_terms(seed):
    """By chance, so by the root of their number: 0.42 sqrt(n) of the sum, n / 32 partial sums where 32 lanes share."""
    terms = torch.full((1, 8192), 1.0)
    for function, partial_sums in ((lambda x: x.sum(), 8192 / 32), (lambda x: x @ torch.ones_like(x).mT, 8192)):
        draws, exact = moved(function, terms)
        largest = (draws / exact).abs().max().item()
        assert largest == pytest.approx(1 + math.sqrt(1 + 0.18 * partial_sums), rel=0.2)


def test_nothing_is_rounded_that_only_moves(seed):
    x = torch.randn(4, 6)
    for function in (
        lambda x: x.mT[1:].clone(),
        lambda x: -x.abs(),
        lambda x: torch.cat([x, x.flip(0)]).masked_fill(torch.ones(8, 6, dtype=torch.bool).triu(), 0.0),
        lambda x: x[torch.tensor([3, 0])].index_select(1, torch.tensor([2])),
        lambda x: F.embedding(torch.tensor([1, 1]), x).amax(0),
    ):
        draws, _ = moved(function, x)
        assert not draws.any()


def test_conversions_round_to_the_narrower_dtype():
    x = Rounded(torch.tensor([1.0, 3.0, 0.0], dtype=torch.float64), torch.float32, Coins(0))
    assert x.half().dtype == torch.float16
    assert torch.equal((x.half().value - x.value).abs(), x.value * 2**-11)
    assert torch.equal(x.double().value, x.value)
    assert torch.equal(x.half().float().value.sub(x.value).abs(), x.value * 2**-11)


def test_writing_in_place_rounds_to_what_is_written_into():
    x = Rounded(torch.tensor([1.0, 3.0], dtype=torch.float64), torch.float32, Coins(0))
    for write in (lambda y: y.copy_(x), lambda y: y.zero_().add_(x)):
        y = x.half().clone()
        before = y.value
        assert write(y) is y
        assert y.dtype == torch.float16
        assert y.value is before
        assert torch.equal((y.value - x.value).abs(), x.value * 2**-11)
    assert torch.equal(x.clone().copy_(x).value, x.value)
    with pytest.raises(TypeError, match=r"aten.add_.Tensor writes into a tensor that is not made of the inputs"):
        torch.zeros(2).add_(x)


def test_layer_norm_keeps_its_statistics_in_float32(seed):
    """At a mean of 1000, statistics rounded to bfloat16 would leave nothing of the result."""
    x, dy = (1000 + 20 * torch.randn(4, 64)).bfloat16().requires_grad_(), torch.randn(4, 64).bfloat16()

    def both(x, dy):
        y = F.layer_norm(x, (64,))
        return [y, *torch.autograd.grad(y, x, dy)]

    exact = [result.value for result in exactly(both, x, dy)]
    for draws, value in zip(deviations(both, [x, dy], exact), exact):
        assert draws.abs().max() < 0.02 * value.abs().max()


def test_numbers_below_the_smallest_normal_one_round_absolutely():
    draws, _ = moved(lambda x: x * 0.5, torch.tensor([2**-20, 0.0], dtype=torch.float16))
    assert draws[:, 0].abs().tolist() == [2**-14] * len(draws)
    assert not draws[:, 1].any()


def test_dtypes_promote_as_in_torch(seed):
    a, b = torch.randn(3, dtype=torch.bfloat16), torch.randn(3)
    kinds = []

    def function(a, b):
        if isinstance(a, Rounded):
            kinds.append([(a + b).dtype, (a * 2.0).dtype, (a + b.sum()).dtype, (a @ a).dtype, a.float().dtype])
        return a + b

    moved(function, a, b)
    assert kinds[0] == [torch.float32, torch.bfloat16, torch.bfloat16, torch.bfloat16, torch.float32]


def test_a_gradient_that_is_exactly_zero_has_a_rounding():
    """One key: dq = p (dp - delta) k, and the difference of two equal numbers is as large as their roundings."""
    q, k, v = (torch.randn(1, 8, requires_grad=True) for _ in range(3))

    def dq(q, k, v, d_out):
        out = torch.softmax(q @ k.mT, -1) @ v
        return torch.autograd.grad(out, q, d_out)[0]

    d_out = torch.randn(1, 8)
    draws, exact = moved(dq, q, k, v, d_out)
    assert not exact.any()
    dp = (d_out @ v.mT).abs().item()
    assert 0.3 * dp * k.abs().max() < draws.abs().max() < 10 * dp * k.abs().max()


def test_what_all_have_in_common_cancels(seed):
    """softmax and the loss do not care about an offset of 4096, and neither does what rounding makes of them."""
    logits = torch.randn(7, 50).sub(0.5).mul(64).round().div(64)
    target = torch.randint(0, 50, (7,))
    for function in (lambda x: torch.softmax(x, -1), lambda x: F.cross_entropy(x, target)):
        near, far = (moved(function, x)[0].square().mean().sqrt() for x in (logits, logits + 4096.0))
        assert far < 1.5 * near


def test_composed_functions_are_those_of_torch(seed):
    """The formulas that stand for what torch computes in one go give torch's numbers, forward and backward."""
    x, weight, bias = torch.randn(3, 4, 9, requires_grad=True), torch.randn(9), torch.randn(9)
    hidden = torch.ones(3, 4, 9, dtype=torch.bool).triu(2)
    functions = [
        lambda x: torch.softmax(x, -1),
        lambda x: torch.log_softmax(x, 1),
        lambda x: torch.logsumexp(x, (1, 2)),
        lambda x: torch.logsumexp(x.masked_fill(hidden, -math.inf), -1, keepdim=True),
        torch.tanh,
        F.gelu,
        lambda x: F.gelu(x, approximate="tanh"),
        lambda x: F.layer_norm(x, (9,), weight.to(x), bias.to(x)),
        lambda x: F.layer_norm(x, (4, 9)),
        lambda x: F.cross_entropy(x.flatten(0, 1), torch.arange(12) % 9, label_smoothing=0.1),
        lambda x: F.scaled_dot_product_attention(x, x, x, is_causal=True),
    ]
    for function in functions:

        def both(x, function=function):
            y = function(x)
            return [y, *torch.autograd.grad((y**3).sum(), x)]

        exact = [result.value for result in exactly(both, x)]
        for draws, value in zip(deviations(both, [x], exact), exact):
            assert draws.abs().max() < 1e-4 * value.abs().max()


def test_the_same_numbers_every_time(seed):
    x = torch.randn(5, 5)
    first, second = (moved(lambda x: torch.softmax(x @ x, -1), x)[0] for _ in range(2))
    assert torch.equal(first, second)
    assert len({tuple(draw.flatten().tolist()) for draw in first}) == len(first)


def test_modes_that_look_at_memory_are_no_hindrance(seed):
    class Looks(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            for x in args:
                if isinstance(x, torch.Tensor):
                    x.data_ptr()
            return func(*args, **(kwargs or {}))

    with Looks():
        draws, _ = moved(lambda x: torch.softmax(x @ x, -1), torch.randn(5, 5))
    assert draws.any()


def test_tensors_that_are_not_inputs_are_an_error(seed):
    x, d_out = torch.randn(3, requires_grad=True), torch.randn(3)
    (exact,) = exactly(lambda x: torch.autograd.grad(x + 1.0, x, d_out.to(x))[0], x)
    with pytest.raises(TypeError, match="hand the function all of its tensors as inputs"):
        deviations(lambda x: d_out * 1.0, [x], [exact.value])
