"""A run's report, runs/<name>/report.html: what was trained, how the losses went, by what and how fast.

`Trainer.fit` writes it at the end, `fastgpt report` again. It is made of what the run's folder has (`run_record.py`),
and keeps in itself what only the process that trains knows.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterable
from typing import Any, Protocol

from torch import nn

from ..base import files
from ..nn.implementations import implementations
from ..pages import provenance
from ..pages.charts import Chart
from ..pages.figures import duration, thinned
from ..pages.page import Page, is_ours
from . import run_record
from .metrics import MFU_FORMULA
from .run_record import GENERATOR, LAST, REPORT, SPIKES, Run
from .train_config import TrainConfig

_log = logging.getLogger("fastgpt")

_NAMES = {"lr": "learning rate", "grad_norm": "norm", "tokens_per_second": "tokens per second", "mfu": "MFU"}

IMPLEMENTATIONS = ("part", "layers", "requested", "used", "why")

# key of a line of metrics.jsonl -> heading, label of the axis, whether factors count rather than differences
_CHARTS = {
    "lr": ("Learning rate", "learning rate", False),
    "grad_norm": ("Gradient", "norm of the gradient, before clipping", True),
    "tokens_per_second": ("Speed", "tokens per second", False),
    "mfu": ("Model FLOPs utilisation", "MFU", False),
}


class Trained(Protocol):
    """What is asked of whoever trained: `Trainer`."""

    model: nn.Module
    config: TrainConfig
    step: int


def write_after(trainer: Trained, seconds: float, stopped_by: str | None) -> None:
    """Write the report of a run that has ended, unless somebody else's file is in its place. Whatever fails is a
    warning: the run itself is saved."""
    path = trainer.config.folder / REPORT
    if trainer.step == 0:  # stopped before anything could be told
        return
    if os.path.lexists(path) and not is_ours(path):
        _log.warning(
            "%s: fastgpt did not write this, so it stays, and there is no report; move it away, then fastgpt report %s",
            path, trainer.config.folder,
        )  # fmt: skip
        return
    try:
        kept = kept_of(trainer.model, seconds, stopped_by)
        run = run_record.read(trainer.config.folder)
        page_of(Run(run.folder, run.lines, run.settings, kept)).save(path)
    except Exception as error:
        _log.warning("%s: %s (%s); all else is written", path, files.reason(error), type(error).__name__)


def write_missing(trainer: Trained) -> None:
    """As `write_after`, of a run that ended before, where the process was killed before its report was written."""
    folder = trainer.config.folder
    try:
        is_there = (folder / REPORT).stat().st_mtime_ns >= (folder / "metrics.jsonl").stat().st_mtime_ns
    except FileNotFoundError:
        is_there = not (folder / "metrics.jsonl").exists()
    except OSError as error:
        _log.warning("%s: %s", folder / REPORT, files.reason(error))
        return
    if not is_there and (is_ours(folder / REPORT) or not os.path.lexists(folder / REPORT)):
        try:
            page_of(run_record.read(folder)).save(folder / REPORT)
        except Exception as error:
            _log.warning("%s: %s (%s)", folder / REPORT, files.reason(error), type(error).__name__)


def kept_of(model: nn.Module, seconds: float, stopped_by: str | None) -> dict[str, Any]:
    """What the report keeps of this process (`run_record.Run.kept`)."""
    try:
        table = [[getattr(row, name) for name in IMPLEMENTATIONS] for row in implementations(model)]
    except ValueError:  # a model of others, with no part of ours
        table = []
    return {
        "parameters": sum(p.numel() for p in model.parameters()), "seconds": seconds,
        "stopped_by": stopped_by, "implementations": table,
        "provenance": [[*row] for row in (*provenance.made_by(), *provenance.environment())],
    }  # fmt: skip


def page_of(run: Run) -> Page:
    """The report of one run."""
    page = Page(f"Training run {run.name}", lead(run), GENERATOR)
    losses = {"training": thinned(run.points("loss"))}
    if validation := run.points("val_loss"):
        losses["validation"] = validation
    if any(losses.values()):
        page.heading("Loss")
        also = f"; {thin}" if (thin := _thinned(run, "loss")) else ""
        page.chart(
            Chart(
                losses,
                " and ".join(losses).capitalize() + " loss",
                "step",
                "loss, nats per token",
                bold=("validation",),
            ),
            f"Training: each step's own batch{also}. Validation: batches that are not trained on.",
        )
    _validations(page, run)
    page.heading("Each step")
    for key, (title, label, is_log) in _CHARTS.items():
        points = run.points(key)
        if key == "mfu":
            points = [(step, 100 * value) for step, value in points]
            label = "MFU, % of the peak"
        if points:
            few = {_NAMES.get(key, key): thinned(points)}
            values = [value for _, value in points]
            is_log = is_log and min(values) > 0 and max(values) > 30 * min(values)
            notes = [MFU_FORMULA] * (key == "mfu") + list(filter(None, [_thinned(run, key)]))
            page.chart(Chart(few, title, "step", label, log_y=is_log), "; ".join(notes))
    if table := list(_rows(run.kept.get("implementations"), len(IMPLEMENTATIONS))):
        page.heading("Implementations")
        page.table(IMPLEMENTATIONS, table)
    page.heading("Settings")
    page.table(("setting", "value"), [(name, said(value, name)) for name, value in sorted(run.settings.items())])
    page.heading("Where this comes from")
    page.table(("what", "value"), provenance_of(run))
    run_record.keep(page, run.kept)
    return page


def lead(run: Run) -> str:
    """The figures of a run in two sentences."""
    loss, validation = run.training_loss, run.validation("loss")
    perplexity, per_byte = run.validation("perplexity"), run.validation("bits_per_byte")
    steps, stopped = run.settings.get("steps"), run.kept.get("stopped_by")
    done = f"{run.step:,} of {steps:,} steps" if type(steps) is int else f"{run.step:,} steps"
    what = [
        None if run.parameters is None else f"{run.parameters:,} parameters",
        None if run.tokens is None else f"{run.tokens:,} tokens seen",
        f"{done}{f', stopped by {stopped}' if stopped else ''}",
        None if run.update_seconds is None else f"{duration(run.update_seconds)} of updates",
    ]
    found = [
        None if loss is None else f"training loss {loss:.4f} nats per token (mean of the last {LAST} steps)",
        None if validation is None else f"validation loss {validation:.4f}",
        None if perplexity is None else f"perplexity {perplexity:.4g}",
        None if per_byte is None else f"{per_byte:.4f} bits per byte",
    ]
    sentences = [", ".join(filter(None, words)) for words in (what, found)]
    return " ".join(f"{words[0].upper()}{words[1:]}." for words in sentences if words)


def _validations(page: Page, run: Run) -> None:
    """The table of all validations."""
    per_step, rows = run.tokens_per_step, []
    for line in run.lines:
        loss, perplexity, per_byte = (
            run_record.number(line.get(f"val_{name}")) for name in ("loss", "perplexity", "bits_per_byte")
        )
        if loss is not None:
            tokens = None if per_step is None else per_step * line["step"]
            rows.append((_cell(line["step"], ","), _cell(tokens, ","), _cell(loss, ".4f"), _cell(perplexity, ".4g"),
                         _cell(per_byte, ".4f")))  # fmt: skip
    if rows:
        page.heading("Validations")
        page.table(("step", "tokens seen", "loss, nats per token", "perplexity", "bits per byte"), rows)


def _cell(value: float | None, form: str) -> tuple[float, str] | None:
    return None if value is None else (value, format(value, form))


def _thinned(run: Run, key: str) -> str:
    """Words for what is not drawn."""
    count = len(run.points(key))
    return f"of {count:,} steps the first, the last, and each stretch's lowest and highest" if count > 1000 else ""


def said(value: Any, name: str = "") -> str:
    """A setting as a reader would write it; the beginning of a hash, as it tells it from others."""
    if name.endswith("_sha256") and isinstance(value, str):
        return value[:16]
    if isinstance(value, (list, tuple)):
        return " ".join(map(said, value)) or "none"
    return "none" if value is None else str(value)


def provenance_of(run: Run) -> list[tuple[str, str]]:
    """(what, value): seed, model size, tokens seen, time taken, and the machine, versions and command of the process
    that trained, as far as they are recorded."""
    time, seconds = run.update_seconds, run_record.number(run.kept.get("seconds"))
    rows = [
        ("seed", said(run.settings.get("seed", "not recorded"))),
        ("model size", "not recorded" if run.parameters is None else f"{run.parameters:,} parameters"),
        ("tokens seen", "not recorded" if run.tokens is None else f"{run.tokens:,}"),
        ("time taken", "not recorded" if time is None else f"{duration(time)} in updates"),
        *([("skipped steps", f"{run.skipped:,}, whose loss or gradient was not finite")] if run.skipped else []),
        *([("loss spikes", f"at step {_few(run.spikes)}; {SPIKES} has their text")] if run.spikes else []),
        (
            "last session",
            "not recorded" if seconds is None else f"{duration(seconds)}, with validations and checkpoints",
        ),
    ]
    recorded = [(what, value) for what, value in _rows(run.kept.get("provenance"), 2)]
    return [*rows, *recorded] if recorded else [*rows, ("machine, versions, command", "not recorded")]


def _few(steps: list[int]) -> str:
    more = len(steps) - 5
    return ", ".join(f"{step:,}" for step in steps[:5]) + (f" and {more:,} more" if more > 0 else "")


def _rows(table: Any, width: int) -> Iterable[tuple[str, ...]]:
    """The rows of a table that a page kept, which somebody may have edited."""
    for row in table if isinstance(table, list) else ():
        if isinstance(row, list) and len(row) == width:
            yield tuple(map(str, row))
