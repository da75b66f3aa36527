"""Whether a training step can fit at all, told before anything is made.

Least amounts: a step that is let through may still run out of memory, none that could fit is refused.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import nn

from ..base import machine
from ..base.settings import SettingError
from ..model.config import GPTConfig
from ..model.one_head_config import OneHeadConfig
from ..model.size import Config, check_fits, count_parameters, kept_for_backward, largest
from ..nn.impl import explain

_BATCH_OBJECTS = 512  # bytes: two tensors, their storages and a tuple, less than they take


def check_room(
    config: Config, *, batch_size: int, seq_len: int, device: torch.device, dtype: torch.dtype, grad_accum: int = 1,
    weight_bytes: int = 4, shards: int = 1, remat: str = "none",
) -> None:  # fmt: skip
    """Raise SettingError, of the setting that is to blame, where a step of AdamW needs more than there is.

    dtype: what the model computes in; weight_bytes: of each of its numbers; shards: parts of which a device holds one.
    """
    room, sizes = machine.room_on(device), config.to_dict()
    what = "weights, gradients and AdamW's moments"
    check_fits(config, room, lambda sizes: 4 * weight_bytes * count_parameters(sizes) // shards, what)
    weights = weight_bytes * count_parameters(sizes) // shards
    fused = isinstance(config, GPTConfig) and explain("loss", config.loss_impl, device, dtype).name == "triton"

    def step(batch_size: int, seq_len: int) -> int:
        kept = kept_for_backward(sizes, batch_size * seq_len, seq_len, fused_loss=fused, remat=remat)
        return weights + dtype.itemsize * kept

    def batches(count: int, batch_size: int) -> int:
        return count * (batch_size * seq_len * 16 + _BATCH_OBJECTS)  # ids and targets, int64

    what = f"the weights, and what the backward needs of {batch_size:,} x {seq_len:,} tokens,"
    _check(room, what, step, batch_size=batch_size, seq_len=seq_len)
    what = f"the tokens of an update, {grad_accum:,} x {batch_size:,} x {seq_len:,},"
    _check(machine.host_room(), what, batches, grad_accum=grad_accum, batch_size=batch_size)


def check_room_of(
    model: nn.Module, *, batch_size: int, seq_len: int, grad_accum: int, device: torch.device, dtype: torch.dtype,
    shards: int = 1, remat: str = "none",
) -> None:  # fmt: skip
    """As `check_room`, for a model of ours that is trained as a whole; of any other nothing is known."""
    config = getattr(model, "config", None)
    weights = list(model.parameters())
    if not isinstance(config, (GPTConfig, OneHeadConfig)) or not all(weight.requires_grad for weight in weights):
        return
    if sum(weight.numel() for weight in weights) == count_parameters(config.to_dict()):
        check_room(
            config, batch_size=batch_size, seq_len=seq_len, grad_accum=grad_accum, device=device, dtype=dtype,
            weight_bytes=min(weight.element_size() for weight in weights), shards=shards, remat=remat,
        )  # fmt: skip


def _check(room: machine.Room | None, what: str, need: Callable[[int, int], int], **settings: int) -> None:
    """Raise SettingError where `need` of the two settings, in bytes, is more than there is: of the first, or of the
    second where lowering the first would not do."""
    (one, first), (other, second) = settings.items()
    if room is None or need(first, second) <= room.n_bytes:
        return
    most = {
        one: largest(lambda n: need(n, second) <= room.n_bytes, first),
        other: largest(lambda n: need(first, n) <= room.n_bytes, second),
    }
    name = other if most[other] and not most[one] else one
    way_out = f"at most {most[name]:,} could fit" if most[name] else f"and {other} (--{other.replace('_', '-')}) too"
    raise SettingError(
        "TrainConfig", name, settings[name],
        f"is too large: {what} take at least {machine.readable(need(first, second))}, and {room}; lower it: {way_out}",
    )  # fmt: skip
