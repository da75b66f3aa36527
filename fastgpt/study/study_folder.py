"""The folder of a study of several runs: study.json and a folder for each run; whose it is, and whether it may be gone
on with.

<runs_dir>/<name>/
    study.json, study.html            everything that was found; the same to look at
    2x256x4-seed0/ ...                runs, as `fastgpt train` leaves them
"""

from __future__ import annotations

import contextlib
import json
import math
import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..base import files
from ..base.settings import SettingError, shown
from ..train import run_folder
from ..train.train_config import TrainConfig


@dataclass(frozen=True)
class StudyFolder:
    """kind: of the study, as study.json has it; owner: whose settings runs_dir and name are."""

    owner: str
    kind: str
    runs_dir: str
    name: str

    @property
    def path(self) -> Path:
        return Path(self.runs_dir) / self.name

    def read(self, recipe: dict[str, Any], needs: Sequence[str] = ()) -> dict[str, Any] | None:
        """study.json, of an earlier call with this `recipe`; None where there is nothing. Changes nothing.

        needs: what it must have besides, else it is damaged: "data.train.sha256".

        Raises:
            SettingError: it can be no folder. FileExistsError: it holds a run, another kind of study, files of others.
            ValueError: a study.json that is damaged, or a study of another recipe.
        """
        if not self.path.is_dir():  # then it must be one that can be made
            try:
                run_folder.check(TrainConfig(name=self.name, runs_dir=self.runs_dir), resume=False, overwrite=False)
            except SettingError as error:
                raise SettingError(self.owner, error.name, error.value, error.need) from None
        path = self.path / "study.json"
        if not path.exists():
            if self.path.is_dir() and any(self.path.iterdir()):
                what = "a run" if (self.path / "settings.json").exists() else "files that are no study's"
                raise FileExistsError(f"{self.path} holds {what}; choose another name (--name)")
            return None
        try:
            found = files.read_json(path)
            kind, theirs, _ = found["study"], found.get("recipe"), [row["name"] for row in found["rows"]]
            if kind == self.kind and theirs is not None:  # the record of one model has no recipe
                for name in (*(f"recipe.{field}" for field in recipe), *needs):
                    if _part(found, name) is None and name in needs:
                        raise TypeError
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            why = files.reason(error) if isinstance(error, (OSError, ValueError)) else "it is no study's"
            what = f"corrupted ({why}); move it away, and name another folder with --name, or start over"
            raise ValueError(f"{path}: {what}") from None
        if kind != self.kind or not isinstance(theirs, dict):
            raise FileExistsError(f"{self.path} holds a study of {shown(kind)}; choose another name (--name)")
        options = {f"--{k.replace('_', '-')}": (theirs.get(k), v) for k, v in recipe.items() if theirs.get(k) != v}
        if options:
            words = "; ".join(f"{option} {shown(old)}, now {shown(new)}" for option, (old, new) in options.items())
            raise ValueError(
                f"{self.path} holds a study that was begun with {words}; give it the same, or another --name"
            )
        return found

    def make(self) -> Path:
        """The folder, made if need be.

        Raises:
            SettingError: it cannot be written.
        """
        for name, path in (("runs_dir", self.path.parent), ("name", self.path)):
            try:
                files.make_folder(path)
                if not os.access(path, os.W_OK | os.X_OK):
                    raise PermissionError(f"{path} is not writable")
            except OSError as error:
                need = f"cannot be a folder of runs: {files.reason(error)}; name another"
                raise SettingError(self.owner, name, getattr(self, name), need) from None
        return self.path

    @contextlib.contextmanager
    def alone(self) -> Iterator[None]:
        """Hold the folder, which is there, so that no other process works in it.

        Raises:
            FileExistsError: another one does.
        """
        with contextlib.ExitStack() as held:
            try:
                held.enter_context(files.locked(self.path, must=False))
            except BlockingIOError:
                raise FileExistsError(
                    f"{self.path}: another process works there; wait for its end, or choose another name (--name)"
                ) from None
            yield

    def write(self, study: dict[str, Any]) -> None:
        """study.json, as `write_record` does.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        write_record(self.path / "study.json", study)


def _part(record: Any, name: str) -> Any:
    """A part of a record, "data.train.sha256". Raises KeyError or TypeError where it lacks it."""
    for step in name.split("."):
        if not isinstance(record, dict):
            raise TypeError
        record = record[step]
    return record


def write_record(path: str | os.PathLike[str], record: dict[str, Any]) -> None:
    """A file of JSON, whole or not at all: a line for each of its parts, and of a list's; what is not finite is null.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    parts = [f"{json.dumps(name)}: {_lines(part)}" for name, part in _finite(record).items()]
    text = "{\n" + ",\n".join(parts) + "\n}\n"
    files.replace_file(Path(path), lambda new: new.write_text(text, encoding="utf-8"))


def _lines(part: Any) -> str:
    if isinstance(part, list) and part and isinstance(part[0], dict):
        return "[\n" + ",\n".join(json.dumps(row, allow_nan=False) for row in part) + "\n]"
    return json.dumps(part, allow_nan=False)


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value
