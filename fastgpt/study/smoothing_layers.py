"""Over-smoothing by layer: the measures of `measures.py` along a model's residual stream."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..base.settings import SettingTypeError
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

    Raises:
        SettingTypeError: no GPT. ValueError: T > max_len. IndexError: a token id that the model has not.
    """
    _check_gpt("residual_streams", model)
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
        SettingTypeError: no GPT. SettingError: numbers that are not finite. ValueError: T > max_len, or attention maps
            that are more than the memory there is. IndexError: a token id that the model has not.
    """
    _check_gpt("smoothing_by_layer", model)
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


def smoothing_of_sequences(
    model: GPT, idx: Tensor, on_sequence: Callable[[], object] = lambda: None
) -> list[LayerSmoothing]:
    """As `smoothing_by_layer`, a sequence of idx (B, T) at a time, so that B costs no memory; `on_sequence` is called
    after each."""
    found = []
    for one in idx.split(1):
        found.append(smoothing_by_layer(model, one))
        on_sequence()
    return average(found)


def average(found: Sequence[Sequence[LayerSmoothing]]) -> list[LayerSmoothing]:
    """The mean, layer by layer, of measures of models of the same shape, or of one model on several texts."""
    means = []
    for same in zip(*found, strict=True):
        numbers = zip(*([one.cosine, one.centred_cosine, one.effective_rank, one.top_share] for one in same))
        cosine, centred, rank, share = map(statistics.fmean, numbers)
        energy, entropy = ([one.energy for one in same], [one.entropy for one in same])
        means.append(LayerSmoothing(same[0].layer, cosine, centred, rank, share, _by_head(energy), _by_head(entropy)))
    return means


def _by_head(found: Sequence[list[float] | None]) -> list[float] | None:
    known = [heads for heads in found if heads is not None]
    return [statistics.fmean(head) for head in zip(*known, strict=True)] if known else None


def _check_gpt(owner: str, model: Any) -> None:
    if not isinstance(model, GPT):
        need = "must be a GPT: a model without blocks has no layers to compare"
        raise SettingTypeError(owner, "model", type(model).__name__, need)
