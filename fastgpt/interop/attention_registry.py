"""Our attention as an implementation that any Hugging Face transformers model can name.

    model.set_attn_implementation(fastgpt.interop.attention_registry.register())

Two functions go under one name: the attention, and the builder of its masks (`key_mask.py`). Without the second,
transformers builds no mask for a name that it does not know, and padded batches are silently wrong.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils import _pytree

from ..kernels import attention_weights, reference, support
from ..kernels._notice import say_fallback
from ..kernels.attention.op import attend
from ..nn.impl import Choice, decided
from .key_mask import KeyMask, mask
from .plain_attention import plain_attention


class _RegisteredName(str):
    """The name that a model's config holds. A pickle of it registers the attention in the process that reads it."""

    __slots__ = ()
    fastgpt_part = "attn"  # for `fastgpt.implementations`

    def __reduce__(self) -> tuple:
        return register, (str(self),)

    @staticmethod
    def choice_for(model: nn.Module) -> Callable[[torch.device, torch.dtype], Choice]:
        """For `fastgpt.implementations`: what computes the attention of a model whose config holds this name."""

        def choice(device: torch.device, dtype: torch.dtype) -> Choice:
            extra = why_scores_differ(model)
            if extra is not None:
                return Choice("torch", extra)
            obstacle = _why_not_this_model(model) or support.kinds_why_not(device, dtype)
            return decided("auto", obstacle, device, dtype, fallback="sdpa")

        return choice


_pytree.register_constant(_RegisteredName)  # Dynamo of torch 2.11 takes no other kind of str for one, nor looks it up

NAME = _RegisteredName("fastgpt")


def register(name: str = NAME) -> str:
    """Make `model.set_attn_implementation(name)` work for every transformers model; returns the name.

    A model that was given the name which this returns can be pickled, copied and sent to another process.

    Raises:
        ImportError: transformers is not installed, or too old to have the interfaces.
    """
    needs = "register: this needs transformers >= 5.4; `pip install -U transformers`"
    try:
        from transformers import AttentionInterface
        from transformers.masking_utils import AttentionMaskInterface, sdpa_mask
    except ImportError as error:
        raise ImportError(needs) from error
    if "q_length" not in inspect.signature(sdpa_mask).parameters:  # older ones describe masks in other terms
        raise ImportError(needs)
    AttentionInterface.register(str(name), attention)
    AttentionMaskInterface.register(str(name), mask)
    return _RegisteredName(name)


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

    Without a mask it is causal if `is_causal`, or else the module's attribute of that name, says so: the last query
    sees every key. `sliding_window` then narrows it, as does `cu_seq_lens_q`, the ends of packed documents. What the
    kernels do not have goes to torch, and the "fastgpt" log says so once: masks that are tensors, `position_bias`,
    `softcap`, sinks (`s_aux`).

    The weights (B, H, T_q, T_k), before dropout, are there when `output_attentions` asks for them, and None otherwise.
    Rows that see no key (padding, as a query) have output and weights 0, where transformers' "eager" gives the mean of
    all values.

    Raises:
        ValueError: the model chooses keys by index or masks heads, or packs documents in more than one row.
    """
    for feature in ("indices", "block_indices", "head_mask", "layer_head_mask"):
        if kwargs.get(feature) is not None:
            raise ValueError(f'attn_implementation="{NAME}" has no {feature}; use "eager" for this model')
    sees: dict[str, Any] | None = None
    if attention_mask is None:
        sees = {"causal": bool(getattr(module, "is_causal", True) if is_causal is None else is_causal)}
    elif type(attention_mask) is KeyMask:
        if attention_mask.describes(query, key):
            sees = dict(attention_mask.sees)
        else:
            attention_mask = attention_mask.dense()
    window, T_k = kwargs.get("sliding_window"), key.shape[2]
    # A KeyMask says its window itself. One that hides nothing is no mask here: if bidirectional, of T_k - 1 keys on
    # each side or more, which some models hand on as they are, and others with one more.
    if attention_mask is None and sees is not None:
        farthest = T_k if sees["causal"] else T_k - 1
        if isinstance(window, int) and 0 < window < farthest:
            sees["window"] = window
    documents = _documents(query, key, kwargs)
    reason = _why_torchs(query, key, value, sees, dropout, kwargs)
    wanted = _weights_wanted(module, kwargs)
    if reason is None and sees is not None:
        sees |= {"softmax_scale": scaling, "cu_seqlens": documents}
        out, lse = attend(query, key, value, dropout_p=dropout, return_lse=True, **sees)
        weights = attention_weights(query, key, lse, **sees).to(query.dtype) if wanted else None
        return out.transpose(1, 2), weights
    assert reason is not None, "a mask that is not described is one"
    say_fallback(f'attn_implementation="{NAME}"', "torch's attention is used", reason)
    dense = _dense_mask(query, key, attention_mask, sees, documents)
    extras: dict[str, Any] = {"softcap": kwargs.get("softcap"), "sinks": _sinks(kwargs)}
    if wanted or any(extra is not None for extra in extras.values()):
        if kwargs.get("cache") is not None:
            raise ValueError(f'attn_implementation="{NAME}" has no weights, softcap or sinks with a paged cache')
        if dense is None and sees is not None and sees["causal"]:  # torch's `is_causal` is not there to say it
            dense = reference.attention_mask(query.shape[2], key.shape[2], device=query.device)
        extras["position_bias"] = kwargs.get("position_bias")
        out, weights = plain_attention(query, key, value, dense, scale=scaling, dropout_p=dropout, **extras)
        return out.transpose(1, 2).contiguous(), weights if wanted else None
    from transformers.integrations.sdpa_attention import sdpa_attention_forward

    causal = sees is not None and sees["causal"]
    kwargs.pop("output_attentions", None)
    return sdpa_attention_forward(module, query, key, value, dense, dropout, scaling, causal, **kwargs)


def _sinks(kwargs: dict[str, Any]) -> Tensor | None:
    """The scores of keys without a value: (H,) as most models name them, (B, H, T_q, 1) as one does."""
    return kwargs.get("s_aux") if kwargs.get("s_aux") is not None else kwargs.get("sinks")


def _documents(query: Tensor, key: Tensor, kwargs: dict[str, Any]) -> Tensor | None:
    """(N + 1,) int32: where the packed documents begin and end, if the caller packs and says it."""
    cu_seqlens = kwargs.get("cu_seq_lens_q")
    if cu_seqlens is None:
        return None
    if query.shape[0] != 1 or query.shape[2] != key.shape[2]:
        raise ValueError(
            f'attn_implementation="{NAME}": cu_seq_lens_q names documents end to end in one row, queries and keys the '
            f"same; got {query.shape[0]} rows, {query.shape[2]} queries and {key.shape[2]} keys; use position_ids"
        )
    return cu_seqlens.to(query.device, torch.int32)


def _dense_mask(
    query: Tensor, key: Tensor, mask: Tensor | None, sees: dict[str, Any] | None, documents: Tensor | None
) -> Tensor | None:
    """The mask as a tensor, for torch; None where none is needed beside torch's own `is_causal`."""
    T_q, T_k = query.shape[2], key.shape[2]
    if sees is None:
        if documents is None or mask is None:
            return mask
        same = reference.attention_mask(T_q, T_k, causal=False, cu_seqlens=documents, device=query.device)
        return mask & same if mask.dtype == torch.bool else mask.masked_fill(~same, torch.finfo(mask.dtype).min)
    limits = {name: value for name, value in sees.items() if value is not None}
    if documents is not None:
        limits["cu_seqlens"] = documents
    if len(limits) == 1 and (not sees["causal"] or T_q in (1, T_k)):
        return None
    return reference.attention_mask(T_q, T_k, **limits, device=query.device)


def _weights_wanted(module: nn.Module, kwargs: dict[str, Any]) -> bool:
    """Whether the caller asked for attention weights. Models since transformers 5 do not pass the question on to here,
    but collect what their layers return: then their collector knows."""
    if kwargs.get("output_attentions") or getattr(getattr(module, "config", None), "output_attentions", False):
        return True
    try:
        from transformers.utils.output_capturing import _active_collector
    except ImportError:
        return False
    return any(name.endswith("attentions") for name in _active_collector.get() or ())


def why_scores_differ(model: nn.Module) -> str | None:
    """What this transformers model does to its attention's scores that the kernels do not; None for nothing."""
    cap = getattr(getattr(model, "config", None), "attn_logit_softcapping", None)
    if cap is not None:
        return f"its attention caps its scores (attn_logit_softcapping={cap})"
    if any(getattr(part, "sinks", None) is not None for part in model.modules()):
        return "its attention has sinks"
    return None


def _why_not_this_model(model: nn.Module) -> str | None:
    """Why the kernels take no call of this transformers model's attention, as far as the model tells."""
    for part in model.modules():
        if getattr(part, "has_relative_attention_bias", False) is True:
            return "the model adds a position bias to the scores"
        keys = getattr(part, "qk_head_dim", getattr(part, "head_dim", None))
        if isinstance(keys, int):
            reason = _head_dims_why_not(keys, getattr(part, "v_head_dim", keys))
            if reason is not None:
                return reason
    rates = [rate for name, rate in vars(model.config).items() if "att" in name and "drop" in name]  # each has its own
    dropout = max((rate for rate in rates if isinstance(rate, float)), default=0.0)
    return support.dropout_why_not(dropout) if model.training else None


def _head_dims_why_not(of_keys: int, of_values: int) -> str | None:
    if of_keys != of_values:
        return "head_dim is not the same for keys and values"
    return support.head_dim_why_not(of_keys)


def _why_torchs(
    query: Tensor, key: Tensor, value: Tensor, sees: dict[str, Any] | None, dropout: float, kwargs: dict[str, Any]
) -> str | None:
    """Why the kernels cannot take this call; None if they can."""
    if sees is None:
        return "the mask is a tensor of another kind than causal, bidirectional or windowed with padding at the ends"
    if kwargs.get("softcap") is not None:
        return "the model caps its scores (softcap)"
    if _sinks(kwargs) is not None:
        return "the model has attention sinks"
    if kwargs.get("position_bias") is not None:
        return "the model adds a position bias to the scores"
    if kwargs.get("cache") is not None:
        return "the keys lie in a paged cache"
    if query.dim() != 4 or query.shape[0] != key.shape[0] or key.shape[1] == 0 or query.shape[1] % key.shape[1]:
        return "query and key differ in batch size, or their heads do not fit"
    return (
        _head_dims_why_not(query.shape[-1], value.shape[-1])
        or support.dropout_why_not(dropout)
        or support.why_not(query, key, value)
    )
