"""What `layer_norm` and `add_layer_norm` check of their arguments, and which dtype they answer in.

`function` is the public function that asks. Messages name it, the argument, its value and the way out.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks, _runtime
from ..support import KERNEL_DTYPES


def check_norm(
    function: str,
    x: Tensor,
    normalized_shape: int | Sequence[int] | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    out_dtype: torch.dtype | None,
) -> int:
    """Number of normalised dimensions, once all arguments have been found right."""
    name = "normalized_shape"
    if normalized_shape is None:
        given = weight if weight is not None else bias
        shape = tuple(x.shape[-1:] if given is None else given.shape)
        if given is not None:
            name = "weight's shape" if weight is not None else "bias's shape"
    else:
        shape = _checks.check_sizes(function, "normalized_shape", normalized_shape)
    d = len(shape)
    if d == 0 or d > x.dim() or tuple(x.shape[x.dim() - d :]) != shape:
        raise ValueError(
            f"{function}: {name} {shape} must be the last dimensions, at least one, of x, whose shape is "
            f"{tuple(x.shape)}"
        )
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype not in KERNEL_DTYPES:
            raise _checks.wrong_dtype(function, name, tensor.dtype)
        if tensor is not None and tensor is not x and tuple(tensor.shape) != shape:
            raise ValueError(f"{function}: {name} has shape {tuple(tensor.shape)}, normalized_shape is {shape}")
    if out_dtype is not None and out_dtype not in KERNEL_DTYPES:
        raise TypeError(f"{function}: out_dtype is {out_dtype}; choose float32, float16 or bfloat16")
    if eps is None:
        raise TypeError(f"{function}: eps is None, expected a number; torch's default is 1e-5")
    _checks.check_numbers(function, eps=eps)
    if not eps >= 0.0:
        raise ValueError(f"{function}: eps must be >= 0, got {eps}")
    return d


def check_residual(function: str, residual: Tensor, x: Tensor) -> None:
    """Raise unless the residual stream has x's shape, and a dtype that the kernels take."""
    if residual.dtype not in KERNEL_DTYPES:
        raise _checks.wrong_dtype(function, "residual", residual.dtype)
    if residual.shape != x.shape:
        raise ValueError(
            f"{function}: residual has shape {tuple(residual.shape)}, x {tuple(x.shape)}; expand one to the other"
        )


def torch_out_dtype(x: Tensor) -> torch.dtype:
    """The dtype that torch answers in: layer_norm is on the float32 list of CUDA's autocast, on none of the CPU's."""
    on_list = x.device.type in ("cuda", "meta")
    return torch.float32 if on_list and _runtime.autocast_dtype(x) is not None else x.dtype
