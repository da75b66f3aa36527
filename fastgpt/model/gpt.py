"""`GPT`: a pre-LN transformer whose parameters are the reference model's, whatever computes it.

The residual stream travels beside the sub-layers' outputs, so that every implementation, fused or not, shares one flow:

    h, residual = ln1(x, residual)      residual = residual + x;  h = LayerNorm(residual)
    x = attn(h)
    h, residual = ln2(x, residual)
    x = ffn(h)                          the next block's ln1, or ln_f, adds it

Shapes: B batch, T tokens, d d_model, V vocabulary.
"""

from __future__ import annotations

import functools
import math
import os
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..base.implementation_names import IMPLEMENTATIONS
from ..base.settings import SettingTypeError, check_choice
from ..nn.impl import check_constructible
from . import initial, remat, sharding, tied
from .blocks import (
    AddLayerNorm,
    CausalSelfAttention,
    FeedForward,
    Head,
    LayerCache,
    check_whole,
    head_choice,
    logits_and_loss,
)
from .config import GPTConfig
from .formats.folder import filled, in_words, load, save, skeleton
from .indices import chosen_indices
from .modes import evaluating
from .output import GPTOutput, Unembedding, is_exporting
from .sampling import Generates
from .size import check_can_be_made, check_maps_fit
from .token_ids import checked_ids, checked_positions, checked_targets


class KVCache:
    """Keys and values of every layer for the tokens seen so far."""

    def __init__(self, model: GPT, capacity: int) -> None:
        self.layers = [LayerCache(capacity) for _ in model.blocks]

    @property
    def length(self) -> int:
        """Tokens stored so far."""
        return self.layers[0].length


class Block(nn.Module):
    """One pre-LN block: x + attn(ln1(x)), then x + ffn(ln2(x)); its last sum is left to the next LayerNorm."""

    remat = "none"  # of the class, so that pickles of versions without it have it; set by `remat.apply`
    compile_backend: str | None = None  # of the class, as `remat`; set by `remat.compile_blocks`

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.ln1 = AddLayerNorm(config)
        self.ln2 = AddLayerNorm(config)
        self.attn = CausalSelfAttention(config)
        self.ffn = FeedForward(config)

    def forward(self, x: Tensor | None, residual: Tensor, cache: Any = None) -> tuple[Tensor, Tensor]:
        """x, residual (B, T, d): the last sub-layer's output, not yet added, and the stream. Returns the same pair."""
        if cache is None and (self.remat != "none" or self.compile_backend is not None):
            return remat.run(self, x, residual)
        return self.compute(x, residual, cache)

    def compute(self, x: Tensor | None, residual: Tensor, cache: Any = None) -> tuple[Tensor, Tensor]:
        """What `forward` returns, with all that autograd wants kept, not compiled."""
        h, residual = self.ln1(x, residual)
        x = self.attn(h) if cache is None else self.attn(h, cache)  # others' attention may know no cache
        h, residual = self.ln2(x, residual)
        x = self.ffn(h)
        return x, residual


class GPT(Generates):
    """Token and learned position embeddings, pre-LN blocks, final LayerNorm, bias-free head.

    The state dict is that of the plain PyTorch model built from nn.MultiheadAttention and nn.Sequential, in the same
    order, with the head present under its own name when tied. Initialised as GPT-2 (Radford et al. 2019, §2.3).

    Raises:
        TypeError: config is no GPTConfig. ValueError: the weights are more than the memory that there is.
        RuntimeError: an implementation is "triton" and triton is not installed.
    """

    ring: Any = None  # of the ranks that share each sequence: fastgpt/parallel/ring.py

    def __init__(self, config: GPTConfig) -> None:
        super().__init__()
        self.config = config = _checked_config(config)
        check_can_be_made(config)
        self.token_emb = nn.Embedding(config.vocab_size, config.d_model)
        self.pos_emb = nn.Embedding(config.max_len, config.d_model)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_layers))
        self.ln_f = AddLayerNorm(config)
        self.head = Head(config)
        if config.tie_weights:
            # Not by assignment, which Accelerate's init_empty_weights answers with a parameter of its own.
            self.head._parameters["weight"] = self.token_emb._parameters["weight"]
        self.init_weights()
        self.register_state_dict_post_hook(tied.after_state_dict)
        self.register_load_state_dict_pre_hook(tied.before_loading)
        self.register_load_state_dict_pre_hook(sharding.load_whole)
        self.register_load_state_dict_post_hook(tied.after_loading)

    @torch.no_grad()
    def init_weights(self) -> None:
        """GPT-2's: N(0, 0.02) for matrices, over √(2 n_layers) where they write to the residual stream; biases 0.

        Of a sharded model each rank calls it; the parts are those of the whole model of the same seed.
        """
        residual_std = 0.02 / math.sqrt(2 * self.config.n_layers)
        for name, parameter in self.named_parameters():
            if name.endswith("bias"):
                parameter.zero_()
            elif parameter.dim() == 1:  # LayerNorm
                parameter.fill_(1.0)
            else:
                std = residual_std if name.endswith(("out_proj.weight", "ffn.2.weight")) else 0.02
                initial.fill_normal(parameter, std)

    def forward(
        self, idx: Tensor, targets: Tensor | None = None, *, positions: Tensor | None = None,
        return_logits: bool | None = None, reduction: str = "mean",
    ) -> GPTOutput:  # fmt: skip
        """Logits of the next token at every position, and the loss against `targets`.

        Args:
            idx: (B, T) token ids of any integer dtype, T <= max_len.
            targets: (B, T) likewise, already shifted: targets[:, t] follows idx[:, t]. -100 does not count.
            positions: (T,) or (B, T) integers in [0, max_len): where the tokens stand, for the position embedding.
                Default: 0 to T - 1; where ranks share each sequence, this rank's. The causal mask is of the order in
                idx, or of the ring's.
            return_logits: True computes logits even beside a fused loss; False drops them even where the loss made
                them. None (default): whatever costs nothing. `output.logits` is there in every case: computed when
                asked for, if need be.
            reduction: "mean" over the targets that count, "sum" or "none".

        Raises:
            ValueError: T > max_len, or targets or positions of another shape.
            TypeError: idx, targets or positions are no tensors, or tensors of floats or bools.
            IndexError: a token id outside [0, vocab_size), such a target that is not -100, or a position outside
                [0, max_len) (checked on a CPU; a GPU fails with a device-side assertion).
        """
        idx = self._checked(idx)
        if targets is not None:
            classes = getattr(self.head, "out_features", self.config.vocab_size)
            targets = checked_targets("GPT", targets, idx, vocab_size=classes)
        check_choice("GPT", "reduction", reduction, ("mean", "sum", "none"))
        if positions is not None:
            positions = checked_positions("GPT", positions, idx, max_len=self._limits()[1])
        hidden = self.hidden_states(idx, positions=positions)
        exporting = is_exporting()
        if exporting and return_logits is None:
            return_logits = True  # an exported program has no head to make them with later
        logits, loss = logits_and_loss(self.head, hidden, targets, return_logits=return_logits, reduction=reduction)
        unembedding = None if exporting else Unembedding(self.head, hidden, training=self.training, model=self)
        return GPTOutput(loss, logits, hidden, unembedding=unembedding)

    def hidden_states(self, idx: Tensor, cache: KVCache | None = None, positions: Tensor | None = None) -> Tensor:
        """idx (B, T) -> output of the final LayerNorm (B, T, d). With a cache, idx are the tokens that follow it."""
        if positions is None:
            positions = self._positions(idx, 0 if cache is None else cache.length)
        residual = self.token_emb(idx) + self.pos_emb(positions)
        residual = F.dropout(residual, self.config.dropout, self.training)
        x = None
        for i, block in enumerate(self.blocks):
            x, residual = block(x, residual, None if cache is None else cache.layers[i])
        hidden, _ = self.ln_f(x, residual)
        return hidden

    def _positions(self, idx: Tensor, start: int) -> Tensor:
        if self.ring is not None:
            return self.ring.positions(idx.shape[1], self.config.max_len, idx.device)
        return torch.arange(start, start + idx.shape[1], device=idx.device)

    @torch.no_grad()
    def attention_maps(
        self, idx: Tensor, layers: Sequence[int] | int | None = None, heads: Sequence[int] | int | None = None
    ) -> dict[int, Tensor]:
        """Attention weights on idx (B, T), without dropout: {layer: (B, len(heads), T, T)}; row t is what query t sees.

        layers, heads: which (default: all); negative numbers count from the end. The weights come from the same
        implementation that `forward` uses: the fused kernel's are rebuilt from its log-sum-exp.

        Raises:
            IndexError: a layer or head that does not exist. ValueError: the maps are more than the memory there is.
        """
        check_whole("attention_maps", self.ring)
        idx = self._checked(idx)
        chosen = chosen_indices("layer", layers, self.config.n_layers)
        heads = chosen_indices("head", heads, self.config.n_heads)
        check_maps_fit(idx, len(set(chosen)) * len(heads))
        maps: dict[int, Tensor] = {}

        def watch(layer: int) -> Any:
            return lambda attn, args: maps.__setitem__(layer, attn.weights(args[0], heads))

        hooks = [self._attention(layer).register_forward_pre_hook(watch(layer)) for layer in sorted(set(chosen))]
        try:
            with evaluating(self):
                sharding.as_forward(self, self.hidden_states, idx)
        finally:
            for hook in hooks:
                hook.remove()
        return {layer: maps[layer] for layer in chosen}

    def _attention(self, layer: int) -> CausalSelfAttention:
        """That layer's own attention, also inside of what somebody has put around it."""
        block: Any = self.blocks[layer]
        attn: nn.Module = block.attn
        own = next((module for module in attn.modules() if isinstance(module, CausalSelfAttention)), None)
        if own is None:
            raise TypeError(f"attention_maps: layer {layer} attends by a {type(attn).__name__}, which tells no weights")
        return own

    def use_implementations(self, **requests: str) -> GPT:
        """Change implementations in place, as in ``use_implementations(attn_impl="sdpa")``, and return the model.

        Raises:
            ValueError: not a field of that name, or not an implementation.
        """
        allowed = [f"{part}_impl" for part in IMPLEMENTATIONS]
        for field, name in requests.items():
            if field not in allowed:
                raise ValueError(f"use_implementations: unknown field {field!r}; choose from {allowed}")
            check_constructible(field.removesuffix("_impl"), name, self.config.head_dim)
        self.config = self.config.replace(**requests)
        for module in self.modules():
            request = requests.get(f"{getattr(module, 'fastgpt_part', None)}_impl")
            if request is not None:
                module.impl = request  # type: ignore[assignment]  # for torch, attributes are tensors or modules
        return self

    def parts_read(self) -> dict[str, tuple[str, Any]]:
        """For `fastgpt.implementations`: the head is computed here, with its loss."""
        return {"head": ("loss", functools.partial(head_choice, self.head))}

    def num_parameters(self, *, embeddings: bool = True) -> int:
        """Trainable numbers, a tied head counted once. embeddings=False leaves the position embedding out, and the
        token embedding too unless it is the head."""
        total = sum(p.numel() for p in self.parameters())
        if embeddings:
            return total
        return total - self.pos_emb.weight.numel() - (0 if self.config.tie_weights else self.token_emb.weight.numel())

    def flops_per_token(self, seq_len: int | None = None, *, causal: bool = False) -> int:
        """Floating-point operations of one training step (forward + backward) per token, for MFU.

        6 · N + 12 · n_layers · d_model · seq_len, with N the parameters that multiply (PaLM, arXiv 2204.02311, app. B):
        2 FLOPs each forward and 4 backward, and the two T x T products of attention. The published convention counts
        the whole T x T square; causal=True counts the half that a causal kernel computes. seq_len: max_len by default.
        """
        seq_len = self.config.max_len if seq_len is None else seq_len
        multiplying = sum(p.numel() for p in self.blocks.parameters() if p.dim() > 1) + self.head.weight.numel()
        attention = 12 * self.config.n_layers * self.config.d_model * seq_len
        return 6 * multiplying + (attention // 2 if causal else attention)

    def save_pretrained(self, folder: str | os.PathLike[str], format: str = "fastgpt") -> None:
        """Write config and weights to `folder`: "fastgpt" (ours), "hf" (transformers' GPT-2) or "nanogpt" (ckpt.pt).

        Files are written under a temporary name and renamed, so that a full disk leaves the previous ones intact.

        A model that FSDP2 has sharded is written whole, by the first of its ranks, one weight gathered after the other:
        all ranks call this (one alone waits for the process group's time-out), and raise what the first one does.
        """
        neutral = {f"{part}_impl": "auto" for part in IMPLEMENTATIONS}
        expected = skeleton(lambda: GPT(self.config.replace(**neutral))).state_dict()
        state = self.state_dict(keep_vars=True)
        sharding.by_first(state, lambda whole: save(self.config, whole, folder, format, expected=expected))

    @classmethod
    def from_pretrained(
        cls, path_or_name: str | os.PathLike[str], *, device: torch.device | str | None = None,
        dtype: torch.dtype | None = None, **overrides: Any,
    ) -> GPT:  # fmt: skip
        """Read a folder that `save_pretrained` wrote, ours or transformers' GPT2LMHeadModel's, or a nanoGPT checkpoint.

        Never downloads: a name is a local folder's. `overrides` replace fields of the config that are not shapes
        (dropout, attn_impl, ...). device: torch's default; dtype: the file's.

        Raises:
            FileNotFoundError: no such folder, or no weights in it.
            ValueError: weights that are corrupted or of another shape, or a config that this model cannot express.
        """
        config, state = load(path_or_name)
        config = config.replace(**overrides)
        source = {"source": str(path_or_name), "config": in_words(config)}
        return filled(lambda: cls(config), state, **source, device=device, dtype=dtype).eval()

    def _apply(self, fn: Any, recurse: bool = True) -> GPT:
        with tied.kept(self):  # a move that makes new parameters (to_empty) would untie them
            return super()._apply(fn, recurse)

    def _checked(self, idx: Any) -> Tensor:
        vocab_size, max_len = self._limits()
        way_out = "encode with the tokenizer that the model was made for, or raise vocab_size"
        return checked_ids("GPT", idx, vocab_size=vocab_size, max_len=max_len, vocabulary=way_out)

    def _limits(self) -> tuple[int, int]:
        # The embedding itself knows best, as it may be another than the config's: a vocabulary that was resized.
        return getattr(self.token_emb, "num_embeddings", self.config.vocab_size), self.config.max_len

    def _new_cache(self, capacity: int) -> KVCache:
        return KVCache(self, capacity)

    def _next_logits(self, idx: Tensor, cache: KVCache | None) -> Tensor:
        check_whole("generate", self.ring)
        return sharding.as_forward(self, self._last_logits, idx, cache)

    def _last_logits(self, idx: Tensor, cache: KVCache | None) -> Tensor:
        return self.head(self.hidden_states(idx, cache)[:, -1])


def _checked_config(config: Any) -> GPTConfig:
    if isinstance(config, GPTConfig):
        return config
    way: dict[type, str] = {dict: "GPTConfig(**config)", str: "GPTConfig.preset(name), or GPT.from_pretrained(folder)"}
    hint = way.get(type(config), 'GPTConfig.preset("gpt2"), or GPTConfig(vocab_size, max_len, n_layers, ...)')
    raise SettingTypeError("GPT", "config", config, f"must be a GPTConfig: {hint}")
