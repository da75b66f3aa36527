"""What every public function checks of its arguments: kinds, dtypes, sizes, numbers and class indices.

Messages name function, argument, value and the way out.
"""

from __future__ import annotations

from collections.abc import Iterable
from numbers import Integral, Real
from typing import TypeVar

import torch
from torch import Tensor

from .support import KERNEL_DTYPES, can_be_read

_Tensor = TypeVar("_Tensor", Tensor, "Tensor | None")


def check_dense(function: str, required: int, **tensors: Tensor | None) -> None:
    """Raise TypeError unless every argument is a tensor whose elements lie in memory one by one.

    The first `required` of them must be there; the others may be None.
    """
    for number, (name, tensor) in enumerate(tensors.items()):
        if tensor is None and number >= required:
            continue
        if not isinstance(tensor, torch.Tensor):
            raise no_tensor(function, name, tensor)
        if tensor.layout is not torch.strided or tensor.is_nested:
            kind = "nested" if tensor.is_nested else str(tensor.layout).removeprefix("torch.").removeprefix("_")
            way_out = "pad or pack" if tensor.is_nested else "call .to_dense() on"
            raise TypeError(f"{function}: {name} is a {kind} tensor, and the kernels take dense ones; {way_out} it")


def check_tensors(function: str, required: int, **tensors: Tensor | None) -> None:
    """Raise TypeError unless every argument is a tensor, of whatever kind; all but the first `required` may be None."""
    for number, (name, tensor) in enumerate(tensors.items()):
        if not isinstance(tensor, torch.Tensor) and (tensor is not None or number < required):
            raise no_tensor(function, name, tensor)


def no_tensor(function: str, name: str, value: object) -> TypeError:
    """The error for an argument that should be a tensor."""
    kind, module = type(value).__name__, type(value).__module__.split(".")[0]
    if module == "numpy":
        kind, way_out = f"numpy.{kind}", f"torch.from_numpy({name})" if kind == "ndarray" else f"torch.tensor({name})"
    elif isinstance(value, list | tuple | int | float | complex):
        way_out = f"torch.tensor({name})"
    else:
        way_out = "a tensor"
    return TypeError(f"{function}: {name} must be a torch.Tensor, got {kind}; pass {way_out}")


def as_autocast_asks(tensor: _Tensor, dtype: torch.dtype) -> _Tensor:
    """The tensor in autocast's dtype; one that the kernels do not take, float64 too, is left to the checks."""
    return tensor if tensor is None or tensor.dtype not in KERNEL_DTYPES else tensor.to(dtype)


def wrong_dtype(function: str, name: str, dtype: torch.dtype) -> TypeError:
    """The error for a tensor of a dtype that no kernel takes."""
    return TypeError(
        f"{function}: {name} is {dtype}, and the kernels take float32, float16 and bfloat16; convert it by .to(), or "
        f"use fastgpt.kernels.reference.{function}"
    )


def check_numbers(function: str, **numbers: float | None) -> None:
    """Raise TypeError unless every argument is a real number, or None: a setting, of which no gradient is taken."""
    for name, number in numbers.items():
        if type(number) is float or type(number) is int or number is None:  # what would take longer to ask below
            continue
        if not isinstance(number, Real | torch.SymInt | torch.SymFloat):
            raise TypeError(f"{function}: {name} is {number!r}, expected a number; take a tensor's by .item()")


def check_sizes(function: str, name: str, sizes: int | Iterable[int]) -> tuple[int, ...]:
    """`sizes`, one or several, as a tuple. Raise TypeError unless they are integers (while tracing: symbolic ones)."""
    if isinstance(sizes, _SIZES):
        return (sizes,)
    several = tuple(sizes) if isinstance(sizes, Iterable) and not isinstance(sizes, torch.Tensor) else None
    if several is None or not all(isinstance(size, _SIZES) for size in several):
        raise TypeError(f"{function}: {name} is {sizes!r}, expected an int or a sequence of ints; convert it")
    return several


_SIZES = (int, torch.SymInt, Integral)  # numpy's are of the last kind


def check_target(function: str, target: Tensor, shape: torch.Size, of: str) -> None:
    """Raise unless `target` holds class indices of `shape`, the leading shape of the argument `of`."""
    if target.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            f"{function}: target is {target.dtype}, expected int64 or int32 class indices; use target.long(). For "
            "class probabilities use torch.nn.functional.cross_entropy"
        )
    if target.shape != shape:
        raise ValueError(
            f"{function}: target has shape {tuple(target.shape)}, expected {tuple(shape)}, the shape of {of} without "
            "its last dimension; reshape it"
        )


def check_range(function: str, target: Tensor, V: int, ignore_index: int) -> None:
    """Raise IndexError for a target outside of [0, V) that is not ignore_index: on a CPU, where looking is no wait."""
    if target.device.type != "cpu" or not can_be_read(target):
        return
    wide = target.long()  # torch does not compare int32 with a number outside of it
    bad = wide[(wide != ignore_index) & ((wide < 0) | (wide >= V))]
    if bad.numel():
        first = bad[0].item()
        hint = "; where -1 marks those, as in nanoGPT, pass ignore_index=-1" if first == -1 else ""
        raise IndexError(
            f"{function}: target {first} is out of bounds for {V} classes; use values in [0, {V}), or ignore_index "
            f"({ignore_index}) for rows that must not count{hint}"
        )
