"""Self-check: every public kernel, forward and backward, against its reference in float64.

    report = verify()          # on a GPU if there is one, else through Triton's interpreter, with tiny shapes
    print(report)
    report.ok

The rule is the tests', `fastgpt.budget`: a result may be at most twice (a gradient three times) as far from the float64
result as plain PyTorch in the same dtype, or as roundings to that dtype make of the computation, whichever is further.
"""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass

import torch
from torch import Tensor

from . import kernels
from .budget import GRADIENT, OUTPUT, exactly, judge, reported
from .kernels import _runtime

DTYPES = (torch.float32, torch.bfloat16)


@dataclass(frozen=True)
class Case:
    """One call of a kernel.

    tensors  in float64 (or integers); rounded to the dtype under test
    wanted   names of those that get a gradient
    options  other arguments, as they are
    derived  arguments that are computed from the rounded tensors
    """

    kernel: str
    label: str
    tensors: dict[str, Tensor]
    wanted: tuple[str, ...]
    options: dict
    derived: Callable[[dict[str, Tensor]], dict[str, Tensor]] = lambda tensors: {}


@dataclass(frozen=True)
class Row:
    """What one case gave in one dtype.

    error, torch_error  largest distance from float64 over outputs: ours, and plain PyTorch's in the same dtype
    grad_error, torch_grad_error  the same over gradients (0 where there are none)
    used                the largest fraction of the error budget that a result used; ok means used <= 1
    problem             why the case could not be judged, or ""
    """

    kernel: str
    label: str
    dtype: str
    error: float = 0.0
    torch_error: float = 0.0
    grad_error: float = 0.0
    torch_grad_error: float = 0.0
    used: float = 0.0
    problem: str = ""

    @property
    def ok(self) -> bool:
        return not self.problem and self.used <= 1.0


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
        return f"{len(self.rows)} checks, {f'{bad} FAILED' if bad else 'all within budget'}"

    HEADER = ("kernel", "case", "dtype", "error", "PyTorch's", "gradient error", "PyTorch's", "budget used", "")

    def table(self) -> list[tuple[str, ...]]:
        """Rows of text, in the columns of `HEADER`."""
        return [
            (
                row.kernel, row.label, row.dtype, f"{row.error:.1e}", f"{row.torch_error:.1e}", f"{row.grad_error:.1e}",
                f"{row.torch_grad_error:.1e}", f"{row.used:.0%}", "ok" if row.ok else row.problem or "OVER BUDGET",
            )
            for row in self.rows
        ]  # fmt: skip

    def record(self) -> dict:
        """All of it as JSON knows it: a number that is not finite is None."""
        rows = [
            {k: None if isinstance(v, float) and not math.isfinite(v) else v for k, v in asdict(row).items()}
            | {"ok": row.ok}
            for row in self.rows
        ]
        return {"rows": rows, "where": self.where, "seconds": self.seconds, "ok": self.ok}

    def __str__(self) -> str:
        lines = [self.HEADER, *self.table()]
        widths = [max(len(line[column]) for line in lines) for column in range(len(self.HEADER))]
        text = ["  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines]
        return "\n".join([*text, f"{self.verdict}; {self.where}; {self.seconds:.1f} s"])


def names() -> list[str]:
    """The public kernels: every function that `fastgpt.kernels` exports and its reference has too."""
    return [name for name in kernels.__all__ if callable(getattr(kernels.reference, name, None))]


def verify(device: torch.device | str | None = None, only: tuple[str, ...] = ()) -> Report:
    """Check every kernel (or those in `only`) on `device`: "cuda", or "cpu" through the interpreter.

    Raises:
        ValueError: a name in `only` that is no kernel; a report (`fastgpt.budget`) that cannot be written.
        RuntimeError: triton is not installed.
    """
    began = time.perf_counter()
    device = torch.device(device or ("cuda" if torch.cuda.is_available() else "cpu"))
    unknown = [name for name in only if name not in names()]
    if unknown:
        raise ValueError(f"verify: {unknown[0]!r} is not a kernel; choose from {', '.join(names())}")
    if not _runtime.has_triton():
        raise RuntimeError("verify: triton is not installed, so there are no kernels to check; `pip install triton`")
    if device.type == "cuda":
        where = f"on {torch.cuda.get_device_name(device)}"
        context: contextlib.AbstractContextManager = contextlib.nullcontext()
    else:
        where = "on the CPU, through Triton's interpreter"
        context = kernels.interpret()
    reported([])  # so that a file that cannot be written is no kernel's fault
    rows = []
    with context, torch.random.fork_rng(devices=[]), torch.enable_grad():
        for name in only or names():
            torch.manual_seed(0)
            if name not in CASES:
                rows.append(Row(name, "", "", problem="no self-check is written for it"))
                continue
            for case in CASES[name](1 if device.type == "cpu" else 8):
                rows += [_checked(case, dtype, device) for dtype in DTYPES]
    return Report(tuple(rows), where, time.perf_counter() - began)


def _checked(case: Case, dtype: torch.dtype, device: torch.device) -> Row:
    label = str(dtype).removeprefix("torch.")
    try:
        return _check(case, dtype, label, device)
    except Exception as error:  # a kernel that does not even run is a result, and the others still count
        lines = str(error).strip().splitlines()
        return Row(case.kernel, case.label, label, problem=f"{type(error).__name__}: {lines[0][:60] if lines else ''}")


def _check(case: Case, dtype: torch.dtype, label: str, device: torch.device) -> Row:
    ours_fn, reference_fn = getattr(kernels, case.kernel), getattr(kernels.reference, case.kernel)
    inputs = {k: t.to(device, dtype if t.is_floating_point() else None) for k, t in case.tensors.items()}
    exact_inputs = {k: t.double() if t.is_floating_point() else t for k, t in inputs.items()}
    inputs |= case.derived(exact_inputs)
    inputs = {k: t.requires_grad_(k in case.wanted) for k, t in inputs.items()}
    upstream = _upstream(reference_fn, inputs, case)
    # Ours last: if it wrote into what it is given, the others would be right about something else.
    torchs = _run(reference_fn, inputs, upstream, case)
    exact = exactly(lambda inputs, upstream: _run(reference_fn, inputs, upstream, case), inputs, upstream)
    given = {**inputs, **{f"the gradient of result {n}": g for n, g in enumerate(upstream)}}
    before = {k: t.detach().clone() for k, t in given.items()}
    ours = _run(ours_fn, inputs, upstream, case)
    written = [k for k, t in given.items() if not torch.equal(t, before[k])]
    if written:
        raise ValueError(f"writes into {', '.join(written)}")
    worst = {OUTPUT: (0.0, 0.0), GRADIENT: (0.0, 0.0)}
    used = 0.0
    for n, (mine, theirs, truth) in enumerate(zip(ours, torchs, exact, strict=True)):
        if (mine.shape, mine.dtype) != (theirs.shape, theirs.dtype):
            expected = f"{tuple(theirs.shape)} in {theirs.dtype}"
            raise ValueError(f"shape {tuple(mine.shape)} in {mine.dtype}, expected {expected}")
        factor = OUTPUT if n < len(upstream) else GRADIENT
        verdicts = judge(f"{case.kernel} ({case.label}): result {n}", mine, theirs, truth, factor=factor)
        reported(verdicts)
        largest = verdicts[0]
        worst[factor] = max(worst[factor][0], largest.error), max(worst[factor][1], largest.torch_error)
        used = max(used, *(verdict.used for verdict in verdicts))
    return Row(case.kernel, case.label, label, *worst[OUTPUT], *worst[GRADIENT], used)


def _outputs(function: Callable, inputs: dict[str, Tensor], case: Case) -> list[Tensor]:
    out = function(**inputs, **case.options)
    return [t for t in (out if isinstance(out, tuple) else (out,)) if t.is_floating_point()]


def _upstream(function: Callable, inputs: dict[str, Tensor], case: Case) -> list[Tensor]:
    """A fixed gradient for each output."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        outs = _outputs(function, inputs, case)
    return [torch.randn(t.shape, generator=generator, dtype=torch.float64).to(t.device, t.dtype) for t in outs]


def _run(function: Callable, inputs: dict[str, Tensor], upstream: list[Tensor], case: Case) -> list[Tensor]:
    """Outputs, then the gradients of the wanted inputs."""
    outs = _outputs(function, inputs, case)
    grads = ()
    if case.wanted:
        upstream = [g.to(t.dtype) for g, t in zip(upstream, outs, strict=True)]
        grads = torch.autograd.grad(outs, [inputs[k] for k in case.wanted], upstream)
    return [t.detach() for t in (*outs, *grads)]


# ---- the cases: shapes are tiny; `scale` enlarges them where a GPU runs them natively --------------------------------


def _normal(*shape: int) -> Tensor:
    return torch.randn(*shape, dtype=torch.float64)


def _attention(scale: int) -> Iterator[Case]:
    def qkv(heads: int, kv_heads: int, T: int, D: int) -> dict[str, Tensor]:
        return {"q": _normal(1, heads, T, D), "k": _normal(1, kv_heads, T, D), "v": _normal(1, kv_heads, T, D)}

    wanted = ("q", "k", "v")
    T = 40 * scale
    yield Case("flash_attention", f"causal, T {T}, D 32", qkv(1, 1, T, 32), wanted, {"return_lse": True})
    yield Case("flash_attention", f"GQA 2/1, window 16, T {T}, D 16", qkv(2, 1, T, 16), wanted, {"window": 16})


def _sdpa(scale: int) -> Iterator[Case]:
    T = 33 * scale
    tensors = {"query": _normal(1, 1, T, 16), "key": _normal(1, 1, T, 16), "value": _normal(1, 1, T, 16)}
    yield Case("scaled_dot_product_attention", f"causal, T {T}, D 16", tensors, tuple(tensors), {"is_causal": True})


def _attention_weights(scale: int) -> Iterator[Case]:
    T = 33 * scale

    def lse(tensors: dict[str, Tensor]) -> dict[str, Tensor]:
        q, k = tensors["q"], tensors["k"]
        return {"lse": kernels.reference.flash_attention(q, k, k, return_lse=True)[1].float()}

    tensors = {"q": _normal(1, 1, T, 16), "k": _normal(1, 1, T, 16)}
    yield Case("attention_weights", f"causal, T {T}, D 16", tensors, (), {}, lse)


def _layer_norm(scale: int) -> Iterator[Case]:
    for rows, width in ((5 * scale, 96), (3 * scale, 100)):
        tensors = {"x": _normal(rows, width) + 3.0, "weight": _normal(width), "bias": _normal(width)}
        yield Case("layer_norm", f"{rows} x {width}, offset 3", tensors, tuple(tensors), {})


def _add_layer_norm(scale: int) -> Iterator[Case]:
    rows, width = 5 * scale, 96
    tensors = {
        "x": _normal(rows, width), "residual": _normal(rows, width), "weight": _normal(width), "bias": _normal(width),
    }  # fmt: skip
    yield Case("add_layer_norm", f"{rows} x {width}", tensors, tuple(tensors), {})


def _linear_gelu(scale: int) -> Iterator[Case]:
    rows, d_in, d_out = 17 * scale, 32 * scale, 48 * scale
    tensors = {"x": _normal(rows, d_in), "w": _normal(d_out, d_in) / d_in**0.5, "b": _normal(d_out)}
    for gelu in ("none", "tanh"):
        label = f"{rows} x {d_in} -> {d_out}, {'erf' if gelu == 'none' else 'tanh'}"
        yield Case("linear_gelu", label, tensors, tuple(tensors), {"approximate": gelu})


def _gelu_ffn(scale: int) -> Iterator[Case]:
    rows, d, hidden = 17 * scale, 32 * scale, 64 * scale
    tensors = {
        "x": _normal(rows, d), "w1": _normal(hidden, d) / d**0.5, "b1": _normal(hidden),
        "w2": _normal(d, hidden) / hidden**0.5, "b2": _normal(d),
    }  # fmt: skip
    for gelu in ("none", "tanh"):
        label = f"{rows} x {d} -> {hidden} -> {d}, {'erf' if gelu == 'none' else 'tanh'}"
        yield Case("gelu_ffn", label, tensors, tuple(tensors), {"approximate": gelu})


def _targets(rows: int, vocab: int) -> Tensor:
    target = torch.randint(0, vocab, (rows,))
    target[1] = -100  # a row that does not count
    return target


def _linear_cross_entropy(scale: int) -> Iterator[Case]:
    rows, d, vocab = 12 * scale, 32 * scale, 100 * scale + 1
    tensors = {"x": _normal(rows, d), "weight": _normal(vocab, d) / d**0.5, "target": _targets(rows, vocab)}
    yield Case("linear_cross_entropy", f"{rows} x {d} -> {vocab}", tensors, ("x", "weight"), {})
    smooth = {"label_smoothing": 0.1, "z_loss": 1e-3}
    yield Case("linear_cross_entropy", "label smoothing, z-loss", tensors, ("x", "weight"), smooth)


def _cross_entropy(scale: int) -> Iterator[Case]:
    rows, vocab = 12 * scale, 100 * scale + 1
    tensors = {"logits": _normal(rows, vocab), "target": _targets(rows, vocab)}
    yield Case("cross_entropy", f"{rows} x {vocab}", tensors, ("logits",), {})


CASES: dict[str, Callable[[int], Iterator[Case]]] = {
    "flash_attention": _attention,
    "scaled_dot_product_attention": _sdpa,
    "attention_weights": _attention_weights,
    "layer_norm": _layer_norm,
    "add_layer_norm": _add_layer_norm,
    "linear_gelu": _linear_gelu,
    "gelu_ffn": _gelu_ffn,
    "linear_cross_entropy": _linear_cross_entropy,
    "cross_entropy": _cross_entropy,
}
