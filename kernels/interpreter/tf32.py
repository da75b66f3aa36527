"""Make products in TF32 what tensor cores make of them; Triton's interpreter multiplies all of float32."""

from __future__ import annotations

import functools
from typing import Any

import numpy as np
import triton.language as tl
from triton._C.libtriton import ir
from triton.runtime.interpreter import InterpreterBuilder as Builder
from triton.runtime.interpreter import TensorHandle as Handle

LOW_BITS = 13  # of float32's mantissa, which TF32 does not have


def truncate(values: np.ndarray) -> np.ndarray:
    """What a tensor core sees of float32 registers: the low bits are ignored, nothing is rounded."""
    bits = np.ascontiguousarray(values).view(np.uint32)
    return (bits & np.uint32(2**32 - 2**LOW_BITS)).view(np.float32).reshape(np.shape(values))


@functools.cache
def install() -> None:
    """Patch the interpreter's builder, once per process. Compiled kernels are not affected."""
    original = Builder.create_dot

    def operand(handle: Handle) -> Handle:
        if handle.dtype.scalar != tl.float32:
            return handle
        return Handle(truncate(handle.data), tl.float32)

    def create_dot(self: Builder, a: Handle, b: Handle, d: Handle, input_precision: Any, *rest: Any) -> Handle:
        if input_precision == ir.INPUT_PRECISION.TF32:
            a, b = operand(a), operand(b)
        return original(self, a, b, d, input_precision, *rest)

    Builder.create_dot = create_dot
