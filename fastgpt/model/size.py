"""What a model takes, from its config alone: counted before anything is made, so that what cannot fit is told at once.

Sizes are a config's fields, as `to_dict` has them. What is counted is a least amount: whatever else a model takes, and
whoever computes it, it takes that. Only what surely does not fit is refused.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from ..base import machine
from ..base.settings import SettingError
from .config import GPTConfig
from .one_head_config import OneHeadConfig

Config = GPTConfig | OneHeadConfig
Sizes = dict[str, Any]
DECIDING = ("n_layers", "d_model", "d_ff", "vocab_size", "max_len")
BLOCK_OBJECTS = 12 * 2**10  # bytes of Python objects, less than any block takes, wherever its weights lie


def count_parameters(sizes: Sizes) -> int:
    """Trainable numbers of the model, a tied head counted once."""
    vocabulary, positions, d = (sizes[name] for name in ("vocab_size", "max_len", "d_model"))
    if "n_layers" not in sizes:  # OneHeadLM: its LayerNorm has a bias, its four matrices have none
        return (vocabulary + positions + 2 + 4 * d) * d
    d_ff, bias = sizes["d_ff"], int(sizes["bias"])
    qkv = d + 2 * (d * sizes["n_kv_heads"] // sizes["n_heads"])
    norm = d * (1 + bias)
    attention = qkv * (d + bias) + d * (d + bias)
    ffn = d_ff * (d + bias) + d * (d_ff + bias)
    block = 2 * norm + attention + ffn
    return (vocabulary * (1 if sizes["tie_weights"] else 2) + positions) * d + sizes["n_layers"] * block + norm


def parameter_shapes(sizes: Sizes) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """(shapes of a GPT's parameters outside its blocks, those of one block), a tied head once, in the model's order."""
    vocabulary, positions, d, d_ff = (sizes[name] for name in ("vocab_size", "max_len", "d_model", "d_ff"))
    qkv = d + 2 * (d * sizes["n_kv_heads"] // sizes["n_heads"])

    def with_bias(*weight: int) -> list[tuple[int, ...]]:
        return [weight, (weight[0],)] if sizes["bias"] else [weight]

    root = [(vocabulary, d), (positions, d), *with_bias(d)]
    if not sizes["tie_weights"]:
        root.append((vocabulary, d))
    products = [*with_bias(qkv, d), *with_bias(d, d), *with_bias(d_ff, d), *with_bias(d, d_ff)]
    return root, [*with_bias(d), *with_bias(d), *products]


def state_bytes(sizes: Sizes) -> int:
    """What training holds from step to step, in float32: parameters, their gradients and AdamW's two moments."""
    return 4 * 4 * count_parameters(sizes)


def fits_one(config: Config, n_bytes: int) -> bool:
    """Whether `state_bytes` fit one device of n_bytes: then each can hold a whole copy, as DDP does."""
    return state_bytes(config.to_dict()) <= n_bytes


def kept_for_backward(sizes: Sizes, tokens: int, seq_len: int, *, fused_loss: bool, remat: str = "none") -> int:
    """Numbers that no implementation does without between forward and backward of so many tokens."""
    if "n_layers" not in sizes:
        return tokens * (seq_len + sizes["vocab_size"])  # attention weights and logits, which the output names
    of_block = sizes[{"full": "d_model"}.get(remat, "d_ff")]  # its input; the FFN's pre-activation
    return tokens * (sizes["n_layers"] * of_block + (0 if fused_loss else sizes["vocab_size"]))


def check_fits(config: Config, room: machine.Room | None, need: Callable[[Sizes], int], what: str) -> None:
    """Raise SettingError where `need` of the config's sizes, in bytes, is more than there is. `what`: that takes it.

    It names the size without which the need would be least, and the most of it that there is room for.
    """
    sizes = config.to_dict()
    if room is None or need(sizes) <= room.n_bytes:
        return
    names = [name for name in DECIDING if name in sizes]
    name = min(names, key=lambda name: need(_with(sizes, name, 1)))
    most = largest(lambda n: need(_with(sizes, name, n)) <= room.n_bytes, sizes[name])
    if name == "d_model":
        most -= most % sizes.get("n_heads", 1)
    takes = f"makes {count_parameters(sizes):,} parameters: {what} take {machine.readable(need(sizes))}"
    way_out = f"lower it: at most {most:,} could fit" if most else "lower it, and the model's other sizes"
    owner = "GPTConfig" if isinstance(config, GPTConfig) else "OneHeadLM"
    raise SettingError(owner, name, sizes[name], f"{takes}, and {room}; {way_out}")


def check_can_be_made(config: Config) -> None:
    """Raise SettingError where the model's objects and weights, where they would be made now, surely find no room."""
    check_fits(config, machine.host_room(), _objects, "their Python objects alone")
    weight = nn.LayerNorm(1, bias=False).weight  # made as all others will be: asked for, no context manager is missed
    # Weights of another kind take no memory, or less: fake tensors, or dealt out to processes as they are made.
    if type(weight) is nn.Parameter and weight.numel() == 1:
        each, on_host, room = weight.element_size(), weight.device.type == "cpu", machine.room_on(weight.device)

        def need(sizes: Sizes) -> int:
            return (_objects(sizes) if on_host else 0) + each * count_parameters(sizes)

        check_fits(config, room, need, "their weights")


def check_enough_weights(config: GPTConfig, state: dict[str, torch.Tensor], source: str) -> None:
    """Raise ValueError where a config asks for more layers than there are tensors: before it is gone through them."""
    if config.n_layers > len(state):
        raise ValueError(
            f"{source}: the weights do not fit the config: {len(state)} tensors cannot be n_layers={config.n_layers} "
            "layers; correct the config or take the right weights"
        )


def check_maps_fit(idx: torch.Tensor, n_maps: int) -> None:
    """Raise SettingError where so many attention maps of the tokens idx (B, T) surely find no room."""
    (n_rows, seq_len), room = idx.shape, machine.room_on(idx.device)
    n_bytes = 2 * n_rows * n_maps * seq_len**2  # two a weight: no dtype that models compute in has fewer
    if room is not None and n_bytes > room.n_bytes:
        raise SettingError(
            "attention_maps", "idx", tuple(idx.shape),
            f"makes {n_rows * n_maps:,} maps of {seq_len:,} x {seq_len:,} weights: they take at least "
            f"{machine.readable(n_bytes)}, and {room}; shorten it, or name fewer layers (--layers) or heads (--heads)",
        )  # fmt: skip


def largest(fits: Callable[[int], bool], too_large: int) -> int:
    """The largest n below `too_large` that fits, if all smaller ones do; 0 if none does."""
    low, high = 0, too_large
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low


def _with(sizes: Sizes, name: str, value: int) -> Sizes:
    """The sizes with another one; a d_ff of 4 · d_model goes along, as in GPTConfig.replace."""
    if name == "d_model" and sizes.get("d_ff") == 4 * sizes["d_model"]:
        return sizes | {"d_model": value, "d_ff": 4 * value}
    return sizes | {name: value}


def _objects(sizes: Sizes) -> int:
    return BLOCK_OBJECTS * sizes.get("n_layers", 0)
