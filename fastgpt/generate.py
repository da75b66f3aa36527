"""Sampling from a GPT: temperature, top-k, top-p; one token at a time, with or without a key/value cache."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from .modes import evaluating

if TYPE_CHECKING:
    from .model import GPT


@dataclass(frozen=True)
class SamplingConfig:
    """How the next token is drawn.

    temperature  logits are divided by it; 0 takes the likeliest token
    top_k        draw from the k likeliest tokens
    top_p        draw from the fewest likeliest tokens whose probabilities reach p (arXiv 1904.09751)
    seed         of a generator made for this call; None: the generator passed, or torch's own
    eos          a token id after which a row stops
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int | None = None
    eos: int | None = None

    def __post_init__(self) -> None:
        if not self.temperature >= 0.0:
            raise ValueError(f"generate: temperature must be 0 (greedy) or more, got {self.temperature}")
        if self.top_k is not None and self.top_k < 1:
            raise ValueError(f"generate: top_k must be at least 1, got {self.top_k}; None switches it off")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise ValueError(f"generate: top_p must be in (0, 1], got {self.top_p}; None switches it off")


class KVCache:
    """Keys and values of every layer for the tokens seen so far."""

    def __init__(self, model: GPT, capacity: int) -> None:
        from .modules import LayerCache

        self.layers = [LayerCache(capacity) for _ in model.blocks]

    @property
    def length(self) -> int:
        """Tokens stored so far."""
        return self.layers[0].length


def sample_stream(
    model: GPT,
    idx: Tensor,
    max_new_tokens: int,
    config: SamplingConfig,
    use_cache: bool,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    """Yield the tokens that follow idx (B, T), (B,) at a time; see `GPT.generate`."""
    if idx.shape[1] == 0:
        raise ValueError("generate: idx has no tokens; start with at least one, e.g. the end-of-text token")
    if max_new_tokens < 0:
        raise ValueError(f"generate: max_new_tokens must be 0 or more, got {max_new_tokens}")
    if config.seed is not None:
        if generator is not None:
            raise ValueError("generate: pass seed or generator, not both")
        generator = torch.Generator(device=idx.device).manual_seed(config.seed)
    return _stream(model, idx, max_new_tokens, config, use_cache, generator)


def _stream(
    model: GPT,
    idx: Tensor,
    max_new_tokens: int,
    config: SamplingConfig,
    use_cache: bool,
    generator: torch.Generator | None,
) -> Iterator[Tensor]:
    batch, max_len = idx.shape[0], model.config.max_len
    cache = KVCache(model, min(max_len, idx.shape[1] + max_new_tokens)) if use_cache else None
    seen, unread = idx, idx  # `unread` are the tokens that the cache does not hold yet
    finished = torch.zeros(batch, dtype=torch.bool, device=idx.device)
    for _ in range(max_new_tokens):
        if cache is not None and cache.length + unread.shape[1] > max_len:
            cache = None  # the window slides from here on, and every position in it changes
        logits = _next_logits(model, seen[:, -max_len:] if cache is None else unread, cache)
        token = sample(logits, config, generator)
        if config.eos is not None:
            token = torch.where(finished, config.eos, token)
            finished = finished | (token == config.eos)
        yield token
        if config.eos is not None and bool(finished.all()):
            return
        unread = token[:, None].to(idx.dtype)
        seen = torch.cat([seen, unread], dim=1)


@torch.no_grad()
def _next_logits(model: GPT, idx: Tensor, cache: KVCache | None) -> Tensor:
    """Logits (B, V) after the last of the tokens idx (B, T), without dropout."""
    with evaluating(model):
        hidden = model.hidden_states(idx, cache)
        logits = model.head(hidden[:, -1])
    return logits


def sample(logits: Tensor, config: SamplingConfig, generator: torch.Generator | None = None) -> Tensor:
    """Draw one token a row: logits (B, V) -> (B,) int64. top_k keeps all that tie with the k-th."""
    if config.temperature == 0.0:
        return logits.argmax(dim=-1)
    logits = (logits if logits.dtype == torch.float64 else logits.float()) / config.temperature
    if config.top_k is not None and config.top_k < logits.shape[-1]:
        kth = logits.topk(config.top_k, dim=-1).values[:, -1:]  # (B, 1)
        logits = logits.masked_fill(logits < kth, float("-inf"))
    if config.top_p is not None and config.top_p < 1.0:
        ordered, order = logits.sort(dim=-1, descending=True)
        probabilities = ordered.softmax(dim=-1)
        before = probabilities.cumsum(dim=-1) - probabilities  # mass of the likelier tokens
        logits = logits.scatter(-1, order, ordered.masked_fill(before >= config.top_p, float("-inf")))
    return torch.multinomial(logits.softmax(dim=-1), 1, generator=generator).squeeze(-1)
