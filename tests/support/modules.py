"""One module held to the error budget by another with the same parameters: outputs, and every gradient."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.func import functional_call

from tests.support.budget import GRADIENT, OUTPUT, assert_within_budget, exactly


def assert_same_module(ours: nn.Module, plain: nn.Module, *inputs, pick: Callable = lambda out: out, **options) -> None:
    """Hold the outputs of ours(*inputs, **options), and all gradients, to the budget.

    plain  the same in plain PyTorch: it is run in its own dtype, and in float64
    pick   takes the tensors to be judged out of what the modules return
    """
    names: list[str] = []

    def of_plain(state: dict[str, Tensor], inputs: list, options: dict) -> list[Tensor]:
        found = results(plain, state, inputs, options, pick)
        names[:] = found
        return list(found.values())

    given = leaves_of(plain), list(inputs), options
    theirs, exact = of_plain(*given), exactly(of_plain, *given)
    mine = results(ours, leaves_of(ours), list(inputs), options, pick)
    assert list(mine) == names
    assert_results_within_budget(mine, dict(zip(names, theirs)), dict(zip(names, exact)))


def assert_results_within_budget(mine: dict, theirs: dict, exact: dict) -> None:
    """Three `results` compared."""
    for name, value in mine.items():
        factor = OUTPUT if name.startswith("output") else GRADIENT
        assert_within_budget(name, value, theirs[name], exact[name], factor=factor)


def leaves_of(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().requires_grad_(p.requires_grad) for name, p in module.named_parameters()}


def results(module: nn.Module, state: dict[str, Tensor], inputs: list, options: dict, pick: Callable) -> dict:
    """{"output 0": ..., "d name": the gradient of a sum of all outputs, weighted, for every leaf that asks for one}."""
    picked = pick(functional_call(module, state, tuple(inputs), options))
    outputs = [picked] if isinstance(picked, Tensor) else [x for x in picked if x is not None]
    loss = sum((y * weights_like(y)).sum() for y in outputs)
    leaves = {f"input {i}": x for i, x in enumerate(inputs) if isinstance(x, Tensor)} | state
    leaves = {name: x for name, x in leaves.items() if x.requires_grad and loss.requires_grad}
    gradients = torch.autograd.grad(loss, list(leaves.values())) if leaves else ()
    found = {f"output {i}": y for i, y in enumerate(outputs)}
    return found | {f"d {name}": g for name, g in zip(leaves, gradients)}


def weights_like(y: Tensor) -> Tensor:
    """Numbers of size 1 and either sign, so that no two elements of y count alike."""
    return torch.arange(1, y.numel() + 1, device=y.device, dtype=torch.float32).cos().view(y.shape)
