"""What dropout and weight decay change of over-smoothing: four small models for each seed, trained alike but for these,
looked at layer by layer, and drawn beside each other.

<runs_dir>/<name>/
    study.json, study.html            everything that was found; the same to look at
    dropout0-decay0-seed0/ ...        runs, as `fastgpt train` leaves them

A call that is repeated goes on where the last one was stopped: finished runs are not made again.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from ..base.settings import SettingError
from ..data import TokenDataset
from ..data.sampler import windows_in
from ..data.tokenizer import Tokenizer
from ..model.gpt import GPT
from ..train.checkpoint import CheckpointError
from ..train.devices import resolve_device
from ..train.training_loop import TrainResult
from . import smoothing_record
from .interrupted import Interrupted
from .smoothing_comparison_page import comparison_page
from .smoothing_config import ComparisonConfig, Variant
from .smoothing_effects import effects
from .study_runs import StudyData, StudyRun, check_models, check_tokenizer, why

_OWNER = "ComparisonConfig"


@dataclass(frozen=True)
class ComparisonResult:
    """record: of study.json; failed: names of runs that did not end well."""

    record: dict[str, Any]
    page: Path
    failed: list[str]


class Comparison:
    """The runs of a comparison.

    train_data, val_data: what all of them learn from, and are looked at on; sequences: of the latter.

    Raises:
        SettingError, FileExistsError, ValueError: as `StudyFolder.read`; data that is too small for a batch.
    """

    def __init__(
        self, config: ComparisonConfig, train_data: TokenDataset, val_data: TokenDataset, tokenizer: Tokenizer, *,
        sequences: int = 8, device: str = "auto",
    ) -> None:  # fmt: skip
        before = config.earlier()
        if before is not None:
            check_tokenizer(config.folder.path, before["trained_on"].get("tokenizer"), tokenizer)
        variants = config.variants()
        check_models(_OWNER, {}, [lambda: variants[0].model_config(config, tokenizer.vocab_size)])
        self.config, self.data, self.device = config, StudyData(train_data, val_data, tokenizer), device
        if windows_in(len(train_data), config.max_len) < config.batch_size:
            need = f"of {config.max_len} tokens each is more than the {len(train_data):,} tokens of {train_data.name}"
            raise SettingError(_OWNER, "batch_size", config.batch_size, f"{need}; lower it, or give more text")
        ids = val_data.read(0, len(val_data)).tolist()
        self.idx = smoothing_record.windows(ids, config.max_len, sequences)

    def updates_left(self) -> int:
        """Of all runs, before they are made."""
        return sum(self.config.steps - self._of(variant).done for variant in self.config.variants())

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
        self.config.folder.make()
        with self.config.folder.alone():
            try:
                return self._run(on_update, say)
            except Interrupted:
                raise
            except KeyboardInterrupt:
                raise Interrupted(self._kept()) from None

    def _run(self, on_update: Callable[[], object], say: Callable[[str], None]) -> ComparisonResult:
        variants, failed = self.config.variants(), []
        if self.config.earlier() is None:
            self.config.folder.write(self._record([]))
        for number, variant in enumerate(variants, 1):
            if self._of(variant).is_finished():
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
        self.config.folder.write(record)
        page = self.config.folder.path / "study.html"
        if rows:
            comparison_page(record).save(page)
        return ComparisonResult(record, page, failed)

    def _record(self, rows: list[dict[str, Any]]) -> dict[str, Any]:
        found = [dataclasses.asdict(effect) for effect in effects(rows)] if rows else []
        return smoothing_record.record_of(
            rows, self.data.val.name, len(self.data.val), self.idx, recipe=self.config.recipe(),
            trained_on=self._trained_on(), effects=found,
        )  # fmt: skip

    def _trained_on(self) -> dict[str, Any]:
        train, tokenizer = self.data.train, self.data.tokenizer
        return {"name": train.name, "tokens": len(train), "tokenizer": tokenizer.name}

    def _of(self, variant: Variant) -> StudyRun:
        return StudyRun(variant.train_config(self.config, self.device))

    def _train(self, variant: Variant, on_update: Callable[[], object]) -> TrainResult:
        torch.manual_seed(variant.seed)
        model = GPT(variant.model_config(self.config, self.data.tokenizer.vocab_size))
        return self._of(variant).train(model, self.data, on_update)

    def _row(self, variant: Variant) -> dict[str, Any]:
        run = self._of(variant)
        newest, lines = run.newest, run.lines
        assert newest is not None  # it has been trained
        device = resolve_device(self.device)
        return smoothing_record.row_of(
            variant.name, GPT.from_pretrained(newest, device=device), self.idx.to(device), group=variant.group,
            **dataclasses.asdict(variant), **run.losses(self.config.batch_size * self.config.max_len),
            shrunk=1 - math.prod(1 - line["lr"] * variant.weight_decay for line in lines),
            val_curve=[(line["step"], line["val_loss"]) for line in lines if "val_loss" in line],
        )  # fmt: skip

    def _kept(self) -> str:
        finished = sum(self._of(variant).is_finished() for variant in self.config.variants())
        return (
            f"{finished} of {len(self.config.variants())} runs are finished, and what the others have learned so far "
            f"is kept in {self.config.folder.path}; the same command goes on"
        )
