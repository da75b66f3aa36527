"""`Saver`: writes the checkpoints of a run, at once where one process trains, while training goes on where many do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from ..model.sharding import is_dealt_out
from ..parallel.world import World
from . import checkpoint, elastic
from .training_state import trained_names

if TYPE_CHECKING:
    from .sharded import Group


class Saver:
    """Of one trainer. With more than one rank all of them call each method, in the same order.

    strategy  how the model lies on the ranks, for training.json
    timeout   seconds that a rank waits for another

    A save of many ranks returns when the tensors are copied, and is whole later: `wait` waits for that. The next save
    waits for the last. An error of one is raised by what waits for it.
    """

    def __init__(self, world: World | None = None, *, strategy: str = "single", timeout: float | None = None) -> None:
        self.world = World() if world is None else world
        self.strategy, self.timeout = strategy, timeout
        self._group: Group | None = None
        self._pending: tuple[Path, Callable[[], None]] | None = None
        self._prunes: tuple[Path, int, Path] | None = None

    def save(
        self, target: Path, model: nn.Module, optimizer: torch.optim.Optimizer, state: dict[str, Any],
        tokenizer: Any = None,
    ) -> None:  # fmt: skip
        """Write a checkpoint of what is now; see `checkpoint.save`.

        Raises:
            CheckpointError: it, or the one before it, cannot be written; nothing was replaced.
        """
        if (job := elastic.job()) is not None:
            state = state | {"job": job}
        if self.world.size == 1 and not is_dealt_out(model):
            checkpoint.save(target, model, optimizer, state, tokenizer)
            return
        self.wait()
        if self._group is None:
            from .sharded import Group

            self._group = Group(self.world, self.timeout)
        state = state | {
            "trained": trained_names(model, optimizer), "ranks": self.world.size, "strategy": self.strategy,
        }  # fmt: skip
        self._pending = (target, self._group.save(target, model, optimizer, state, tokenizer))

    def holds(self, target: Path) -> bool:
        """Whether this checkpoint is there, or on its way: the same on all ranks."""
        if self._pending is not None and self._pending[0] == target:
            return True
        if self.world.size == 1:
            return target.exists()
        return self.world.from_first(target.exists())

    def wait(self) -> None:
        """Until the last save is whole; then what was to be pruned after it is.

        Raises:
            CheckpointError: it could not be written; nothing was replaced.
        """
        if self._pending is None:
            return
        (_, wait), self._pending = self._pending, None
        prunes, self._prunes = self._prunes, None
        self.world.mark()
        wait()
        if prunes is not None and self.world.is_first:
            checkpoint.prune(*prunes)

    def prune(self, root: Path, keep: int, newest: Path) -> None:
        """`checkpoint.prune`, as soon as the last save is whole; of rank 0."""
        if self._pending is not None:
            self._prunes = (root, keep, newest)
        elif self.world.is_first:
            checkpoint.prune(root, keep, newest)
