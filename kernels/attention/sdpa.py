"""`scaled_dot_product_attention`: torch's function, on these kernels wherever they can take the call.

torch aligns its causal mask top-left (query i sees keys 0 ... i), `flash_attention` bottom-right (the last query sees
every key). The two agree when T_q == T_k, and top-left is otherwise one of

    T_q < T_k   keys beyond T_q are seen by nobody: a square causal call on the first T_q keys
    T_q > T_k   query i stands at position i + T_k - T_q, so "j <= i" is a window that reaches T_q - T_k to the right
"""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from .. import _checks, _runtime, _transforms, support
from .._notice import say_fallback
from .op import attend


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
    """torch.nn.functional.scaled_dot_product_attention, argument for argument, for a one-line swap.

    What the kernels cannot take goes to torch's own function, and the "fastgpt" log says so, with the reason, once:
    an `attn_mask` (other than torch's CausalBias, whose two alignments are known), a dtype that is not float32,
    float16 or bfloat16, a head_dim above 256, nested tensors, a device without Triton. Whatever torch rejects is
    rejected by torch.

    Args:
        query: (..., H, T_q, E). Any number of batch dims, which broadcast; 2-D and 3-D as in torch.
        key: (..., H_kv, T_k, E); value: (..., H_kv, T_k, E_v). Where E_v != E, the narrower of the two is padded with
            zeros: a copy. H_kv = H, or with `enable_gqa` a divisor of H (no copy of key or value is made).
        attn_mask: bool (True = takes part) or float (added to the scores), broadcasting to (..., H, T_q, T_k).
        dropout_p: applied whenever it is above 0, as torch does: pass 0.0 in evaluation.
        is_causal: top-left causal mask: query i sees keys 0 ... i.
        scale: default 1 / sqrt(E).

    Returns:
        (..., H, T_q, E_v), in query's dtype. Rows that see no key are 0.

    Raises:
        TypeError: query, key, value or attn_mask is no tensor.
    """
    _checks.check_tensors("scaled_dot_product_attention", 3, query=query, key=key, value=value, attn_mask=attn_mask)
    causal = "upper_left" if is_causal else None
    mask = attn_mask
    if mask is not None and type(mask) is not Tensor and not is_causal:
        causal = _causal_bias(mask, query, key)
        mask = mask if causal is None else None
    reason = _why_torchs(query, key, value, mask, dropout_p, scale, enable_gqa)
    if reason is not None:
        say_fallback("scaled_dot_product_attention", "torch's own function is used", reason)
        if causal is not None and not is_causal:  # a CausalBias knows torch's function by its public name only
            attn_mask, is_causal = _without_causal_bias(query, key, causal)
        tensors = query, key, value, attn_mask
        options: dict[str, Any] = {"scale": scale, "enable_gqa": enable_gqa}
        if not _transforms.are_on():
            return _runtime.torch_attention(*tensors, dropout_p, is_causal, **options)
        # Of torch's own, only the one that materialises the scores has a forward mode and second derivatives.
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            return _runtime.torch_attention(*tensors, dropout_p, is_causal, **options)

    T_q, T_k, head_dim, value_dim = query.shape[-2], key.shape[-2], query.shape[-1], value.shape[-1]
    if head_dim != value_dim:
        scale = 1.0 / math.sqrt(head_dim) if scale is None else scale
        query, key = _pad_last(query, value_dim), _pad_last(key, value_dim)
        value = _pad_last(value, head_dim)
    square, window = causal == "lower_right", None
    if causal == "upper_left":
        square, window = top_left(T_q, T_k)
        if T_q < T_k:
            key, value = key[..., :T_q, :], value[..., :T_q, :]
    q, k, v = _to_4d(query, key, value, enable_gqa)
    out = attend(q, k, v, causal=square, softmax_scale=scale, dropout_p=dropout_p, window=window)
    out = out if head_dim <= value_dim else out[..., :value_dim]
    if query.dim() < 4:
        return out[0] if query.dim() == 3 else out[0, 0]
    if query.dim() > 4:
        return out.unflatten(0, torch.broadcast_shapes(query.shape[:-3], key.shape[:-3], value.shape[:-3]))
    return out


def top_left(T_q: int, T_k: int) -> tuple[bool, tuple[int, int] | None]:
    """`flash_attention`'s (causal, window) for a top-left causal mask; where T_q < T_k, on the first T_q keys only."""
    return (False, (-1, T_q - T_k)) if T_q > T_k else (True, None)


def _causal_bias(mask: Tensor, query: Tensor, key: Tensor) -> str | None:
    """The alignment that a torch.nn.attention.bias.CausalBias of the right size stands for."""
    from torch.nn.attention.bias import CausalBias, CausalVariant

    if not isinstance(mask, CausalBias) or (mask.seq_len_q, mask.seq_len_kv) != (query.shape[-2], key.shape[-2]):
        return None
    return "upper_left" if mask.variant == CausalVariant.UPPER_LEFT else "lower_right"


def _without_causal_bias(query: Tensor, key: Tensor, alignment: str) -> tuple[Tensor | None, bool]:
    """torch's (attn_mask, is_causal) for one of the two alignments."""
    T_q, T_k = query.shape[-2], key.shape[-2]
    if alignment == "upper_left" or T_q == T_k:
        return None, True
    return torch.ones(T_q, T_k, dtype=torch.bool, device=query.device).tril(T_k - T_q), False


def _why_torchs(
    query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None, dropout_p: float, scale: float | None,
    enable_gqa: bool,
) -> str | None:  # fmt: skip
    """Why the kernels cannot take this call; None if they can."""
    if mask is not None:
        return (
            "attn_mask is a tensor, and its values would have to be read; is_causal=True, or flash_attention with "
            "key_lengths, key_starts, window or document_ids, say it without one"
        )
    reason = support.why_not(query, key, value)
    if reason is not None:
        return reason
    dims = query.dim()
    if dims < 2 or key.dim() != dims or value.dim() != dims:
        return "query, key and value do not have the same number of dims, or fewer than 2"
    reason = support.head_dim_why_not(query.shape[-1]) or support.head_dim_why_not(value.shape[-1])
    if reason is not None:
        return reason
    if key.shape[-1] != query.shape[-1] or key.shape[-2] != value.shape[-2]:
        return "the shapes of query, key and value do not fit"
    if isinstance(dropout_p, Tensor) or isinstance(scale, Tensor):
        return "dropout_p or scale is a tensor, and its value would have to be read"
    reason = support.dropout_why_not(dropout_p)
    if reason is not None:
        return reason
    if dims > 2:
        heads, heads_k, heads_v = query.shape[-3], key.shape[-3], value.shape[-3]
        if enable_gqa:
            if heads_k != heads_v or heads_k == 0 or heads % heads_k != 0:
                return "key's and value's head counts are not one divisor of query's"
        elif (heads_k != heads or heads_v != heads) and not _broadcasts(heads, heads_k, heads_v):
            return "the head counts of query, key and value differ, and enable_gqa is off"
    for sizes in zip(query.shape[:-3], key.shape[:-3], value.shape[:-3]):
        if not _broadcasts(*sizes):
            return "the batch dims of query, key and value do not broadcast"
    return None


def _broadcasts(*sizes: int) -> bool:
    return all(size == sizes[0] for size in sizes) or len({size for size in sizes if size != 1}) <= 1


def _pad_last(x: Tensor, size: int) -> Tensor:
    return F.pad(x, (0, size - x.shape[-1])) if x.shape[-1] < size else x


def _to_4d(q: Tensor, k: Tensor, v: Tensor, enable_gqa: bool) -> tuple[Tensor, Tensor, Tensor]:
    """(B, H, T, E) of q, k, v, with batch dims, and without `enable_gqa` heads, broadcast.

    Views, except where more than one batch dim cannot be flattened without a copy.
    """
    if q.dim() < 4:
        missing = (None,) * (4 - q.dim())
        q, k, v = q[missing], k[missing], v[missing]
    if not enable_gqa and q.shape[-3] != 1 and k.shape[-3] == v.shape[-3] == 1:
        enable_gqa = True  # one key head for all: the kernels share it, where an expanded view would read it H times
    kept = -3 if enable_gqa else -2  # the dims from here on stay as they are
    if not q.shape[:kept] == k.shape[:kept] == v.shape[:kept]:
        shape = torch.broadcast_shapes(q.shape[:kept], k.shape[:kept], v.shape[:kept])
        q, k, v = (x.expand(*shape, *x.shape[kept:]) for x in (q, k, v))
    return (q, k, v) if q.dim() == 4 else (q.flatten(0, -4), k.flatten(0, -4), v.flatten(0, -4))
