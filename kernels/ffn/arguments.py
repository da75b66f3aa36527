"""What `linear_gelu` and `gelu_ffn` check of their arguments, and how they read them: each question is asked here once.

`function` is the public function that asks. Messages name it, the argument, its value and the way out.
"""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import wrong_dtype
from ..support import KERNEL_DTYPES


def check_options(function: str, approximate: str, path: str) -> None:
    """Raise ValueError unless both are among the names that they may have."""
    _check_choice(function, "approximate", approximate, ("none", "tanh"))
    _check_choice(function, "path", path, ("auto", "triton", "cublas"))


def _check_choice(function: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{function}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def check_linear(function: str, x: Tensor, x_name: str, w: Tensor, w_name: str, b: Tensor | None, b_name: str) -> None:
    """Raise unless w is a matrix that multiplies x's last dimension, b fits it, and all have one supported dtype."""
    if x.dtype not in KERNEL_DTYPES:
        raise wrong_dtype(function, x_name, x.dtype)
    if x.dim() == 0 or w.dim() != 2 or w.shape[1] != x.shape[-1]:
        raise ValueError(
            f"{function}: {w_name} has shape {tuple(w.shape)}, but {x_name} of shape {tuple(x.shape)} wants (any, "
            f"{x.shape[-1] if x.dim() else '?'}); weights are laid out as in nn.Linear, (out, in)"
        )
    if b is not None and b.shape != w.shape[:1]:
        raise ValueError(f"{function}: {b_name} has shape {tuple(b.shape)}, expected ({w.shape[0]},), {w_name}'s rows")
    for name, tensor in ((w_name, w), (b_name, b)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(
                f"{function}: {name} is {tensor.dtype} but {x_name} is {x.dtype}; cast one of them, or use autocast"
            )


def check_residual(function: str, residual: Tensor, x: Tensor, d_out: int) -> None:
    """Raise unless the residual has the output's shape, and x's dtype or float32."""
    expected = (*x.shape[:-1], d_out)
    if residual.shape != expected:
        raise ValueError(
            f"{function}: residual has shape {tuple(residual.shape)}, expected {expected}, the output's; expand it"
        )
    if residual.dtype not in (x.dtype, torch.float32):
        raise TypeError(f"{function}: residual is {residual.dtype}; give it in x's {x.dtype} or in float32")
