"""`flash_attention` as torch sees it: the public function, its two operators, their fake implementations, autograd."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _library, _runtime, support
from .._random import check_dropout, new_seed
from . import arguments


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
) -> Tensor | Any:
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
) -> Tensor | Any:  # fmt: skip
    """`flash_attention` for callers whose own signature settles the layout."""
    _checks.check_dense(
        "flash_attention", 3, q=q, k=k, v=v, key_lengths=key_lengths, key_starts=key_starts, cu_seqlens=cu_seqlens,
        document_ids=document_ids,
    )  # fmt: skip
    if (dtype := _runtime.autocast_dtype(q)) is not None:
        q, k, v = (_checks.as_autocast_asks(x, dtype) for x in (q, k, v))
    arguments.check_heads("flash_attention", q=q, k=k, v=v)
    B, T_q, T_k = q.shape[0], q.shape[2], k.shape[2]
    if type(dropout_p) is not float or dropout_p != 0.0:  # no tensor, whose value would have to be waited for
        check_dropout("flash_attention", dropout_p)
    arguments.check_causal_and_scale("flash_attention", causal, softmax_scale)
    left, right = arguments.window_bounds("flash_attention", window, causal)
    key_starts = arguments.per_sequence("flash_attention", "key_starts", key_starts, B)
    key_lengths = arguments.per_sequence("flash_attention", "key_lengths", key_lengths, B)
    document_ids = arguments.documents("flash_attention", document_ids, cu_seqlens, B, T_q, T_k)
    support.check_launchable(
        "flash_attention", q=q, k=k, v=v, key_lengths=key_lengths, key_starts=key_starts, cu_seqlens=cu_seqlens,
        document_ids=document_ids,
    )  # fmt: skip
    scale = arguments.scale_of(q, softmax_scale)
    if scale < 0.0:  # the kernels take row maxima before they scale
        q, scale = -q, -scale
    out, lse = attention_fwd(
        q, k, v, key_starts, key_lengths, document_ids, new_seed(q.device) if dropout_p > 0.0 else None,
        scale, float(dropout_p), causal, left, right,
    )  # fmt: skip
    return (out, lse) if return_lse else out


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


# ---- The operators. Their settings, in the order of the schema below, are handed on as they come. --------------------


def _launch_forward(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    from . import launch

    return launch.forward(q, k, v, *settings)


def _launch_backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    from . import launch

    return launch.backward(dout, dlse, q, k, v, out, lse, *settings)


def _fake_forward(q: Tensor, k: Tensor, v: Tensor, *settings: Any) -> tuple[Tensor, Tensor]:
    return _fake_heads_last(q), torch.empty(q.shape[:3], dtype=torch.float32, device=q.device)


def _fake_backward(
    dout: Tensor, dlse: Tensor | None, q: Tensor, k: Tensor, v: Tensor, out: Tensor, lse: Tensor, *settings: Any
) -> tuple[Tensor, Tensor, Tensor]:
    need_dq, need_dkdv = settings[-2:]
    dq = _fake_heads_last(q) if need_dq else q.new_empty(0)
    dk, dv = (_fake_heads_last(x) if need_dkdv else q.new_empty(0) for x in (k, v))
    return dq, dk, dv


def _fake_heads_last(x: Tensor) -> Tensor:
    B, H, T, D = x.shape
    return x.new_empty((B, T, H, D)).transpose(1, 2)


class _FlashAttention(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return _library.below_autograd(attention_fwd, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        q, k, v, *masks_and_seed = inputs[:7]
        ctx.save_for_backward(q, k, v, *output, *masks_and_seed)
        ctx.numbers = inputs[7:]
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, dlse: Tensor | None) -> tuple[Tensor | None, ...]:
        settings = (None,) * 9  # nothing of them is differentiable
        need_dq, need_dk, need_dv = ctx.needs_input_grad[:3]
        if (dout is None and dlse is None) or not (need_dq or need_dk or need_dv):
            return None, None, None, *settings
        q, k, v, out, lse, *masks_and_seed = ctx.saved_tensors
        if dout is None:
            dout = out.new_zeros(()).expand(out.shape)
        dq, dk, dv = attention_bwd(
            dout, dlse, q, k, v, out, lse, *masks_and_seed, *ctx.numbers, need_dq, need_dk or need_dv
        )
        return dq if need_dq else None, dk if need_dk else None, dv if need_dv else None, *settings


_SETTINGS = (
    "Tensor? key_starts, Tensor? key_lengths, Tensor? document_ids, Tensor? seed, "
    "float softmax_scale, float dropout_p, bool causal, SymInt left, SymInt right"
)

attention_fwd = _library.define(
    f"attention_fwd(Tensor q, Tensor k, Tensor v, {_SETTINGS}) -> (Tensor, Tensor)",
    launch=_launch_forward,
    fake=_fake_forward,
    public="flash_attention",
    autograd=_FlashAttention,
    differentiable=(0, 1, 2),
)
attention_bwd = _library.define(
    f"attention_bwd(Tensor dout, Tensor? dlse, Tensor q, Tensor k, Tensor v, Tensor out, Tensor lse, {_SETTINGS}, "
    "bool need_dq, bool need_dkdv) -> (Tensor, Tensor, Tensor)",
    launch=_launch_backward,
    fake=_fake_backward,
    public="flash_attention",
)
