"""`attention_weights`: look at the weights of chosen heads and rows after the fast path has run.

The public function, its operator and autograd; the formula is in forward.py.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _library, _runtime, support
from ..attention import arguments

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
    if (dtype := _runtime.autocast_dtype(q)) is not None:  # as in flash_attention, whose lse is of the rounded q and k
        q, k = (_checks.as_autocast_asks(x, dtype) for x in (q, k))
    arguments.check_heads(_NAME, q=q, k=k, max_head_dim=None)
    arguments.check_lse(_NAME, lse, q)
    B, H, T_q, T_k = *q.shape[:3], k.shape[2]
    arguments.check_causal_and_scale(_NAME, causal, softmax_scale)
    left, right = arguments.window_bounds(_NAME, window, causal)
    key_starts = arguments.per_sequence(_NAME, "key_starts", key_starts, B)
    key_lengths = arguments.per_sequence(_NAME, "key_lengths", key_lengths, B)
    if document_ids is not None and document_ids.dim() == 2 and document_ids.shape[0] == 1:
        document_ids = document_ids.expand(B, -1)  # one row of ids may serve the whole batch
    document_ids = arguments.documents(_NAME, document_ids, cu_seqlens, B, T_q, T_k)
    chosen_heads = arguments.chosen_heads(_NAME, heads, H)
    row_start, row_count, row_step = arguments.chosen_rows(_NAME, rows, T_q)
    support.check_launchable(
        _NAME, q=q, k=k, lse=lse, key_lengths=key_lengths, key_starts=key_starts, cu_seqlens=cu_seqlens,
        document_ids=document_ids,
    )  # fmt: skip
    return _attention_weights(
        q, k, lse, chosen_heads, row_start, row_count, row_step, key_starts, key_lengths, document_ids,
        arguments.scale_of(q, softmax_scale), left, 0 if causal else right,
    )  # fmt: skip


def _launch(q: Tensor, k: Tensor, lse: Tensor, *settings: Any) -> Tensor:
    from . import launch

    return launch.forward(q, k, lse, *settings)


def _fake(
    q: Tensor, k: Tensor, lse: Tensor, heads: list[int], row_start: int, row_count: int, *settings: Any
) -> Tensor:
    return q.new_empty(q.shape[0], len(heads), row_count, k.shape[2])


class _AttentionWeights(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> Tensor:
        return _library.below_autograd(_attention_weights, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        q, k, lse, ctx.heads, row_start, row_count, row_step = inputs[:7]
        ctx.rows = slice(row_start, row_start + row_count * row_step, row_step)
        ctx.softmax_scale = inputs[10]
        ctx.save_for_backward(q, k, lse, output)

    @staticmethod
    def backward(ctx: Any, dweights: Tensor) -> tuple[Tensor | None, ...]:
        """dS = W ∘ dW, then dlse = -Σ_j dS, dq = scale · dS k, dk = scale · dSᵀ q: head by head, summed in float32."""
        q, k, lse, weights = ctx.saved_tensors
        need_dq, need_dk, need_dlse = ctx.needs_input_grad[:3]
        group = q.shape[1] // max(1, k.shape[1])
        # Whatever vmap has added a dimension to, the sums below have it too.
        zero = weights.new_zeros((), dtype=torch.float32) * dweights.new_zeros((), dtype=torch.float32)
        dq, dk, dlse = (
            zero.new_zeros(x.shape) if needed else None for x, needed in ((q, need_dq), (k, need_dk), (lse, need_dlse))
        )
        with torch._C._DisableAutocast():  # which may be on where backward() is called, and would round the operands
            for n, h in enumerate(ctx.heads):
                ds = weights[:, n].float() * dweights[:, n].float()  # (B, rows, T_k)
                if dlse is not None:
                    dlse[:, h, ctx.rows] -= ds.sum(dim=-1)
                if dq is not None:
                    dq[:, h, ctx.rows] += ctx.softmax_scale * (ds @ k[:, h // group].float())
                if dk is not None:
                    dk[:, h // group] += ctx.softmax_scale * (ds.transpose(1, 2) @ q[:, h, ctx.rows].float())
        return None if dq is None else dq.to(q.dtype), None if dk is None else dk.to(k.dtype), dlse, *[None] * 10


_attention_weights = _library.define(
    "attention_weights(Tensor q, Tensor k, Tensor lse, int[] heads, SymInt row_start, SymInt row_count, "
    "SymInt row_step, Tensor? key_starts, Tensor? key_lengths, Tensor? document_ids, "
    "float softmax_scale, SymInt left, SymInt right) -> Tensor",
    launch=_launch,
    fake=_fake,
    public=_NAME,
    autograd=_AttentionWeights,
    differentiable=(0, 1, 2),
)
