"""TMA descriptors for Gluon's kernels: of tensors (B, heads, T, head_dim), and of numbers by row.

Triton checks a descriptor each time that one is made, which takes longer than all the rest of a launch: here it does so
once for each layout of a tensor. Which layouts the copy engine takes is asked before, by `choice.py`.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
from torch import Tensor
from triton.experimental.gluon import language as gl
from triton.experimental.gluon.nvidia.hopper import TensorDescriptor

from .. import tiles

TYPES = {torch.bfloat16: gl.bfloat16, torch.float16: gl.float16}


class Layout(gl.NVMMASharedLayout):
    """One that knows its text by heart: a launch asks each descriptor for it, to look up the compiled kernel."""

    @staticmethod
    def of(layout: gl.NVMMASharedLayout) -> Layout:
        known = object.__new__(Layout)
        known.__dict__.update(vars(layout), text=repr(layout))
        return known

    def __repr__(self) -> str:
        return self.__dict__["text"]


def descriptors(x: Tensor, rows: int) -> tuple[TensorDescriptor, TensorDescriptor | None]:
    """Of x (B, heads, T, D), for boxes (1, 1, rows, d_low) and (1, 1, rows, d_high); None where d_high is 0."""
    low, high = _fields(x.dtype, x.shape, x.stride(), rows)
    return _descriptor(x, low), high and _descriptor(x, high)


def row_descriptor(x: Tensor, columns: int, rows: int) -> TensorDescriptor:
    """Of x (B, heads, columns or more) float32, contiguous, as (B * heads, columns), for boxes (1, rows).

    What a row of x holds beyond `columns` is padding to the 16 bytes that the copy engine wants; it is never read.
    """
    return _descriptor(x, _row_fields(x.shape, columns, rows))


@functools.lru_cache(maxsize=4096)
def _fields(
    dtype: torch.dtype, shape: tuple[int, ...], stride: tuple[int, ...], rows: int
) -> tuple[dict[str, Any], dict[str, Any] | None]:
    """What the two descriptors of a tensor of this layout hold besides the tensor."""
    # The stride of a dimension of size 1 is never used, and may be anything.
    strides = [s if n > 1 else 16 for n, s in zip(shape[:3], stride)]

    def fields(columns: int) -> dict[str, Any]:
        box = [1, 1, rows, columns]
        layout = Layout.of(gl.NVMMASharedLayout.get_default_for(box, TYPES[dtype]))
        nothing = torch.empty(0, dtype=dtype, device="meta")
        return vars(TensorDescriptor(nothing, [*shape], [*strides, 1], box, layout))

    d_low, d_high = tiles.split_head_dim(shape[3])
    return fields(d_low), fields(d_high) if d_high else None


@functools.lru_cache(maxsize=1024)
def _row_fields(shape: tuple[int, ...], columns: int, rows: int) -> dict[str, Any]:
    B, heads, stride = shape
    layout = Layout.of(gl.NVMMASharedLayout(swizzle_byte_width=0, element_bitwidth=32, rank=2))
    nothing = torch.empty(0, dtype=torch.float32, device="meta")
    return vars(TensorDescriptor(nothing, [B * heads, columns], [stride, 1], [1, rows], layout))


def _descriptor(x: Tensor, fields: dict[str, Any]) -> TensorDescriptor:
    descriptor = object.__new__(TensorDescriptor)
    descriptor.__dict__.update(fields, base=x)
    return descriptor
