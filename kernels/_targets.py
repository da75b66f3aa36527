"""Class indices, checked alike for the kernels, their references and the modules."""

from __future__ import annotations

import torch
from torch import Tensor

from ._runtime import can_be_read


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
