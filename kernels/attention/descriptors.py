"""TMA descriptors of attention's inputs: where the copy engine can load tiles, and what it must know of a tensor."""

from __future__ import annotations

import functools
from typing import Any

import torch
import triton
from torch import Tensor
from triton.tools.tensor_descriptor import TensorDescriptor

from .. import _runtime
from . import tiles

_TRITON = tuple(int(n) for n in triton.__version__.split(".")[:2])


def descriptors(
    target: _runtime.Target, x: Tensor, rows: int
) -> tuple[TensorDescriptor | None, TensorDescriptor | None]:
    """TMA descriptors of x (B, H, T, D) for its tiles (rows, d_low) and (rows, d_high); None: pointers must serve."""
    if x.shape[2] < tiles.MIN_TMA_ROWS or x.data_ptr() % 16:
        return None, None
    low, high = _fields(target, x.dtype, x.shape, x.stride(), rows)
    return low and _descriptor(x, low), high and _descriptor(x, high)


def row_descriptor(statistics: Tensor, T_q: int, rows: int) -> TensorDescriptor:
    """TMA descriptor of `statistics` (n, B, H, T_q or more), contiguous, as (n, B * H, T_q), for boxes of `rows`.

    What its rows hold beyond T_q is padding, to the 16 bytes that the copy engine wants; it is never read.
    """
    return _descriptor(statistics, _row_fields(statistics.dtype, statistics.shape, T_q, rows))


def has_row_maps(group: int) -> bool:
    """Whether dK/dV reads lse and delta of tiles that no mask cuts by TMA too, where it reads those of others so.

    By pointers Triton 3.7 loads them once for all warps, with fewer barriers; Triton 3.6 has every lane load those of
    its columns, 64 loads a step. Where heads share keys, pointers to the next head's make ptxas spill.
    """
    return group > 1 or _TRITON < (3, 7)


@functools.lru_cache(maxsize=1024)
def _row_fields(dtype: torch.dtype, shape: tuple[int, ...], T_q: int, rows: int) -> dict[str, Any]:
    n, B, H, stride = shape
    nothing = torch.empty(0, dtype=dtype, device="meta")
    return vars(TensorDescriptor(nothing, [n, B * H, T_q], [B * H * stride, stride, 1], [1, 1, rows]))


@functools.lru_cache(maxsize=1024)
def _fields(
    target: _runtime.Target, dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...], rows: int
) -> tuple[dict[str, Any] | None, dict[str, Any] | None]:
    """What the two descriptors of a tensor of this layout hold besides the tensor; None where pointers must serve.

    The copy engine wants a contiguous last dimension, and 16-byte alignment of every stride. Triton checks this each
    time that a descriptor is made, which takes longer than all the rest of a launch: here it does so once a layout.
    """
    if not tiles.loads_by_tma(target, dtype.itemsize, shape[2]) or stride[3] != 1:
        return None, None
    # The stride of a dimension of size 1 is never used, and may be anything.
    strides = [s if n > 1 else 16 for n, s in zip(shape[:3], stride)]
    if any(s * dtype.itemsize % 16 or s <= 0 for s in strides):
        return None, None

    def fields(columns: int) -> dict[str, Any] | None:
        if not columns:
            return None
        nothing = torch.empty(0, dtype=dtype, device="meta")
        return vars(TensorDescriptor(nothing, [*shape], [*strides, 1], [1, 1, rows, columns]))

    d_low, d_high = tiles.split_head_dim(shape[3])
    return fields(d_low), fields(d_high)


def _descriptor(x: Tensor, fields: dict[str, Any]) -> TensorDescriptor:
    descriptor = object.__new__(TensorDescriptor)
    descriptor.__dict__.update(fields, base=x)
    return descriptor
