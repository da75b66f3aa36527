"""Which strategy a model is trained by, and the model put on the ranks' devices by it."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import nn

from ..base import machine
from ..base.settings import SettingError
from ..model.config import GPTConfig
from ..model.one_head_config import OneHeadConfig
from ..model.size import Config, fits_one, state_bytes
from ..parallel.launch import is_initialized
from ..parallel.strategy import DataParallel, HybridSharded, Sharded, Strategy, shard_ranks_of
from ..parallel.world import World
from .train_config import TrainConfig


class Chosen(NamedTuple):
    """name: "single", "ddp", "fsdp" or "hsdp"; why: in words, "" where it was asked for; shards: parts of which each
    rank holds one."""

    name: str
    why: str
    shards: int

    @property
    def is_sharded(self) -> bool:
        """Whether a rank holds a part of the model only."""
        return self.name in ("fsdp", "hsdp")

    def __str__(self) -> str:
        return self.name + (f" ({self.why})" if self.why else "")


def choose(config: TrainConfig, model: Config | None, world: World) -> Chosen:
    """The strategy of a run. model: the config of one of ours; of any other nothing is known, and it is taken to fit.

    Raises:
        SettingError: one that this world cannot have.
    """
    if config.strategy == "auto":
        if world.size == 1:
            return Chosen("single", "", 1)
        room = _each(machine.room_on(world.device), world)
        if model is None or room is None:
            return Chosen("ddp", f"nothing is known of the {'model' if model is None else 'memory'}", 1)
        takes = machine.readable(state_bytes(model.to_dict()))
        of = f"weights, gradients and AdamW's moments take {takes}, a rank has {machine.readable(room)}"
        if fits_one(model, room):
            return Chosen("ddp", f"all fits one rank: {of}", 1)
        return Chosen("fsdp", f"one rank cannot hold all: {of}", world.size)
    if not is_initialized():
        need = "needs the processes of torchrun: torchrun --nproc-per-node N ...; leave it out on one device"
        raise SettingError("TrainConfig", "strategy", config.strategy, need)
    if config.strategy == "hsdp":
        return Chosen("hsdp", "", shard_ranks_of(world, config.shard_ranks))
    return Chosen(config.strategy, "", world.size if config.strategy == "fsdp" else 1)


def config_of(model: nn.Module) -> Config | None:
    """The config of a model of ours."""
    config = getattr(model, "config", None)
    return config if isinstance(config, (GPTConfig, OneHeadConfig)) else None


def place(
    model: nn.Module, chosen: Chosen, world: World, *, device: torch.device, dtype: torch.dtype,
    fill: Callable[[nn.Module], object] | None = None,
) -> Strategy:  # fmt: skip
    """`model` on the devices, by what was `chosen`. One on the meta device gets its values there: by `fill`, which is
    called with it; by its own `init_weights` if there is none.

    Raises:
        SettingError: on the meta device, and neither.
    """
    is_meta = any(parameter.is_meta for parameter in model.parameters())
    if is_meta and fill is None:
        fill = _init_weights(model)
    strategy: Strategy | None = None
    if chosen.name == "hsdp":
        strategy = HybridSharded(model, world, compute=dtype, shard_ranks=chosen.shards)
    elif chosen.name == "fsdp":
        strategy = Sharded(model, world, compute=dtype)
    if is_meta:
        assert fill is not None
        model.to_empty(device=device)
        fill(model)
    if strategy is not None:
        return strategy
    model.to(device)
    return DataParallel(model, world) if chosen.name == "ddp" else Strategy(model, world)


def _init_weights(model: nn.Module) -> Callable[[nn.Module], object]:
    method = getattr(model, "init_weights", None)
    if not callable(method):
        need = "is on the meta device, and has no method init_weights() that would fill it; give it one, or values"
        raise SettingError("Trainer", "model", type(model).__name__, need)
    return lambda _: method()


def _each(room: machine.Room | None, world: World) -> int | None:
    """What one rank has of a device's memory: of a GPU all, of this machine's its share."""
    if room is None:
        return None
    return room.n_bytes if world.device.type == "cuda" else room.n_bytes // world.local_size
