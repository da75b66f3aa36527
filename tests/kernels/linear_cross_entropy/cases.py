"""What the tests of this folder share: random problems, and the three results that the error budget compares."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from fastgpt.kernels import linear_cross_entropy, reference
from tests.support.budget import GRADIENT, OUTPUT, assert_within_budget, exactly

FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16)


@dataclass
class Problem:
    """x (..., d), weight (V, d), bias (V,) or None, target (...)."""

    x: Tensor
    weight: Tensor
    bias: Tensor | None
    target: Tensor

    def to(self, dtype: torch.dtype) -> Problem:
        """The same values as leaves that require a gradient."""
        convert = [t if t is None else t.detach().to(dtype).requires_grad_() for t in (self.x, self.weight, self.bias)]
        return Problem(*convert, self.target)

    @property
    def leaves(self) -> list[Tensor]:
        return [t for t in (self.x, self.weight, self.bias) if t is not None]


def problem(
    device: torch.device, dtype: torch.dtype, shape: tuple[int, ...] = (3, 5), V: int = 99, d: int = 16,
    *, bias: bool = True, ignored: float = 0.3, ignore_index: int = -100, scale: float = 1.0,
) -> Problem:  # fmt: skip
    """Logits of standard deviation about 2 · scale, and a share of targets to ignore (the first one always is not)."""
    x = torch.randn(*shape, d, device=device) * (2.0 * scale / max(d, 1) ** 0.5)
    target = torch.randint(0, V, shape, device=device)
    hidden = torch.rand(shape, device=device) < ignored
    hidden.view(-1)[:1] = False
    target = target.masked_fill(hidden, ignore_index)
    b = torch.randn(V, device=device) if bias else None
    return Problem(x, torch.randn(V, d, device=device), b, target).to(dtype)


def run(function, p: Problem, upstream: Tensor | None = None, **settings) -> tuple[Tensor, list[Tensor]]:
    """Loss and gradients of sum(loss · upstream)."""
    loss = function(p.x, p.weight, p.target, p.bias, **settings)
    upstream = torch.ones_like(loss) if upstream is None else upstream.to(loss.dtype)
    return loss, list(torch.autograd.grad(loss, p.leaves, upstream))


def exactly_lce(p: Problem, upstream: Tensor | None = None, **settings) -> list:
    """Loss and gradients of sum(loss · upstream), exactly."""

    def plain(x, weight, bias, upstream):
        loss, gradients = run(reference.linear_cross_entropy, Problem(x, weight, bias, p.target), upstream, **settings)
        return [loss, *gradients]

    return exactly(plain, p.x, p.weight, p.bias, upstream)


def check(p: Problem, upstream: Tensor | None = None, num_chunks: int | None = None, **settings) -> None:
    """Loss and all gradients within the error budget of the same computation in plain torch."""
    dtype = p.x.dtype
    ours, our_grads = run(linear_cross_entropy, p, upstream, num_chunks=num_chunks, **settings)
    torchs, torch_grads = run(reference.linear_cross_entropy, p.to(dtype), upstream, **settings)
    exact, *exact_grads = exactly_lce(p, upstream, **settings)
    assert ours.dtype == torch.float32
    assert_within_budget("loss", ours, torchs, exact, factor=OUTPUT)
    for name, a, b, c in zip(("dx", "dweight", "dbias"), our_grads, torch_grads, exact_grads):
        assert a.dtype == dtype
        assert_within_budget(name, a, b, c, factor=GRADIENT)
