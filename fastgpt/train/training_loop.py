"""The loop of `Trainer.fit`, as a recipe: update, checkpoint, validation, report; step after step.

A step's checkpoint comes before its validation, and that before its line in metrics.jsonl. So the checkpoint keeps what
the reports still owe of the step (`Owed`), and whoever resumes from it makes that up: a run that was killed between two
of these, or during one, leaves what an undisturbed one does. Last comes the page for readers (`run_report.py`).
"""

from __future__ import annotations

import dataclasses
import logging
import time
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import nn

from ..base import files
from ..base.progress import progress
from ..data import TokenDataset
from ..data.sampler import BatchSampler
from ..pages import provenance
from . import checkpoint, metrics, rescue, run_report
from .evaluation import Validation
from .owed import Owed
from .reports import Reports, reports
from .stopping import StopSignals
from .train_config import TrainConfig

_log = logging.getLogger("fastgpt")


class Training(Protocol):
    """What the loop asks of whoever trains: `Trainer`."""

    model: nn.Module
    config: TrainConfig
    device: torch.device
    sampler: BatchSampler
    seq_len: int
    val_data: TokenDataset | None
    show_progress: bool | str
    step: int
    owed: Owed

    def train_step(self) -> tuple[float, float, float]: ...
    def validate(self, *, whole: bool = False, interruptible: bool = False) -> Validation | None: ...
    def write(self) -> Path: ...
    def is_whole(self) -> bool: ...
    def mfu(self, tokens_per_second: float) -> float | None: ...


@dataclass(frozen=True)
class TrainResult:
    """What `Trainer.fit` did.

    step        updates made so far
    losses      of the updates of this call, nats per token
    validation  the newest of this call; None where a signal ended that: it is made up when the run is resumed
    stopped_by  "SIGINT", "SIGTERM", "SIGHUP" or None (finished)
    checkpoint  the folder of the newest
    """

    step: int
    losses: list[float]
    validation: Validation | None
    stopped_by: str | None
    checkpoint: Path


class Loop:
    """The steps of one call of `Trainer.fit`, which has put the trainer where it starts or goes on."""

    report: Reports

    def __init__(self, trainer: Training, signals: StopSignals) -> None:
        self.trainer, self.config, self.signals = trainer, trainer.config, signals
        self.root = self.config.folder / "checkpoints"
        self.losses: list[float] = []
        self.validation: Validation | None = None

    def run(self, owed: Owed) -> TrainResult:
        """Make up what is `owed` of the step that was loaded, and train to `steps` or until a signal.

        Raises:
            FloatingPointError, CheckpointError, and whatever a step or a validation raises; what was whole is saved.
        """
        began = time.perf_counter()
        provenance.commit()  # of the code that runs, asked before anyone changes the tree
        unvalidated = owed.lines.pop() if owed.validation else None  # the step's own, written with its validation
        self.trainer.owed.validation = owed.validation
        with self._opened_reports(owed, unvalidated is not None) as self.report:
            try:
                if unvalidated is not None:
                    self._account(unvalidated, checkpoint.folder_of(self.root, self.trainer.step))
                while self.trainer.step < self.config.steps and self.signals.stopped_by is None:
                    self._step()
                newest = self._saved()
            except Exception as error:
                rescue.end(error, self.root, self.trainer.step, self.trainer.is_whole, self._save)
                raise
        run_report.write_after(self.trainer, time.perf_counter() - began, self.signals.stopped_by)
        self._tell_of_signals(newest)
        return TrainResult(self.trainer.step, self.losses, self.validation, self.signals.stopped_by, newest)

    def _step(self) -> None:
        """An update, and what is due after it."""
        trainer, config = self.trainer, self.config
        line = self._update()
        self.losses.append(line["loss"])
        is_last = trainer.step == config.steps
        is_due = trainer.val_data is not None and (is_last or _due(trainer.step, config.eval_every))
        trainer.owed = Owed([line], is_due)
        self._account(line, is_last or _due(trainer.step, config.save_every))

    def _update(self) -> dict[str, Any]:
        """Batch, forward, backward, clip, AdamW. Returns the step's line for metrics.jsonl."""
        trainer = self.trainer
        tokens = self.config.batch_size * self.config.grad_accum * trainer.seq_len
        began = time.perf_counter()
        loss, norm, lr = trainer.train_step()
        seconds = time.perf_counter() - began
        return {
            "step": trainer.step, "loss": loss, "lr": lr, "grad_norm": norm, "epoch": trainer.sampler.epoch,
            "tokens_per_second": tokens / seconds, "mfu": trainer.mfu(tokens / seconds),
            "memory_bytes": metrics.memory_bytes(trainer.device),
        }  # fmt: skip

    def _account(self, line: dict[str, Any], saves: bool | Path) -> None:
        """What is due after the step of this line: a checkpoint (or it `saves` already, there), a validation, a report.

        Old checkpoints stay until the new one's validation is seen to be a number.
        """
        trainer, found, had_failed = self.trainer, None, self.report.failed
        was_due = trainer.owed.validation
        try:
            saved = self._save() if saves is True else saves or None
            if was_due:
                found = self.validation = trainer.validate(interruptible=True)
            if found is not None:
                trainer.owed.validation = False
                values = dataclasses.asdict(found).items()
                line |= {f"val_{name}": value for name, value in values if name != "tokens"}
        finally:
            self.report(line)
        if found is not None and not found.is_finite:
            raise FloatingPointError(
                f"Trainer: the validation loss is {found.loss} at step {trainer.step}; lower lr ({self.config.lr}) and "
                "go on from a checkpoint before it (--resume-from), with allow_changes=True (--allow-changes)"
            )
        if saved is not None and not trainer.owed.validation:
            checkpoint.prune(self.root, self.config.keep, saved)
        elif saved is None and self.report.failed and not had_failed:
            self._save_early()

    def _save(self) -> Path:
        owed = self.trainer.owed
        by_step = {line["step"]: line for line in [*self.report.sync(), *owed.lines]}
        owed.lines = list(by_step.values())
        return self.trainer.write()

    def _save_early(self) -> None:
        """Where metrics.jsonl cannot be written, what comes next may not be saved either."""
        try:
            path = self._save()
        except checkpoint.CheckpointError as error:
            why = files.reason(error.__cause__ or error)
            _log.warning("step %d could not be saved either (%s); training goes on", self.trainer.step, why)
        else:
            _log.warning("step %d is saved in %s, in case that it gets worse", self.trainer.step, path)

    def _saved(self) -> Path:
        """The checkpoint of the step at which the loop ends: where a signal came, it is not yet there."""
        path = checkpoint.folder_of(self.root, self.trainer.step)
        if not path.exists():
            path = self._save()
            checkpoint.prune(self.root, self.config.keep, path)
        return path

    def _opened_reports(self, owed: Owed, again: bool) -> AbstractContextManager[Reports]:
        """metrics.jsonl and the progress bar, with the lines that are owed; `again`: the step's own comes later."""
        step = self.trainer.step
        shown = progress(
            self.trainer.show_progress, done=step, total=self.config.steps, log_every=self.config.log_every
        )
        return reports(
            self.config.folder, shown, first=step - again, tensorboard=self.config.tensorboard, add=owed.lines
        )

    def _tell_of_signals(self, newest: Path) -> None:
        if self.signals.stopped_by is not None:
            is_done = self.trainer.step == self.config.steps and not self.trainer.owed.validation
            then = "it was the last one" if is_done else "go on with resume=True (--resume)"
            _log.warning("%s: step %d is saved in %s; %s", self.signals.stopped_by, self.trainer.step, newest, then)


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
