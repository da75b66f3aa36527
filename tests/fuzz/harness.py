"""What the property-based tests share: how many examples, how tensors are drawn, and the comparison with float64."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence

import torch
from hypothesis import HealthCheck, Phase, settings
from hypothesis import strategies as st
from torch import Tensor

from tests.support.budget import GRADIENT, OUTPUT, assert_all_within_budget, exactly

LONG = "FASTGPT_FUZZ_EXAMPLES" in os.environ

dtypes = st.sampled_from([torch.float32, torch.float16, torch.bfloat16])
seeds = st.integers(0, 2**31 - 1)


def fuzz(examples: int) -> settings:
    """`examples` fixed examples, or as many random ones as FASTGPT_FUZZ_EXAMPLES says."""
    return settings(
        max_examples=int(os.environ.get("FASTGPT_FUZZ_EXAMPLES", examples)),
        derandomize=not LONG,
        database=None,
        deadline=None,
        phases=list(Phase) if LONG else [Phase.explicit, Phase.generate],  # shrinking a failure takes minutes
        print_blob=LONG,
        # `device` is one interpreter for all examples of a test, which is what we want.
        suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow, HealthCheck.data_too_large],
    )


class Tensors:
    """Random tensors of one example, in the layouts that real models hand over."""

    layouts = st.sampled_from(["contiguous", "transposed", "sliced", "offset"])

    def __init__(self, seed: int, device: torch.device) -> None:
        self.generator, self.device = torch.Generator().manual_seed(seed), device

    def normal(
        self, shape: Sequence[int], dtype: torch.dtype, layout: str = "contiguous", scale: float = 1.0
    ) -> Tensor:
        """Normal numbers: contiguous, with the last two dimensions swapped in memory, as the beginnings of rows of a
        wider buffer, or one element past an aligned address."""
        values = (torch.randn(tuple(shape), generator=self.generator) * scale).to(dtype).to(self.device)
        if layout == "transposed" and len(shape) > 1:
            return values.mT.contiguous().mT
        if layout == "sliced" and len(shape) > 0:
            wide = values.new_zeros((*shape[:-1], shape[-1] + 3))
            wide[..., : shape[-1]] = values
            return wide[..., : shape[-1]]
        if layout == "offset":
            flat = values.new_zeros(values.numel() + 1)
            flat[1:] = values.flatten()
            return flat[1:].view(tuple(shape))
        return values

    def integers(self, low: int, high: int, shape: Sequence[int]) -> Tensor:
        """int64 in [low, high)."""
        return torch.randint(low, high, tuple(shape), generator=self.generator).to(self.device)


def compare(
    ours: Callable[..., Sequence[Tensor]],
    reference: Callable[..., Sequence[Tensor]],
    inputs: dict[str, Tensor | None],
    wanted: Sequence[str],
    outputs: Sequence[str],
    tensors: Tensors,
) -> None:
    """Outputs and gradients of `ours` within the budget, judged by `reference` in float64 and in the inputs' dtypes.

    ours, reference  take the inputs, in order, and return the tensors named in `outputs`
    wanted           the inputs whose gradients are asked for; the others must get none
    """

    def plain(inputs: dict[str, Tensor | None], upstream: Sequence[Tensor]) -> list[Tensor | None]:
        results, gradients = _run(reference, inputs, wanted, upstream)
        return results + gradients

    mine, gradients = _run(ours, inputs, wanted, None)
    upstream = [tensors.normal(y.shape, y.dtype) for y in mine]
    torchs, exact = plain(inputs, upstream), exactly(plain, inputs, upstream)
    mine, gradients = _run(ours, inputs, wanted, upstream)
    n = len(mine)
    assert_all_within_budget(outputs, mine, torchs[:n], exact[:n], factor=OUTPUT)
    assert_all_within_budget([f"d{name}" for name in inputs], gradients, torchs[n:], exact[n:], factor=GRADIENT)


def _run(
    function: Callable[..., Sequence[Tensor]],
    inputs: dict[str, Tensor | None],
    wanted: Sequence[str],
    upstream: Sequence[Tensor] | None,
) -> tuple[list[Tensor], list[Tensor | None]]:
    leaves = {name: x if x is None else x.detach() for name, x in inputs.items()}
    for name in wanted:
        leaves[name].requires_grad_()
    results = list(function(*leaves.values()))
    if upstream is not None and wanted:
        pairs = [(y, g.to(y.dtype)) for y, g in zip(results, upstream, strict=True) if y.requires_grad]
        torch.autograd.backward([y for y, _ in pairs], [g for _, g in pairs])
    return [y.detach() for y in results], [None if x is None else x.grad for x in leaves.values()]
