"""The error budget that every kernel is held to (one rule, on CPU and on GPU alike).

    err(ours, float64) <= factor * err(torch in the same dtype, float64) + tiny

in the maximum norm and in RMS, for every output (factor 2) and every gradient (factor 3). `tiny` is one rounding of the
output's dtype at the scale of the exact result: it only matters where torch happens to be exact.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

OUTPUT, GRADIENT = 2.0, 3.0


@dataclass(frozen=True)
class Errors:
    """Distance from the float64 result, absolute."""

    max: float
    rms: float


def errors(value: Tensor, exact: Tensor) -> Errors:
    """Errors of `value` against the float64 tensor `exact`; equal infinities and NaNs count as no error."""
    if value.numel() == 0:
        return Errors(0.0, 0.0)
    value, exact = value.detach().double().cpu(), exact.detach().double().cpu()
    same = (value == exact) | (value.isnan() & exact.isnan())
    difference = torch.where(same, 0.0, value - exact).abs()
    difference = torch.where(difference.isnan(), torch.inf, difference)  # NaN on one side only
    return Errors(difference.max().item(), difference.square().mean().sqrt().item())


def assert_within_budget(
    name: str, ours: Tensor, torchs: Tensor, exact: Tensor, *, factor: float = OUTPUT, dtype: torch.dtype | None = None
) -> None:
    """Fail unless `ours` is as near to `exact` (float64) as the budget allows, given `torchs` in the same dtype.

    `dtype` is the precision of the inputs (default: that of `ours`), for float32 results of low-precision inputs.
    """
    assert ours.shape == exact.shape, f"{name}: shape {tuple(ours.shape)}, expected {tuple(exact.shape)}"
    if ours.numel() == 0:
        return
    assert exact.dtype == torch.float64, "the exact result must be float64"
    mine, theirs = errors(ours, exact), errors(torchs, exact)
    finite = exact[exact.isfinite()].abs()
    eps = torch.finfo(dtype or ours.dtype).eps
    tiny_max = eps * (finite.max().item() if finite.numel() else 0.0) + torch.finfo(ours.dtype).tiny
    tiny_rms = eps * (finite.square().mean().sqrt().item() if finite.numel() else 0.0) + torch.finfo(ours.dtype).tiny
    for norm, mine_n, theirs_n, tiny in (
        ("max", mine.max, theirs.max, tiny_max),
        ("rms", mine.rms, theirs.rms, tiny_rms),
    ):
        limit = factor * theirs_n + tiny
        assert mine_n <= limit, (
            f"{name}: {norm} error {mine_n:.3e} against float64 exceeds {limit:.3e} "
            f"= {factor:g} x torch's {theirs_n:.3e} + {tiny:.1e}"
        )


def assert_all_within_budget(
    names: Sequence[str], ours: Sequence[Tensor | None], torchs: Sequence[Tensor | None],
    exact: Sequence[Tensor | None], *, factor: float = OUTPUT, dtype: torch.dtype | None = None,
) -> None:  # fmt: skip
    """`assert_within_budget` for several results; a None among `ours` must be None in the others too."""
    for name, a, b, c in zip(names, ours, torchs, exact, strict=True):
        assert (a is None) == (c is None), f"{name}: {'missing' if a is None else 'not asked for'}"
        if a is not None:
            assert_within_budget(name, a, b, c, factor=factor, dtype=dtype)
