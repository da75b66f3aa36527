"""Our attention as an implementation that any Hugging Face transformers model can name.

    fastgpt.interop.attention_registry.register()
    model.set_attn_implementation("fastgpt")

Two functions go under one name: the attention, and the builder of its masks. Without the second, transformers builds no
mask for a name that it does not know, and padded batches are silently wrong. What the builder returns:

    None              plain causal (or no mask at all, where the module is not causal)
    (B, 2) integers   causal, and sequence b's keys are [start, end): left and right padding
    4-D bool          anything else, which torch's attention then takes
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import _runtime, attention_weights, reference
from ..kernels._notice import say_once
from ..kernels.attention.op import MAX_HEAD_DIM, attend
from ..kernels.attention.sdpa import tensors_why_not

NAME = "fastgpt"


def register(name: str = NAME) -> str:
    """Make `model.set_attn_implementation(name)` work for every transformers model; returns the name.

    Raises:
        ImportError: transformers is not installed, or too old to have the interfaces.
    """
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface
    except ImportError as error:
        raise ImportError("register: this needs transformers >= 4.53; `pip install -U transformers`") from error
    AttentionInterface.register(name, attention)
    AttentionMaskInterface.register(name, mask)
    return name


def attention(
    module: nn.Module,
    query: Tensor,
    key: Tensor,
    value: Tensor,
    attention_mask: Tensor | None,
    dropout: float = 0.0,
    scaling: float | None = None,
    is_causal: bool | None = None,
    **kwargs: Any,
) -> tuple[Tensor, Tensor | None]:
    """transformers' attention function: q (B, H, T_q, D), k and v (B, H_kv, T_k, D) -> out (B, T_q, H, D), weights.

    Causal means that the last query sees every key that is not padding. The weights (B, H, T_q, T_k), before dropout,
    are there when `output_attentions` asks for them, and None otherwise.

    Raises:
        ValueError: the model wants logit soft-capping or attention sinks.
    """
    for feature in ("softcap", "s_aux"):
        if kwargs.get(feature) is not None:
            raise ValueError(f'attn_implementation="{NAME}" has no {feature}; use "eager" for this model')
    bounds = attention_mask if attention_mask is not None and attention_mask.dim() == 2 else None
    foreign = attention_mask is not None and bounds is None
    causal = bounds is not None or bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)
    sees: dict[str, Any] = {"causal": causal, "softmax_scale": scaling}
    if bounds is not None:
        sees |= {"key_starts": bounds[:, 0].contiguous(), "key_lengths": bounds[:, 1].contiguous()}
    wanted = _weights_wanted(module, kwargs)
    reason = _why_not(query, key, value, foreign, kwargs)
    if reason is None:
        out, lse = attend(query, key, value, dropout_p=dropout, return_lse=True, **sees)
        return out.transpose(1, 2), attention_weights(query, key, lse, **sees) if wanted else None
    say_once(f'attn_implementation="{NAME}": torch\'s attention is used, because {reason}')
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    T_q, T_k = query.shape[2], key.shape[2]
    dense = attention_mask
    if bounds is not None or (causal and not foreign and 1 < T_q < T_k):
        limits = {name: sees[name] for name in ("key_starts", "key_lengths") if name in sees}
        dense = reference.attention_mask(T_q, T_k, causal=True, **limits, device=query.device)
    out, _ = sdpa_attention_forward(module, query, key, value, dense, dropout, scaling, causal, **kwargs)
    return out, reference.attention_weights(query, key, **sees) if wanted and not foreign else None


def _weights_wanted(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether the caller asked for attention weights. Models since transformers 5 do not pass the question on to here,
    but collect what their layers return: then their collector knows."""
    if kwargs.get("output_attentions") or getattr(getattr(module, "config", None), "output_attentions", False):
        return True
    try:
        from transformers.utils.output_capturing import _active_collector
    except ImportError:
        return False
    return "attentions" in (_active_collector.get() or ())


def _why_not(query: Tensor, key: Tensor, value: Tensor, foreign: bool, kwargs: dict[str, Any]) -> str | None:
    """Why the kernels cannot take this call; None if they can."""
    if foreign:
        return "the mask is neither causal nor padding at the ends"
    if kwargs.get("position_bias") is not None:
        return "the model adds a position bias to the scores"
    if query.shape[-1] > MAX_HEAD_DIM or value.shape[-1] != query.shape[-1]:
        return f"head_dim is above {MAX_HEAD_DIM}, or not the same for keys and values"
    return tensors_why_not(query, key, value)


def mask(
    batch_size: int,
    q_length: int,
    kv_length: int,
    q_offset: int = 0,
    kv_offset: int = 0,
    mask_function: Callable | None = None,
    attention_mask: Tensor | None = None,
    **kwargs: Any,
) -> Tensor | None:
    """transformers' mask builder; see the module's docstring for what it returns."""
    from transformers.masking_utils import causal_mask_function, sdpa_mask

    function = causal_mask_function if mask_function is None else mask_function
    aligned = isinstance(q_offset, int) and q_offset + q_length == kv_offset + kv_length
    if function is causal_mask_function and aligned:
        bounds = None
        if attention_mask is None:
            return None
        if attention_mask.dim() == 2 and attention_mask.shape[1] >= kv_length and _runtime.can_be_read(attention_mask):
            kept = attention_mask[:, -kv_length:].bool()
            if bool(kept.all()):
                return None
            bounds = _bounds(kept)
        if bounds is not None:
            return bounds
    return sdpa_mask(
        batch_size, q_length, kv_length, q_offset, kv_offset, function, attention_mask,
        **{**kwargs, "allow_is_causal_skip": False},
    )  # fmt: skip


def _bounds(kept: Tensor) -> Tensor | None:
    """(B, 2) int32 [start, end) of the keys kept in (B, T_k) bool; None if some row has a hole."""
    j = torch.arange(kept.shape[1], device=kept.device)
    start = torch.where(kept, j, kept.shape[1]).amin(dim=1)
    end = torch.where(kept, j + 1, 0).amax(dim=1)
    if bool((end.clamp(min=0) - start != kept.sum(dim=1)).logical_and(kept.any(dim=1)).any()):
        return None
    return torch.stack([start, end], dim=1).int()
