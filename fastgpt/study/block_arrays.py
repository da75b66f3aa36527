"""What a page of a GPT's blocks holds: every layer and head, and the weights, as far as a page of a few MB has room."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from ..model.config import GPTConfig
from ..model.gpt import GPT
from .block_steps import BlockSteps

ROOM = 5_000_000  # bytes of a page's arrays
BYTES = 16 / 3  # of a number on a page: four, in base64


class Held(NamedTuple):
    """The layers and heads that a page holds, and whether the weights that make them are there too."""

    layers: list[int]
    heads: list[int]
    has_weights: bool


def choose_held(config: GPTConfig, T: int, layer: int, head: int, room: int = ROOM) -> Held:
    """Everything if that fits into `room` bytes, else without the weights, else the layer and head asked for alone."""
    layers, heads = list(range(config.n_layers)), list(range(config.n_heads))
    for held in (Held(layers, heads, True), Held(layers, heads, False), Held([layer], [head], True)):
        if bytes_of(config, T, held) <= room:
            return held
    return Held([layer], [head], False)


def bytes_of(config: GPTConfig, T: int, held: Held) -> int:
    """What `block_arrays` would take on a page."""
    d, D = config.d_model, config.head_dim
    f, kv = config.d_ff or 0, config.n_kv_heads or 0
    kv_heads = len({head * kv // config.n_heads for head in held.heads})
    b = int(config.bias)
    per_head = 2 * T * D + 2 * T * T + held.has_weights * (D * d + b * D)
    per_kv_head = 2 * T * D + held.has_weights * 2 * (D * d + b * D)
    per_layer = 4 * T + T * (7 * d + 2 * f) + (2 + 2 * b) * d
    per_layer += held.has_weights * (d * d + 2 * d * f + b * (2 * d + f))
    count = len(held.layers) * (per_layer + len(held.heads) * per_head + kv_heads * per_kv_head)
    return int(BYTES * (count + T * d))


def block_arrays(model: GPT, blocks: dict[int, BlockSteps], held: Held) -> dict[str, Tensor]:
    """The page's arrays, each (rows, columns): of layer L "L.h1", of its head H "L.H.q", of its key head K "L.K.k".

    The stream before layer L is "L.stream", which is the one after layer L - 1 too.
    """
    arrays: dict[str, Tensor] = {}
    for layer in held.layers:
        steps = blocks[layer]
        block: Any = model.blocks[layer]
        arrays[f"{layer}.stream"], arrays[f"{layer + 1}.stream"] = steps.before, steps.after
        arrays[f"{layer}.heads"] = steps.mixed.transpose(0, 1).flatten(1)
        for name in ("statistics1", "h1", "attended", "middle", "statistics2", "h2", "hidden", "activated", "fed"):
            arrays[f"{layer}.{name}"] = getattr(steps, name)
        for name in ("ln1", "ln2"):
            arrays |= _parameters(f"{layer}.{name}", getattr(block, name).weight[None], getattr(block, name).bias)
        for head in held.heads:
            kv = key_head(model.config, head)
            for name in ("q", "scores", "weights", "mixed"):
                arrays[f"{layer}.{head}.{name}"] = getattr(steps, name)[head]
            for name in ("k", "v"):
                arrays[f"{layer}.{kv}.{name}"] = getattr(steps, name)[kv]
        if held.has_weights:
            arrays |= _weights(model, layer, held.heads)
    return arrays


def key_head(config: GPTConfig, head: int) -> int:
    """The key and value head that query head `head` reads: n_heads / n_kv_heads in a row share one."""
    return head * (config.n_kv_heads or 0) // config.n_heads


def _weights(model: GPT, layer: int, heads: Sequence[int]) -> dict[str, Tensor]:
    config = model.config
    block: Any = model.blocks[layer]  # for torch, attributes are tensors or modules
    attn, ffn, D = block.attn, block.ffn, config.head_dim
    H, kv = config.n_heads, config.n_kv_heads or 0
    W, b = attn.in_proj_weight, attn.in_proj_bias
    arrays: dict[str, Tensor] = {}
    first = {"q": 0, "k": H, "v": H + kv}
    for head in heads:
        for name, of in (("q", head), ("k", key_head(config, head)), ("v", key_head(config, head))):
            rows = slice((first[name] + of) * D, (first[name] + of + 1) * D)
            arrays |= _parameters(f"{layer}.{of}.W_{name}", W[rows], None if b is None else b[rows])
    for name, linear in (("W_O", attn.out_proj), ("W_1", ffn[0]), ("W_2", ffn[2])):
        arrays |= _parameters(f"{layer}.{name}", linear.weight, linear.bias)
    return arrays


def _parameters(name: str, weight: Tensor, bias: Tensor | None) -> dict[str, Tensor]:
    return {name: weight} | ({} if bias is None else {f"{name}.bias": bias[None]})
