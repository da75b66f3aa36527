"""`attention_weights`: look at the weights of chosen heads and rows after the fast path has run.

Operator and launch; the device code, with its formula, is in weights_kernel.py.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Sequence
from typing import Any, SupportsIndex

import torch
from torch import Tensor

from .. import _checks, _library, _runtime, support
from ..support import KERNEL_DTYPES
from .op import FARTHEST, autocast, check_causal_and_scale, check_integers, check_window, documents_of

_NAME = "attention_weights"


def attention_weights(
    q: Tensor,
    k: Tensor,
    lse: Tensor,
    *,
    heads: Sequence[int] | None = None,
    rows: slice | None = None,
    causal: bool = True,
    softmax_scale: float | None = None,
    window: int | tuple[int, int] | None = None,
    key_lengths: Tensor | None = None,
    key_starts: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> Tensor:
    """exp(q kᵀ · softmax_scale - lse) of the chosen heads and rows, 0 where a query does not see a key.

    Ask `flash_attention(..., return_lse=True)` for lse and pass the same mask arguments and scale here; the weights
    are those before dropout. Nothing but the result is allocated: a few rows of a long sequence cost a few rows.
    Differentiable in q, k and lse, so the gradient of a loss on the weights is exact when lse carries its own graph.

    Args:
        q, k: (B, H, T_q, D) and (B, H_kv, T_k, D), float32, float16 or bfloat16, any strides, H a multiple of H_kv.
        lse: (B, H, T_q) float32, natural log, as `flash_attention` returns it.
        heads: query heads, in the order wanted, negative from the end. None = all.
        rows: slice of the query rows, with a positive step. None = all.
        causal, softmax_scale, window, key_lengths, key_starts, cu_seqlens, document_ids: as in `flash_attention`.

    Returns:
        (B, len(heads), len(rows), T_k) in q's dtype. A row that sees no key is 0.

    Raises:
        TypeError: dtypes that differ or are not supported; `rows` not a slice.
        ValueError: shapes that do not fit, a head out of range, a slice with a step below 1, tensors on two devices.
        RuntimeError: no Triton, a CPU without the interpreter, or a GPU older than sm_75.
    """
    _checks.check_dense(
        _NAME, 3, q=q, k=k, lse=lse, key_lengths=key_lengths, key_starts=key_starts, cu_seqlens=cu_seqlens,
        document_ids=document_ids,
    )  # fmt: skip
    dtype = _runtime.autocast_dtype(q)  # as in flash_attention, whose lse belongs to the rounded q and k
    if dtype is not None:
        q, k = autocast(dtype, q, k)
    _check_tensors(q, k, lse)
    batch, num_heads, T_q, head_dim = q.shape
    T_k = k.shape[2]
    for name, per_batch in (("key_lengths", key_lengths), ("key_starts", key_starts)):
        if per_batch is not None and (per_batch.shape != (batch,) or per_batch.dtype.is_floating_point):
            raise ValueError(f"{_NAME}: {name} must hold one integer per batch row, ({batch},), got {_say(per_batch)}")
        if per_batch is not None:
            check_integers(_NAME, name, per_batch)
    if document_ids is not None:
        check_integers(_NAME, "document_ids", document_ids)
    if cu_seqlens is not None and document_ids is not None:
        raise ValueError(f"{_NAME}: cu_seqlens and document_ids say the same thing; pass one of them")
    if cu_seqlens is not None:
        document_ids = documents_of(_NAME, cu_seqlens, batch, T_q, T_k)
    if document_ids is not None and (
        document_ids.dim() != 2 or document_ids.shape[0] not in (1, batch) or document_ids.shape[1] != T_k or T_q > T_k
    ):
        raise ValueError(
            f"{_NAME}: document_ids must be ({batch}, {T_k}) or (1, {T_k}), with T_q <= T_k, so that every query has "
            f"an id; got {tuple(document_ids.shape)} and T_q = {T_q}"
        )
    support.check_launchable(
        _NAME, q=q, k=k, lse=lse, key_lengths=key_lengths, key_starts=key_starts, cu_seqlens=cu_seqlens,
        document_ids=document_ids,
    )  # fmt: skip
    check_causal_and_scale(_NAME, causal, softmax_scale)
    left, right = check_window(_NAME, window, causal)
    right = 0 if causal else right
    row_start, row_count, row_step = _resolve_rows(rows, T_q)
    key_lengths, key_starts = (None if x is None else x.contiguous() for x in (key_lengths, key_starts))
    return _OP(
        q, k, lse, _resolve_heads(heads, num_heads), row_start, row_count, row_step,
        1.0 / math.sqrt(head_dim) if softmax_scale is None else float(softmax_scale),
        left, right, key_lengths, key_starts, document_ids,
    )  # fmt: skip


def _say(x: Tensor) -> str:
    return f"{tuple(x.shape)} {x.dtype}"


def _check_tensors(q: Tensor, k: Tensor, lse: Tensor) -> None:
    if q.dtype not in KERNEL_DTYPES:
        raise TypeError(f"{_NAME}: q must be float32, float16 or bfloat16, got {q.dtype}; cast it, or use reference")
    if k.dtype != q.dtype:
        raise TypeError(f"{_NAME}: k is {k.dtype} but q is {q.dtype}; cast one of them")
    if lse.dtype != torch.float32:
        raise TypeError(f"{_NAME}: lse must be float32, as flash_attention returns it, got {lse.dtype}")
    if q.dim() != 4 or k.dim() != 4:
        raise ValueError(f"{_NAME}: q and k must be (B, H, T, head_dim), got {tuple(q.shape)} and {tuple(k.shape)}")
    if k.shape[0] != q.shape[0] or k.shape[3] != q.shape[3]:
        raise ValueError(
            f"{_NAME}: k must have q's batch size and head_dim, got q {tuple(q.shape)} and k {tuple(k.shape)}"
        )
    if q.shape[3] == 0:
        raise ValueError(f"{_NAME}: head_dim of q must be at least 1, got q {tuple(q.shape)}")
    if k.shape[1] == 0 or q.shape[1] % k.shape[1]:
        raise ValueError(f"{_NAME}: k's head count {k.shape[1]} must divide q's {q.shape[1]}")
    if lse.shape != q.shape[:3]:
        raise ValueError(f"{_NAME}: lse must be (B, H, T_q) = {tuple(q.shape[:3])}, got {tuple(lse.shape)}")


def _resolve_heads(heads: Sequence[int] | None, num_heads: int) -> list[int]:
    if heads is None:
        return list(range(num_heads))
    try:
        numbers = [operator.index(head) for head in heads]
    except TypeError:
        raise TypeError(f"{_NAME}: heads must be a list of ints, got {heads!r}") from None
    for head in numbers:
        if not -num_heads <= head < num_heads:
            raise ValueError(f"{_NAME}: heads must lie in [-{num_heads}, {num_heads}), got {head}")
    return [head % num_heads for head in numbers]


def _resolve_rows(rows: slice | None, T_q: int) -> tuple[int, int, int]:
    """(first, count, step) of a slice; slice.indices would turn a symbolic T_q into a number."""
    if rows is None:
        return 0, T_q, 1
    if not isinstance(rows, slice):
        raise TypeError(f"{_NAME}: rows must be a slice such as slice(-1, None), got {type(rows).__name__}")
    start, stop, step = (_bound(x, rows) for x in (rows.start, rows.stop, rows.step))
    step = 1 if step is None else min(step, FARTHEST)
    if step < 1:
        raise ValueError(f"{_NAME}: rows must have a positive step, got {rows}; flip the result instead")

    def clamp(bound: int) -> int:
        return min(max(bound + T_q, 0), T_q) if bound < 0 else min(bound, T_q)

    first = 0 if start is None else clamp(start)
    last = T_q if stop is None else clamp(stop)
    return first, max(0, (last - first + step - 1) // step), step


def _bound(bound: SupportsIndex | None, rows: slice) -> int | None:
    """A slice's bound as a number; the compiler's symbolic ones stay so."""
    if bound is None or isinstance(bound, int | torch.SymInt):
        return bound
    if isinstance(bound, Tensor) or not hasattr(bound, "__index__"):  # a tensor's value would have to be waited for
        raise TypeError(f"{_NAME}: rows must be a slice of ints, got {rows}; use int()")
    return operator.index(bound)


def _runs(heads: list[int]) -> list[tuple[int, int, int]]:
    """Split heads into (first, step, count) progressions: one launch each, and no copy of the list to the GPU."""
    runs: list[tuple[int, int, int]] = []
    for head in heads:
        first, step, count = runs[-1] if runs else (0, 0, 0)
        if count == 1 or (count > 1 and head == first + step * count):
            runs[-1] = (first, head - first if count == 1 else step, count + 1)
        else:
            runs.append((head, 0, 1))
    return runs


def _launch(
    q: Tensor, k: Tensor, lse: Tensor, heads: list[int], row_start: int, row_count: int, row_step: int, scale: float,
    left: int, right: int, key_lengths: Tensor | None, key_starts: Tensor | None,
    document_ids: Tensor | None,
) -> Tensor:  # fmt: skip
    from .launch import band, check_positions, grid
    from .weights_kernel import attention_weights_kernel

    T_q, head_dim = q.shape[2:]
    check_positions(_NAME, T_q, k.shape[2])
    weights = _fake(q, k, lse, heads, row_start, row_count, row_step)
    if weights.numel() == 0:
        return weights
    batch, _, _, T_k = weights.shape
    lower, upper = band(T_q, T_k, False, left, right)
    row_step = min(row_step, T_q)  # with a longer step there is one row
    padded = (head_dim + 15) // 16 * 16  # tensor cores work in steps of 16
    # float32 products run on registers, so that a wide step would spill.
    block_d = next(size for size in (64, 32, 16) if padded % size == 0 and size * q.element_size() <= 128)
    block_m, block_n = (16 if row_count <= 16 else 64), 128
    tiles = ((row_count + block_m - 1) // block_m) * ((T_k + block_n - 1) // block_n)
    stride_d = (0, 0)
    if document_ids is not None:
        stride_d = document_ids.expand(batch, T_k).stride()
    done = 0
    with _runtime.on_device_of(q):
        for first, step, count in _runs(heads):
            out = weights[:, done : done + count]
            done += count
            attention_weights_kernel[grid(_NAME, batch * count * tiles)](
                q, k, lse, out, key_lengths, key_starts, document_ids,
                q.stride(), k.stride(), lse.stride(), out.stride()[:3], stride_d,
                count, row_count, q.shape[2], T_k, q.shape[1] // k.shape[1], first, step, row_start, row_step,
                lower or 0, upper or 0, scale,
                HAS_LOWER=lower is not None, HAS_UPPER=upper is not None, HEAD_DIM=head_dim,
                PRECISION=_runtime.dot_precision(q),
                BLOCK_M=block_m, BLOCK_N=block_n, BLOCK_D=block_d, num_warps=4, num_stages=2,
            )  # fmt: skip
    return weights


def _fake(
    q: Tensor, k: Tensor, lse: Tensor, heads: list[int], row_start: int, row_count: int, *rest: Any
) -> Tensor:  # fmt: skip
    return q.new_empty(q.shape[0], len(heads), row_count, k.shape[2])


class _AttentionWeights(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _library.below_autograd(_OP, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], weights: Tensor) -> None:
        q, k, lse, ctx.heads, ctx.row_start, ctx.row_count, ctx.row_step, ctx.scale = inputs[:8]
        ctx.save_for_backward(q, k, lse, weights)

    @staticmethod
    def backward(ctx: Any, d_weights: Tensor) -> tuple[Tensor | None, ...]:
        """dS = W ∘ dW, then dlse = -Σ_j dS, dq = scale · dS k, dk = scale · dSᵀ q: head by head, summed in float32."""
        q, k, lse, weights = ctx.saved_tensors
        needs_q, needs_k, needs_lse = ctx.needs_input_grad[:3]
        rows = slice(ctx.row_start, ctx.row_start + ctx.row_count * ctx.row_step, ctx.row_step)
        group = q.shape[1] // k.shape[1]
        # Whatever vmap has added a dimension to, the sums below have it too.
        zero = weights.new_zeros((), dtype=torch.float32) * d_weights.new_zeros((), dtype=torch.float32)
        dq, dk, dlse = (
            zero.new_zeros(x.shape) if needed else None for x, needed in ((q, needs_q), (k, needs_k), (lse, needs_lse))
        )
        with torch._C._DisableAutocast():  # which may be on where backward() is called, and would round the operands
            for i, h in enumerate(ctx.heads):
                ds = weights[:, i].float() * d_weights[:, i].float()  # (B, rows, T_k)
                if dlse is not None:
                    dlse[:, h, rows] -= ds.sum(dim=-1)
                if dq is not None:
                    dq[:, h, rows] += ctx.scale * (ds @ k[:, h // group].float())
                if dk is not None:
                    dk[:, h // group] += ctx.scale * (ds.transpose(1, 2) @ q[:, h, rows].float())
        return None if dq is None else dq.to(q.dtype), None if dk is None else dk.to(k.dtype), dlse, *[None] * 10


_OP = _library.define(
    "attention_weights(Tensor q, Tensor k, Tensor lse, int[] heads, SymInt row_start, SymInt row_count, "
    "SymInt row_step, float softmax_scale, SymInt left, SymInt right, Tensor? key_lengths, Tensor? key_starts, "
    "Tensor? document_ids) -> Tensor",
    launch=_launch,
    fake=_fake,
    public=_NAME,
    autograd=_AttentionWeights,
    differentiable=(0, 1, 2),
)
