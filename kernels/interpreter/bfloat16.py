"""Make bfloat16 right in Triton's interpreter (3.6 to 3.9).

The interpreter keeps bfloat16 values as np.uint16 and computes on them as if they were integers; its float32 ->
bfloat16 cast truncates. Here every operation on bfloat16 computes in float32 and rounds to nearest even, as GPUs do.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import numpy as np
import triton.language as tl
from triton.runtime import interpreter as upstream
from triton.runtime.interpreter import InterpreterBuilder as Builder
from triton.runtime.interpreter import TensorHandle as Handle


def to_float32(bits: np.ndarray) -> np.ndarray:
    """bfloat16 bit patterns (uint16) -> float32 values, exact."""
    return (np.ascontiguousarray(bits).astype(np.uint32) << 16).view(np.float32).reshape(np.shape(bits))


def from_float32(values: np.ndarray) -> np.ndarray:
    """float32 values -> bfloat16 bit patterns (uint16), round to nearest even; NaN stays NaN."""
    values = np.ascontiguousarray(values, dtype=np.float32)
    bits = values.view(np.uint32)
    rounded = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return np.where(np.isnan(values), np.uint16(0x7FC0), rounded).reshape(values.shape)


def _is_bf16(h: Handle) -> bool:
    return h.dtype.scalar == tl.bfloat16


def _up(h: Handle) -> Handle:
    return Handle(to_float32(h.data), tl.float32) if _is_bf16(h) else h


def _down(h: Handle) -> Handle:
    return Handle(from_float32(h.data), tl.bfloat16)


@functools.cache
def install() -> None:
    """Patch the interpreter's builder, once per process. Compiled kernels are not affected."""
    original = {
        name: getattr(Builder, name)
        for name in ("binary_op", "unary_op", "ternary_op", "create_fma", "cast_impl", "create_fp_to_fp", "create_dot")
    }
    floats = {tl.bfloat16, tl.float16, tl.float32, tl.float64}

    def binary_op(self: Builder, lhs: Handle, rhs: Handle, op: Any) -> Handle:
        if not _is_bf16(lhs):
            return original["binary_op"](self, lhs, rhs, op)
        out = original["binary_op"](self, _up(lhs), _up(rhs), op)
        # Comparisons keep their booleans under the operand's type; the caller gives them their own.
        return Handle(out.data, tl.bfloat16) if out.data.dtype == np.bool_ else _down(out)

    def unary_op(self: Builder, arg: Handle, op: Any) -> Handle:
        out = original["unary_op"](self, _up(arg), op)
        return _down(out) if _is_bf16(arg) else out

    def ternary_op(self: Builder, a: Handle, b: Handle, c: Handle, op: Any) -> Handle:
        if op is np.where or not _is_bf16(c):  # a select moves bits, whatever they mean
            return original["ternary_op"](self, a, b, c, op)
        return _down(original["ternary_op"](self, _up(a), _up(b), _up(c), op))

    def create_fma(self: Builder, x: Handle, y: Handle, z: Handle) -> Handle:
        out = original["create_fma"](self, _up(x), _up(y), _up(z))
        return _down(out) if _is_bf16(z) else out

    def cast_impl(self: Builder, src: Handle, dst_type: tl.dtype) -> Handle:
        source, target = src.dtype.scalar, dst_type.scalar
        if source == tl.bfloat16 and target != tl.bfloat16:
            wide = _up(src)
            return wide if target == tl.float32 else original["cast_impl"](self, wide, dst_type)
        if target == tl.bfloat16 and source != tl.bfloat16:
            return _down(Handle(src.data.astype(np.float32), tl.float32))
        return original["cast_impl"](self, src, dst_type)

    def create_fp_to_fp(self: Builder, src: Handle, dst_type: tl.dtype, rounding_mode: Any) -> Handle:
        kinds = {src.dtype.scalar, dst_type.scalar}
        if tl.bfloat16 in kinds and kinds <= floats:
            return cast_impl(self, src, dst_type)
        return original["create_fp_to_fp"](self, src, dst_type, rounding_mode)

    def create_dot(self: Builder, a: Handle, b: Handle, d: Handle, *rest: Any) -> Handle:
        return original["create_dot"](self, _up(a), _up(b), d, *rest)

    for function in (binary_op, unary_op, ternary_op, create_fma, cast_impl, create_fp_to_fp, create_dot):
        setattr(Builder, function.__name__, function)
    if not hasattr(Builder, "get_bf16"):  # Triton 3.6 to 3.8: bfloat16 tensor (op) Python float
        Builder.get_bf16 = lambda self, v: _down(Handle(np.array([v], dtype=np.float32), tl.float32))
    upstream.ReduceOps.sum = _reduce_in_float32(upstream.ReduceOps.sum)
    upstream.ReduceOps.min_max = _reduce_in_float32(upstream.ReduceOps.min_max)


def _reduce_in_float32(reduce: Callable[..., Any]) -> Callable[..., Any]:
    def narrow(t: tl.tensor) -> tl.tensor:
        if t.dtype != tl.float32:  # the indices of an argmin or argmax
            return t
        return tl.core.tensor(_down(t.handle), tl.block_type(tl.bfloat16, list(t.shape)) if t.shape else tl.bfloat16)

    def wrapper(self: Any, input: Any, *args: Any, **kwargs: Any) -> Any:
        x = input[0] if isinstance(input, tuple) else input
        if not _is_bf16(x.handle):
            return reduce(self, input, *args, **kwargs)
        wide = tl.core.tensor(_up(x.handle), tl.block_type(tl.float32, list(x.shape)))
        out = reduce(self, wide, *args, **kwargs)
        return tuple(map(narrow, out)) if isinstance(out, tuple) else narrow(out)

    return wrapper
