"""Self-check: every public kernel, forward and backward, against its reference in float64.

    report = verify()          # on a GPU if there is one, else through Triton's interpreter, with tiny shapes
    print(report)
    report.ok

The rule is the tests', `budget.py`: a result may be at most twice (a gradient three times) as far from the float64
result as plain PyTorch in the same dtype, or as roundings to that dtype make of the computation, whichever is further.
The calls that are tried are in `fastgpt.tools.verify_cases`.
"""

from __future__ import annotations

import contextlib
import itertools
import math
import textwrap
import time
import warnings
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch

from .. import kernels
from ..base.settings import check_choice
from ..kernels import reference, support
from .budget import GRADIENT, OUTPUT, Verdict, exactly, judged, write_report
from .verify_cases import CASES, Case

DTYPES = {"float32": torch.float32, "float16": torch.float16, "bfloat16": torch.bfloat16}
_SHORT = {"float32": "fp32", "float16": "fp16", "bfloat16": "bf16"}

RULE = (
    "error: the distance from float64, of the result and in the norm (maximum or root mean square) that are nearest to "
    "their limit. torch: plain PyTorch's in the same dtype. allowed: twice torch's error for results, three times "
    "for gradients; where the error is above that, the same multiple of what roundings alone make of the computation, "
    "if that is more. A row is ok if no error is above what is allowed."
)


@dataclass(frozen=True)
class Row:
    """What one case gave in one dtype.

    error, torch_error, allowed  distances from float64, absolute: ours, plain PyTorch's in the same dtype, and the most
                        that the rule allows ours; all of one result and norm, the one nearest to its limit
    grad_error, torch_grad_error, grad_allowed  the same of the gradients; None where there are none
    used                error / allowed, the larger of the two; ok means used <= 1
    problem             why the case could not be judged, or ""
    """

    kernel: str
    label: str
    dtype: str
    error: float | None = None
    torch_error: float | None = None
    allowed: float | None = None
    grad_error: float | None = None
    torch_grad_error: float | None = None
    grad_allowed: float | None = None
    used: float = 0.0
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not self.problem and self.used <= 1.0

    @property
    def by_rounding(self) -> bool:
        """Whether it is what roundings make, and not torch's error, that allows a result."""
        pairs = (self.error, self.torch_error, OUTPUT), (self.grad_error, self.torch_grad_error, GRADIENT)
        return self.ok and any(
            error is not None and torchs is not None and error > factor * torchs for error, torchs, factor in pairs
        )

    @property
    def verdict(self) -> str:
        return "ok" if self.ok else self.problem or "OVER"

    def figures(self) -> tuple[str, ...]:
        """The six distances, "-" where there is none."""
        distances = (
            self.error, self.torch_error, self.allowed, self.grad_error, self.torch_grad_error, self.grad_allowed
        )  # fmt: skip
        return tuple("-" if x is None else _short(x) for x in distances)


@dataclass(frozen=True)
class Report:
    """The rows, where they ran ("cuda: NVIDIA H100", "cpu, Triton's interpreter") and how long it took, in seconds."""

    rows: tuple[Row, ...]
    where: str
    seconds: float

    @property
    def ok(self) -> bool:
        return bool(self.rows) and all(row.ok for row in self.rows)

    @property
    def verdict(self) -> str:
        """How many checks there were, and whether all were passed."""
        bad = sum(not row.ok for row in self.rows)
        rounding = sum(row.by_rounding for row in self.rows)
        told = f"{bad} FAILED" if bad else "all within budget"
        return f"{len(self.rows)} checks, {told}{f' ({rounding} by what roundings make)' if rounding else ''}"

    @property
    def brief(self) -> str:
        """One line if all is well, else everything."""
        if not self.ok:
            return str(self)
        kernels = len({row.kernel for row in self.rows})
        return f"self-check of {kernels} kernels: {self.verdict}; {self.where}; {self.seconds:.1f} s"

    HEADER = ("kernel", "case", "dtype", "error", "torch", "allowed", "gradient error", "torch", "allowed", "")

    def table(self) -> list[tuple[str, ...]]:
        """Rows of text, in the columns of `HEADER`."""
        return [(row.kernel, row.label, row.dtype, *row.figures(), row.verdict) for row in self.rows]

    def record(self) -> dict:
        """All of it as JSON knows it: a number that is not finite, or that there is not, is None."""
        rows = [
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(row).items()}
            | {"ok": row.ok}
            for row in self.rows
        ]
        return {"rows": rows, "rule": RULE, "where": self.where, "seconds": self.seconds, "ok": self.ok}

    def __str__(self) -> str:
        """80 columns, but for long problems."""
        width = max([len(row.label) for row in self.rows], default=0)
        lines = [
            f"{'':{width + 7}}  {'result':<21}   gradient",
            f"  {'case':{width}} dtype" + 2 * f"  {'error':>6} {'torch':>6} {'allowed':>7}",
        ]
        for kernel, rows in itertools.groupby(self.rows, lambda row: row.kernel):
            lines.append(kernel)
            for row in rows:
                figures = [f"{x:>{w}}" for x, w in zip(row.figures(), (6, 6, 7, 6, 6, 7))]
                cells = f"  {' '.join(figures[:3])}  {' '.join(figures[3:])} " if not row.problem else "  "
                lines.append(f"  {row.label:{width}} {_SHORT.get(row.dtype, row.dtype):5}{cells}{row.verdict}")
        text = [*lines, "", textwrap.fill(RULE, 80), "", f"{self.verdict}; {self.where}; {self.seconds:.1f} s"]
        return "\n".join(text)


def _short(x: float) -> str:
    """Six characters: 1.2e-7, 1e-12, 0, inf."""
    texts = [f"{x:.{digits}e}".replace("e-0", "e-").replace("e+0", "e+") for digits in (1, 0)]
    return "0" if x == 0 else next((text for text in texts if len(text) <= 6), texts[-1])


def names() -> list[str]:
    """The public kernels: every function that `fastgpt.kernels` exports, but `interpret`."""
    return [name for name in kernels.__all__ if name not in ("interpret", "reference")]


def verify(
    device: torch.device | str | None = None, only: tuple[str, ...] = (), say: Callable[[str], None] = lambda text: None
) -> Report:
    """Check every kernel (or those in `only`) on `device`: "cuda", or "cpu" through the interpreter.

    `say` is told what is being checked.

    Raises:
        SettingError: a name in `only` that is no kernel.
        ValueError: a report (`fastgpt.tools.budget`) that cannot be written.
        RuntimeError: triton is not installed.
    """
    began = time.perf_counter()
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    for name in only:
        check_choice("verify", "only", name, names())
    if not support.has_triton():
        raise RuntimeError("verify: triton is not installed, so there are no kernels to check; `pip install triton`")
    native = device.type == "cuda"
    where = f"on {torch.cuda.get_device_name(device)}" if native else "on the CPU, through Triton's interpreter"
    write_report([])  # so that a file that cannot be written is no kernel's fault
    rows = []
    with contextlib.ExitStack() as stack:
        stack.enter_context(torch.random.fork_rng(devices=[device] if native else []))
        stack.enter_context(torch.enable_grad())
        if not native:
            stack.enter_context(kernels.interpret())
            # Tensors of a few hundred numbers: threads would wait for each other most of the time.
            stack.callback(torch.set_num_threads, torch.get_num_threads())
            torch.set_num_threads(1)
            # Lanes that no result depends on hold anything, on which numpy has its say.
            stack.enter_context(warnings.catch_warnings())
            warnings.filterwarnings("ignore", category=RuntimeWarning, module="triton")
        for name in only or names():
            torch.manual_seed(0)
            if name not in CASES:
                rows.append(Row(name, "", "", problem="no self-check is written for it"))
                continue
            for case in list(CASES[name](8 if native else 1)):
                say(f"{name}: {case.label}")
                rows += [_checked(case, dtype, device) for dtype in DTYPES]
    return Report(tuple(rows), where, time.perf_counter() - began)


def _checked(case: Case, dtype: str, device: torch.device) -> Row:
    try:
        return _check(case, dtype, device)
    except Exception as error:  # a kernel that does not even run is a result, and the others still count
        lines = str(error).strip().splitlines()
        return Row(case.kernel, case.label, dtype, problem=f"{type(error).__name__}: {lines[0][:60] if lines else ''}")


def _check(case: Case, dtype: str, device: torch.device) -> Row:
    inputs = case.inputs(DTYPES[dtype], device)
    upstream = case.upstream(inputs)
    # Ours last: if it wrote into what it is given, the others would be right about something else.
    torchs = case.run(reference, inputs, upstream)
    exact = exactly(lambda inputs, upstream: case.run(reference, inputs, upstream), inputs, upstream)
    given = {**inputs, **{f"the gradient of result {n}": g for n, g in enumerate(upstream)}}
    before = {k: t.detach().clone() for k, t in given.items()}
    ours = case.run(kernels, inputs, upstream)
    written = [k for k, t in given.items() if not torch.equal(t, before[k])]
    if written:
        raise ValueError(f"writes into {', '.join(written)}")
    nearest: dict[float, Verdict] = {}
    for n, (mine, theirs, truth) in enumerate(zip(ours, torchs, exact, strict=True)):
        if (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
            expected = f"{tuple(theirs.shape)} in {theirs.dtype}"
            raise ValueError(f"shape {tuple(mine.shape)} in {mine.dtype}, expected {expected}")
        assert truth is not None  # a missing gradient is an error in `run`
        factor = OUTPUT if n < len(upstream) else GRADIENT
        name = f"{case.kernel} ({case.label}): result {n}"
        verdicts = judged(name, mine, theirs, truth, factor=factor)
        found = [*verdicts, nearest[factor]] if factor in nearest else verdicts
        nearest[factor] = max(found, key=lambda verdict: verdict.used)
    figures: list[tuple[float | None, float | None, float | None]] = [
        (v.error, v.torch_error, v.limit) if (v := nearest.get(factor)) else (None, None, None)
        for factor in (OUTPUT, GRADIENT)
    ]
    return Row(
        case.kernel, case.label, dtype, *figures[0], *figures[1], max(verdict.used for verdict in nearest.values())
    )
