"""What dropout and weight decay change of over-smoothing: four small models for each seed, trained alike but for these,
looked at layer by layer, and drawn beside each other.

<runs_dir>/<name>/
    study.json, study.html            everything that was found; the same to look at
    dropout0-decay0-seed0/ ...        runs, as `fastgpt train` leaves them

A call that is repeated goes on where the last one was stopped: finished runs are not made again.
"""

from __future__ import annotations

import contextlib
import dataclasses
import logging
import math
import os
import statistics
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..base import files
from ..base.settings import SettingError, shown
from ..data import TokenDataset
from ..data.sampler import windows_in
from ..data.tokenizer import Tokenizer
from ..model.gpt import GPT
from ..train import checkpoint, overwritten
from ..train.checkpoint import CheckpointError
from ..train.devices import resolve_device
from ..train.metrics import read_metrics
from . import smoothing_record
from .depth.runs import CellTrainer, why
from .interrupted import Interrupted
from .smoothing_comparison_page import comparison_page
from .smoothing_config import ComparisonConfig, Variant
from .smoothing_effects import effects

_OWNER = "ComparisonConfig"


@dataclass(frozen=True)
class ComparisonResult:
    """record: of study.json; failed: names of runs that did not end well."""

    record: dict[str, Any]
    page: Path
    failed: list[str]


def read(config: ComparisonConfig) -> dict[str, Any] | None:
    """What an earlier call left in the folder; None where there is nothing. Changes nothing.

    Raises:
        SettingError: it can be no folder. FileExistsError: it holds a run, another study, or others' files.
        ValueError: a study.json that is damaged, or a comparison of another recipe.
    """
    folder = config.folder
    for name, place in (("runs_dir", Path(config.runs_dir)), ("name", folder)):
        if os.path.lexists(place) and not place.is_dir():
            need = f"cannot be a folder of runs: {place} is no folder; name another"
            raise SettingError(_OWNER, name, getattr(config, name), need)
    path = folder / "study.json"
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            what = "a run" if (folder / "settings.json").exists() else "files that are no comparison's"
            raise FileExistsError(f"{folder} holds {what}; choose another name (--name)")
        return None
    try:
        found = files.read_json(path)
        kind, recipe, _ = found["study"], found["recipe"], found["rows"]
    except (OSError, ValueError, TypeError, KeyError) as error:
        reason = files.reason(error) if isinstance(error, (OSError, ValueError)) else "it is no study's"
        raise ValueError(
            f"{path}: corrupted ({reason}); move it away, and name another folder with --name, or start over"
        ) from None
    if kind != smoothing_record.KIND:
        raise FileExistsError(f"{folder} holds a study of {kind}; choose another name (--name)")
    changed = {k: (recipe.get(k), v) for k, v in config.recipe().items() if recipe.get(k) != v}
    if changed:
        words = "; ".join(
            f"--{k.replace('_', '-')} {shown(old)}, now {shown(new)}" for k, (old, new) in changed.items()
        )
        raise ValueError(
            f"{folder} holds a comparison that was begun with {words}; give it the same, or another --name"
        )
    return found


class Comparison:
    """The runs of a comparison.

    train_data, val_data: what all of them learn from, and are looked at on; sequences: of the latter.

    Raises:
        SettingError, FileExistsError, ValueError: as `read`; data that is too small for a batch.
    """

    def __init__(
        self, config: ComparisonConfig, train_data: TokenDataset, val_data: TokenDataset, tokenizer: Tokenizer, *,
        sequences: int = 8, device: str = "auto",
    ) -> None:  # fmt: skip
        read(config)
        self.config, self.tokenizer, self.device = config, tokenizer, device
        self.train_data, self.val_data = train_data, val_data
        if windows_in(len(train_data), config.max_len) < config.batch_size:
            need = f"of {config.max_len} tokens each is more than the {len(train_data):,} tokens of {train_data.name}"
            raise SettingError(_OWNER, "batch_size", config.batch_size, f"{need}; lower it, or give more text")
        ids = val_data.read(0, len(val_data)).tolist()
        self.idx = smoothing_record.windows(ids, config.max_len, sequences)

    def updates_left(self) -> int:
        """Of all runs, before they are made."""
        return sum(self.config.steps - self._done(variant) for variant in self.config.variants())

    def run(
        self, on_update: Callable[[], object] = lambda: None, say: Callable[[str], None] = print
    ) -> ComparisonResult:
        """Make the runs that are not made, and write study.json and study.html.

        A run that fails (it diverges) is said, and the rest goes on; it is tried again by the next call.

        Raises:
            SettingError: the folder cannot be written. FileExistsError: another process works there.
            Interrupted: a signal; what was trained so far is kept.
            CheckpointError, OSError: a file cannot be written.
        """
        folder = self._make()
        try:
            with files.locked(folder, must=False):
                return self._run(on_update, say)
        except BlockingIOError:
            raise FileExistsError(
                f"{folder}: another process works there; wait for its end, or choose another name (--name)"
            ) from None
        except Interrupted:
            raise
        except KeyboardInterrupt:
            raise Interrupted(self._kept()) from None

    def _run(self, on_update: Callable[[], object], say: Callable[[str], None]) -> ComparisonResult:
        variants, failed = self.config.variants(), []
        before = read(self.config)
        if before is None:
            smoothing_record.write(self.config.folder / "study.json", self._record([]))
        for number, variant in enumerate(variants, 1):
            if self._is_finished(variant):
                continue
            say(f"run {number} of {len(variants)}: {variant.group}, seed {variant.seed}")
            try:
                result = self._train(variant, on_update)
            except (CheckpointError, OSError, KeyboardInterrupt):
                raise
            except Exception as error:  # of this run: the others may well end
                say(f"{variant.name}: failed ({why(error)}); the rest goes on")
                failed.append(variant.name)
                continue
            if result.stopped_by is not None:
                raise Interrupted(self._kept(), result.stopped_by)
        rows = [self._row(variant) for variant in variants if variant.name not in failed]
        record = self._record(rows)
        smoothing_record.write(self.config.folder / "study.json", record)
        page = self.config.folder / "study.html"
        if rows:
            comparison_page(record).save(page)
        return ComparisonResult(record, page, failed)

    def _record(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        found = [dataclasses.asdict(effect) for effect in effects(rows)] if rows else []
        return smoothing_record.record_of(
            rows, self.val_data.name, len(self.val_data), self.idx, recipe=self.config.recipe(),
            trained_on={"name": self.train_data.name, "tokens": len(self.train_data)}, effects=found,
        )  # fmt: skip

    def _make(self) -> Path:
        for name, path in (("runs_dir", Path(self.config.runs_dir)), ("name", self.config.folder)):
            try:
                files.make_folder(path)
                if not os.access(path, os.W_OK | os.X_OK):
                    raise PermissionError(f"{path} is not writable")
            except OSError as error:
                need = f"cannot be a folder of runs: {files.reason(error)}; name another"
                raise SettingError(_OWNER, name, getattr(self.config, name), need) from None
        return self.config.folder

    def _train(self, variant: Variant, on_update: Callable[[], object]) -> Any:
        torch.manual_seed(variant.seed)
        model = GPT(variant.model_config(self.config, self.tokenizer.vocab_size))
        config = variant.train_config(self.config, self.device)
        options = {k: v for k, v in model.config.to_dict().items() if k != "layer_norm_eps"}
        settings = {"tokenizer": self.tokenizer.name, "model": options, "train": dataclasses.asdict(config)}
        trainer = CellTrainer(
            model, self.train_data, config, val_data=self.val_data, tokenizer=self.tokenizer, settings=settings,
            show_progress=False,
        )  # fmt: skip
        trainer.on_step = lambda: (on_update(), None)[1]
        with _quiet():
            return trainer.fit(resume=self._newest(variant) is not None)

    def _row(self, variant: Variant) -> dict[str, Any]:
        newest, lines = self._newest(variant), self._lines(variant)
        assert newest is not None  # it has been trained
        device = resolve_device(self.device)
        model = GPT.from_pretrained(newest, device=device)
        validations = [line for line in lines if "val_loss" in line]
        per_update = self.config.batch_size * self.config.max_len
        last = lines[-max(1, len(lines) // 20) :]
        return smoothing_record.row_of(
            variant.name, model, self.idx.to(device), group=variant.group, **dataclasses.asdict(variant),
            tokens=lines[-1]["step"] * per_update, val_loss=validations[-1]["val_loss"],
            train_loss=statistics.fmean(line["loss"] for line in last),
            shrunk=1 - math.prod(1 - line["lr"] * variant.weight_decay for line in lines),
            val_curve=[(line["step"], line["val_loss"]) for line in validations],
            seconds=sum(per_update / line["tokens_per_second"] for line in lines if line.get("tokens_per_second")),
        )  # fmt: skip

    def _newest(self, variant: Variant) -> Path | None:
        return overwritten.newest(self.config.folder / variant.name / "checkpoints")

    def _done(self, variant: Variant) -> int:
        newest = self._newest(variant)
        return 0 if newest is None else checkpoint.step_of(newest)

    def _lines(self, variant: Variant) -> list[dict[str, Any]]:
        try:
            return read_metrics(self.config.folder / variant.name / "metrics.jsonl")
        except FileNotFoundError:
            return []

    def _is_finished(self, variant: Variant) -> bool:
        """Whether all its updates are made, and its last validation is written down."""
        done = self._done(variant)
        return done >= self.config.steps and any(
            "val_loss" in line and line["step"] == done for line in self._lines(variant)
        )

    def _kept(self) -> str:
        finished = sum(map(self._is_finished, self.config.variants()))
        return (
            f"{finished} of {len(self.config.variants())} runs are finished, and what the others have learned so far "
            f"is kept in {self.config.folder}; the same command goes on"
        )


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
