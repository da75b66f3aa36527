"""What linear + cross-entropy asks the gate to compile: every dtype, row widths from 8k to 256k, and each option."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from fastgpt.kernels.linear_cross_entropy import launch
from fastgpt.kernels.linear_cross_entropy.arguments import Formula, Work

from .rows import Row

ROWS, D = 4096, 64  # of x; the GEMMs around the kernels are torch's and compile nothing
VOCABULARIES = (8192, 16384, 32768, 50257, 50304, 131072, 262144)
DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16, "fp32": torch.float32}
PLAIN = Formula(ignore_index=-100, label_smoothing=0.0, z_loss=0.0, softcap=None)
EVERYTHING = Formula(ignore_index=-100, label_smoothing=0.1, z_loss=1e-4, softcap=30.0)

# The kernels hold no dot. A row of 50257 logits starts on 16 bytes because the buffer is padded; target and bias fit.
EXPECT = frozenset({"wide_loads", "no_spills"})


def rows() -> Iterator[Row]:
    def row(label: str, call: Callable[[], None], expect: frozenset[str] = EXPECT) -> Row:
        return Row("linear_cross_entropy", label, call, expect)

    for name, dtype in DTYPES.items():
        for V in VOCABULARIES if name != "fp16" else (50257,):
            yield row(f"loss-grad-{name}-v{V}", partial(_forward, dtype, V, PLAIN, True))
        yield row(f"loss-{name}-v50257", partial(_forward, dtype, 50257, PLAIN, False))
        yield row(f"recompute-{name}-v50257", partial(_backward, dtype, 50257, PLAIN))
        yield row(f"logits-{name}-v50304", partial(_logits, dtype, 50304, PLAIN))
    for V in (8192, 50257):
        yield row(f"loss-grad-bf16-v{V}-everything", partial(_forward, torch.bfloat16, V, EVERYTHING, True, bias=True))
    yield row("recompute-bf16-v50257-everything", partial(_backward, torch.bfloat16, 50257, EVERYTHING, bias=True))
    # The user's own unpadded logits: no vector fits rows that start on odd bytes.
    yield row("logits-bf16-v50257-unpadded", partial(_logits, torch.bfloat16, 50257, PLAIN), frozenset({"no_spills"}))


def _meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def _inputs(dtype: torch.dtype, V: int, bias: bool) -> tuple[Tensor, Tensor, Tensor, Tensor | None]:
    target = _meta(ROWS, dtype=torch.int64)
    return _meta(ROWS, D, dtype=dtype), _meta(V, D, dtype=dtype), target, _meta(V, dtype=dtype) if bias else None


def _forward(dtype: torch.dtype, V: int, formula: Formula, gradients: bool, *, bias: bool = False) -> None:
    """One chunk; with gradients also what the backward pass launches."""
    x, weight, target, b = _inputs(dtype, V, bias)
    work = Work(1, gradients, gradients, gradients and bias)
    result = launch.linear_forward(x, weight, target, b, formula, work)
    if gradients:
        launch.scale(_meta(), result.counts, result.dweight, dtype)
        launch.scale(_meta(), None, result.dx, dtype)


def _backward(dtype: torch.dtype, V: int, formula: Formula, *, bias: bool = False) -> None:
    x, weight, target, b = _inputs(dtype, V, bias)
    stats = _meta(2, ROWS)
    launch.linear_backward(_meta(ROWS), _meta(ROWS), x, weight, target, b, stats, formula, Work(1, True, True, bias))


def _logits(dtype: torch.dtype, V: int, formula: Formula) -> None:
    logits, target = _meta(ROWS, V, dtype=dtype), _meta(ROWS, dtype=torch.int64)
    _, stats, _ = launch.logits_forward(logits, target, formula)
    launch.logits_backward(_meta().expand(ROWS), None, logits, target, stats, formula, logits)
