"""A trial: one call of the package's operators, executed on the machine and judged by the error budget.

    expected = expect(trial)                                      # once: float64, and plain PyTorch in the same dtype
    outcome = execute(trial, expected, capability=90, settings=Settings(schedule="random", seed=1))
    outcome.used, outcome.findings, outcome.launches

The rule is the tests' and `fastgpt verify`'s, `fastgpt/tools/budget.py`. Dropout is no exception: the reference gets
the mask that the kernels will draw. float32 products in TF32 are judged beside a torch that rounds the operands of its
own products to TF32, as cuBLAS does.
"""

from __future__ import annotations

import contextlib
import zlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import fastgpt.kernels as kernels
from benchmarks.gate.rows import attending_by, multiplying_in
from fastgpt.kernels import reference
from fastgpt.tools.budget import GRADIENT, OUTPUT, Exact, Verdict, exactly, judge
from fastgpt.tools.verify_cases import Case

from .driver import Launch, simulate
from .engine import Finding, Settings

CAPABILITIES = (80, 90, 100)


@dataclass(frozen=True)
class Trial:
    """One call in one dtype.

    family        "attention", "layer_norm", ...: the folder in kernels/ whose kernels it is there for
    name          unique; says what is special about it
    make          the call with its tensors, made anew
    dtype         of the tensors
    tf32          whether float32 products may run in TF32
    num_sms       of the GPU that tile choice sees
    capabilities  the GPUs that it is for: 80, 90, 100
    path          of attention's kernels, as FASTGPT_ATTENTION has it
    sample        whether it is one of those that every test run executes
    """

    family: str
    name: str
    make: Callable[[], Case]
    dtype: torch.dtype
    tf32: bool = False
    num_sms: int = 4
    capabilities: tuple[int, ...] = CAPABILITIES
    path: str = "triton"
    sample: bool = False


@dataclass(frozen=True)
class Expected:
    """The call and its tensors; what plain PyTorch makes of them in their dtype, and float64."""

    case: Case
    inputs: dict[str, Tensor]
    upstream: list[Tensor]
    torchs: list[Tensor]
    exact: list[Exact]

    @property
    def nbytes(self) -> int:
        """Of inputs, upstream gradients and results, each once: what moves at least, where all of it is needed."""
        tensors = (*self.inputs.values(), *self.upstream, *self.torchs)
        return sum(min(t.numel() * t.element_size(), t.untyped_storage().nbytes()) for t in tensors)


@dataclass
class Outcome:
    """What one execution gave.

    results   outputs, then gradients
    verdicts  of the error budget, two for each result (maximum norm and RMS)
    findings  of the machine, over all launches
    launches  of the driver, in order
    written   names of inputs that changed
    accepted  findings that are neither our kernels' fault nor one on any hardware (accepted.py)
    """

    results: list[Tensor]
    verdicts: list[Verdict]
    findings: list[Finding] = field(default_factory=list)
    launches: list[Launch] = field(default_factory=list)
    written: list[str] = field(default_factory=list)
    accepted: list[Finding] = field(default_factory=list)

    @property
    def used(self) -> float:
        """The largest error, in units of its limit."""
        return max(verdict.used for verdict in self.verdicts)

    @property
    def problems(self) -> list[str]:
        """What is wrong with it, a line each; nothing if it is right."""
        return [
            *(str(verdict) for verdict in self.verdicts if not verdict.ok),
            *(str(finding) for finding in self.findings),
            *(f"writes into its input {name}" for name in self.written),
        ]


def expect(trial: Trial) -> Expected:
    """Make the tensors of `trial`, the same ones every time, and what should come out."""
    with torch.random.fork_rng(devices=[]), torch.enable_grad():
        torch.manual_seed(zlib.crc32(trial.name.encode()))
        case = trial.make()
        inputs = case.inputs(trial.dtype)
        upstream = case.upstream(inputs)
        with _Tf32Products() if trial.tf32 else contextlib.nullcontext():
            torchs = case.run(reference, inputs, upstream)
        exact = exactly(lambda inputs, upstream: case.run(reference, inputs, upstream), inputs, upstream)
    return Expected(case, inputs, upstream, torchs, [x for x in exact if x is not None])


def execute(
    trial: Trial, expected: Expected, capability: int, settings: Settings,
    on_ptx: Callable[[str, str], str] | None = None,
) -> Outcome:  # fmt: skip
    """Run the call on a GPU of this capability and judge it; `on_ptx(kernel, text)` may edit what is loaded."""
    given = {**expected.inputs, **{f"gradient {n}": g for n, g in enumerate(expected.upstream)}}
    before = {name: tensor.detach().clone() for name, tensor in given.items()}
    with (
        torch.random.fork_rng(devices=[]),
        torch.enable_grad(),
        multiplying_in("tf32" if trial.tf32 else "ieee"),
        attending_by(trial.path),
        simulate(capability=capability, num_sms=trial.num_sms, settings=settings) as gpu,
    ):
        gpu.on_ptx = on_ptx
        results = expected.case.run(kernels, expected.inputs, expected.upstream)
    written = [name for name, tensor in given.items() if not torch.equal(tensor, before[name])]
    for name in written:  # so that the next execution starts from the same
        with torch.no_grad():
            given[name].copy_(before[name])
    return Outcome(results, judged(trial, expected, results), gpu.findings, list(gpu.launches), written, gpu.accepted)


def judged(trial: Trial, expected: Expected, results: Sequence[Tensor]) -> list[Verdict]:
    """The budget's verdicts on `results`.

    Raises:
        ValueError: a result of another shape or dtype than torch's.
    """
    verdicts: list[Verdict] = []
    for n, (mine, theirs, truth) in enumerate(zip(results, expected.torchs, expected.exact, strict=True)):
        if (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
            expects = f"{tuple(theirs.shape)} in {theirs.dtype}"
            raise ValueError(f"{trial.name}: result {n} is {tuple(mine.shape)} in {mine.dtype}, expected {expects}")
        is_output = n < len(expected.upstream)
        what = f"output {n}" if is_output else f"gradient of {expected.case.wanted[n - len(expected.upstream)]}"
        factor = OUTPUT if is_output else GRADIENT
        found = judge(f"{trial.name}: {what}", mine, theirs, truth, factor=factor, sparing=True)
        if max(verdict.used for verdict in found) > 0.5:  # of torch's error alone, which may be small by luck
            found = judge(f"{trial.name}: {what}", mine, theirs, truth, factor=factor)
        verdicts += found
    return verdicts


_FACTORS = {"mm": 0, "bmm": 0, "addmm": 1, "baddbmm": 1}  # the first argument that is multiplied; the next is, too


class _Tf32Products(TorchDispatchMode):
    """Products of float32 matrices, on a CPU, of operands rounded to the 10 bits that TF32 keeps of a mantissa."""

    def __torch_dispatch__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = function.overloadpacket.__name__
        if name in _FACTORS:
            first = _FACTORS[name]
            rounded = [_nearest_tf32(x) if first <= n <= first + 1 else x for n, x in enumerate(args)]
            return function(*rounded, **(kwargs or {}))
        return function(*args, **(kwargs or {}))


def _nearest_tf32(x: Tensor) -> Tensor:
    """Ties away from zero, as cvt.rna rounds."""
    bits = x.contiguous().view(torch.int32)
    return ((bits + 0x1000) & ~0x1FFF).view(torch.float32)
