"""The runs of a study, each by the ordinary Trainer: started, gone on with, or left where it is done."""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import statistics
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base import files
from ..base.settings import SettingError, shown
from ..data import TokenDataset
from ..data.tokenizer import Tokenizer
from ..model.config import GPTConfig
from ..model.gpt import GPT
from ..model.size import check_can_be_made
from ..train import checkpoint, overwritten
from ..train.checkpoint import CheckpointError
from ..train.metrics import read_metrics
from ..train.pending import Pending
from ..train.trainer import TrainConfig, Trainer, TrainResult


class StudyTrainer(Trainer):
    """A Trainer that tells of every update."""

    on_step: Callable[[], object] = staticmethod(lambda: None)

    def begin_step(self) -> Pending:
        found = super().begin_step()
        self.on_step()
        return found


@dataclass(frozen=True)
class StudyData:
    """What all runs of a study learn from and are looked at on."""

    train: TokenDataset
    val: TokenDataset
    tokenizer: Tokenizer

    def trainer(self, model: GPT, config: TrainConfig) -> StudyTrainer:
        """A trainer whose run `fastgpt train --resume` and `fastgpt sample` know."""
        options = {k: v for k, v in model.config.to_dict().items() if k != "layer_norm_eps"}
        settings = {"tokenizer": self.tokenizer.name, "model": options, "train": dataclasses.asdict(config)}
        return StudyTrainer(
            model, self.train, config, val_data=self.val, tokenizer=self.tokenizer, settings=settings,
            show_progress=False,
        )  # fmt: skip


@dataclass(frozen=True)
class StudyRun:
    """What is there of one run, by its config."""

    config: TrainConfig

    @property
    def newest(self) -> Path | None:
        """Its newest checkpoint."""
        return overwritten.newest(self.config.folder / "checkpoints")

    @property
    def done(self) -> int:
        """Updates that are made and saved."""
        newest = self.newest
        return 0 if newest is None else checkpoint.step_of(newest)

    @property
    def lines(self) -> list[dict[str, Any]]:
        """Its metrics."""
        try:
            return read_metrics(self.config.folder / "metrics.jsonl")
        except FileNotFoundError:
            return []

    def is_finished(self) -> bool:
        """Whether all its updates are made, and its last validation is written down."""
        done = self.done
        return done >= self.config.steps and any("val_loss" in line and line["step"] == done for line in self.lines)

    def train(self, model: GPT, data: StudyData, on_step: Callable[[], object]) -> TrainResult:
        """Make its updates, from where they were left.

        Raises:
            CheckpointError, OSError, KeyboardInterrupt: what ends the whole study. Whatever else `Trainer.fit` raises
                is of this run alone: FloatingPointError where it diverged, RuntimeError where memory ran out.
        """
        trainer = data.trainer(model, self.config)
        trainer.on_step = on_step
        with _quiet():
            try:
                return trainer.fit(resume=self.newest is not None)
            except CheckpointError as error:
                raise CheckpointError(str(error).replace("resume=True (--resume)", "the same command")) from error

    def losses(self, tokens_per_update: int) -> dict[str, Any]:
        """Of a finished run: tokens, losses, seconds of training. train_loss: mean of the last twentieth."""
        lines = self.lines
        last = lines[-max(1, len(lines) // 20) :]
        timed = [line["tokens_per_second"] for line in lines if line.get("tokens_per_second")]
        return {
            "tokens": lines[-1]["step"] * tokens_per_update,
            "train_loss": statistics.fmean(line["loss"] for line in last),
            "val_loss": next(line["val_loss"] for line in reversed(lines) if "val_loss" in line),
            "seconds": sum(tokens_per_update / speed for speed in timed),
        }


def check_models(owner: str, names: Mapping[str, str], models: Iterable[Callable[[], GPTConfig]]) -> None:
    """Raise SettingError, of `owner`'s field that `names` a model's, for a model that cannot be, or surely finds no
    room: of a grid, before any run of it is made."""
    for model in models:
        try:
            check_can_be_made(model())
        except SettingError as error:
            raise SettingError(owner, names.get(error.name, error.name), error.value, error.need) from None


def check_tokenizer(folder: Path, before: str | None, tokenizer: Tokenizer) -> None:
    """Raise ValueError where a study was begun with a tokenizer of another name."""
    if before is not None and before != tokenizer.name:
        raise ValueError(
            f"{folder} holds a study that was begun with --tokenizer {shown(before)}, now {shown(tokenizer.name)}; "
            "give it the same, or another --name"
        )


def why(error: BaseException) -> str:
    """A failed run's reason, on one line."""
    text = files.reason(error) if isinstance(error, OSError) else str(error)
    return f"{type(error).__name__}: {' '.join(text.split())}"


@contextlib.contextmanager
def _quiet() -> Iterator[None]:
    """Without the Trainer's word on how a run is gone on with: the same command goes on with all of them."""

    def is_shown(record: logging.LogRecord) -> bool:
        return "resume=True" not in record.getMessage()

    log = logging.getLogger("fastgpt")
    log.addFilter(is_shown)
    try:
        yield
    finally:
        log.removeFilter(is_shown)
