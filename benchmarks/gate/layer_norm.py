"""What must compile of layer_norm and add_layer_norm: GPT widths in every dtype, and the edges of the tile rules."""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from fastgpt.kernels.layer_norm import launch

from .rows import Row

bf16, fp16, fp32 = torch.bfloat16, torch.float16, torch.float32
NAMES = {bf16: "bf16", fp16: "fp16", fp32: "fp32"}
M = 4096
WIDTHS = (768, 1024, 1600, 2048, 4096, 8192)
WIDE = frozenset({"wide_loads", "no_spills"})
NO_SPILLS = frozenset({"no_spills"})


def rows() -> Iterator[Row]:
    for n in WIDTHS:
        yield from _both(n, bf16, bf16, WIDE)
    for n in (768, 2048, 8192):
        yield from _both(n, fp32, fp32, WIDE)
    yield from _both(768, fp16, fp16, WIDE)
    yield from _both(768, bf16, fp32, WIDE)
    for n in (768, 1600, 4096, 8192, 12288):
        for p in (0.0, 0.1):
            yield from _both(n, bf16, bf16, WIDE, residual=bf16, p=p)
            yield from _both(n, bf16, bf16, WIDE, residual=fp32, p=p)
    # Sizes where a row holds no whole number of 16 bytes, and both sides of the limits in tiles.py.
    yield from _both(17, bf16, bf16, NO_SPILLS)
    yield from _both(1001, bf16, bf16, NO_SPILLS)
    yield from _both(256, bf16, bf16, WIDE)
    yield from _both(1032, bf16, bf16, WIDE)  # whole 16 bytes, but no multiple of them that a stride shows by itself
    yield from _both(12288, bf16, bf16, WIDE)
    yield from _both(16384, bf16, bf16, WIDE)
    yield from _both(32768, fp32, fp32, WIDE)
    yield from _both(65536, bf16, bf16, WIDE)
    yield _row("fwd", 65536, fp16, fp32, WIDE)
    yield _row("fwd", 65535, bf16, bf16, frozenset())
    yield _row("fwd", 49152, fp32, fp32, WIDE)
    yield _row("fwd", 65536, fp32, fp32, WIDE - NO_SPILLS)  # a row as large as the register file
    yield _row("fwd", 65544, bf16, bf16, WIDE)
    yield from _both(65536, bf16, bf16, WIDE, residual=fp32, p=0.1)
    # Rows that begin 2 bytes too late for 16-byte loads: slow, but it must compile.
    yield Row("layer_norm", "fwd-n768-bf16-unaligned", _call(768, bf16, bf16, "fwd", None, 0.0, stride=769), NO_SPILLS)


def _both(*args, **kwargs) -> Iterator[Row]:
    yield _row("fwd", *args, **kwargs)
    yield _row("bwd", *args, **kwargs)


def _row(
    direction: str, n: int, dtype: torch.dtype, weight: torch.dtype, expect: frozenset[str],
    residual: torch.dtype | None = None, p: float = 0.0,
) -> Row:  # fmt: skip
    if n == 12288 and p:
        expect -= NO_SPILLS  # some bytes a thread, which cost less than reading the row twice
    name = f"{direction}-n{n}-{NAMES[dtype]}"
    if weight != dtype:
        name += f"-weight-{NAMES[weight]}"
    if residual is not None:
        name = f"add-{name}-residual-{NAMES[residual]}" + ("-dropout" if p else "")
    return Row("layer_norm", name, _call(n, dtype, weight, direction, residual, p), expect)


def _call(n, dtype, weight_dtype, direction, residual_dtype, p, stride=None):
    def call() -> None:
        x = meta(M, stride or n, dtype=dtype)[:, :n]
        weight, bias = meta(n, dtype=weight_dtype), meta(n, dtype=weight_dtype)
        residual = None if residual_dtype is None else meta(M, n, dtype=residual_dtype)
        seed = meta(2, dtype=torch.int64) if p else None
        if direction == "fwd":
            launch.forward(x, residual, weight, bias, seed, 1, 1e-5, p, dtype)
            return
        dh_dtype, h = (dtype, x) if residual is None else (residual_dtype, residual)
        dx_dtype = dtype if residual is not None and (p or dtype != residual_dtype) else None
        launch.backward(
            x, residual, h, weight, meta(2, M, dtype=fp32), seed, 1, p, dh_dtype, dx_dtype, weight_dtype, weight_dtype
        )

    return call


def meta(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")
