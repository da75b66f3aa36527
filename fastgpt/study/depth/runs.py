"""The runs of the depth study's grid: what each is made of, and what is timed of it beforehand."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable

import torch

from ...model.gpt import GPT
from ...train.trainer import TrainResult, resolve_device
from ..study_runs import StudyData, StudyRun, StudyTrainer
from .config import Cell, DepthConfig
from .variants import make

TIMED, WARM_UP = 3, 1  # updates


class Runs:
    """What every run of a study is made of."""

    def __init__(self, recipe: DepthConfig, data: StudyData) -> None:
        self.recipe, self.data = recipe, data

    def new_model(self, cell: Cell) -> GPT:
        """The model as its run begins with it."""
        torch.manual_seed(cell.seed)
        return make(cell.model_config(self.data.tokenizer.vocab_size, self.recipe), norm=cell.norm)

    def of(self, cell: Cell) -> StudyRun:
        """What is there of this cell's run."""
        return StudyRun(cell.train_config(self.recipe))

    def trained_model(self, cell: Cell) -> GPT:
        """The model as its newest checkpoint has it."""
        newest = self.of(cell).newest
        assert newest is not None  # whoever asks has trained it
        model = self.new_model(cell)
        model.load_state_dict(GPT.from_pretrained(newest).state_dict())
        return model.to(self.device)

    @property
    def device(self) -> torch.device:
        return resolve_device(self.recipe.device)

    def train(self, cell: Cell, on_step: Callable[[], object]) -> TrainResult:
        """Make its updates, from where they were left; see `StudyRun.train`."""
        return self.of(cell).train(self.new_model(cell), self.data, on_step)

    def seconds_per_token(self, cell: Cell) -> float:
        """Of training, by a few updates of a model that is thrown away: the fastest of them."""
        trainer, times = self.throw_away(cell), []
        for _ in range(WARM_UP + TIMED):
            began = time.perf_counter()
            trainer.train_step()
            times.append(time.perf_counter() - began)
        return min(times[WARM_UP:]) / (self.recipe.micro_batch * self.recipe.seq_len)

    def throw_away(self, cell: Cell) -> StudyTrainer:
        """A trainer of this cell whose update is one micro-batch, and that writes nothing."""
        recipe = self.recipe
        if recipe.tokens is None:  # what is timed before the number is known does not depend on it
            recipe = dataclasses.replace(recipe, tokens=100 * recipe.tokens_per_update, budget=None)
        config = dataclasses.replace(cell.train_config(recipe), batch_size=recipe.micro_batch, grad_accum=1)
        return self.data.trainer(self.new_model(cell), config)
