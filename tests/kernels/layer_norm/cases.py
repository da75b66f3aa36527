"""Inputs, and the results of three implementations: ours, torch's own in the same dtypes, and float64."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from fastgpt.kernels import add_layer_norm, layer_norm, reference
from tests.support.budget import GRADIENT, OUTPUT, assert_all_within_budget, exactly

fp32, fp16, bf16 = torch.float32, torch.float16, torch.bfloat16
DTYPES = (fp32, fp16, bf16)


@dataclass
class Results:
    outputs: tuple[Tensor, ...]
    gradients: tuple[Tensor | None, ...]


def evaluate(function: Callable[..., Tensor | tuple], inputs: Sequence[Tensor | None], upstream: Sequence) -> Results:
    """function(*inputs), and the gradients of every input that asks for one; upstream[i] is output i's, or None."""
    outputs = function(*inputs)
    outputs = outputs if isinstance(outputs, tuple) else (outputs,)
    wanted = [t for t in inputs if t is not None and t.requires_grad]
    used = [(o, g.to(o)) for o, g in zip(outputs, upstream) if g is not None]
    found = iter(torch.autograd.grad([o for o, _ in used], wanted, [g for _, g in used]) if wanted else ())
    gradients = tuple(next(found) if t is not None and t.requires_grad else None for t in inputs)
    return Results(tuple(o.detach() for o in outputs), gradients)


def converted(inputs: Sequence[Tensor | None], dtype: torch.dtype | None = None) -> list[Tensor | None]:
    """Fresh leaves on the CPU, in `dtype` or each in its own."""
    return [
        None if t is None else t.detach().cpu().to(dtype or t.dtype).requires_grad_(t.requires_grad) for t in inputs
    ]


def check(ours, torchs, exact, inputs, upstream, names) -> Results:
    """Hold `ours` to the budget, and to torch's shapes and dtypes. The functions take `inputs` only."""

    def everything(inputs, upstream):
        results = evaluate(exact, inputs, upstream)
        return results.outputs + results.gradients

    mine = evaluate(ours, inputs, upstream)
    cpu_upstream = [None if g is None else g.cpu() for g in upstream]
    theirs = evaluate(torchs, converted(inputs), cpu_upstream)
    n = len(mine.outputs)
    truth = exactly(everything, converted(inputs), cpu_upstream)
    labels = [f"output {i}" for i in range(n)]
    assert_all_within_budget(labels, mine.outputs, theirs.outputs, truth[:n], factor=OUTPUT)
    assert_all_within_budget(names, mine.gradients, theirs.gradients, truth[n:], factor=GRADIENT)
    for a, b in zip(mine.outputs + mine.gradients, theirs.outputs + theirs.gradients):
        assert a is None or (a.dtype == b.dtype and a.shape == b.shape and a.is_contiguous())
    return mine


def layer_norm_case(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, d: int = 1, eps: float = 1e-5, dy=None, grad=True
):
    """Check layer_norm over the last d dimensions of x, and all gradients. dy: upstream (default: random)."""
    shape = tuple(x.shape[x.dim() - d :])
    inputs = [None if t is None else t.requires_grad_(grad) for t in (x, weight, bias)]
    dy = torch.randn(x.shape, dtype=torch.float32).to(x) if dy is None else dy

    def torchs(x, *affine):  # in float32, rounded once: torch's low-precision backward on the CPU is no yardstick
        return F.layer_norm(x.float(), shape, *(None if t is None else t.float() for t in affine), eps).to(x.dtype)

    return check(
        lambda x, w, b: layer_norm(x, shape, w, b, eps),
        torchs,
        lambda x, w, b: reference.layer_norm(x, shape, w, b, eps),
        inputs, [dy], ["dx", "dweight", "dbias"],
    )  # fmt: skip


def add_layer_norm_case(x, residual, weight, bias, *, eps: float = 1e-5, upstream: tuple[bool, bool] = (True, True)):
    """Check add_layer_norm without dropout; `upstream`: which of (normed, new_residual) is used by a loss."""
    inputs = [None if t is None else t.requires_grad_() for t in (x, residual, weight, bias)]
    grads = [torch.randn(x.shape).to(t) if used else None for t, used in zip((x, residual), upstream)]

    def torchs(x, residual, weight, bias):  # what one writes without the fused kernel
        new = (residual + x).to(residual.dtype)
        d = 1 if weight is None else weight.dim()
        weight, bias = (None if t is None else t.to(new.dtype) for t in (weight, bias))
        return F.layer_norm(new, new.shape[new.dim() - d :], weight, bias, eps).to(x.dtype), new

    return check(
        lambda x, r, w, b: add_layer_norm(x, r, w, b, eps),
        torchs,
        lambda x, r, w, b: reference.add_layer_norm(x, r, w, b, eps),
        inputs, grads, ["dx", "dresidual", "dweight", "dbias"],
    )  # fmt: skip


def parameters(shape, dtype: torch.dtype, device) -> tuple[Tensor, Tensor]:
    """weight near 1 and bias near 0."""
    return (1 + 0.3 * torch.randn(shape)).to(device, dtype), (0.3 * torch.randn(shape)).to(device, dtype)


class count_launches:
    """Names of the kernels launched inside the block, in order; whatever runs them."""

    def __init__(self, monkeypatch) -> None:
        from fastgpt.kernels import _partials
        from fastgpt.kernels.layer_norm import launch

        self.names: list[str] = []
        kernels = (
            "layer_norm_forward_kernel", "layer_norm_backward_kernel",
            "layer_norm_forward_held_kernel", "layer_norm_backward_held_kernel",
            "layer_norm_forward_long_kernel", "layer_norm_dh_long_kernel", "layer_norm_dweight_long_kernel",
        )  # fmt: skip
        for module, name in [(launch, name) for name in kernels] + [(_partials, "sum_partials_kernel")]:
            monkeypatch.setattr(module, name, _Counted(name, getattr(module, name), self.names))


class _Counted:
    def __init__(self, name, kernel, names) -> None:
        self.name, self.kernel, self.names = name, kernel, names

    def __getitem__(self, grid):
        self.names.append(self.name)
        return self.kernel[grid]
