"""`FlashMultiheadAttention`: torch's nn.MultiheadAttention on the fused kernels."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..kernels import _checks, _transforms, _views, attention_weights, flash_attention, support
from ..kernels._notice import say_fallback
from ..kernels.attention.sdpa import top_left
from . import _exact
from .impl import Choice, decided

_OUT_PROJ = _exact.exactly(nn.modules.linear.NonDynamicallyQuantizableLinear)


class FlashMultiheadAttention(nn.MultiheadAttention):
    """nn.MultiheadAttention, argument for argument and parameter for parameter, on `flash_attention`.

    Constructor, parameters, state dict and `forward` are those of the class it extends, and so, to rounding, are the
    results. It adds no attribute, so `module.__class__ = FlashMultiheadAttention` converts a trained one in place. What
    differs:

    - `is_causal=True` needs no `attn_mask`: no (T, T) tensor is ever made. Given one, it is trusted to be causal.
    - Without that hint, the values of each mask are looked at in each call, for which a call waits for the GPU (not
      while a CUDA graph is captured: then torch's own runs): a 2-D `attn_mask` that is causal or hides nothing, and a
      `key_padding_mask` that hides keys at the ends only, run on the kernels.
    - `need_weights=True` does not leave the fast path: the weights are rebuilt from its log-sum-exp, before dropout.
    - `out_proj` is called: adapters and hooks on it count, which torch's own passes by.
    - A query that sees no key gives the output projection's bias and weights 0, where torch may give NaN.

    torch's own implementation takes over, and the "fastgpt" log says why, once per reason, for other masks,
    `add_bias_kv`, `add_zero_attn`, head_dim above 256, float64, a dropout of 1.0, nested tensors, and devices without
    Triton.
    """

    fastgpt_part = "attn"  # for `fastgpt.implementations`

    def extra_repr(self) -> str:
        parts = [f"embed_dim={self.embed_dim}", f"num_heads={self.num_heads}"]
        if self.dropout:
            parts.append(f"dropout={self.dropout}")
        if self.in_proj_bias is None:
            parts.append("bias=False")
        if not self._qkv_same_embed_dim:
            parts.append(f"kdim={self.kdim}, vdim={self.vdim}")
        return ", ".join([*parts, f"batch_first={self.batch_first}"])

    def forward(
        self,
        query: Tensor,
        key: Tensor,
        value: Tensor,
        key_padding_mask: Tensor | None = None,
        need_weights: bool = True,
        attn_mask: Tensor | None = None,
        average_attn_weights: bool = True,
        is_causal: bool = False,
    ) -> tuple[Tensor, Tensor | None]:
        """Attention output and, if asked for, weights; shapes with `batch_first` (else batch and time swap places).

        Args:
            query: (B, T_q, embed_dim); key: (B, T_k, kdim); value: (B, T_k, vdim). Or all without B.
            key_padding_mask: (B, T_k) bool, True = hidden; or float, added to the scores.
            need_weights: also return the weights.
            attn_mask: (T_q, T_k) or (B * num_heads, T_q, T_k) bool, True = hidden; or float, added to the scores.
            average_attn_weights: average the weights over the heads.
            is_causal: query i sees keys 0 ... i only, whatever the values of `attn_mask`.

        Returns:
            (B, T_q, embed_dim), and (B, T_q, T_k) or (B, num_heads, T_q, T_k) or None.
        """
        _checks.check_tensors(
            "FlashMultiheadAttention", 3, query=query, key=key, value=value, key_padding_mask=key_padding_mask,
            attn_mask=attn_mask,
        )  # fmt: skip
        masks = self._why_torchs(query, key, value) or _read_masks(
            attn_mask, key_padding_mask, is_causal, query, key, self.batch_first
        )
        if not isinstance(masks, str):
            return self._own(*self._attend(query, key, value, masks, need_weights, average_attn_weights))
        say_fallback("FlashMultiheadAttention", "torch's own implementation is used", reason=masks)
        if is_causal and attn_mask is None:
            time = 0 if query.dim() == 2 or not self.batch_first else 1
            attn_mask = _hidden_by_causality(query.shape[time], key.shape[time], query.device)
        arguments = query, key, value, key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal
        if not _transforms.are_on():
            return self._own(*self._torchs_own(*arguments))
        with _transforms.torch_attention():
            return self._own(*self._torchs_own(*arguments))

    def _own(self, out: Tensor, weights: Tensor | None) -> tuple[Tensor, Tensor | None]:
        """Where hooks are given the output, as FSDP2's are, it is no view of what out_proj has made."""
        return (_views.own(out) if self._forward_hooks else out), weights

    def _torchs_own(self, query: Tensor, key: Tensor, value: Tensor, *arguments: Any) -> tuple[Tensor, Tensor | None]:
        """torch's forward, which reads the weight of `out_proj`: one that is no longer itself runs after it."""
        reason = _exact.why_children_run((self.out_proj,), _OUT_PROJ)
        if reason is None:
            return super().forward(query, key, value, *arguments)
        say_fallback("FlashMultiheadAttention", "its out_proj runs as a module", reason)
        key_padding_mask, need_weights, attn_mask, average_attn_weights, is_causal = arguments
        turned = self.batch_first and query.dim() == 3
        like = self.in_proj_weight if self._qkv_same_embed_dim else self.q_proj_weight
        query, key, value = (x.transpose(0, 1) if turned else x for x in (query, key, value))
        out, weights = F.multi_head_attention_forward(
            query, key, value, self.embed_dim, self.num_heads,
            self.in_proj_weight, self.in_proj_bias, self.bias_k, self.bias_v, self.add_zero_attn, self.dropout,
            out_proj_weight=torch.eye(self.embed_dim, dtype=like.dtype, device=like.device), out_proj_bias=None,
            training=self.training, key_padding_mask=key_padding_mask, need_weights=need_weights, attn_mask=attn_mask,
            use_separate_proj_weight=not self._qkv_same_embed_dim, q_proj_weight=self.q_proj_weight,
            k_proj_weight=self.k_proj_weight, v_proj_weight=self.v_proj_weight,
            average_attn_weights=average_attn_weights, is_causal=is_causal,
        )  # fmt: skip
        return self.out_proj(out.transpose(0, 1) if turned else out), weights

    def choice(self, device: torch.device, dtype: torch.dtype) -> Choice:
        """For `fastgpt.implementations`: what computes inputs of this kind, and why."""
        obstacle = self._why_torchs_ever() or support.kinds_why_not(device, dtype)
        return decided("auto", obstacle, device, dtype, fallback="torch")

    def _why_torchs_ever(self) -> str | None:
        """Why the kernels cannot compute what this module is, whatever it is given; None if they can."""
        if self.bias_k is not None or self.add_zero_attn:
            return "add_bias_kv and add_zero_attn are not supported"
        obstacle = support.head_dim_why_not(self.head_dim)
        return support.dropout_why_not(self.dropout) if obstacle is None and self.training else obstacle

    def _why_torchs(self, query: Tensor, key: Tensor, value: Tensor) -> str | None:
        """Why the kernels cannot take this module or these tensors; None if they can."""
        reason = self._why_torchs_ever() or support.why_not(query, key, value)
        if reason is not None:
            return reason
        if query.dim() not in (2, 3) or key.dim() != query.dim() or value.dim() != query.dim():
            return "query, key and value are not all 2-D or all 3-D"
        widths = (query.shape[-1], key.shape[-1], value.shape[-1])
        batch = 0 if self.batch_first else 1
        if (
            widths != (self.embed_dim, self.kdim, self.vdim)
            or key.shape[:-1] != value.shape[:-1]
            or (query.dim() == 3 and query.shape[batch] != key.shape[batch])
        ):
            return "the shapes of query, key and value do not fit"
        return None

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, masks: _Masks, need_weights: bool, average: bool
    ) -> tuple[Tensor, Tensor | None]:
        batched = query.dim() == 3
        q, k, v = self._project(query, key, value)  # (B, H, T, D) views
        T_q, T_k = q.shape[2], k.shape[2]
        causal, window = top_left(T_q, T_k) if masks.causal else (False, None)
        if masks.causal and T_q < T_k:  # nobody sees the keys beyond T_q
            k, v = k[:, :, :T_q], v[:, :, :T_q]
        padding = {"key_lengths": masks.key_lengths, "key_starts": masks.key_starts}
        sees: dict[str, Any] = {"causal": causal, "window": window} | padding
        out, lse = flash_attention(
            q, k, v, dropout_p=self.dropout if self.training else 0.0, return_lse=True, **sees
        )  # (B, H, T_q, D) on (B, T_q, H, D) memory, so that the heads merge without a copy
        out = self.out_proj(out.transpose(1, 2).flatten(2))  # (B, T_q, E)
        weights = None
        if need_weights:
            weights = _weights(q, k, lse, **sees)  # (B, H, T_q, T_k)
            if masks.causal and T_q < T_k:
                weights = F.pad(weights, (0, T_k - T_q))
            weights = weights.mean(dim=1) if average else weights
        if not batched:
            return out[0], None if weights is None else weights[0]
        return out if self.batch_first else out.transpose(0, 1), weights

    def _project(self, query: Tensor, key: Tensor, value: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q, k, v as (B, H, T, D) views of the projections: self-attention is one product and no copy."""
        heads, dim = self.num_heads, self.head_dim
        if self._qkv_same_embed_dim and query is key and key is value:
            packed = F.linear(query, self.in_proj_weight, self.in_proj_bias)  # (B, T, 3E), (T, B, 3E) or (T, 3E)
            q, k, v = map(self._heads_first, packed.unflatten(-1, (3, heads, dim)).unbind(-3))
            return q, k, v
        if self._qkv_same_embed_dim:
            weights = self.in_proj_weight.chunk(3)
        else:
            weights = (self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)
        biases = (None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)
        projected = (F.linear(x, w, b) for x, w, b in zip((query, key, value), weights, biases))
        q, k, v = (self._heads_first(x.unflatten(-1, (heads, dim))) for x in projected)
        return q, k, v

    def _heads_first(self, x: Tensor) -> Tensor:
        """(B, T, H, D), (T, B, H, D) or unbatched (T, H, D) -> (B, H, T, D), a view."""
        if x.dim() == 3:
            return x.transpose(0, 1)[None]
        return x.transpose(1, 2) if self.batch_first else x.permute(1, 2, 0, 3)


def _weights(q: Tensor, k: Tensor, lse: Tensor, **sees: Any) -> Tensor:
    """`attention_weights` in the dtype of torch's, whose softmax is in float32 under CUDA's autocast, not a CPU's."""
    if not (q.is_cuda and torch.is_autocast_enabled("cuda")):
        return attention_weights(q, k, lse, **sees)
    with torch.autocast("cuda", enabled=False):  # of the numbers that autocast rounded, and not rounded again
        return attention_weights(q.float(), k.float(), lse, **sees)


_Read = TypeVar("_Read")


class _Masks(NamedTuple):
    """What the masks of a call say, in the kernels' terms."""

    causal: bool
    key_starts: Tensor | None  # (B,) int32: the keys seen are key_starts <= j < key_lengths
    key_lengths: Tensor | None


def _read_masks(
    attn_mask: Tensor | None,
    key_padding_mask: Tensor | None,
    is_causal: bool,
    query: Tensor,
    key: Tensor,
    batch_first: bool,
) -> _Masks | str:
    """The masks in the kernels' terms, or the reason why they have no such terms."""
    causal, key_starts, key_lengths = is_causal, None, None
    time = 0 if query.dim() == 2 or not batch_first else 1
    if attn_mask is not None and not is_causal:
        if attn_mask.shape != (query.shape[time], key.shape[time]):
            return "attn_mask is not one (T_q, T_k) mask for all"
        kind = _read(attn_mask, _read_attn_mask)
        if kind is None:
            return "attn_mask is neither causal nor empty (is_causal=True if it is, but cannot be looked at now)"
        causal = kind == "causal"
    if key_padding_mask is not None:
        expected = (key.shape[0],) if key.dim() == 2 else (key.shape[1 - time], key.shape[time])
        if key_padding_mask.shape != expected:
            return "key_padding_mask is not (B, T_k)"
        bounds = _read(key_padding_mask, _read_key_padding_mask)
        if bounds is None:
            return "key_padding_mask hides keys that are not at the ends (or cannot be looked at now)"
        key_starts, key_lengths = bounds
    return _Masks(causal, key_starts, key_lengths)


def _read(mask: Tensor, read: Callable[[Tensor, Tensor], _Read]) -> _Read | None:
    """What `read` makes of a mask and of where it hides; None where the mask adds to scores, or cannot be looked at.

    Nothing is remembered from one call to the next. Neither the tensor nor its version nor its address says what a mask
    holds now: memory is refilled behind torch's back (numpy, data loaders, CUDA graphs, `.data`).
    """
    if (
        not support.can_be_read(mask)
        or mask.requires_grad
        or (mask.is_cuda and torch.cuda.is_current_stream_capturing())
    ):
        return None
    if mask.dtype == torch.bool:
        return read(mask, mask.new_ones(()))
    hidden = mask == float("-inf")
    return read(hidden, (hidden | (mask == 0)).all())


def _hidden_by_causality(T_q: int, T_k: int, device: torch.device) -> Tensor:
    return torch.arange(T_k, device=device) > torch.arange(T_q, device=device)[:, None]


def _read_attn_mask(hidden: Tensor, plain: Tensor) -> str | None:
    """ "causal" or "empty"; None for any other mask, or one that does more than hide (`plain`, a scalar, is False)."""
    T_q, T_k = hidden.shape
    causal = (hidden == _hidden_by_causality(T_q, T_k, hidden.device)).all()
    plain, causal, hides = torch.stack([plain, causal, hidden.any()]).tolist()
    if not plain:
        return None
    return "causal" if causal else None if hides else "empty"


def _read_key_padding_mask(hidden: Tensor, plain: Tensor) -> tuple[Tensor, Tensor] | None:
    """The first key kept and the one after the last, (B,) int32 each; None if a row has a hole, or not `plain`."""
    kept = ~(hidden if hidden.dim() == 2 else hidden[None])  # (B, T_k)
    j = torch.arange(kept.shape[1], device=kept.device)
    starts = torch.where(kept, j, kept.shape[1]).amin(dim=1) if j.numel() else kept.sum(dim=1)
    lengths = starts + kept.sum(dim=1)  # of a row without keys: beyond the end, and starting there
    whole = (kept == ((j >= starts[:, None]) & (j < lengths[:, None]))).all()
    return (starts.int(), lengths.int()) if bool(whole & plain) else None
