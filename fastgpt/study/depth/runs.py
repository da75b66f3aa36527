"""The runs of the depth study, each by the ordinary Trainer: started, gone on with, or left where it is done."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ...base import files
from ...data import TokenDataset
from ...data.tokenizer import Tokenizer
from ...model.gpt import GPT
from ...train import checkpoint, overwritten
from ...train.metrics import read_metrics
from ...train.trainer import Trainer, TrainResult, resolve_device
from .config import Cell, DepthConfig
from .variants import make

TIMED, WARM_UP = 3, 1  # updates


class CellTrainer(Trainer):
    """A Trainer that tells of every update."""

    on_step: Callable[[], None] = staticmethod(lambda: None)

    def train_step(self) -> tuple[float, float, float]:
        found = super().train_step()
        self.on_step()
        return found


class Runs:
    """What every run of a study is made of."""

    def __init__(
        self, recipe: DepthConfig, train_data: TokenDataset, val_data: TokenDataset, tokenizer: Tokenizer
    ) -> None:
        self.recipe, self.train_data, self.val_data, self.tokenizer = recipe, train_data, val_data, tokenizer

    def new_model(self, cell: Cell) -> GPT:
        """The model as its run begins with it."""
        torch.manual_seed(cell.seed)
        return make(cell.model_config(self.tokenizer.vocab_size, self.recipe), norm=cell.norm)

    def folder(self, cell: Cell) -> Path:
        return cell.train_config(self.recipe).folder

    def newest(self, cell: Cell) -> Path | None:
        """Its newest checkpoint."""
        return overwritten.newest(self.folder(cell) / "checkpoints")

    def done(self, cell: Cell) -> int:
        """Updates that are made and saved."""
        newest = self.newest(cell)
        return 0 if newest is None else checkpoint.step_of(newest)

    def is_finished(self, cell: Cell) -> bool:
        """Whether all its updates are made, and its last validation is written down."""
        if self.done(cell) < cell.updates(self.recipe):
            return False
        return any("val_loss" in line and line["step"] == self.done(cell) for line in self.lines(cell))

    def lines(self, cell: Cell) -> list[dict[str, Any]]:
        """Its metrics."""
        try:
            return read_metrics(self.folder(cell) / "metrics.jsonl")
        except FileNotFoundError:
            return []

    def trained_model(self, cell: Cell) -> GPT:
        """The model as its newest checkpoint has it."""
        newest = self.newest(cell)
        assert newest is not None  # whoever asks has trained it
        model = self.new_model(cell)
        model.load_state_dict(GPT.from_pretrained(newest).state_dict())
        return model.to(self.device)

    @property
    def device(self) -> torch.device:
        return resolve_device(self.recipe.device)

    def train(self, cell: Cell, on_step: Callable[[], None]) -> TrainResult:
        """Make its updates, from where they were left.

        Raises:
            Whatever `Trainer.fit` raises; FloatingPointError where it diverged.
        """
        trainer = self._trainer(cell)
        trainer.on_step = on_step
        return trainer.fit(resume=self.newest(cell) is not None)

    def seconds_per_token(self, cell: Cell) -> float:
        """Of training, by a few updates of a model that is thrown away: the fastest of them."""
        trainer, times = self.throw_away(cell), []
        for _ in range(WARM_UP + TIMED):
            began = time.perf_counter()
            trainer.train_step()
            times.append(time.perf_counter() - began)
        return min(times[WARM_UP:]) / (self.recipe.micro_batch * self.recipe.seq_len)

    def throw_away(self, cell: Cell) -> CellTrainer:
        """A trainer of this cell whose update is one micro-batch, and that writes nothing."""
        return self._trainer(cell, batch_size=self.recipe.micro_batch, grad_accum=1)

    def _trainer(self, cell: Cell, **changes: Any) -> CellTrainer:
        recipe = self.recipe
        if recipe.tokens is None:  # what is timed before the number is known does not depend on it
            recipe = dataclasses.replace(recipe, tokens=100 * recipe.tokens_per_update, budget=None)
        config = dataclasses.replace(cell.train_config(recipe), **changes)
        model = self.new_model(cell)
        options = {k: v for k, v in model.config.to_dict().items() if k != "layer_norm_eps"}
        settings = {"tokenizer": self.tokenizer.name, "model": options, "train": dataclasses.asdict(config)}
        return CellTrainer(
            model, self.train_data, config, val_data=self.val_data, tokenizer=self.tokenizer, settings=settings,
            show_progress=False,
        )  # fmt: skip


def why(error: BaseException) -> str:
    """A failed run's reason, on one line."""
    text = files.reason(error) if isinstance(error, OSError) else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())}"
