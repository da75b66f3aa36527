"""Operator: argument checks, autocast, schema, fake implementation and autograd of `flash_attention`."""

from __future__ import annotations

import math
import warnings
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _library, _runtime, support
from .._random import check_dropout, new_seed
from ..support import KERNEL_DTYPES, MAX_HEAD_DIM

FARTHEST = 2**31 - 1  # a window that reaches this far reaches every key


def flash_attention(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    causal: bool = True,
    softmax_scale: float | None = None,
    dropout_p: float = 0.0,
    window: int | tuple[int, int] | None = None,
    key_lengths: Tensor | None = None,
    key_starts: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    document_ids: Tensor | None = None,
    return_lse: bool = False,
    deterministic: bool = True,
) -> Tensor | tuple[Tensor, Tensor]:
    """softmax(q kᵀ · softmax_scale + mask) v without ever holding the (T_q, T_k) scores in memory.

    Heads come before tokens, as in torch, and `causal` is on unless switched off. For torch's own signature and rules
    take `scaled_dot_product_attention`. A q that looks like flash-attn's (B, T, H, D) gives a UserWarning.

    Args:
        q: (B, H, T_q, D) float32, float16 or bfloat16, 1 <= D <= 256, any strides.
        k, v: (B, H_kv, T_k, D) of the same dtype; H a multiple of H_kv (each key head serves H / H_kv query heads).
        causal: query i sees keys j <= i + T_k - T_q (aligned bottom-right: the last query sees every key).
        softmax_scale: default 1 / sqrt(D).
        dropout_p: share of the weights that is dropped, in [0, 1). Follows torch.manual_seed.
        window: w = the last w keys, the query's own included (and as many to the right if not causal); or flash-attn's
            pair (left, right), -1 = no bound.
        key_lengths, key_starts: (B,) integers. Sequence b's keys are key_starts[b] <= j < key_lengths[b]: right and
            left padding. Padding hides keys and never moves the diagonal; hidden keys may hold anything, NaN too.
        cu_seqlens: (N + 1,) int32, 0 = first < ... < last = T_k: the tokens of B = 1 are N documents end to end.
            Values are checked on CPU tensors only (a check on a GPU would have to wait for it).
        document_ids: (B, T_k) integers: a query sees the keys with its own id. Ids may come in any order; documents
            that are contiguous skip the tiles of all other documents.
        return_lse: also return the log-sum-exp of each row's scores.
        deterministic: the only implementation is deterministic; False allows a faster one, and there is none.

    Returns:
        out (B, H, T_q, D), laid out in memory as (B, T_q, H, D), so that `out.transpose(1, 2).flatten(2)` is a view.
        With return_lse also lse (B, H, T_q) float32, natural logarithm, differentiable.
        A row that sees no key has out 0, lse -inf and gradient 0.

    Raises:
        TypeError, ValueError: arguments that do not fit, by name. RuntimeError: no GPU to run on.

    Dao et al. 2022 (arXiv 2205.14135), Dao 2023 (arXiv 2307.08691), Shah et al. 2024 (arXiv 2407.08608).
    """
    out = attend(
        q, k, v, causal=causal, softmax_scale=softmax_scale, dropout_p=dropout_p, window=window,
        key_lengths=key_lengths, key_starts=key_starts, cu_seqlens=cu_seqlens, document_ids=document_ids,
        return_lse=return_lse,
    )  # fmt: skip
    _warn_if_swapped(q)
    return out


def attend(
    q: Tensor, k: Tensor, v: Tensor, *, causal: bool, softmax_scale: float | None = None, dropout_p: float = 0.0,
    window: int | tuple[int, int] | None = None, key_lengths: Tensor | None = None, key_starts: Tensor | None = None,
    cu_seqlens: Tensor | None = None, document_ids: Tensor | None = None, return_lse: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:  # fmt: skip
    """`flash_attention` for callers whose own signature settles the layout."""
    _checks.check_dense(
        "flash_attention", 3, q=q, k=k, v=v, key_lengths=key_lengths, key_starts=key_starts, cu_seqlens=cu_seqlens,
        document_ids=document_ids,
    )  # fmt: skip
    dtype = _runtime.autocast_dtype(q)
    if dtype is not None:
        q, k, v = autocast(dtype, q, k, v)
    B, T_q, T_k = _check_qkv(q, k, v)
    if type(dropout_p) is not float or dropout_p != 0.0:  # no tensor, whose value would have to be waited for
        check_dropout("flash_attention", dropout_p)
    check_causal_and_scale("flash_attention", causal, softmax_scale)
    left, right = check_window("flash_attention", window, causal)
    key_starts = _check_per_sequence("key_starts", key_starts, B)
    key_lengths = _check_per_sequence("key_lengths", key_lengths, B)
    if cu_seqlens is not None:
        if document_ids is not None:
            raise ValueError("flash_attention: give cu_seqlens or document_ids, not both")
        document_ids = documents_of("flash_attention", cu_seqlens, B, T_q, T_k)
    elif document_ids is not None:
        document_ids = _check_documents(document_ids, B, T_q, T_k)
    support.check_launchable(
        "flash_attention", q=q, k=k, v=v, key_lengths=key_lengths, key_starts=key_starts, cu_seqlens=cu_seqlens,
        document_ids=document_ids,
    )  # fmt: skip
    scale = 1.0 / math.sqrt(q.shape[-1]) if softmax_scale is None else float(softmax_scale)
    if scale < 0.0:  # the kernels take row maxima before they scale
        q, scale = -q, -scale
    out, lse = attention_fwd(
        q, k, v, key_starts, key_lengths, document_ids, new_seed(q.device) if dropout_p > 0.0 else None,
        scale, float(dropout_p), causal, left, right,
    )  # fmt: skip
    return (out, lse) if return_lse else out


def autocast(dtype: torch.dtype, *tensors: Tensor) -> list[Tensor]:
    """The tensors in autocast's dtype; those that the kernels do not take, float64 too, are left to the checks."""
    return [x.to(dtype) if x.dtype in KERNEL_DTYPES else x for x in tensors]


def _check_qkv(q: Tensor, k: Tensor, v: Tensor) -> tuple[int, int, int]:
    for name, x in (("q", q), ("k", k), ("v", v)):
        if x.dtype not in KERNEL_DTYPES:
            raise TypeError(
                f"flash_attention: {name} must be float32, float16 or bfloat16, got {x.dtype}; cast it with .to()"
            )
        if x.dim() != 4:
            raise ValueError(f"flash_attention: {name} must be (B, heads, T, head_dim), got shape {tuple(x.shape)}")
    if k.dtype != q.dtype or v.dtype != q.dtype:
        raise TypeError(
            f"flash_attention: q, k and v must have one dtype, got q {q.dtype}, k {k.dtype}, v {v.dtype}; cast them"
        )
    B, H, T_q, D = q.shape
    H_kv, T_k = k.shape[1], k.shape[2]
    if k.shape != v.shape:
        raise ValueError(f"flash_attention: k {tuple(k.shape)} and v {tuple(v.shape)} must have the same shape")
    if k.shape[0] != B:
        raise ValueError(f"flash_attention: k has batch size {k.shape[0]}, but q has {B}")
    if k.shape[3] != D:
        raise ValueError(f"flash_attention: k has head_dim {k.shape[3]}, but q has head_dim {D}")
    if not 1 <= D <= MAX_HEAD_DIM:
        raise ValueError(f"flash_attention: head_dim of q must be 1 to {MAX_HEAD_DIM}, got {D}")
    if (H_kv == 0 and H != 0) or (H_kv != 0 and H % H_kv != 0):
        raise ValueError(f"flash_attention: q's heads must be a multiple of k's, got q {H} and k {H_kv}")
    return B, T_q, T_k


def _warn_if_swapped(q: Tensor) -> None:
    """flash-attn's layout has the same four sizes: only more heads than tokens, in memory that runs that way, tell."""
    if torch.compiler.is_compiling():  # where to compare sizes would tie the graph to them
        return
    B, H, T, D = q.shape
    if H <= T or T <= 1 or q.stride(1) < q.stride(2):  # views of a packed projection are meant
        return
    warnings.warn(
        f"flash_attention: q is ({B}, {H}, {T}, {D}), read as (B, heads, T, head_dim): {H} heads of {T} tokens. If it "
        "is (B, T, heads, head_dim), as flash-attn takes it, pass q.transpose(1, 2), and k and v likewise",
        stacklevel=3,
    )


def check_causal_and_scale(name: str, causal: bool, softmax_scale: float | None) -> None:
    """Raise TypeError for a mask in the place of a switch, or for a scale whose gradient would be lost."""
    if not isinstance(causal, int):  # so that 0 and 1 do, and no tensor, whose value would have to be waited for
        raise TypeError(f"{name}: causal must be True or False, got {causal!r}; use bool(), or name the mask by window")
    _checks.check_numbers(name, softmax_scale=softmax_scale)


def check_window(name: str, window: int | tuple[int, int] | None, causal: bool) -> tuple[int, int]:
    """(left, right): query at position i sees keys i - left ... i + right; -1 = no bound on that side."""
    if window is None:
        return -1, -1
    one = isinstance(window, int | torch.SymInt)
    numbers = (window,) if one else window
    if not isinstance(numbers, tuple | list) or not all(isinstance(x, int | torch.SymInt) for x in numbers):
        raise TypeError(f"{name}: window must be an int or a pair of ints (left, right), got {window!r}; use int()")
    if len(numbers) != (1 if one else 2) or min(numbers) < (1 if one else -1):
        raise ValueError(
            f"{name}: window must be the number of keys a query sees, at least 1, or a pair (left, right) with -1 for "
            f"no bound; got {window}"
        )
    left, right = (window - 1, -1 if causal else window - 1) if one else window
    return min(left, FARTHEST), min(right, FARTHEST)


def check_integers(function: str, name: str, x: Tensor) -> None:
    """Raise TypeError unless x holds integers."""
    if x.is_floating_point() or x.is_complex() or x.is_quantized or x.dtype == torch.bool:
        raise TypeError(f"{function}: {name} must hold integers, got {x.dtype}; convert with .to(torch.int32)")


def _check_per_sequence(name: str, x: Tensor | None, B: int) -> Tensor | None:
    if x is None:
        return None
    check_integers("flash_attention", name, x)
    if x.dim() != 1 or x.shape[0] != B:
        raise ValueError(f"flash_attention: {name} must be (B,) = ({B},), got shape {tuple(x.shape)}")
    return x.contiguous()


def _check_documents(ids: Tensor, B: int, T_q: int, T_k: int) -> Tensor:
    check_integers("flash_attention", "document_ids", ids)
    if ids.dim() != 2 or ids.shape[0] != B or ids.shape[1] != T_k:
        raise ValueError(f"flash_attention: document_ids must be (B, T_k) = ({B}, {T_k}), got {tuple(ids.shape)}")
    if T_q > T_k:
        raise ValueError(
            f"flash_attention: document_ids name the tokens of the keys, of which the queries are the last; got more "
            f"queries (T_q = {T_q}) than keys (T_k = {T_k})"
        )
    return ids.contiguous()


def documents_of(function: str, cu_seqlens: Tensor, B: int, T_q: int, T_k: int) -> Tensor:
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


def _launch_forward(*args: Any) -> tuple[Tensor, Tensor]:
    from . import launch

    return launch.forward(*args)


def _launch_backward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
    from . import launch

    return launch.backward(*args)


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return _fake_heads_last(q), torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)


def _fake_backward(d_out, d_lse, q, k, v, *rest: Any) -> tuple[Tensor, Tensor, Tensor]:
    need_dq, need_dkdv = rest[-2:]
    return tuple(
        _fake_heads_last(x) if needed else q.new_empty(0)
        for x, needed in ((q, need_dq), (k, need_dkdv), (v, need_dkdv))
    )


def _fake_heads_last(x: Tensor) -> Tensor:
    B, H, T, D = x.shape
    return x.new_empty((B, T, H, D)).transpose(1, 2)


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return _library.below_autograd(attention_fwd, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
        q, k, v, *masks_and_seed = inputs[:7]
        ctx.save_for_backward(q, k, v, *outputs, *masks_and_seed)
        ctx.numbers = inputs[7:]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, d_out: Tensor | None, d_lse: Tensor | None) -> tuple[Tensor | None, ...]:
        nothing = (None,) * 12
        need_dq, need_dk, need_dv = ctx.needs_input_grad[:3]
        if (d_out is None and d_lse is None) or not (need_dq or need_dk or need_dv):
            return nothing
        q, k, v, out, lse, *masks = ctx.saved_tensors
        if d_out is None:
            d_out = out.new_zeros(()).expand(out.shape)
        d_q, d_k, d_v = attention_bwd(
            d_out, d_lse, q, k, v, out, lse, *masks, *ctx.numbers, need_dq, need_dk or need_dv
        )
        return (d_q if need_dq else None, d_k if need_dk else None, d_v if need_dv else None, *nothing[3:])


_ARGUMENTS = (
    "Tensor? key_starts, Tensor? key_lengths, Tensor? document_ids, Tensor? seed, "
    "float softmax_scale, float dropout_p, bool causal, SymInt left, SymInt right"
)

attention_fwd = _library.define(
    f"attention_fwd(Tensor q, Tensor k, Tensor v, {_ARGUMENTS}) -> (Tensor, Tensor)",
    launch=_launch_forward,
    fake=_fake_forward,
    public="flash_attention",
    autograd=_FlashAttention,
    differentiable=(0, 1, 2),
)
attention_bwd = _library.define(
    f"attention_bwd(Tensor d_out, Tensor? d_lse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_ARGUMENTS}, "
    "bool need_dq, bool need_dkdv) -> (Tensor, Tensor, Tensor)",
    launch=_launch_backward,
    fake=_fake_backward,
    public="flash_attention",
)
