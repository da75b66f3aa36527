"""What the GELU-FFN asks the gate to compile: both products and every pass, for GPT widths, dtypes and layouts.

`path="triton"` throughout: the tables may send a product to cuBLAS, and its kernel must still be fit for use.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator

import torch

from fastgpt.kernels.device.dropout import Dropout
from fastgpt.kernels.ffn import launch

from .rows import Row, multiplying_in

TOKENS = 16384
WIDTHS = (256, 512, 768, 1024, 1600, 2048, 4096)
TENSOR = frozenset({"tensor_core", "no_spills"})
WIDE = TENSOR | {"wide_loads"}


def rows() -> Iterator[Row]:
    for d in WIDTHS:
        yield _row(f"bf16-d{d}-up", _up, WIDE, d=d)
        yield _row(f"bf16-d{d}-dgelu", _dgelu, WIDE, d=d)
    yield _row("bf16-tanh-up", _up, WIDE, d=768, tanh=True)
    yield _row("bf16-tanh-backward", _backward, TENSOR - {"no_spills"}, d=768, tanh=True)  # some bytes: VARIANTS.md
    yield _row("bf16-no-grad-up", _up, WIDE, d=768, save_pre=False)
    yield _row("bf16-odd-up", _up, TENSOR, d=767)  # multiples of nothing: pointers, 2-byte loads
    yield _row("bf16-odd-backward", _backward, TENSOR, d=767)
    yield _row("bf16-passes", _passes, WIDE - {"tensor_core"}, d=768)
    yield _row("fp16-up", _up, WIDE, d=768, dtype=torch.float16)
    yield _row("fp16-dgelu", _dgelu, WIDE, d=768, dtype=torch.float16)
    yield _row("fp32-up", _up, frozenset({"no_spills"}), d=768, dtype=torch.float32)
    yield _row("fp32-backward", _backward, frozenset({"no_spills"}), d=768, dtype=torch.float32)
    yield _row("fp32-passes", _passes, frozenset({"no_spills", "wide_loads"}), d=768, dtype=torch.float32)
    yield _row("tf32-up", _up, TENSOR, d=768, dtype=torch.float32, tf32=True)
    yield _row("tf32-dgelu", _dgelu, TENSOR, d=768, dtype=torch.float32, tf32=True)


def _row(label: str, call: Callable[..., None], expect: frozenset[str], *, tf32: bool = False, **options) -> Row:
    call = functools.partial(call, **options)
    return Row("ffn", label, multiplying_in("tf32")(call) if tf32 else call, expect)


def _tensors(d: int, dtype: torch.dtype) -> tuple[torch.Tensor, ...]:
    """x (TOKENS, d), w1 (4d, d), b1 (4d), w2 (d, 4d), b2 (d), pre (TOKENS, 4d), on the meta device."""
    shapes = (TOKENS, d), (4 * d, d), (4 * d,), (d, 4 * d), (d,), (TOKENS, 4 * d)
    return tuple(torch.empty(shape, dtype=dtype, device="meta") for shape in shapes)


def _up(d: int, dtype: torch.dtype = torch.bfloat16, tanh: bool = False, save_pre: bool = True) -> None:
    x, w1, b1, _, _, pre = _tensors(d, dtype)
    launch.up(x, w1, b1, tanh, pre if save_pre else None, "triton")


def _backward(d: int, dtype: torch.dtype = torch.bfloat16, tanh: bool = False) -> None:
    """Everything of the backward pass that is ours: bias sums, and dY W2 with its epilogue."""
    x, w1, b1, w2, _, pre = _tensors(d, dtype)
    approximate = "tanh" if tanh else "none"
    launch.gelu_ffn_backward(x, x, w1, b1, w2, pre, None, 0.0, approximate, [True] * 5, "triton", overwrite_pre=True)


def _dgelu(d: int, dtype: torch.dtype = torch.bfloat16) -> None:
    x, _, _, w2, _, pre = _tensors(d, dtype)
    launch.dgelu(x, w2, pre, pre, True, True, False, "triton")


def _passes(d: int, dtype: torch.dtype = torch.bfloat16) -> None:
    """The passes beside cuBLAS's products, exact and tanh."""
    x, _, _, _, _, pre = _tensors(d, dtype)
    dropout = Dropout(torch.empty(2, dtype=torch.int64, device="meta"), 429496730, 1.0 / 0.9)
    for tanh in (False, True):
        launch.gelu_pass(pre, pre, tanh)
        launch.dgelu_pass(pre, pre, pre, True, True, tanh)
    launch.finish_pass(x, x, dropout, x, 0)
    launch.prepare_grad(x, dropout, dtype, True)
