"""The loop of `Trainer.fit`: step after step, what is due after each, and what is saved where one fails.

A step's checkpoint comes before its validation, and that before its line in metrics.jsonl. So the checkpoint keeps what
the reports still owe of the step (`Owed`), and whoever resumes from it makes that up: a run that was killed between two
of these, or during one, leaves what an undisturbed one does.
"""

from __future__ import annotations

import dataclasses
import logging
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from ..base import files
from ..base.progress import progress
from . import checkpoint, metrics
from .evaluation import Validation
from .reports import reports
from .stopping import StopSignals

if TYPE_CHECKING:
    from .trainer import Trainer

_log = logging.getLogger("fastgpt")

_MEASURED = ("tokens_per_second", "mfu", "memory_bytes")  # what two equal runs do not have in common


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


@dataclass
class Owed:
    """What the reports may not have of a step when it is saved.

    lines       of metrics.jsonl, the step's own the last; without timings, by which equal runs would differ
    validation  whether one is due
    """

    lines: list[dict[str, Any]] = field(default_factory=list)
    validation: bool = False

    @classmethod
    def of(cls, state: dict[str, Any]) -> Owed:
        """What a checkpoint's training.json says; version 0.1 wrote none."""
        return cls(**state.get("owed", {}))

    def state(self) -> dict[str, Any]:
        """For training.json."""
        lines = [{k: v for k, v in line.items() if k not in _MEASURED} for line in self.lines]
        return {"lines": lines, "validation": self.validation}

    def left(self, folder: Path) -> Owed:
        """What the metrics.jsonl of the run in `folder` lacks of it."""
        path = folder / "metrics.jsonl"
        written = {line["step"]: line for line in metrics.read_metrics(path)} if path.exists() else {}
        last = self.lines[-1]["step"] if self.lines else None
        due = self.validation and last is not None and written.get(last, {}).get("val_loss") is None
        missing = [line for line in self.lines if line["step"] not in written]
        if due and last in written:
            missing.append(written[last])
        return Owed(missing, due)

    def __bool__(self) -> bool:
        return bool(self.lines)


class Loop:
    """The steps of one call of `Trainer.fit`, which has put the trainer where it starts or goes on."""

    def __init__(self, trainer: Trainer, signals: StopSignals) -> None:
        self.trainer, self.config, self.signals = trainer, trainer.config, signals
        self.root = self.config.folder / "checkpoints"
        self.losses: list[float] = []
        self.validation: Validation | None = None

    def run(self, owed: Owed) -> TrainResult:
        """Make up what is `owed` of the step that was loaded, and train to `steps` or until a signal.

        Raises:
            FloatingPointError, CheckpointError, and whatever a step or a validation raises; what was whole is saved.
        """
        trainer = self.trainer
        shown = progress(
            trainer.show_progress, done=trainer.step, total=self.config.steps, log_every=self.config.log_every
        )
        again = owed.lines.pop() if owed.validation else None  # this step's, written with its validation
        opened = reports(
            self.config.folder, shown, first=trainer.step - (again is not None), tensorboard=self.config.tensorboard,
            add=owed.lines,
        )  # fmt: skip
        trainer.owed.validation = owed.validation
        with opened as self.report:
            try:
                if again is not None:
                    self._account(again, checkpoint.folder_of(self.root, trainer.step))
                while trainer.step < self.config.steps and self.signals.stopped_by is None:
                    self._step()
                path = checkpoint.folder_of(self.root, trainer.step)
                if not path.exists():
                    path = self._save()
                    checkpoint.prune(self.root, self.config.keep, path)
            except Exception as error:
                self._end(error)
                raise
        stopped_by = self.signals.stopped_by
        if stopped_by is not None:
            is_done = trainer.step == self.config.steps and not trainer.owed.validation
            then = "it was the last one" if is_done else "go on with resume=True (--resume)"
            _log.warning("%s: step %d is saved in %s; %s", stopped_by, trainer.step, path, then)
        return TrainResult(trainer.step, self.losses, self.validation, stopped_by, path)

    def _step(self) -> None:
        trainer, config = self.trainer, self.config
        line = self._measured_step()
        self.losses.append(line["loss"])
        is_last = trainer.step == config.steps
        is_due = trainer.val_data is not None and (is_last or _due(trainer.step, config.eval_every))
        trainer.owed = Owed([line], is_due)
        self._account(line, is_last or _due(trainer.step, config.save_every))

    def _measured_step(self) -> dict[str, Any]:
        """One update. Returns its line for metrics.jsonl."""
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

    def _end(self, error: Exception) -> None:
        """After an error that ends the run: save what can be, and say what is kept."""
        kept = self._rescue(error)
        if isinstance(error, FloatingPointError):
            raise FloatingPointError(f"{error}; {kept}") from error
        if isinstance(error, checkpoint.CheckpointError) or self.trainer.step == 0:
            return  # it says so itself; nothing was there to lose
        is_saved = checkpoint.latest(self.root) is not None
        then = "go on with resume=True (--resume)" if is_saved else "start again"
        _log.warning("Trainer: an error ends the run at step %d; %s; %s", self.trainer.step, kept, then)

    def _rescue(self, error: Exception) -> str:
        """Save the updates that no checkpoint holds, if they are whole. Says what is kept."""
        trainer, newest = self.trainer, checkpoint.folder_of(self.root, self.trainer.step)
        if trainer.step == 0 or isinstance(error, checkpoint.CheckpointError):
            return checkpoint.kept(self.root)
        if not newest.exists():
            if not trainer.is_whole():
                return f"{checkpoint.kept(self.root)}, what follows it is lost"
            try:
                newest = self._save()
            except checkpoint.CheckpointError as failed:
                return str(failed)
        others = ", ".join(path.name for path in checkpoint.all_checkpoints(self.root) if path != newest)
        return f"{newest} is kept{f', and before it {others}' if others else ''}"


def _due(step: int, every: int) -> bool:
    return every > 0 and step % every == 0
