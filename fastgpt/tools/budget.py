"""The error budget: how far from the float64 result may a result be? One rule, for tests, fuzzing and `fastgpt verify`.

    err(ours, float64) <= factor * max(err(torch in the same dtype, float64), rounding)

in the maximum norm and in RMS; factor 2 for outputs, 3 for gradients. `rounding` is u * scale, the error that the
arithmetic itself makes of roundings to the dtype (`rounding.py`): a result need not be nearer than that, however
lucky torch is on this machine with the order of its sums.

    exact = exactly(reference, x, weight)               # or a function that returns outputs and gradients
    assert_all_within_budget(["out"], [ours], [torchs], exact)

If the environment variable FASTGPT_BUDGET_REPORT names a file, nothing is raised: every verdict is appended to the file
as a line of JSON (`Verdict.line`), from any number of processes.
"""

from __future__ import annotations

import functools
import json
import math
import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_map

from .rounding import deviations

OUTPUT, GRADIENT = 2.0, 3.0
REPORT = "FASTGPT_BUDGET_REPORT"


@dataclass(frozen=True)
class Errors:
    """Distance from the float64 result, absolute: the largest, and the root of the mean square."""

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


class Exact:
    """One result in float64, `value`, and how far roundings move it."""

    def __init__(self, value: Tensor, moved: Callable[[], Tensor]) -> None:
        assert value.dtype == torch.float64, f"the exact result must be float64, not {value.dtype}"
        self.value, self._moved = value.detach(), moved

    def __getitem__(self, index: Any) -> Exact:
        """A part of the result, to be judged on its own."""
        index = index if isinstance(index, tuple) else (index,)
        of_all = (slice(None), *index)
        return Exact(self.value[index], lambda: self._moved()[of_all])

    @functools.cached_property
    def rounding(self) -> Errors:
        """u * scale in both norms: the mean square over the draws, its root."""
        moved = self._moved().abs()
        moved = moved.reshape(len(moved), -1)  # (draws, numbers)
        if moved.numel() == 0:
            return Errors(0.0, 0.0)
        return Errors(moved.amax(1).square().mean().sqrt().item(), moved.square().mean().sqrt().item())


def exactly(function: Callable[..., Tensor | Sequence[Tensor | None]], *inputs: Any) -> list[Exact | None]:
    """The results of function(*inputs) in float64: outputs, gradients, any number.

    `inputs` are tensors (in lists and dictionaries too) as they are given to the operator under test, in its dtypes and
    asking for a gradient or not. `function` gets leaves of the same values: in float64, and, as soon as a verdict needs
    to know what rounding does, tensors that round as the inputs' dtypes say.
    """
    inputs = tree_map(_copy, list(inputs))  # rounding may be asked for after the caller's were written over
    found = function(*tree_map(_double, inputs))
    values = [None if x is None else x.detach() for x in ([found] if isinstance(found, Tensor) else found)]
    moved = functools.cache(lambda: deviations(function, inputs, values))

    def moved_of(i: int) -> Tensor:
        of_one = moved()[i]
        assert of_one is not None  # values[i] is there
        return of_one

    return [None if x is None else Exact(x, functools.partial(moved_of, i)) for i, x in enumerate(values)]


def _copy(x: Any) -> Any:
    return x.detach().clone().requires_grad_(x.requires_grad) if isinstance(x, Tensor) else x


def _double(x: Any) -> Any:
    if not isinstance(x, Tensor) or not x.is_floating_point():
        return x
    return x.detach().double().requires_grad_(x.requires_grad)


@dataclass(frozen=True)
class Verdict:
    """One result in one norm ("max" or "rms"), all of it absolute; `limit` = factor * max(torch_error, rounding)."""

    name: str
    dtype: str
    norm: str
    factor: float
    error: float
    torch_error: float
    rounding: float

    @property
    def limit(self) -> float:
        torch_error = self.torch_error if math.isfinite(self.torch_error) else 0.0  # its overflow excuses nothing
        return self.factor * max(torch_error, self.rounding)

    @property
    def used(self) -> float:
        """The fraction of the limit that the error uses."""
        return self.error / self.limit if self.limit else (math.inf if self.error else 0.0)

    @property
    def ok(self) -> bool:
        return self.error <= self.limit

    def __str__(self) -> str:
        return (
            f"{self.name}: {self.norm} error {self.error:.3e} against float64 exceeds {self.limit:.3e} "
            f"= {self.factor:g} x max(torch's {self.torch_error:.3e}, {self.dtype} rounding {self.rounding:.3e})"
        )

    def line(self) -> str:
        """A line of JSON; a number that is not finite is null."""
        numbers = {
            "factor": self.factor, "error": self.error, "torch_error": self.torch_error, "u_scale": self.rounding,
            "limit": self.limit, "used": self.used,
        }  # fmt: skip
        test = os.environ.get("PYTEST_CURRENT_TEST", "").removesuffix(" (call)")
        record: dict[str, Any] = {"test": test, "name": self.name, "dtype": self.dtype, "norm": self.norm}
        record |= {key: number if math.isfinite(number) else None for key, number in numbers.items()}
        return json.dumps(record | {"ok": self.ok}) + "\n"


def judge(
    name: str, ours: Tensor, torchs: Tensor, exact: Exact, *, factor: float = OUTPUT, sparing: bool = False
) -> tuple[Verdict, Verdict]:
    """The verdicts in the maximum norm and in RMS, whatever dtype `ours` is of.

    sparing: where torch's error alone allows the result, its rounding is not computed, which takes a while, and is 0.
    """
    shape = tuple(exact.value.shape)
    assert ours.shape == exact.value.shape, f"{name}: shape {tuple(ours.shape)}, expected {shape}"
    assert torchs.shape == exact.value.shape, f"{name}: torch's has shape {tuple(torchs.shape)}, expected {shape}"
    mine, theirs = errors(ours, exact.value), errors(torchs, exact.value)
    enough = mine.max <= factor * theirs.max < math.inf and mine.rms <= factor * theirs.rms
    rounding = Errors(0.0, 0.0) if sparing and enough else exact.rounding
    dtype = str(ours.dtype).removeprefix("torch.")
    return (
        Verdict(name, dtype, "max", factor, mine.max, theirs.max, rounding.max),
        Verdict(name, dtype, "rms", factor, mine.rms, theirs.rms, rounding.rms),
    )


def judged(name: str, ours: Tensor, torchs: Tensor, exact: Exact, *, factor: float) -> tuple[Verdict, Verdict]:
    """`judge`, as sparingly as the report allows, which gets the verdicts where one is asked for."""
    verdicts = judge(name, ours, torchs, exact, factor=factor, sparing=not os.environ.get(REPORT))
    write_report(verdicts)
    return verdicts


def assert_within_budget(name: str, ours: Tensor, torchs: Tensor, exact: Exact, *, factor: float = OUTPUT) -> None:
    """Fail unless `ours` is as near to `exact` (see `exactly`) as the budget allows, and of `torchs`' dtype."""
    if not isinstance(exact, Exact):
        raise TypeError(f"{name}: exact is a {type(exact).__name__}; make it with exactly(function, *inputs)")
    assert ours.dtype == torchs.dtype, f"{name}: dtype {ours.dtype}, expected {torchs.dtype}"
    for verdict in judged(name, ours, torchs, exact, factor=factor):
        assert verdict.ok or os.environ.get(REPORT), str(verdict)


def assert_all_within_budget(
    names: Sequence[str], ours: Sequence[Tensor | None], torchs: Sequence[Tensor | None],
    exact: Sequence[Exact | None], *, factor: float = OUTPUT,
) -> None:  # fmt: skip
    """`assert_within_budget` for several results; a None among `ours` must be None in the others too."""
    for name, a, b, c in zip(names, ours, torchs, exact, strict=True):
        assert (a is None) == (c is None), f"{name}: {'missing' if a is None else 'not asked for'}"
        assert (b is None) == (c is None), f"{name}: {'missing' if b is None else 'not asked for'} in torch's results"
        if a is not None:
            assert b is not None  # as just checked
            assert c is not None
            assert_within_budget(name, a, b, c, factor=factor)


def write_report(verdicts: Sequence[Verdict]) -> None:
    """Append `verdicts` to the report, if one is asked for; in one write, so that processes do not mix their lines."""
    report = os.environ.get(REPORT)
    if not report:
        return
    text = "".join(verdict.line() for verdict in verdicts)
    try:
        file = os.open(report, os.O_WRONLY | os.O_APPEND | os.O_CREAT, 0o644)
    except OSError as error:
        raise ValueError(
            f"{REPORT}: {report!r} cannot be written to ({error.strerror}); name a file in a folder that exists"
        ) from None
    try:
        os.write(file, text.encode())
    finally:
        os.close(file)
