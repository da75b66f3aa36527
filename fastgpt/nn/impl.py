"""Which implementation computes a part of a model, and why.

request      "auto", or one by name, from GPTConfig or set on a module (`model.blocks[3].attn.impl = "sdpa"`)
choice       made at each call from the input's device and dtype, so that a model may be moved after it is made
explanation  `fastgpt.implementations(model)` prints the table; what "auto" passes over is logged once

What stands in the kernels' way is for `kernels/support.py` to say.
"""

from __future__ import annotations

import functools
import logging
from typing import NamedTuple

import torch

from ..base.implementation_names import check_implementation
from ..kernels import _runtime, support
from ..kernels._notice import say_once

FALLBACK = {"attn": "sdpa", "norm": "torch", "ffn": "torch", "loss": "torch"}


class Choice(NamedTuple):
    """An implementation ("triton", "sdpa", "torch", "reference"; "" where a call would raise) and the reason for it."""

    name: str
    why: str


@_runtime.constant_when_traced  # a compiled graph keeps the choice made for the device it was traced on
def choose(part: str, requested: str, device: torch.device, dtype: torch.dtype, head_dim: int | None = None) -> str:
    """The implementation of `part` ("attn", "norm", "ffn", "loss") for inputs of this device, dtype and head_dim.

    Raises:
        ValueError: no such implementation.
        RuntimeError: `requested` is "triton" and it cannot run here; the message says what to do.
    """
    return _chosen(part, requested, device, dtype, head_dim, *_moment(device))


def explain(part: str, requested: str, device: torch.device, dtype: torch.dtype, head_dim: int | None = None) -> Choice:
    """As `choose`, with the reason, and silent. The name is empty where "triton" is requested and cannot run.

    In forward mode it cannot, though `choose` lets it: a call without tangents does run.
    """
    return _explained(part, requested, device, dtype, head_dim, *_moment(device))


def _moment(device: torch.device) -> tuple[bool, bool, bool]:
    """What else decides, and is another from call to call: whether kernels are interpreted, or forward mode is on."""
    interpreting = device.type == "cpu" and _runtime.is_interpreting()
    return interpreting, support.forward_mode_is_on(), _runtime._pretended is not None


@functools.lru_cache(maxsize=1024)
def _chosen(
    part: str, requested: str, device: torch.device, dtype: torch.dtype, head_dim: int | None, *moment: bool
) -> str:
    name, why = _explained(part, requested, device, dtype, head_dim, *moment)
    if requested == "triton" and why == support.NO_FORWARD_MODE:
        return requested  # the operator raises, if a tensor has a tangent
    if not name:
        raise RuntimeError(f'{part}_impl="triton" cannot run here: {why}')
    if requested == "auto" and name != "triton":
        # Without a GPU the fallback is what anyone expects; beside an idle GPU it is news.
        level = logging.WARNING if device.type == "cuda" else logging.INFO
        say_once(f'{part}_impl="auto" uses "{name}": {why}', level)
    return name


@functools.lru_cache(maxsize=1024)
def _explained(
    part: str,
    requested: str,
    device: torch.device,
    dtype: torch.dtype,
    head_dim: int | None,
    interpreting: bool,
    tangents: bool,
    pretending: bool,  # part of the cache's key only
) -> Choice:
    check_implementation(part, requested)
    obstacle = support.machine_why_not(device) or support.dtype_why_not(dtype)
    if obstacle is None and head_dim is not None:
        obstacle = support.head_dim_why_not(head_dim)
    if obstacle is None and tangents:
        obstacle = support.NO_FORWARD_MODE
    if requested == "auto" and interpreting:
        obstacle = 'the CPU interpreter is for tests and teaching; request "triton" by name to run it'
    return decided(requested, obstacle, device, dtype, FALLBACK[part])


def decided(requested: str, obstacle: str | None, device: torch.device, dtype: torch.dtype, fallback: str) -> Choice:
    """The choice of whoever asks for `requested`, where `obstacle` (None: nothing) stands in the kernels' way."""
    if requested not in ("auto", "triton"):
        return Choice(requested, "requested")
    if requested == "triton":
        return Choice("triton", "requested") if obstacle is None else Choice("", obstacle)
    if obstacle is not None:
        return Choice(fallback, obstacle.split(";")[0])
    return Choice("triton", f"fused kernels run on {device.type} in {str(dtype).removeprefix('torch.')}")


def forget() -> None:
    """Look at the machine again: for tests, which change it."""
    _chosen.cache_clear()
    _explained.cache_clear()


def children_run(reason: str) -> Choice:
    """The choice of a module whose children run one by one, whatever was requested."""
    return Choice("torch", f"children run one by one: {reason}")


def check_constructible(part: str, requested: str, head_dim: int | None = None) -> None:
    """Raise now what no later move of the model could mend: no triton installed, a head_dim that no kernel takes."""
    check_implementation(part, requested)
    if requested != "triton":
        return
    if not support.has_triton():
        raise RuntimeError(f'{part}_impl="triton": triton is not installed; `pip install triton` (Linux)')
    obstacle = None if head_dim is None else support.head_dim_why_not(head_dim)
    if obstacle is not None:
        raise ValueError(f'{part}_impl="triton": {obstacle}')
