"""The loop of `Trainer.fit`, as a recipe: update, checkpoint, validation, report; step after step.

A step's figures are read, and reported, when the next one has begun (`updates.py`), or at once where something is due.
A step's checkpoint comes before its validation, and that before its line in metrics.jsonl. So the checkpoint keeps what
the reports still owe of the step (`Owed`), and whoever resumes from it makes that up: a run that was killed between two
of these, or during one, leaves what an undisturbed one does. Last comes the page for readers (`run_report.py`).
"""

from __future__ import annotations

import contextlib
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
from ..parallel.world import World, is_lost
from . import checkpoint, metrics, rescue, run_report
from .evaluation import Validation
from .owed import Owed
from .pending import Pending
from .reports import Reports, reports
from .saver import Saver
from .spikes import Spikes
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
    skipped: int
    in_a_row: int

    @property
    def world(self) -> World: ...
    @property
    def saver(self) -> Saver: ...
    def begin_step(self) -> Pending: ...
    def settle(self, *, explain: bool = True) -> None: ...
    def validate(self, *, whole: bool = False, interruptible: bool = False) -> Validation | None: ...
    def write(self) -> Path: ...
    def is_whole(self) -> bool: ...
    def mfu(self, tokens_per_second: float) -> float | None: ...


@dataclass(frozen=True)
class TrainResult:
    """What `Trainer.fit` did.

    step        updates made so far
    losses      of the updates of this call, nats per token; not finite where one was skipped
    validation  the newest of this call; None where a signal ended that: it is made up when the run is resumed
    stopped_by  "SIGINT", "SIGTERM", "SIGHUP" or None (finished)
    checkpoint  the folder of the newest
    """

    step: int
    losses: list[float]
    validation: Validation | None
    stopped_by: str | None
    checkpoint: Path


@dataclass
class _Begun:
    """A step whose line is not reported yet. is_due: of its validation; line: once it is read."""

    pending: Pending
    is_due: bool
    line: dict[str, Any] | None = None


class Loop:
    """The steps of one call of `Trainer.fit`, which has put the trainer where it starts or goes on."""

    report: Reports

    def __init__(self, trainer: Training, signals: StopSignals) -> None:
        self.trainer, self.config, self.signals, self.world = trainer, trainer.config, signals, trainer.world
        self.root = self.config.folder / "checkpoints"
        self.losses: list[float] = []
        self.validation: Validation | None = None
        self._begun: _Begun | None = None  # the step whose line is not reported yet
        self._spikes = Spikes(self.config.folder, self.config.spike)

    def run(self, owed: Owed) -> TrainResult:
        """Make up what is `owed` of the step that was loaded, and train to `steps` or until a signal.

        Raises:
            FloatingPointError, CheckpointError, and whatever a step or a validation raises; what was whole is saved.
        """
        began = time.perf_counter()
        provenance.commit()  # of the code that runs, asked before anyone changes the tree
        owed = self.world.from_first(owed)
        unvalidated = owed.lines.pop() if owed.validation else None  # the step's own, written with its validation
        self.trainer.owed.validation = owed.validation
        with self._opened_reports(owed, unvalidated is not None) as self.report:
            try:
                if unvalidated is not None:
                    self._account(unvalidated, checkpoint.folder_of(self.root, self.trainer.step))
                self._go_on()
                while self.trainer.step < self.config.steps and self.signals.stopped_by is None:
                    self._step()
                self._settle(False)
                newest = self._saved()
            except Exception as error:
                if is_lost(error):  # what follows is done by all ranks, or not at all
                    raise
                self._report_what_was_begun()
                self._wait_after(error)
                alone = self.world.size == 1
                rescue.end(error, self.root, self.trainer.step, self.trainer.is_whole, self._save, alone=alone)
                raise
        if self.world.is_first:
            run_report.write_after(self.trainer, time.perf_counter() - began, self.signals.stopped_by)
            self._tell_of_signals(newest)
        self.world.wait()  # what rank 0 has written is there for all
        return TrainResult(self.trainer.step, self.losses, self.validation, self.signals.stopped_by, newest)

    def _go_on(self) -> None:
        """Know of the steps before by their lines: the losses, and what was skipped."""
        trainer = self.trainer
        found = trainer.skipped, trainer.in_a_row
        if self.world.is_first:
            with contextlib.suppress(OSError):
                lines = metrics.read_metrics(self.config.folder / "metrics.jsonl")
                losses = [metrics.number(line.get("loss")) for line in lines if line["step"] <= trainer.step]
                self._spikes.go_on(trainer.step, [loss for loss in losses if loss is not None])
                if losses:
                    good = next((n for n, loss in enumerate(reversed(losses)) if loss is not None), len(losses))
                    found = int(metrics.number(lines[len(losses) - 1].get("skipped")) or 0), good
        trainer.skipped, trainer.in_a_row = self.world.from_first(found)

    def _step(self) -> None:
        """An update, the report of the one before, and what is due after it."""
        trainer, config = self.trainer, self.config
        before, begun = self._begun, trainer.begin_step()
        is_last = trainer.step == config.steps
        is_due = trainer.val_data is not None and (is_last or _due(trainer.step, config.eval_every))
        self._begun = _Begun(begun, is_due)
        if before is not None:
            self._account(self._line(before), False)
        saves = is_last or _due(trainer.step, config.save_every)
        if is_due or saves:
            self._settle(saves)

    def _settle(self, saves: bool) -> None:
        """Wait for the step that has begun, if it is not reported, and do what is due after it."""
        if self._begun is not None:
            self.trainer.settle()
            line = self._owed_line(self._begun)
            self._begun = None
            self._account(line, saves)

    def _report_what_was_begun(self) -> None:
        """After an error, which may have left the device of no more use."""
        if self._begun is None:
            return
        with contextlib.suppress(Exception):
            self.trainer.settle(explain=False)
        with contextlib.suppress(Exception):
            line = self._owed_line(self._begun)
            self._begun = None
            self.report(line)

    def _owed_line(self, begun: _Begun) -> dict[str, Any]:
        """The line of the newest step, which whoever saves now owes."""
        line = self._line(begun)
        self.trainer.owed = Owed([line], begun.is_due)
        return line

    def _line(self, begun: _Begun) -> dict[str, Any]:
        """A step's line for metrics.jsonl."""
        if begun.line is not None:
            return begun.line
        trainer, pending = self.trainer, begun.pending
        loss, norm, stop, memory = pending.read()
        if stop:
            self.signals.agree(stop)
        self.losses.append(loss)
        if self.world.is_first:
            self._spikes(pending, trainer.sampler)
        speed = pending.tokens / pending.seconds
        begun.line = {
            "step": pending.step, "loss": loss, "lr": pending.lr, "grad_norm": norm, "epoch": pending.epoch,
            "tokens_per_second": speed, "mfu": trainer.mfu(speed),
            "memory_bytes": metrics.memory_bytes(trainer.device) if memory is None else memory,
        }  # fmt: skip
        if pending.skipped:
            begun.line["skipped"] = pending.skipped
        return begun.line

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
            self._prune(saved)
        elif saved is None and self.report.failed and not had_failed and self.world.size == 1:
            self._save_early()

    def _prune(self, saved: Path) -> None:
        """Drop old checkpoints; not while steps are skipped: then one of them may be the last that is good."""
        if not self.trainer.in_a_row:
            self.trainer.saver.prune(self.root, self.config.keep, saved)

    def _save(self) -> Path:
        if self._begun is not None:
            self.trainer.settle()
            self._owed_line(self._begun)
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
        saver, path = self.trainer.saver, checkpoint.folder_of(self.root, self.trainer.step)
        if not saver.holds(path):
            path = self._save()
            self._prune(path)
        saver.wait()
        return path

    def _wait_after(self, error: Exception) -> None:
        """Until the save that was on its way when an error came is whole; if it fails too, that is told."""
        try:
            self.trainer.saver.wait()
        except checkpoint.CheckpointError as failed:
            if failed is not error:
                _log.warning("%s", failed)
        except Exception as failed:
            if not is_lost(failed):  # else a rank is gone, which `error` says, or its launcher
                raise

    def _opened_reports(self, owed: Owed, again: bool) -> AbstractContextManager[Reports]:
        """metrics.jsonl and the progress bar, with the lines that are owed; `again`: the step's own comes later.

        Of the first rank; the others report nothing.
        """
        if not self.world.is_first:
            return contextlib.nullcontext(Reports(None, ()))
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
