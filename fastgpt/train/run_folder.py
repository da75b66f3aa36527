"""The folder of a run: whether it can be written, what it was trained with, and what of that now differs.

<runs_dir>/<name>/
    settings.json     everything that was asked for, as `fastgpt train --config` and `--resume` read it
    checkpoints/      see `fastgpt.train.checkpoint`
    metrics.jsonl     a line for each step
    spikes.jsonl      a line for each loss spike, if there was one (`fastgpt.train.spikes`)
    report.html       see `fastgpt.train.run_report`
    tensorboard/
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from torch import nn

from ..base import files
from ..base.settings import SettingError
from ..kernels._notice import say_once
from ..parallel.launch import is_initialized, is_launched
from ..parallel.world import World
from . import checkpoint, elastic, overwritten
from .train_config import TrainConfig

# What changes nothing that is computed. (A tokenizer counts by its hash, init_from only before the first step.)
_FREE = {
    "name", "runs_dir", "log_every", "eval_every", "save_every", "keep", "device", "compile", "remat", "tensorboard",
    "threads", "tokenizer", "init_from", "strategy", "shard_ranks", "timeout", "global_batch_size",
    "context_parallel", "spike",
}  # fmt: skip
_CONTENTS = {"train_sha256": "training data", "val_sha256": "validation data"}
_PLACES = {"data": "train_sha256", "val_data": "val_sha256"}  # the same data counts as such wherever it lies
_BATCH = ("batch_size", "grad_accum", "ranks")  # their product is the sequences of an update
_HINTS = {
    "ranks": "with these, an update has another number of sequences; --global-batch-size keeps it",
    "steps": "the learning rate's schedule depends on it",
    "n_tokens": "of the training data",
}


class SettingsChanged(ValueError):
    """A run that is to go on with other settings than it was trained with.

    differences: name -> (the run's value, the value now)
    """

    def __init__(self, folder: Path, differences: dict[str, tuple[Any, Any]]) -> None:
        super().__init__(folder, differences)
        self.folder, self.differences = folder, differences

    def __str__(self) -> str:
        return (
            f"Trainer: {self.folder} was trained with {self.words()}. Give it the same, or go on with the new ones: "
            "resume=True, allow_changes=True"
        )

    def words(self, name_of: Callable[[str], str] = str, between: str = "=") -> str:
        """The differences: "lr=0.001, now 0.0001; ..."; `name_of` and `between` make options of them."""
        return "; ".join(
            f"other {_CONTENTS[name]} (sha256 {before[:8]}, now {now[:8]})"
            if name in _CONTENTS
            else f"{name_of(name)}{between}{_value(before)}, now {_value(now)}"
            f"{f' ({_HINTS[name]})' if name in _HINTS else ''}"
            for name, (before, now) in self.differences.items()
        )


def differences(saved: dict[str, Any], now: dict[str, Any]) -> dict[str, tuple[Any, Any]]:
    """What both name, differs, and changes what is computed: name -> (saved, now)."""
    saved, now = (json.loads(json.dumps(record)) for record in (saved, now))  # JSON knows no tuples
    before, after = saved.get("ranks", 1), now.get("ranks", 1)
    if before != after:  # the run is the same on any number of ranks, as long as the sequences of an update are as many
        saved, now = saved | {"ranks": before}, now | {"ranks": after}
        if all(name in record for name in _BATCH for record in (saved, now)) and _batch(saved) == _batch(now):
            now = {k: v for k, v in now.items() if k not in _BATCH}
    free = {place for place, content in _PLACES.items() if content in saved and saved[content] == now.get(content)}
    return {k: (saved[k], now[k]) for k in now if k in saved and saved[k] != now[k] and k not in _FREE | free}


def check_alike(records: list[dict[str, Any]]) -> None:
    """records: what each rank was asked for, by rank (`Trainer._record`).

    Raises:
        ValueError: one would compute something else than rank 0.
    """
    for rank, record in enumerate(records):
        if found := differences(records[0], record):
            words = "; ".join(
                f"other {_CONTENTS[name]} (sha256 {own[:8]}, rank 0's {first[:8]})"
                if name in _CONTENTS
                else f"{name} {_value(own)} (rank 0: {_value(first)})"
                for name, (first, own) in found.items()
            )
            raise ValueError(
                f"Trainer: rank {rank} has {words}; give every rank the same files and settings, on all machines"
            )


def _batch(record: dict[str, Any]) -> int:
    return math.prod(record[name] for name in _BATCH)


def saved_record(state: dict[str, Any]) -> dict[str, Any]:
    """What `Trainer.load` compares, of a checkpoint's training.json."""
    if "settings" in state:
        return state["settings"]
    # Version 0.1 wrote the config as it was asked for, and the rest with the sampler.
    asked = {k: v for k, v in state["config"].items() if k != "dtype"}
    return asked | {k: v for k, v in state["sampler"].items() if k != "position"}


def model_record(model: nn.Module) -> dict[str, Any]:
    """The fields of the model's config that change what it computes; {} of a model without such a config."""
    config = getattr(model, "config", None)
    if not dataclasses.is_dataclass(config) or isinstance(config, type):
        return {}
    return {k: v for k, v in dataclasses.asdict(config).items() if not k.endswith("_impl")}


def check(config: TrainConfig, *, resume: bool, overwrite: bool) -> Path | None:
    """The newest checkpoint of the run, if there is one. Changes nothing.

    Raises:
        ValueError: `resume` and `overwrite` at once; a file, or what cannot be a folder, where one is meant.
        FileExistsError: the run exists, and neither `resume` nor `overwrite`.
        FileNotFoundError: `resume`, and there is no checkpoint.
    """
    if resume and overwrite:
        raise ValueError(
            "Trainer: resume (--resume) goes on with a run, overwrite (--overwrite) starts it over: choose one of them"
        )
    for name, path in (("runs_dir", Path(config.runs_dir)), ("name", config.folder)):
        try:
            if not os.path.isdir(path) and os.path.lexists(path):
                raise _no_folder(config, name, f"{path} is a file" if path.exists() else f"{path} is a dangling link")
            os.stat(path)
        except FileNotFoundError:
            pass
        except OSError as error:  # NotADirectoryError above it, a name that is too long, no permission
            raise _no_folder(config, name, files.reason(error)) from None
    if resume:
        read_settings(config.folder)
    elif not _is_ours(config.folder):
        raise FileExistsError(
            f"{config.folder} holds files that would be replaced and are not a run's of fastgpt; choose another name "
            "(--name)"
        )
    newest = overwritten.newest(config.folder / "checkpoints")
    if resume and newest is None:
        raise FileNotFoundError(
            f"{config.folder / 'checkpoints'}: no checkpoint, so nothing to resume; name the run with --name and "
            "--runs-dir, or leave --resume out"
        )
    if newest is not None and not resume and not overwrite:
        raise FileExistsError(
            f"{config.folder} holds a run of {checkpoint.step_of(newest)} steps; go on with resume=True (--resume), "
            "start over with overwrite=True (--overwrite), or choose another name (--name)"
        )
    return newest


@contextlib.contextmanager
def held(config: TrainConfig, world: World) -> Iterator[None]:
    """As `alone`, by rank 0 for all ranks of a job; its errors are raised on all."""
    with contextlib.ExitStack() as entered:
        with world.together():
            if world.is_first:
                entered.enter_context(alone(config))
        yield


@contextlib.contextmanager
def alone(config: TrainConfig) -> Iterator[None]:
    """Hold the run's folder, made if need be, so that no other process trains in it or starts it over.

    What stands aside of a run that is started over (`overwritten.set_aside`) is settled before and afterwards.

    Raises:
        SettingError: it cannot be written. FileExistsError: another process holds it.
    """
    make(config)
    with contextlib.ExitStack() as held:
        try:
            is_locked = held.enter_context(elastic.locked(config.folder))
        except BlockingIOError:
            several = ""
            if is_launched() and not is_initialized():
                several = ". This is one of several processes: make its Trainer inside of fastgpt.parallel.launch.world"
            raise FileExistsError(
                f"{config.folder}: another process is training there; wait for its end, or choose another name (--name)"
                f"{several}"
            ) from None
        if not is_locked:
            say_once(f"{config.folder}: this file system has no locks, so nothing keeps a second run out of the folder")
        overwritten.settle(config.folder)
        try:
            yield
        finally:
            overwritten.settle(config.folder)


def make(config: TrainConfig) -> None:
    """Make the folder, and see that it and its checkpoints' can be written.

    Raises:
        SettingError: it cannot.
    """
    for name, path in (("runs_dir", Path(config.runs_dir)), ("name", config.folder)):
        try:
            files.make_folder(path)
        except OSError as error:
            raise _no_folder(config, name, files.reason(error)) from None
    for path in (config.folder, config.folder / "checkpoints"):  # all training would be lost at the first save
        if os.path.lexists(path) and not os.path.isdir(path):
            raise _no_folder(config, "name", f"{path} is {'a file' if path.exists() else 'a dangling link'}")
        if path.exists() and not os.access(path, os.W_OK | os.X_OK):
            raise _no_folder(config, "name", f"{path} is not writable")


def settle(folder: Path) -> None:
    """Put back what a run that was started over, and then killed, left aside; nothing while a process trains there."""
    with contextlib.suppress(OSError), files.locked(folder, must=False):
        overwritten.settle(folder)


def _is_ours(folder: Path) -> bool:
    """Whether the files in it that a run replaces are a run's, or are not there."""
    if os.path.lexists(folder / "settings.json"):
        try:
            return bool(read_settings(folder))
        except ValueError:
            return False
    return not (folder / "metrics.jsonl").exists() or overwritten.newest(folder / "checkpoints") is not None


def write_settings(folder: Path, settings: dict[str, Any], *, resume: bool) -> None:
    """settings.json; what is None or empty is left out. `resume`: what only the file has stays (a script that goes on
    with a run of `fastgpt train` knows the config alone)."""
    before = read_settings(folder) if resume else {}
    text = json.dumps(_given(before | settings), indent=2) + "\n"
    files.replace_file(folder / "settings.json", lambda new: new.write_text(text, encoding="utf-8"))


def read_settings(folder: Path) -> dict[str, Any]:
    """What settings.json holds; {} where there is none (a run that was begun without the command line needs none).

    Raises:
        ValueError: it is damaged.
    """
    path = folder / "settings.json"
    try:
        settings = files.read_json(path)
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        why = files.reason(error)
    else:
        if isinstance(settings, dict) and isinstance(settings.get("train"), dict):
            return settings
        why = "it holds no settings of a run"
    raise ValueError(
        f"{path}: corrupted ({why}); restore it from a copy, or move it away and resume in Python"
    ) from None


def _given(settings: dict[str, Any]) -> dict[str, Any]:
    return {k: _given(v) if isinstance(v, dict) else v for k, v in settings.items() if v is not None and v != ()}


def _no_folder(config: TrainConfig, name: str, why: str) -> SettingError:
    return SettingError("TrainConfig", name, getattr(config, name), f"cannot be a folder of runs: {why}; name another")


def _value(value: Any) -> str:
    return (" ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)
