"""What attention's public functions check of their arguments, and how they read them: each question is asked here once.

`function` is the public function that asks. Messages name it, the argument, its value and the way out.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from .. import _checks, support
from .._runtime import cdiv

FARTHEST = 2**31 - 1  # a window that reaches this far reaches every key


def check_heads(function: str, *, max_head_dim: int | None = support.MAX_HEAD_DIM, **tensors: Tensor) -> None:
    """Raise unless q (B, H, T_q, D), k and, where it is given, v (B, H_kv, T_k, D) fit together."""
    for name, x in tensors.items():
        if x.dtype not in support.KERNEL_DTYPES:
            raise _checks.wrong_dtype(function, name, x.dtype)
        if x.dim() != 4:
            raise ValueError(f"{function}: {name} must be (B, heads, T, head_dim), got shape {tuple(x.shape)}")
    q, k = tensors["q"], tensors["k"]
    v = tensors.get("v", k)
    if k.dtype != q.dtype or v.dtype != q.dtype:
        *first, last = tensors
        dtypes = ", ".join(f"{name} {x.dtype}" for name, x in tensors.items())
        raise TypeError(f"{function}: {', '.join(first)} and {last} must have one dtype, got {dtypes}; cast them")
    if k.shape != v.shape:
        raise ValueError(f"{function}: k {tuple(k.shape)} and v {tuple(v.shape)} must have the same shape")
    B, H, _, D = q.shape
    H_kv = k.shape[1]
    if k.shape[0] != B:
        raise ValueError(f"{function}: k has batch size {k.shape[0]}, but q has {B}")
    if k.shape[3] != D:
        raise ValueError(f"{function}: k has head_dim {k.shape[3]}, but q has head_dim {D}")
    if D < 1 or (max_head_dim is not None and max_head_dim < D):
        sizes = "at least 1" if max_head_dim is None else f"1 to {max_head_dim}"
        raise ValueError(f"{function}: head_dim of q must be {sizes}, got {D}")
    if (H_kv == 0 and H != 0) or (H_kv != 0 and H % H_kv != 0):
        raise ValueError(f"{function}: q's heads must be a multiple of k's, got q {H} and k {H_kv}")


def check_causal_and_scale(function: str, causal: bool, softmax_scale: float | None) -> None:
    """Raise TypeError for a mask in the place of a switch, or for a scale whose gradient would be lost."""
    if not isinstance(causal, int):  # so that 0 and 1 do, and no tensor, whose value would have to be waited for
        raise TypeError(
            f"{function}: causal must be True or False, got {causal!r}; use bool(), or name the mask by window"
        )
    _checks.check_numbers(function, softmax_scale=softmax_scale)


def scale_of(q: Tensor, softmax_scale: float | None) -> float:
    """The factor of the scores: 1 / sqrt(head_dim) unless it is given."""
    return 1.0 / math.sqrt(q.shape[-1]) if softmax_scale is None else float(softmax_scale)


def window_bounds(function: str, window: int | tuple[int, int] | None, causal: bool) -> tuple[int, int]:
    """(left, right): query at position i sees keys i - left ... i + right; -1 = no bound on that side."""
    if window is None:
        return -1, -1
    one = isinstance(window, int | torch.SymInt)
    numbers: Any = (window,) if one else window
    if not isinstance(numbers, tuple | list) or not all(isinstance(x, int | torch.SymInt) for x in numbers):
        raise TypeError(f"{function}: window must be an int or a pair of ints (left, right), got {window!r}; use int()")
    if len(numbers) != (1 if one else 2) or min(numbers) < (1 if one else -1):
        raise ValueError(
            f"{function}: window must be the number of keys a query sees, at least 1, or a pair (left, right) with -1 "
            f"for no bound; got {window}"
        )
    left, right = (numbers[0] - 1, -1 if causal else numbers[0] - 1) if one else numbers
    return min(left, FARTHEST), min(right, FARTHEST)


def per_sequence(function: str, name: str, x: Tensor | None, B: int) -> Tensor | None:
    """key_lengths or key_starts, (B,) contiguous."""
    if x is None:
        return None
    _check_integers(function, name, x)
    if x.dim() != 1 or x.shape[0] != B:
        raise ValueError(f"{function}: {name} must be (B,) = ({B},), got shape {tuple(x.shape)}")
    return x.contiguous()


def documents(
    function: str, document_ids: Tensor | None, cu_seqlens: Tensor | None, B: int, T_q: int, T_k: int
) -> Tensor | None:
    """(B, T_k) contiguous document ids of the keys, by whichever of the two arguments they are named."""
    if cu_seqlens is not None:
        if document_ids is not None:
            raise ValueError(f"{function}: give cu_seqlens or document_ids, not both")
        return _packed_documents(function, cu_seqlens, B, T_q, T_k)
    if document_ids is None:
        return None
    _check_integers(function, "document_ids", document_ids)
    if document_ids.dim() != 2 or document_ids.shape[0] != B or document_ids.shape[1] != T_k:
        raise ValueError(f"{function}: document_ids must be (B, T_k) = ({B}, {T_k}), got {tuple(document_ids.shape)}")
    if T_q > T_k:
        raise ValueError(
            f"{function}: document_ids name the tokens of the keys, of which the queries are the last; got more "
            f"queries (T_q = {T_q}) than keys (T_k = {T_k})"
        )
    return document_ids.contiguous()


def _packed_documents(function: str, cu_seqlens: Tensor, B: int, T_q: int, T_k: int) -> Tensor:
    """(1, T_k) document ids of packed documents, computed on the device without a sync."""
    if cu_seqlens.dtype != torch.int32:
        raise TypeError(f"{function}: cu_seqlens must be int32, got {cu_seqlens.dtype}; use .to(torch.int32)")
    if cu_seqlens.dim() != 1 or cu_seqlens.shape[0] < 2:
        raise ValueError(
            f"{function}: cu_seqlens must be (N + 1,) for N >= 1 documents, got shape {tuple(cu_seqlens.shape)}"
        )
    if B != 1:
        raise ValueError(
            f"{function}: with cu_seqlens the documents lie end to end in one sequence, B = 1; got B = {B} "
            "(use document_ids for batches)"
        )
    if T_q != T_k:
        raise ValueError(f"{function}: cu_seqlens needs T_q = T_k, got T_q = {T_q} and T_k = {T_k}")
    if cu_seqlens.device.type == "cpu" and support.can_be_read(cu_seqlens):
        values = cu_seqlens.tolist()
        if values[0] != 0 or values[-1] != T_k or values != sorted(values):
            raise ValueError(f"{function}: cu_seqlens must rise from 0 to the number of tokens, {T_k}; got {values}")
    token = torch.arange(T_k, dtype=torch.int32, device=cu_seqlens.device)
    return torch.bucketize(token, cu_seqlens[1:], out_int32=True, right=True)[None]


def _check_integers(function: str, name: str, x: Tensor) -> None:
    if x.is_floating_point() or x.is_complex() or x.is_quantized or x.dtype == torch.bool:
        raise TypeError(f"{function}: {name} must hold integers, got {x.dtype}; convert with .to(torch.int32)")


# ---- What only attention_weights has ---------------------------------------------------------------------------------


def check_lse(function: str, lse: Tensor, q: Tensor) -> None:
    """Raise unless lse (B, H, T_q) is what flash_attention returns for q."""
    if lse.dtype != torch.float32:
        raise TypeError(f"{function}: lse must be float32, as flash_attention returns it, got {lse.dtype}")
    if lse.shape != q.shape[:3]:
        raise ValueError(f"{function}: lse must be (B, H, T_q) = {tuple(q.shape[:3])}, got {tuple(lse.shape)}")


def chosen_heads(function: str, heads: Sequence[int] | None, H: int) -> list[int]:
    """The numbers of the heads that are wanted, each in [0, H)."""
    if heads is None:
        return list(range(H))
    try:
        numbers = [operator.index(head) for head in heads]
    except TypeError:
        raise TypeError(f"{function}: heads must be a list of ints, got {heads!r}") from None
    for head in numbers:
        if not -H <= head < H:
            raise ValueError(f"{function}: heads must lie in [-{H}, {H}), got {head}")
    return [head % H for head in numbers]


def chosen_rows(function: str, rows: slice | None, T_q: int) -> tuple[int, int, int]:
    """(first, count, step) of a slice; slice.indices would turn a symbolic T_q into a number."""
    if rows is None:
        return 0, T_q, 1
    if not isinstance(rows, slice):
        raise TypeError(f"{function}: rows must be a slice such as slice(-1, None), got {type(rows).__name__}")
    start, stop, step = (_bound(function, x, rows) for x in (rows.start, rows.stop, rows.step))
    step = 1 if step is None else min(step, FARTHEST)
    if step < 1:
        raise ValueError(f"{function}: rows must have a positive step, got {rows}; flip the result instead")

    def clamp(bound: int) -> int:
        return min(max(bound + T_q, 0), T_q) if bound < 0 else min(bound, T_q)

    first = 0 if start is None else clamp(start)
    last = T_q if stop is None else clamp(stop)
    return first, max(0, cdiv(last - first, step)), step


def _bound(function: str, bound: SupportsIndex | None, rows: slice) -> Any:
    """A slice's bound as a number; the compiler's symbolic ones stay so."""
    if bound is None or isinstance(bound, int | torch.SymInt):
        return bound
    if isinstance(bound, Tensor) or not hasattr(bound, "__index__"):  # a tensor's value would have to be waited for
        raise TypeError(f"{function}: rows must be a slice of ints, got {rows}; use int()")
    return operator.index(bound)
