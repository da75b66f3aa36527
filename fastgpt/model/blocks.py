"""The parts of a GPT block: parameters named as in the reference model, computed by any implementation.

Each module holds parameters and a request (`impl`); `choose` turns the request into an implementation at each call.
Where somebody has put something else in a child's place, or hooks on it, the children run (nn/_exact.py).
Shapes: B batch, T tokens, d d_model, H query heads, H_kv key/value heads, D head_dim, V vocabulary.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels
from ..kernels import _runtime, _transforms, _views, reference
from ..kernels._notice import say_fallback
from ..nn import _exact
from ..nn.ffn import SequentialFFN
from ..nn.impl import Choice, check_constructible, children_run, choose, explain
from .config import GPTConfig
from .token_ids import IGNORE_INDEX


class LayerCache:
    """One layer's keys and values of the tokens seen so far: (B, H_kv, capacity, D), filled from the left."""

    def __init__(self, capacity: int) -> None:
        self.capacity, self.length = capacity, 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """Store k, v (B, H_kv, T, D) and return views of all that is stored: (B, H_kv, length, D)."""
        if self.length == 0:  # the first tokens know best, autocast's dtype too
            shape = (*k.shape[:2], self.capacity, k.shape[3])
            self.k, self.v = k.new_empty(shape), v.new_empty(shape)
        end = self.length + k.shape[2]
        self.k[:, :, self.length : end] = k
        self.v[:, :, self.length : end] = v
        self.length = end
        return self.k[:, :, :end], self.v[:, :, :end]


class CausalSelfAttention(nn.Module):
    """softmax(q kᵀ / √D + causal mask) v for H heads, between two projections; nn.MultiheadAttention's parameters.

    in_proj_weight ((H + 2 H_kv) · D, d) stacks W_q, W_k, W_v; out_proj (d, d).
    """

    fastgpt_part = "attn"
    in_proj_bias: nn.Parameter | None
    ring: Any = None  # who attends over other ranks' tokens too: fastgpt/parallel/ring.py

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        check_constructible("attn", config.attn_impl, config.head_dim)
        assert config.n_kv_heads is not None  # a config has seen to it
        self.impl = config.attn_impl
        self.n_heads, self.n_kv_heads, self.head_dim = config.n_heads, config.n_kv_heads, config.head_dim
        self.dropout = config.dropout
        rows = (self.n_heads + 2 * self.n_kv_heads) * self.head_dim
        self.in_proj_weight = nn.Parameter(torch.empty(rows, config.d_model))
        self.register_parameter("in_proj_bias", nn.Parameter(torch.empty(rows)) if config.bias else None)
        self.out_proj = nn.Linear(config.d_model, config.d_model, bias=config.bias)

    def forward(self, x: Tensor, cache: LayerCache | None = None) -> Tensor:
        """x (B, T, d) -> (B, T, d). With a cache, x are the newest tokens and attend to the cached ones too."""
        q, k, v = self.project(x)
        if cache is not None:
            check_whole("a key/value cache", self.ring)
            k, v = cache.append(k, v)
        out = self.attend(q, k, v)  # (B, H, T, D)
        out = self.out_proj(out.transpose(1, 2).flatten(2))  # (B, T, H · D) -> (B, T, d)
        return _views.own(out) if self._forward_hooks else out

    def project(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """q (B, H, T, D) and k, v (B, H_kv, T, D): views of one packed projection, none of them copied."""
        H, H_kv = self.n_heads, self.n_kv_heads
        qkv = F.linear(x, self.in_proj_weight, self.in_proj_bias)  # (B, T, (H + 2 H_kv) · D)
        heads = qkv.unflatten(-1, (H + 2 * H_kv, self.head_dim))  # (B, T, H + 2 H_kv, D)
        # Split, then transpose: the gradients come laid out as (B, T, heads, D), and are put together in one copy.
        q, k, v = heads.split((H, H_kv, H_kv), dim=2)
        return q.transpose(1, 2), k.transpose(1, 2), v.transpose(1, 2)

    def attend(self, q: Tensor, k: Tensor, v: Tensor) -> Tensor:
        """q (B, H, T_q, D); k, v (B, H_kv, T_k, D); the last query stands at the last key. Returns (B, H, T_q, D)."""
        dropout_p = self.dropout if self.training else 0.0
        impl = choose("attn", self.impl, q.device, q.dtype, self.head_dim)
        if self.ring is not None:
            return self.ring(q, k, v, impl, dropout_p)
        match impl:
            case "triton":
                return kernels.flash_attention(q, k, v, causal=True, dropout_p=dropout_p)
            case "sdpa":
                return _sdpa(q, k, v, dropout_p)
            case _:
                return reference.flash_attention(q, k, v, causal=True, dropout_p=dropout_p)

    def choice(self, device: torch.device, dtype: torch.dtype) -> Choice:
        """For `fastgpt.implementations`: what computes inputs of this kind, and why."""
        choice = explain("attn", self.impl, device, dtype, self.head_dim)
        return choice if self.ring is None else self.ring.choice(choice)

    def weights(self, x: Tensor, heads: list[int] | None = None) -> Tensor:
        """Attention weights of some heads (default: all) for x (B, T, d): (B, len(heads), T, T), rows sum to 1."""
        check_whole("attention weights", self.ring)
        q, k, v = self.project(x)
        if choose("attn", self.impl, q.device, q.dtype, self.head_dim) == "triton":
            _, lse = kernels.flash_attention(q, k, v, causal=True, return_lse=True)
            return kernels.attention_weights(q, k, lse, heads=heads, causal=True)
        return reference.attention_weights(q, k, heads=heads, causal=True)

    def extra_repr(self) -> str:
        return f"n_heads={self.n_heads}, n_kv_heads={self.n_kv_heads}, head_dim={self.head_dim}, impl={self.impl!r}"


def check_whole(what: str, ring: Any) -> None:
    """Raise RuntimeError for what needs all tokens of a sequence on one rank, where a `ring` of ranks shares them."""
    if ring is not None:
        raise RuntimeError(
            f"GPT: {ring.size} ranks share each sequence, and {what} needs all of it on one; call "
            "fastgpt.parallel.ring.release(model) first"
        )


def _sdpa(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
    """torch's attention with our causal mask: torch aligns is_causal top-left, so T_q < T_k needs a mask."""
    if _transforms.are_on():
        with _transforms.torch_attention():
            return _torch_sdpa(q, k, v, dropout_p)
    return _torch_sdpa(q, k, v, dropout_p)


def _torch_sdpa(q: Tensor, k: Tensor, v: Tensor, dropout_p: float) -> Tensor:
    T_q, T_k = q.shape[2], k.shape[2]
    grouped = q.shape[1] != k.shape[1]
    if T_q == T_k:
        return _runtime.torch_attention(q, k, v, dropout_p=dropout_p, is_causal=True, enable_gqa=grouped)
    sees = torch.ones(T_q, T_k, dtype=torch.bool, device=q.device).tril(T_k - T_q) if T_q > 1 else None
    return _runtime.torch_attention(q, k, v, attn_mask=sees, dropout_p=dropout_p, enable_gqa=grouped)


def _product_dtype(x: Tensor) -> torch.dtype:
    """The dtype in which a matrix product of x computes: autocast's, where that is on."""
    return _runtime.autocast_dtype(x) or x.dtype


def _at_least(dtype: torch.dtype, parameter: Tensor | None) -> Tensor | None:
    """A parameter in no fewer bits than `dtype` has."""
    return None if parameter is None else parameter.to(torch.promote_types(parameter.dtype, dtype))


class AddLayerNorm(nn.LayerNorm):
    """Adds a sub-layer's output to the residual stream, and normalises the sum: one kernel in place of three."""

    fastgpt_part = "norm"

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config.d_model, eps=config.layer_norm_eps, bias=config.bias)
        check_constructible("norm", config.norm_impl)
        self.impl = config.norm_impl
        self.dropout = config.dropout

    def forward(  # type: ignore[override]  # a LayerNorm by its parameters, not by what it is given
        self, x: Tensor | None, residual: Tensor
    ) -> tuple[Tensor, Tensor]:
        """(LayerNorm(new), new) with new = residual + dropout(x); x None: nothing to add. All (B, T, d)."""
        dropout_p = self.dropout if self.training else 0.0
        affine = (self.weight, self.bias, self.eps)
        impl = choose("norm", self.impl, residual.device, residual.dtype)
        if impl == "triton":
            out_dtype = _product_dtype(residual)  # every user of `normed` is a matrix product
            if x is None:
                return kernels.layer_norm(residual, self.normalized_shape, *affine, out_dtype=out_dtype), residual
            return kernels.add_layer_norm(x, residual, *affine, dropout_p, out_dtype=out_dtype)
        if x is not None:
            residual = residual + F.dropout(x, dropout_p)
        if impl == "torch":
            # Parameters of fewer bits than the stream (fully_shard's MixedPrecisionPolicy), which a CPU does not take.
            weight, bias = (_at_least(residual.dtype, parameter) for parameter in affine[:2])
            return F.layer_norm(residual, self.normalized_shape, weight, bias, self.eps), residual
        return reference.layer_norm(residual, self.normalized_shape, *affine), residual

    def choice(self, device: torch.device, dtype: torch.dtype) -> Choice:
        """For `fastgpt.implementations`: what computes inputs of this kind, and why."""
        return explain("norm", self.impl, device, dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, impl={self.impl!r}"


class FeedForward(SequentialFFN):
    """gelu(x W1ᵀ + b1) W2ᵀ + b2, with the parameters of nn.Sequential(Linear, GELU, Linear).

    Dropout and the residual are left to the AddLayerNorm that follows: it reads the residual stream anyway, and the
    second product stays one that cuBLAS can compute.
    """

    def __init__(self, config: GPTConfig) -> None:
        assert config.d_ff is not None  # a config has seen to it
        super().__init__(
            nn.Linear(config.d_model, config.d_ff, bias=config.bias),
            nn.GELU(approximate=config.gelu),
            nn.Linear(config.d_ff, config.d_model, bias=config.bias),
        )
        check_constructible("ffn", config.ffn_impl)
        self.impl = config.ffn_impl

    def forward(self, x: Tensor) -> Tensor:
        """x (..., d) -> (..., d)."""
        reason = self.why_children()
        if reason is not None:
            say_fallback("FeedForward", "its children run one by one", reason)
            return super().forward(x)
        impl = choose("ffn", self.impl, x.device, x.dtype)
        if impl == "torch":
            return _views.own(super().forward(x))
        children: list[Any] = [*self._modules.values()]
        up, gelu, down = children
        function = kernels.gelu_ffn if impl == "triton" else reference.gelu_ffn
        return _views.own(function(x, up.weight, up.bias, down.weight, down.bias, gelu.approximate))

    def extra_repr(self) -> str:
        return f"impl={self.impl!r}"


class Head(nn.Linear):
    """The unembedding: a Linear without bias, whose loss `logits_and_loss` can compute without the (B, T, V) logits."""

    fastgpt_part = "loss"

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config.d_model, config.vocab_size, bias=False)
        check_constructible("loss", config.loss_impl)
        self.impl = config.loss_impl

    def choice(self, device: torch.device, dtype: torch.dtype) -> Choice:
        """For `fastgpt.implementations`: what computes inputs of this kind, and why."""
        return head_choice(self, device, dtype)

    def extra_repr(self) -> str:
        return f"{super().extra_repr()}, impl={self.impl!r}"


_HEAD = _exact.exactly(Head)


def why_head_runs(head: nn.Module) -> str | None:
    """Why what stands in the place of a model's head has to be called, and no kernel may read it; None if one may."""
    reason = _exact.why_children_run((head,), _HEAD)
    return "the Head has a bias" if reason is None and head._parameters.get("bias") is not None else reason


def head_choice(head: nn.Module, device: torch.device, dtype: torch.dtype) -> Choice:
    """What computes the loss where `head` stands in a model's head's place, and why."""
    reason = why_head_runs(head)
    if reason is not None:
        return children_run(reason)
    assert isinstance(head, Head)
    return explain("loss", head.impl, device, dtype)


def logits_and_loss(
    head: nn.Module, hidden: Tensor, targets: Tensor | None, *, return_logits: bool | None, reduction: str
) -> tuple[Tensor | None, Tensor | None]:
    """hidden (B, T, d), targets (B, T) int64 or int32 -> logits (B, T, V) or None, loss or None.

    Without targets there are logits and no loss. With targets, the fused loss gives logits only if return_logits is
    True, every other only if it is not False. A head that is not a Head, or on which somebody has hooks, always gives
    its logits, as nobody else could make them.
    """
    if targets is None:
        return head(hidden), None
    reason = why_head_runs(head)
    if reason is not None:
        say_fallback("GPT", "the loss is torch's cross-entropy of the head's logits", reason)
        logits = head(hidden)
        return logits, _cross_entropy(logits, targets, reduction)
    assert isinstance(head, Head)
    impl = choose("loss", head.impl, hidden.device, hidden.dtype)
    if impl == "triton":
        loss = kernels.linear_cross_entropy(
            hidden, head.weight, targets, ignore_index=IGNORE_INDEX, reduction=reduction
        )
        return (head(hidden) if return_logits else None), loss
    logits = head(hidden)
    if impl == "torch":
        loss = _cross_entropy(logits, targets, reduction)
    else:
        loss = _views.own(reference.cross_entropy(logits, targets, ignore_index=IGNORE_INDEX, reduction=reduction))
    return (None if return_logits is False else logits), loss


def _cross_entropy(logits: Tensor, targets: Tensor, reduction: str) -> Tensor:
    """torch's, of logits (B, T, V) in float32 or better: a scalar, or (B, T) with reduction="none"."""
    wide = logits if logits.dtype == torch.float64 else logits.float()
    loss = F.cross_entropy(
        wide.flatten(0, -2), targets.flatten().long(), ignore_index=IGNORE_INDEX, reduction=reduction
    )
    return _views.in_shape(loss, targets.shape) if reduction == "none" else loss
