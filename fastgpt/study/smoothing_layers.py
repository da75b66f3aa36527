"""Over-smoothing by layer: the measures of `measures.py` along a model's residual stream."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..model.gpt import GPT
from ..model.modes import evaluating
from .measures import attention_entropy, dirichlet_energy, smoothing


@dataclass(frozen=True)
class LayerSmoothing:
    """The residual stream behind `layer` blocks (0: the embeddings), and the attention of the block that reads it.

    energy, entropy: of each head; None behind the last block, where nothing attends any more.
    """

    layer: int
    cosine: float
    centred_cosine: float
    effective_rank: float
    top_share: float
    energy: list[float] | None
    entropy: list[float] | None


@torch.no_grad()
def residual_streams(model: GPT, idx: Tensor) -> list[Tensor]:
    """The residual stream (B, T, d) before the first block of `model` and behind each, for token ids idx (B, T).

    Without dropout; each module is afterwards in the mode that it was in.
    """
    streams: list[Tensor] = []

    def before(block: Any, args: tuple[Any, ...]) -> None:
        x, residual = args[:2]
        streams.append(residual if x is None else residual + x)

    def behind(block: Any, args: tuple[Any, ...], out: tuple[Tensor, Tensor]) -> None:
        x, residual = out
        streams.append(residual + x)

    hooks = [block.register_forward_pre_hook(before) for block in model.blocks]
    hooks.append(model.blocks[-1].register_forward_hook(behind))
    try:
        with evaluating(model):
            model.hidden_states(idx)
    finally:
        for hook in hooks:
            hook.remove()
    return [stream.clone() for stream in streams]


def smoothing_by_layer(model: GPT, idx: Tensor) -> list[LayerSmoothing]:
    """Measures of token ids idx (B, T) at each layer of `model`; see `measures.py` for what they are.

    Raises:
        ValueError: T > max_len. IndexError: a token id that the model has not.
    """
    maps = model.attention_maps(idx)
    found = []
    for layer, stream in enumerate(residual_streams(model, idx)):
        weights = maps.get(layer)
        energy = entropy = None
        if weights is not None:
            energy = dirichlet_energy(weights.float(), stream.float()).tolist()
            entropy = attention_entropy(weights.float()).tolist()
        found.append(LayerSmoothing(layer, *smoothing(stream), energy, entropy))
    return found
