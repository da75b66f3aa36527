"""`run_study`: the grid, run by run; then what was found, judged and drawn.

A call that is repeated goes on where the last one was stopped: finished runs stay as they are, a run that was cut off
goes on from its checkpoint, and a grid that has grown has its new runs made.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ...base.settings import SettingError
from ...data import TokenDataset
from ...data.sampler import windows_in
from ...data.tokenizer import Tokenizer
from ...pages.provenance import environment, made_by
from ...train.checkpoint import CheckpointError
from ..interrupted import Interrupted
from ..study_runs import StudyData, check_models, check_tokenizer, why
from . import measures
from .claims import Verdict, verdicts
from .config import MOST_EPOCHS, NO_NORM_SHARE, Cell, DepthConfig, tokens_within
from .grid_progress import GridProgress
from .page import save
from .runs import Runs


@dataclass(frozen=True)
class StudyResult:
    """What a study found. rows: of study.json; failed: names of runs that did not end well."""

    folder: Path
    page: Path
    rows: list[dict[str, Any]]
    verdicts: list[Verdict]
    failed: list[str]


def run_study(
    config: DepthConfig, train_data: TokenDataset, val_data: TokenDataset, tokenizer: Tokenizer, *,
    progress: bool = True, say: Callable[[str], None] = print,
) -> StudyResult:  # fmt: skip
    """Make the runs of `config`'s grid that are not made, and write study.json, study.html and study.svg.

    A run that fails (it diverges, it needs more memory than there is) is reported, and the rest goes on; it is tried
    again by the next call.

    Raises:
        SettingError: a grid, a budget or a number of tokens that the data or the machine does not allow.
        FileExistsError, ValueError: the folder holds something else, or a study of another recipe.
        Interrupted: a signal; what was trained so far is kept.
        CheckpointError, OSError: a file cannot be written.
    """
    before = config.earlier()
    _check_models(config, tokenizer)
    if before is not None:
        check_tokenizer(config.folder.path, before["tokenizer"]["name"], tokenizer)
        _check_same_data(config, before, train_data, val_data)
        config = dataclasses.replace(config, tokens=before["tokens"], budget=None)
    most = int(MOST_EPOCHS * len(train_data))
    _check_data(config, train_data, most)
    path = config.folder.make()
    data = StudyData(train_data, val_data, tokenizer)
    with config.folder.alone():
        if config.tokens is None:
            try:
                config = _with_tokens(config, Runs(config, data), most, say)
            except BaseException:
                with contextlib.suppress(OSError):  # it is not empty
                    path.rmdir()
                raise
        runs = Runs(config, data)
        study = _Study(config, runs, before, progress, say)
        try:
            study.train()
            study.look()
        except Interrupted:
            raise
        except KeyboardInterrupt:
            raise Interrupted(study.kept()) from None
        found = verdicts(study.record)
        study.record["verdicts"] = [dataclasses.asdict(verdict) for verdict in found]
        config.folder.write(study.record)
        page = save(path, study.record)
    names = {cell.name for cell in study.cells}  # of this call's grid: the others were not tried
    failed = [row["name"] for row in study.record["rows"] if row["status"] == "failed" and row["name"] in names]
    return StudyResult(path, page, study.record["rows"], found, failed)


def _check_models(config: DepthConfig, tokenizer: Tokenizer) -> None:
    names = {"n_layers": "layers", "d_model": "widths", "d_ff": "widths", "n_heads": "heads", "max_len": "seq_len"}
    cells = {(cell.layers, cell.width, cell.heads): cell for cell in config.cells()}.values()
    models = [functools.partial(cell.model_config, tokenizer.vocab_size, config) for cell in cells]
    check_models("DepthConfig", names, models)


def _check_same_data(
    config: DepthConfig, before: dict[str, Any], train_data: TokenDataset, val_data: TokenDataset
) -> None:
    for what, data in (("train", train_data), ("val", val_data)):
        if before["data"][what]["sha256"] != data.sha256:
            name = before["data"][what]["name"]
            raise ValueError(
                f"{config.folder.path} holds a study that was begun with other {what} data ({name}) than "
                f"{data.name}; give it the same, or another --name"
            )


def _check_data(config: DepthConfig, train_data: TokenDataset, most: int) -> None:
    if windows_in(len(train_data), config.seq_len) < config.micro_batch:
        need = (
            f"of {config.micro_batch} sequences of {config.seq_len} tokens is more than the {len(train_data):,} tokens "
            f"of {train_data.name}; give more text, or lower it or --seq-len"
        )
        raise SettingError("DepthConfig", "micro_batch", config.micro_batch, need)
    if config.tokens is not None and config.tokens > most:
        need = (
            f"is more than {MOST_EPOCHS:g} epochs of {train_data.name} ({len(train_data):,} tokens), which would "
            f"measure memory, not depth; give more text, or at most {most}"
        )
        raise SettingError("DepthConfig", "tokens", config.tokens, need)


def _with_tokens(config: DepthConfig, runs: Runs, most: int, say: Callable[[str], None]) -> DepthConfig:
    """The config with its number of tokens: what the budget is time for, or an epoch."""
    if config.budget is None:
        tokens = max(config.tokens_per_update, len(runs.data.train))
        say(f"{tokens:,} tokens a run: one epoch of {runs.data.train.name}")
        return dataclasses.replace(config, tokens=tokens)
    timed: dict[tuple[int, int, int], float] = {}

    def seconds_per_token(cell: Cell) -> float:
        key = cell.layers, cell.width, cell.heads
        if key not in timed:
            timed[key] = runs.seconds_per_token(cell)
        return timed[key]

    tokens, seconds = tokens_within(config, seconds_per_token, most)
    say(
        f"--budget {config.budget}: {tokens:,} tokens a run, {tokens // config.tokens_per_update:,} updates of "
        f"{config.batch_size} x {config.seq_len}; the {len(config.cells())} runs then take about {seconds:.0f} s"
    )
    return dataclasses.replace(config, tokens=tokens, budget=None)


class _Study:
    """study.json while it grows."""

    def __init__(
        self, config: DepthConfig, runs: Runs, before: dict[str, Any] | None, progress: bool, say: Callable[[str], None]
    ) -> None:
        self.config, self.runs, self.say = config, runs, say
        self.cells = config.cells()
        self.bar = GridProgress(config, runs, self.cells, enabled=progress, say=say)
        known = {row["name"]: row for row in (before or {}).get("rows", []) if _is_whole(row)}
        self.record: dict[str, Any] = {
            "study": config.folder.kind,
            "version": 1,
            "recipe": config.recipe(),
            "tokens": config.tokens,
            "no_norm_share": NO_NORM_SHARE,
            "data": {"train": _about(runs.data.train), "val": _about(runs.data.val)},
            "tokenizer": {"name": runs.data.tokenizer.name, "vocab_size": runs.data.tokenizer.vocab_size},
            "rows": list(known.values()),
            "timing": _kept(before, "timing", dict),
            "memory": _kept(before, "memory", list),
            "environment": environment(),
            "made_by": made_by(),
        }

    def train(self) -> None:
        """Every run that is not finished."""
        with self.bar:
            for number, cell in enumerate(self.cells, 1):
                if self.runs.of(cell).is_finished():
                    self.bar.skip(cell)
                else:
                    self._train(number, cell)
                if self._row(cell).get("status") != "failed" and "val_loss" not in self._row(cell):
                    self._keep(cell, {"status": "finished"} | measures.of_run(self.runs, cell))

    def _train(self, number: int, cell: Cell) -> None:
        with self.bar.run(number, cell) as on_step:
            try:
                result = self.runs.train(cell, on_step)
            except (CheckpointError, OSError, KeyboardInterrupt):
                raise
            except Exception as error:  # of this run: the others may well end
                self.say(f"{cell}: failed ({why(error)}); the rest goes on")
                self._keep(cell, {"status": "failed", "error": why(error)})
                return
        if result.stopped_by is not None:
            raise Interrupted(self.kept(), result.stopped_by)
        assert result.validation is not None  # nothing stopped the last one
        self._keep(cell, {"status": "trained"})
        self.bar.tell(number, cell, result.validation)

    def look(self) -> None:
        """Time and memory, which need no trained model."""
        good = [cell for cell in self.cells if self._row(cell).get("status") == "finished"]
        first = [cell for cell in good if cell.norm and cell.seed == self.config.seeds[0]]
        for width in self.config.widths:
            for heads in self.config.heads:
                group = [cell for cell in first if (cell.width, cell.heads) == (width, heads)]
                if any(cell.name not in self.record["timing"] for cell in group):
                    self._time(f"timing width {width}, {heads} heads", group)
        if not self.record["memory"]:
            with self.bar.saying() as say:
                vocabulary = self.runs.data.tokenizer.vocab_size
                self.record["memory"] = measures.memory_grid(vocabulary, self.cells[0], self.config.seq_len, say)

    def _time(self, what: str, group: list[Cell]) -> None:
        with self.bar.rounds(what, measures.ROUNDS + 1) as on_round:
            try:
                self.record["timing"] |= measures.step_times(self.runs, group, on_round)
            except RuntimeError as error:  # out of memory, where each alone had enough
                self.say(f"{what}: failed ({why(error)})")
        self.config.folder.write(self.record)

    def kept(self) -> str:
        """What is there when the study is stopped, and how to go on."""
        finished = sum(row["status"] in ("finished", "trained") for row in self.record["rows"])
        return (
            f"{finished} of {len(self.cells)} runs are finished, and what the others have learned so far is kept in "
            f"{self.config.folder.path}; the same command goes on"
        )

    def _row(self, cell: Cell) -> dict[str, Any]:
        return next((row for row in self.record["rows"] if row["name"] == cell.name), {})

    def _keep(self, cell: Cell, found: dict[str, Any]) -> None:
        row = {"name": cell.name} | dataclasses.asdict(cell) | found
        rows = [other for other in self.record["rows"] if other["name"] != cell.name]
        order = {known.name: n for n, known in enumerate(self.cells)}
        self.record["rows"] = sorted([*rows, row], key=lambda row: order.get(row["name"], len(order)))
        self.config.folder.write(self.record)


def _kept(before: dict[str, Any] | None, name: str, kind: type) -> Any:
    """A part of an earlier study.json, if it is of that kind; else it is measured again."""
    found = (before or {}).get(name)
    return found if isinstance(found, kind) else kind()


def _is_whole(row: dict[str, Any]) -> bool:
    """Whether a row has what each has, and one of a finished run what is judged; of another the run is read again."""
    kinds = _CELL | (_FOUND if row.get("status") == "finished" else {})
    return all(isinstance(row.get(name), kind) for name, kind in kinds.items())


_CELL: dict[str, Any] = {"status": str, **dict.fromkeys(("layers", "width", "heads", "seed"), int), "norm": bool}
_FOUND: dict[str, Any] = {
    **dict.fromkeys(("block_parameters", "tokens"), int),
    **dict.fromkeys(("perplexity", "gradient_norm_largest", "gradient_norm_median"), (int, float)),
    **dict.fromkeys(("train_curve", "val_curve", "gradient_norms", "gradient_norms_untrained", "smoothing"), list),
}


def _about(data: TokenDataset) -> dict[str, Any]:
    return {"name": data.name, "tokens": len(data), "sha256": data.sha256}
