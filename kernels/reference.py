"""The public functions in plain PyTorch: the truth that the kernels are tested against.

Same names and signatures as `fastgpt.kernels`, and not a line of code in common with them: a judge shares nothing with
the judged. Written to be read: one formula a line, nothing fused, nothing saved. Everything differentiates twice, runs
on any device, and is exact when given float64. Shapes: B batch, H query heads, H_kv key/value heads, T_q queries,
T_k keys, D head_dim, N tokens, V vocabulary.

In this order: attention, layer norm, FFN, loss; at the end what refuses arguments that do not fit.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from numbers import Integral
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# What has this name in torch.nn.functional may be ours by now, or anybody's: it is made to be swapped.
_torch_attention = torch._C._nn.scaled_dot_product_attention

# ---- Attention -------------------------------------------------------------------------------------------------------


def attention_mask(
    T_q: int,
    T_k: int,
    *,
    causal: bool = True,
    window: int | tuple[int, int] | None = None,
    key_lengths: Tensor | None = None,
    key_starts: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    document_ids: Tensor | None = None,
    device: torch.device | None = None,
) -> Tensor:
    """(B or 1, 1, T_q, T_k) bool, True where query i sees key j. Every condition narrows the ones before.

    The diagonal is aligned bottom-right: the last query stands at the last key, so query i stands at key
    i + T_k - T_q. Padding hides keys and never moves the diagonal.
    """
    i = torch.arange(T_q, device=device)[:, None] + (T_k - T_q)  # (T_q, 1) position of the query among the keys
    j = torch.arange(T_k, device=device)[None, :]  # (1, T_k)
    sees = torch.ones(1, 1, T_q, T_k, dtype=torch.bool, device=device)
    if causal:
        sees = sees & (j <= i)
    left, right = window_bounds(window, causal)
    if left is not None:
        sees = sees & (i - j <= min(left, T_q + T_k))  # a bound may be larger than any int64
    if right is not None:
        sees = sees & (j - i <= min(right, T_q + T_k))
    if key_lengths is not None:
        sees = sees & (j < key_lengths[:, None, None, None])
    if key_starts is not None:
        sees = sees & (j >= key_starts[:, None, None, None])
    if cu_seqlens is not None:
        positions = torch.arange(T_k, device=device)
        document_ids = torch.searchsorted(cu_seqlens[1:].long(), positions, right=True)[None]  # (1, T_k)
    if document_ids is not None:
        sees = sees & (document_ids[:, None, T_k - T_q :, None] == document_ids[:, None, None, :])
    return sees


def window_bounds(window: int | tuple[int, int] | None, causal: bool) -> tuple[int | None, int | None]:
    """(left, right): query at position i sees keys i - left ... i + right; None = no bound on that side.

    An int w is the usual sliding window: w keys, the query's own included (and as many to the right if not causal).
    A pair is flash-attn's window_size: (left, right), -1 = no bound.
    """
    if window is None:
        return None, None
    if isinstance(window, int):
        return window - 1, (None if causal else window - 1)
    left, right = window
    return (None if left < 0 else left), (None if right < 0 else right)


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
    dropout_mask: Tensor | None = None,
) -> Tensor | Any:
    """softmax(q kᵀ · scale + mask) v, and the log-sum-exp of the masked scores.

    q (B, H, T_q, D); k, v (B, H_kv, T_k, D) with H a multiple of H_kv; out (B, H, T_q, D); lse (B, H, T_q),
    float32 or wider. A row that sees no key gives output 0, lse -inf and gradient 0. `dropout_mask` (B, H, T_q, T_k),
    bool, True = kept, replaces the random mask (tests compare with the kernels' own).
    """
    _check_tensors(
        "flash_attention", 3, q=q, k=k, v=v, key_lengths=key_lengths, key_starts=key_starts, cu_seqlens=cu_seqlens,
        document_ids=document_ids,
    )  # fmt: skip
    sees = attention_mask(
        q.shape[2], k.shape[2], causal=causal, window=window, key_lengths=key_lengths, key_starts=key_starts,
        cu_seqlens=cu_seqlens, document_ids=document_ids, device=q.device,
    )  # fmt: skip
    k, v = _for_each_query_head(k, q), _for_each_query_head(v, q)  # (B, H, T_k, D)
    weights = _dropout(_softmax(_scores(q, k, softmax_scale), sees), dropout_p, dropout_mask)  # (B, H, T_q, T_k)
    out = weights @ v
    if not return_lse:
        return out
    # float32 whatever the inputs are, as all statistics: from scores that were never rounded to 16 bits.
    wide = torch.promote_types(q.dtype, torch.float32)
    return out, _log_sum_exp(_scores(q.to(wide), k.to(wide), softmax_scale), sees)


def _for_each_query_head(x: Tensor, q: Tensor) -> Tensor:
    """(B, H_kv, T_k, D) -> (B, H, T_k, D): H / H_kv query heads, one after another, share a key head."""
    return x.repeat_interleave(q.shape[1] // max(1, x.shape[1]), dim=1)


def _scores(q: Tensor, k: Tensor, softmax_scale: float | None) -> Tensor:
    """q kᵀ · scale: (B, H, T_q, T_k)."""
    scale = 1.0 / math.sqrt(q.shape[-1]) if softmax_scale is None else softmax_scale
    return (q @ k.transpose(-2, -1)) * scale


def _softmax(scores: Tensor, sees: Tensor) -> Tensor:
    """Softmax over the keys that a query sees; a row that sees none is 0, where softmax would be 0/0."""
    empty = ~sees.any(dim=-1, keepdim=True)
    scores = scores.masked_fill(~sees, float("-inf")).masked_fill(empty, 0.0)
    return torch.softmax(scores, dim=-1).masked_fill(empty, 0.0)


def _log_sum_exp(scores: Tensor, sees: Tensor) -> Tensor:
    """log Σ exp over the keys that a query sees, natural logarithm; -inf where it sees none."""
    empty = ~sees.any(dim=-1, keepdim=True)
    scores = scores.masked_fill(~sees, float("-inf")).masked_fill(empty, 0.0)
    return torch.logsumexp(scores, dim=-1).masked_fill(empty.squeeze(-1), float("-inf"))


def _dropout(x: Tensor, dropout_p: float, mask: Tensor | None) -> Tensor:
    """Dropout of x by `mask` (bool, True = kept), or by torch's own dice where it is None."""
    if mask is not None:
        return x * mask / (1.0 - dropout_p)
    return F.dropout(x, dropout_p) if dropout_p > 0.0 else x


def scaled_dot_product_attention(
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attn_mask: Tensor | None = None,
    dropout_p: float = 0.0,
    is_causal: bool = False,
    scale: float | None = None,
    enable_gqa: bool = False,
) -> Tensor:
    """torch's own, on its "math" path: the causal mask is aligned top-left, a bool mask is True where kept."""
    _check_tensors("scaled_dot_product_attention", 3, query=query, key=key, value=value, attn_mask=attn_mask)
    with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
        return _torch_attention(query, key, value, attn_mask, dropout_p, is_causal, scale=scale, enable_gqa=enable_gqa)


def attention_weights(
    q: Tensor,
    k: Tensor,
    lse: Tensor | None = None,
    *,
    heads: list[int] | None = None,
    rows: slice | None = None,
    causal: bool = True,
    softmax_scale: float | None = None,
    window: int | tuple[int, int] | None = None,
    key_lengths: Tensor | None = None,
    key_starts: Tensor | None = None,
    cu_seqlens: Tensor | None = None,
    document_ids: Tensor | None = None,
) -> Tensor:
    """exp(q kᵀ · scale - lse) of the chosen heads and rows: (B, len(heads), rows, T_k). lse is recomputed here."""
    _check_tensors(
        "attention_weights", 2, q=q, k=k, key_lengths=key_lengths, key_starts=key_starts, cu_seqlens=cu_seqlens,
        document_ids=document_ids,
    )  # fmt: skip
    sees = attention_mask(
        q.shape[2], k.shape[2], causal=causal, window=window, key_lengths=key_lengths, key_starts=key_starts,
        cu_seqlens=cu_seqlens, document_ids=document_ids, device=q.device,
    )  # fmt: skip
    weights = _softmax(_scores(q, _for_each_query_head(k, q), softmax_scale), sees)
    weights = weights if heads is None else weights[:, heads]
    return weights if rows is None else weights[:, :, rows]


# ---- Layer norm ------------------------------------------------------------------------------------------------------


def layer_norm(
    x: Tensor,
    normalized_shape: int | list[int] | tuple[int, ...] | torch.Size | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) · weight + bias over the trailing `normalized_shape` dims (default: last).

    Computed in float32 or better; the result has x's dtype, or out_dtype.
    """
    _check_tensors("layer_norm", 1, x=x, weight=weight, bias=bias)
    affine = weight if weight is not None else bias
    if normalized_shape is None:
        normalized_shape = x.shape[-1:] if affine is None else affine.shape
    dims = tuple(range(x.dim() - len(_checked_sizes(normalized_shape, x)), x.dim()))
    wide = x if x.dtype == torch.float64 else x.float()
    mean = wide.mean(dims, keepdim=True)
    var = (wide - mean).square().mean(dims, keepdim=True)
    y = (wide - mean) * torch.rsqrt(var + eps)
    y = y if weight is None else y * weight
    y = y if bias is None else y + bias
    return y.to(out_dtype or x.dtype)


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    *,
    out_dtype: torch.dtype | None = None,
    dropout_mask: Tensor | None = None,
) -> tuple[Tensor, Tensor]:
    """new = residual + dropout(x), in residual's dtype; returns (layer_norm(new) in x's dtype or out_dtype, new)."""
    _check_tensors("add_layer_norm", 2, x=x, residual=residual, weight=weight, bias=bias)
    if dropout_mask is not None:
        kept = x.to(torch.promote_types(x.dtype, residual.dtype))  # what is added is rounded to that only
    else:
        kept = x
    new_residual = (residual + _dropout(kept, dropout_p, dropout_mask)).to(residual.dtype)
    return layer_norm(new_residual, None, weight, bias, eps, out_dtype=out_dtype or x.dtype), new_residual


# ---- FFN -------------------------------------------------------------------------------------------------------------


def gelu(x: Tensor, approximate: str = "none") -> Tensor:
    """ "none": x · Φ(x) with the exact Φ; "tanh": 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))."""
    return F.gelu(x, approximate=approximate)


def linear_gelu(
    x: Tensor, w: Tensor, b: Tensor | None = None, approximate: str = "none", *, path: str = "auto"
) -> Tensor:
    """gelu(x wᵀ + b). x (..., d_in), w (d_out, d_in), b (d_out). There is one path here: `path` changes nothing."""
    _check_tensors("linear_gelu", 2, x=x, w=w, b=b)
    return gelu(F.linear(x, w, b), approximate)


def gelu_ffn(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    approximate: str = "none",
    *,
    recompute: bool = False,
    dropout_p: float = 0.0,
    residual: Tensor | None = None,
    path: str = "auto",
    dropout_mask: Tensor | None = None,
) -> Tensor:
    """residual + dropout(gelu(x w1ᵀ + b1) w2ᵀ + b2). x (..., d_in), w1 (d_hidden, d_in), w2 (d_out, d_hidden).

    `recompute` and `path` choose how the kernels get there and change nothing here. `dropout_mask` (..., d_out), bool,
    True = kept, replaces the random mask (tests compare with the kernels' own).
    """
    _check_tensors("gelu_ffn", 3, x=x, w1=w1, w2=w2, b1=b1, b2=b2, residual=residual)
    y = _dropout(F.linear(linear_gelu(x, w1, b1, approximate), w2, b2), dropout_p, dropout_mask)
    return y if residual is None else residual + y


# ---- Loss ------------------------------------------------------------------------------------------------------------


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    return_lse: bool = False,
    inplace: bool = False,
) -> Tensor | Any:
    """Cross-entropy of (..., V) logits with (...) targets, in float32 or better. `inplace` changes nothing here.

    softcap c: logits -> c · tanh(logits / c), before everything else (Gemma 2). z_loss w: adds w · lse² to each row
    that is not ignored (PaLM, arXiv 2204.02311 §5). Reductions as in torch: "mean" is over rows not ignored.
    """
    _check_tensors("cross_entropy", 2, logits=logits, target=target)
    _check_target("cross_entropy", target, logits.shape[:-1], "logits")
    wide = logits if logits.dtype == torch.float64 else logits.float()
    wide = wide if softcap is None else softcap * torch.tanh(wide / softcap)
    rows, flat = wide.reshape(-1, wide.shape[-1]), target.reshape(-1).long()  # (N, V), (N,)
    try:
        loss = F.cross_entropy(rows, flat, ignore_index=ignore_index, reduction="none", label_smoothing=label_smoothing)
    except IndexError:
        raise _out_of_bounds(flat, rows.shape[-1], ignore_index) from None
    lse = torch.logsumexp(rows, dim=-1)
    valid = flat != ignore_index
    loss = loss + z_loss * lse.square().masked_fill(~valid, 0.0) if z_loss else loss
    if reduction == "mean":
        loss = loss.sum() / valid.sum()
    elif reduction == "sum":
        loss = loss.sum()
    else:
        loss = loss.view(target.shape)
    return (loss, lse.view(target.shape)) if return_lse else loss


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    return_lse: bool = False,
    *,
    num_chunks: int | None = None,
) -> Tensor | Any:
    """cross_entropy(x weightᵀ + bias, target, ...), in one chunk. x (..., d), weight (V, d), bias (V), target (...)."""
    _check_tensors("linear_cross_entropy", 3, x=x, weight=weight, target=target, bias=bias)
    _check_target("linear_cross_entropy", target, x.shape[:-1], "x")
    logits = F.linear(x, weight, bias)
    return cross_entropy(
        logits, target, ignore_index=ignore_index, reduction=reduction, label_smoothing=label_smoothing, z_loss=z_loss,
        softcap=softcap, return_lse=return_lse,
    )  # fmt: skip


# ---- Arguments that do not fit ---------------------------------------------------------------------------------------


def _check_tensors(function: str, required: int, **tensors: Tensor | None) -> None:
    """Raise TypeError unless every argument is a tensor; all but the first `required` may be None."""
    for number, (name, tensor) in enumerate(tensors.items()):
        if isinstance(tensor, Tensor) or (tensor is None and number >= required):
            continue
        kind, way_out = type(tensor).__name__, "a tensor"
        if type(tensor).__module__.split(".")[0] == "numpy":
            way_out = f"torch.from_numpy({name})" if kind == "ndarray" else f"torch.tensor({name})"
            kind = f"numpy.{kind}"
        elif isinstance(tensor, list | tuple | int | float | complex):
            way_out = f"torch.tensor({name})"
        raise TypeError(f"reference.{function}: {name} must be a torch.Tensor, got {kind}; pass {way_out}")


def _checked_sizes(normalized_shape: int | Iterable[int], x: Tensor) -> tuple[int, ...]:
    """`normalized_shape` as a tuple; raise unless these are integers and the last dimensions of x."""
    given = normalized_shape
    sizes: tuple[Any, ...] = (given,)
    if isinstance(given, Iterable) and not isinstance(given, Tensor):
        sizes = tuple(given)
    if not all(isinstance(size, Integral | torch.SymInt) for size in sizes):
        raise TypeError(
            f"reference.layer_norm: normalized_shape is {given!r}, expected an int or a sequence of ints; convert it"
        )
    if not 0 < len(sizes) <= x.dim() or tuple(x.shape[x.dim() - len(sizes) :]) != sizes:
        raise ValueError(
            f"reference.layer_norm: normalized_shape {sizes} must be the last dimensions, at least one, of x, whose "
            f"shape is {tuple(x.shape)}"
        )
    return sizes


def _check_target(function: str, target: Tensor, shape: torch.Size, of: str) -> None:
    """Raise unless `target` holds class indices of `shape`, the leading shape of the argument `of`."""
    if target.dtype not in (torch.int64, torch.int32):
        raise TypeError(
            f"reference.{function}: target is {target.dtype}, expected int64 or int32 class indices; use "
            "target.long(). For class probabilities use torch.nn.functional.cross_entropy"
        )
    if target.shape != shape:
        raise ValueError(
            f"reference.{function}: target has shape {tuple(target.shape)}, expected {tuple(shape)}, the shape of {of} "
            "without its last dimension; reshape it"
        )


def _out_of_bounds(target: Tensor, V: int, ignore_index: int) -> IndexError:
    """The error for the first target outside of [0, V), which torch has found (on a CPU, where it looks)."""
    first = target[(target != ignore_index) & ((target < 0) | (target >= V))][0].item()
    hint = "; where -1 marks those, as in nanoGPT, pass ignore_index=-1" if first == -1 else ""
    return IndexError(
        f"reference.cross_entropy: target {first} is out of bounds for {V} classes; use values in [0, {V}), or "
        f"ignore_index ({ignore_index}) for rows that must not count{hint}"
    )
