"""Which implementation computes each part of a model, and why.

request      "auto", or one by name, from GPTConfig or set on a module (`model.blocks[3].attn.impl = "sdpa"`)
choice       made at each call from the input's device and dtype, so that a model may be moved after it is made
explanation  `fastgpt.implementations(model)` prints the table; what "auto" passes over is logged once
"""

from __future__ import annotations

import functools
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import nn

from ..base.implementations import check_implementation
from ..kernels import _runtime, support
from ..kernels.support import KERNEL_DTYPES, MAX_HEAD_DIM

log = logging.getLogger("fastgpt")

FALLBACK = {"attn": "sdpa", "norm": "torch", "ffn": "torch", "loss": "torch"}


class Choice(NamedTuple):
    """An implementation ("triton", "sdpa", "torch" or "reference") and the reason for it."""

    name: str
    why: str


def choose(part: str, requested: str, device: torch.device, dtype: torch.dtype, head_dim: int = 0) -> str:
    """The implementation of `part` ("attn", "norm", "ffn", "loss") for inputs of this device, dtype and head_dim.

    Raises:
        ValueError: no such implementation.
        RuntimeError: `requested` is "triton" and it cannot run here; the message says what to do.
    """
    name, why = explain(part, requested, device, dtype, head_dim)
    if not name:
        raise RuntimeError(f'{part}_impl="triton" cannot run here: {why}')
    return name


# A compiled graph keeps the choice made for the device it was traced on. This is torch.compiler.assume_constant_result
# without its import of torch._dynamo, which would cost every `import fastgpt` half a second and load triton.
choose._dynamo_marked_constant = True


def explain(part: str, requested: str, device: torch.device, dtype: torch.dtype, head_dim: int = 0) -> Choice:
    """As `choose`, with the reason. The name is empty where "triton" is requested and cannot run."""
    interpreting = device.type == "cpu" and _runtime.is_interpreting()
    tangents = support.forward_mode_is_on()
    return _explain(part, requested, device, dtype, head_dim, interpreting, tangents, _runtime._pretended is not None)


@functools.lru_cache(maxsize=1024)
def _explain(
    part: str,
    requested: str,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int,
    interpreting: bool,
    tangents: bool,
    pretending: bool,  # part of the cache's key only
) -> Choice:
    check_implementation(part, requested)
    if requested not in ("auto", "triton"):
        return Choice(requested, "requested")
    obstacle = _why_not_triton(device, dtype, head_dim)
    if requested == "triton":
        return Choice("", obstacle) if obstacle else Choice("triton", "requested")
    if obstacle is None and tangents:
        obstacle = "the kernels have no forward-mode derivative (jvp, jacfwd); the fallback has"
    if interpreting:
        obstacle = 'the CPU interpreter is for tests and teaching; request "triton" by name to run it'
    if obstacle is None:
        return Choice("triton", f"fused kernels run on {device.type} in {_short(dtype)}")
    why = obstacle.split(";")[0]
    # Without a GPU the fallback is what anyone expects; beside an idle GPU it is news.
    _log_once(
        logging.WARNING if device.type == "cuda" else logging.INFO, f'{part}_impl="auto" uses "{FALLBACK[part]}": {why}'
    )
    return Choice(FALLBACK[part], why)


def _why_not_triton(device: torch.device, dtype: torch.dtype, head_dim: int) -> str | None:
    if not (device.type == "cuda" and not torch.cuda.is_available()):  # CUDA without a GPU: fake tensors, shapes only
        obstacle = support.why_not(torch.empty(0, device=device))
        if obstacle is not None:
            return obstacle
    elif not support.has_triton():
        return "triton is not installed; `pip install triton` (Linux), or choose another implementation"
    if dtype not in KERNEL_DTYPES:
        return f"the kernels take float32, float16 and bfloat16, not {_short(dtype)}; convert, or use the fallback"
    if head_dim > MAX_HEAD_DIM:
        return f"head_dim {head_dim} is over the kernels' limit of {MAX_HEAD_DIM}; use more heads"
    return None


@functools.cache
def _log_once(level: int, message: str) -> None:
    log.log(level, message)


def check_constructible(part: str, requested: str, head_dim: int = 0) -> None:
    """Raise now what no later move of the model could mend: no triton installed, a head_dim that no kernel takes."""
    check_implementation(part, requested)
    if requested != "triton":
        return
    if not support.has_triton():
        raise RuntimeError(f'{part}_impl="triton": triton is not installed; `pip install triton` (Linux)')
    if head_dim > MAX_HEAD_DIM:
        raise ValueError(
            f'{part}_impl="triton": head_dim {head_dim} is over the kernels\' limit of {MAX_HEAD_DIM}; use more heads'
        )


@dataclass(frozen=True)
class Row:
    """One part of a model: `used` is the implementation that a call would take now ("" if it would raise)."""

    part: str
    layers: str
    requested: str
    used: str
    why: str


class Implementations(tuple[Row, ...]):
    """The rows of `fastgpt.implementations`; prints as a table."""

    def __str__(self) -> str:
        table = [("part", "layers", "requested", "used", "why")]
        table += [(r.part, r.layers, r.requested, r.used or "cannot run", r.why) for r in self]
        widths = [max(len(row[i]) for row in table) for i in range(4)]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths)) + f"  {row[4]}" for row in table)


def implementations(model: nn.Module, device: torch.device | str | None = None) -> Implementations:
    """Which implementation each part of `model` uses, and why: print it.

    Layers with the same answer share a row. `device` (default: where the parameters are) asks what would be used there.

    Raises:
        ValueError: `model` has no part that this package implements.
    """
    asked: dict[Row, list[str]] = {}
    for part, layer, module, parameter, replaced in _parts(model):
        requested = getattr(module, "impl", "auto")
        if replaced is None:
            where = parameter.device if device is None else torch.device(device)
            name, why = explain(part, requested, where, parameter.dtype, getattr(module, "head_dim", 0))
        else:
            name, why = "torch", f"children run one by one: {replaced}"
        asked.setdefault(Row(part, "", requested, name, why), []).append(layer)
    if not asked:
        raise ValueError(
            f"implementations: {type(model).__name__} has no part that fastgpt implements; pass a fastgpt.GPT, or "
            "call fastgpt.patch(model) first"
        )
    return Implementations(Row(r.part, _spans(layers), r.requested, r.used, r.why) for r, layers in asked.items())


def _parts(model: nn.Module) -> Iterator[tuple[str, str, nn.Module, torch.Tensor, str | None]]:
    """(part, layer, module, a parameter, why its children run) of every module that says what it implements.

    A module says so of itself by `fastgpt_part`, `impl` and `why_children()`, and by `parts_read()` of children that it
    computes itself: {name: (part, why the child runs, or None)}. The attention of transformers' models is no module of
    ours: the name that their config gives it says so.
    """
    named: set[int] = set()  # configs, which a model and the one inside it share
    read: dict[nn.Module, tuple[str, str, str | None]] = {}
    passed: set[nn.Module] = set()
    for path, module in model.named_modules():
        config = getattr(module, "config", None)
        name = getattr(config, "_attn_implementation", None)
        if getattr(name, "fastgpt_part", None) == "attn" and id(config) not in named:
            named.add(id(config))
            yield "attn", path or "model", module, next(module.parameters()), None
        for name, (part, replaced) in getattr(module, "parts_read", dict)().items():
            read[getattr(module, name)] = part, name, replaced
        if module in passed:
            continue
        if module in read:
            part, number, replaced = read[module]
            passed.update(module.modules())
        else:
            part = getattr(module, "fastgpt_part", None)
            number = next((name for name in path.split(".") if name.isdigit()), path or "model")
            replaced = module.why_children() if hasattr(module, "why_children") else None
        if part is not None:
            parameter = next(module.parameters(), None)
            yield part, number, module, next(model.parameters()) if parameter is None else parameter, replaced


def _spans(layers: list[str]) -> str:
    """["0", "1", "2", "5", "ln_f"] -> "0-2, 5, ln_f"."""
    numbers = sorted({int(l) for l in layers if l.isdigit()})
    spans: list[list[int]] = []
    for n in numbers:
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    words = [str(a) if a == b else f"{a}-{b}" for a, b in spans]
    return ", ".join(words + list(dict.fromkeys(l for l in layers if not l.isdigit())))


def _short(dtype: torch.dtype) -> str:
    return str(dtype).removeprefix("torch.")
