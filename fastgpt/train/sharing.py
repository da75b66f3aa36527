"""Context parallel in training: ranks that share each sequence (`fastgpt/parallel/ring.py`) see the same ones, cut.

With context_parallel=n, n ranks side by side are one ring, and the size / n rings see other sequences, as ranks without
it do. What is summed over ranks, the tokens that count, losses and gradients, is summed over all of them as ever: so
strategies, steps and checkpoints know nothing of it.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor, nn

from ..base.settings import SettingError
from ..model.gpt import GPT
from ..model.one_head_config import OneHeadConfig
from ..model.size import Config
from ..parallel import ring as rings
from ..parallel import ring_layout
from ..parallel.ring import Ring
from ..parallel.world import World
from .train_config import TrainConfig


class Place(NamedTuple):
    """Which sequences a rank sees: the `rank`-th part of `size`; and which of their T tokens: `columns`, None: all."""

    rank: int
    size: int
    columns: Tensor | None


def check_sharing(config: TrainConfig, model: Config | None, seq_len: int, ranks: int) -> None:
    """Raise SettingError where `ranks` cannot share the sequences of a run. model: its config, where it is known."""
    n = config.context_parallel
    rings.check_size("Trainer", ranks, n)
    if n == 1:
        return
    ring_layout.local_length("Trainer", seq_len, n, name="max_len" if config.seq_len is None else "seq_len")
    if isinstance(model, OneHeadConfig):
        raise _no_gpt(n, "OneHeadLM")
    rings.check_dropout("Trainer", 0.0 if model is None else model.dropout)


def _no_gpt(n: int, kind: str) -> SettingError:
    need = f"must be 1 for a {kind}: only a fastgpt.GPT can share a sequence with other ranks"
    return SettingError("Trainer", "context_parallel", n, need)


def join(model: nn.Module, config: TrainConfig, world: World, seq_len: int) -> Ring | None:
    """The ring of this rank, which `model` uses from here on; None where no rank shares its sequences with another.

    Raises:
        SettingError: as `check_sharing`, or a model that is no fastgpt.GPT.
    """
    n = config.context_parallel
    check_sharing(config, None, seq_len, world.size)
    if n == 1:
        return None
    if not any(isinstance(module, GPT) for module in model.modules()):
        raise _no_gpt(n, type(model).__name__)
    return rings.use(model, rings.group_of(world, n, timeout=config.timeout))


def place(ring: Ring | None, world: World, seq_len: int) -> Place:
    """This rank's place. `ring`: that of the model, None: each sequence lies on one rank.

    Raises:
        SettingError: a seq_len that does not divide, or a ring of other ranks than the world's.
    """
    if ring is None:
        return Place(world.rank, world.size, None)
    if world.size % ring.size:
        need = f"must be that of all ranks: {ring.size} of them share this model's sequences; fastgpt.parallel.launch"
        raise SettingError("evaluate", "world", f"{world.size} ranks", need)
    columns = ring_layout.positions(seq_len, ring.rank, ring.size, owner="evaluate")
    return Place(world.rank // ring.size, world.size // ring.size, columns)


def cut(x: Tensor, columns: Tensor | None) -> Tensor:
    """x (B, T) -> (B, T / n), this rank's tokens of it."""
    return x if columns is None else torch.index_select(x, 1, columns)
