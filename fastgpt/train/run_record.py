"""What is known of a run by its folder: its measurements, its settings, and what its report keeps of who trained it."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base import files
from ..model.formats import sharded
from ..pages.page import Page, inside_a_script, is_ours
from . import overwritten, run_folder
from .metrics import number, read_metrics
from .spikes import NAME as SPIKES

REPORT = "report.html"

GENERATOR = "fastgpt report"  # of reports and comparisons, by which they are known

LAST = 20  # steps, over which the training loss at the end is averaged: one batch's is mostly chance

_KEPT = re.compile(r'<script type="application/json" id="fastgpt-run">(.*?)</script>', re.DOTALL)


@dataclass(frozen=True)
class Run:
    """A run, as its folder has it; what that lacks is None or empty.

    lines      of metrics.jsonl, by step
    settings   all that was asked for, by name, as it was resolved: seq_len, dtype, ...
    kept       what `keep` put into its report, as JSON has it: parameters, seconds (of the last call of `Trainer.fit`),
               stopped_by, implementations (a table), provenance (rows)
    """

    folder: Path
    lines: list[dict[str, Any]]
    settings: dict[str, Any]
    kept: dict[str, Any]

    @property
    def name(self) -> str:
        return self.folder.resolve().name

    @property
    def step(self) -> int:
        return self.lines[-1]["step"] if self.lines else 0

    def points(self, key: str) -> list[tuple[float, float]]:
        """(step, value) of every line that has a finite one."""
        return [(line["step"], value) for line in self.lines if (value := number(line.get(key))) is not None]

    def validation(self, name: str) -> float | None:
        """Of the newest validation: "loss" (nats per token), "perplexity" or "bits_per_byte"."""
        newest = next((line for line in reversed(self.lines) if number(line.get("val_loss")) is not None), None)
        return None if newest is None else number(newest.get(f"val_{name}"))

    @property
    def training_loss(self) -> float | None:
        """Mean over the last `LAST` steps, nats per token."""
        values = [y for _, y in self.points("loss")[-LAST:]]
        return sum(values) / len(values) if values else None

    @property
    def tokens_per_step(self) -> int | None:
        """Tokens that an update is made of, over all ranks, by the settings; one that says nothing of ranks had one."""
        given = [self.settings.get("ranks", 1), *(self.settings.get(name) for name in ("batch_size", "grad_accum"))]
        sizes = [n for n in (*given, self.settings.get("seq_len") or self.settings.get("max_len")) if type(n) is int]
        return math.prod(sizes) if len(sizes) == 4 else None

    @property
    def tokens(self) -> int | None:
        """Tokens seen, those of further epochs again."""
        return None if self.tokens_per_step is None else self.step * self.tokens_per_step

    @property
    def update_seconds(self) -> float | None:
        """Time of the updates whose speed is recorded; validations and checkpoints come on top."""
        speeds = [speed for _, speed in self.points("tokens_per_second") if speed > 0]
        if not speeds or self.tokens_per_step is None:
            return None
        return sum(self.tokens_per_step / speed for speed in speeds)

    @property
    def skipped(self) -> int:
        """Updates whose loss or gradient was not finite."""
        return int(number(self.lines[-1].get("skipped")) or 0) if self.lines else 0

    @functools.cached_property
    def spikes(self) -> list[int]:
        """The steps whose loss was a spike."""
        try:
            return [line["step"] for line in read_metrics(self.folder / SPIKES)]
        except OSError:
            return []

    @functools.cached_property
    def parameters(self) -> int | None:
        """Numbers that the model consists of, tied ones once."""
        count = self.kept.get("parameters")
        return count if type(count) is int else _counted(overwritten.newest(self.folder / "checkpoints"))


def read(folder: Path) -> Run:
    """The run in a folder.

    Raises:
        FileNotFoundError: no such folder. ValueError: not a run's, or without any measurement, or damaged settings.
        OSError: metrics.jsonl cannot be read.
    """
    if not folder.is_dir():
        what = "a file, no run's folder" if folder.exists() else "no such run"
        raise FileNotFoundError(f"{folder}: {what}; give runs/<name>, as `fastgpt train` wrote it")
    path = folder / "metrics.jsonl"
    if not path.exists():
        inside = sorted(child.name for child in folder.iterdir() if (child / "metrics.jsonl").is_file())
        what = f"a folder of runs; give one of them: {', '.join(inside[:5])}" if inside else ""
        raise ValueError(f"{folder}: {what or 'not a run: it has no metrics.jsonl; give runs/<name>, trained already'}")
    lines = {line["step"]: line for line in read_metrics(path) if 0 <= line["step"] < 2**53}
    if not lines:
        raise ValueError(f"{path}: no step in it; train the run first, or restore the file from a copy")
    return Run(folder, [lines[step] for step in sorted(lines)], _settings(folder), _read_kept(folder / REPORT))


def _settings(folder: Path) -> dict[str, Any]:
    """Those of settings.json, and over them those of the newest checkpoint, in which "auto" is what it came to."""
    found: dict[str, Any] = {}
    for name, value in run_folder.read_settings(folder).items():
        found |= value if isinstance(value, Mapping) else {name: value}
    newest = overwritten.newest(folder / "checkpoints")
    if newest is not None:
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):  # damaged: `train` says so
            found |= run_folder.saved_record(files.read_json(newest / "training.json"))
    return found


def _counted(newest: Path | None) -> int | None:
    """Numbers in a checkpoint's weights, by their header."""
    if newest is None:
        return None
    try:
        stored = sharded.stored(newest)
        return sum(math.prod(shape) for name, (_, *shape) in stored.items() if sharded.is_weight(name)) or None
    except (OSError, ValueError):
        return None


def keep(page: Page, kept: Mapping[str, Any]) -> None:
    """Put into a page what nobody could find out later, unseen."""
    page.add(f'<script type="application/json" id="fastgpt-run">{inside_a_script(json.dumps(kept))}</script>')


def _read_kept(path: Path) -> dict[str, Any]:
    """What `keep` put into the page; {} of another, and where there is none."""
    if not is_ours(path):
        return {}
    try:
        found = _KEPT.search(path.read_text(encoding="utf-8", errors="replace"))
        kept = json.loads(found[1]) if found else {}
    except (OSError, ValueError, RecursionError):
        return {}
    return kept if isinstance(kept, dict) else {}
