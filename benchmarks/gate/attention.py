"""What must compile of the attention family: every tile of both tiles.py, and every kind of mask.

On sm_90 two paths serve: rows whose label says "hopper" are of the kernels in Gluon, all others of the portable ones.
"""

from __future__ import annotations

import contextlib
import functools
import itertools
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from fastgpt.kernels import _runtime
from fastgpt.kernels.attention import launch
from fastgpt.kernels.attention.hopper import tiles
from fastgpt.kernels.attention.ladder import attention_of

from .limits import LIMITS
from .rows import Row, attending_by, multiplying_in

ALL = frozenset({"tensor_core", "wide_loads", "no_spills"})
LARGE_HEAD = frozenset({"tensor_core", "wide_loads"})  # beyond head_dim 128 a spill is allowed, and recorded
FLOAT32 = frozenset()  # ieee products run on the CUDA cores
SPECIALISED = frozenset({"tensor_core", "wide_loads", "no_spills_in_hot_loops"})


def rows() -> Iterator[Row]:
    """Those of the portable kernels, then those of Hopper's."""
    return itertools.chain(_portable_rows(), _hopper_rows())


def _hopper_rows() -> Iterator[Row]:
    """Masks as `auto` takes them on sm_90; then every tile, causal, whatever the rule would choose."""

    def row(label: str, taking: Any = contextlib.nullcontext, **case) -> Row:
        @attending_by("auto")
        def call() -> None:
            with taking():
                _call(**case, arches=("sm_90",))

        # Of head_dim 256 the accumulators alone are half of a consumer's registers: a spill is recorded.
        expect = SPECIALISED if case["head_dim"] < 256 else LARGE_HEAD
        return Row("attention", f"{label}-hopper", call, expect)

    for head_dim in (64, 96, 128, 192, 256):
        yield row(f"bf16-d{head_dim}-causal", head_dim=head_dim)
        yield row(f"fp16-d{head_dim}-full", head_dim=head_dim, dtype=torch.float16, causal=False)
        yield row(f"bf16-d{head_dim}-window-padding", head_dim=head_dim, left=512, padding=True)
        yield row(f"bf16-d{head_dim}-documents", head_dim=head_dim, documents=True)
        if head_dim <= 128:
            yield row(f"bf16-d{head_dim}-gqa", head_dim=head_dim, group=4)
        for number in range(max(len(_candidates(kernel, head_dim)) for kernel in tiles.TABLE)):
            taking = functools.partial(_taking_tile, number)
            yield row(f"bf16-d{head_dim}-tile{number + 1}", taking, head_dim=head_dim)


def _candidates(kernel: str, head_dim: int) -> tuple[tiles.Tile, ...]:
    return next(found for largest, found in tiles.TABLE[kernel].items() if head_dim <= largest)


@contextlib.contextmanager
def _taking_tile(number: int) -> Iterator[None]:
    """Hopper's kernels take this one of their tiles, or the last, where there are fewer."""
    from fastgpt.kernels.attention.hopper.launch import plan_of

    def answer(kernel: str, head_dim: int, *problem: object) -> tiles.Tile:
        found = _candidates(kernel, head_dim)
        return found[min(number, len(found) - 1)]

    saved, tiles.tile = tiles.tile, answer
    plan_of.cache_clear()
    try:
        yield
    finally:
        tiles.tile = saved
        plan_of.cache_clear()


def _portable_rows() -> Iterator[Row]:
    """Forward and backward of each case: four kernels (five with documents)."""

    def row(label: str, expect: frozenset[str], **case) -> Row:
        return Row("attention", label, attending_by("triton")(functools.partial(_call, **case)), expect)

    for head_dim in (64, 128):
        yield row(f"bf16-d{head_dim}-causal", ALL, head_dim=head_dim)
    for head_dim in (80, 96):  # in two parts; on sm_120 these spill a few bytes
        others = tuple(arch for arch in LIMITS if arch != "sm_120")
        yield row(f"bf16-d{head_dim}-causal", ALL, head_dim=head_dim, arches=others)
        yield row(f"bf16-d{head_dim}-causal-sm_120", LARGE_HEAD, head_dim=head_dim, arches=("sm_120",))
    yield row("bf16-d112-causal", LARGE_HEAD, head_dim=112, arches=("sm_100",))  # two halves, in tensor memory
    for head_dim in (192, 256):
        yield row(f"bf16-d{head_dim}-causal", LARGE_HEAD, head_dim=head_dim)
    for head_dim in (64, 128):
        yield row(f"fp16-d{head_dim}-full", ALL, head_dim=head_dim, dtype=torch.float16, causal=False)
        yield row(f"bf16-d{head_dim}-dropout", ALL, head_dim=head_dim, dropout_p=0.1)
        yield row(f"fp32-d{head_dim}-causal", FLOAT32, head_dim=head_dim, dtype=torch.float32)
    yield row("fp32-d256-causal", FLOAT32, head_dim=256, dtype=torch.float32)
    nvidia = tuple(arch for arch in LIMITS if arch.startswith("sm_"))
    for head_dim in (64, 128, 256):
        expect = frozenset({"tensor_core", "no_spills"} if head_dim <= 128 else {"tensor_core"})
        call = attending_by("triton")(functools.partial(_call, head_dim=head_dim, dtype=torch.float32, arches=nvidia))
        yield Row("attention", f"tf32-d{head_dim}-causal", multiplying_in("tf32")(call), expect)
    # What masks and layouts change is the same everywhere: one GPU of each kind of tensor core is enough.
    kinds = ("sm_80", "sm_90", "sm_100", "gfx942")
    for head_dim in (64, 128):
        yield row(f"bf16-d{head_dim}-window-padding", ALL, head_dim=head_dim, left=512, padding=True, arches=kinds)
        yield row(f"bf16-d{head_dim}-documents", ALL, head_dim=head_dim, documents=True, arches=kinds)
        yield row(f"bf16-d{head_dim}-gqa", ALL, head_dim=head_dim, group=4, arches=kinds)
        for group in (3, 5, 7):  # dK/dV divides its steps by the group's size, for 5 and 7 as for 3
            some = kinds if group == 3 else ("sm_80", "sm_90")
            yield row(f"bf16-d{head_dim}-gqa{group}", ALL, head_dim=head_dim, group=group, H=4 * group, arches=some)
        yield row(f"bf16-d{head_dim}-small", ALL, head_dim=head_dim, B=1, T=256, arches=kinds)
        yield row(f"bf16-d{head_dim}-decode", LARGE_HEAD, head_dim=head_dim, T_q=1, backward=False, arches=kinds)
    yield row("bf16-d64-packed-qkv", ALL, head_dim=64, packed=True, arches=kinds)
    others = tuple(arch for arch in kinds if arch != "sm_90")  # there dK/dV spills 4 bytes
    yield row("bf16-d72-causal", frozenset({"tensor_core", "no_spills"}), head_dim=72, arches=others)
    yield row("bf16-d72-causal-sm_90", frozenset({"tensor_core"}), head_dim=72, arches=("sm_90",))
    # They teach: a spill is allowed, and recorded.
    yield Row("attention", "ladder-bf16-d64", functools.partial(_ladder, torch.bfloat16, 64), LARGE_HEAD)
    yield Row("attention", "ladder-bf16-d128", functools.partial(_ladder, torch.bfloat16, 128), LARGE_HEAD)
    yield Row("attention", "ladder-fp32-d128", functools.partial(_ladder, torch.float32, 128), FLOAT32)


def _ladder(dtype: torch.dtype, head_dim: int) -> None:
    """The two rungs of the ladder that are kernels."""
    q, k, v = (torch.empty(4, 16, 2048, head_dim, dtype=dtype, device="meta") for _ in "qkv")
    for rung in ("triton_forward", "tile_skipping"):
        attention_of(rung)(q, k, v)


def _call(
    *, head_dim: int, dtype: torch.dtype = torch.bfloat16, causal: bool = True, dropout_p: float = 0.0, left: int = -1,
    padding: bool = False, documents: bool = False, group: int = 1, B: int = 4, H: int = 16, T: int = 2048,
    T_q: int | None = None, packed: bool = False, backward: bool = True, arches: tuple[str, ...] = (),
) -> None:  # fmt: skip
    T_q = T if T_q is None else T_q

    def meta(*shape: int, dtype: torch.dtype = dtype) -> Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    q = meta(B, T_q, H, head_dim).transpose(1, 2)
    if arches and _runtime.target_of(q).arch not in arches:
        return
    k, v = (meta(B, T, H // group, head_dim).transpose(1, 2) for _ in "kv")
    if packed:
        q, k, v = meta(B, T, 3, H, head_dim).permute(2, 0, 3, 1, 4)
    masks = (
        meta(B, dtype=torch.int32) if padding else None,
        meta(B, dtype=torch.int32) if padding else None,
        meta(B, T, dtype=torch.int32) if documents else None,
        meta(2, dtype=torch.int64) if dropout_p else None,
    )
    numbers = (head_dim**-0.5, dropout_p, causal, left, -1)
    out, lse = launch.forward(q, k, v, *masks, *numbers)
    if backward:
        launch.backward(torch.empty_like(out), None, q, k, v, out, lse, *masks, *numbers, True, True)
