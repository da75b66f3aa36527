"""The folder of a study: study.json and a folder for each run; whose it is, and whether it may be gone on with.

<runs_dir>/<name>/
    study.json                        everything that was found; written anew after each run
    study.html, study.svg             the same to look at
    2x256x4-seed0/ ...                runs, as `fastgpt train` leaves them
"""

from __future__ import annotations

import json
import math
import os
from pathlib import Path
from typing import Any

from ...base import files
from ...base.settings import SettingError, shown
from ...train import run_folder
from ...train.train_config import TrainConfig
from .config import DepthConfig

KIND, VERSION = "depth", 1
_FREE = {"budget"}  # what only says how the tokens were found


def path_of(config: DepthConfig) -> Path:
    return Path(config.runs_dir) / config.name


def read(config: DepthConfig) -> dict[str, Any] | None:
    """What an earlier call left there; None where there is nothing. Changes nothing.

    Raises:
        FileExistsError: the folder holds something else: a run, another kind of study, files of others.
        ValueError: a study.json that is damaged, or a study of another recipe.
    """
    folder = path_of(config)
    if not folder.is_dir():  # then it must be one that can be made
        run_folder.check(TrainConfig(name=config.name, runs_dir=config.runs_dir), resume=False, overwrite=False)
    path = folder / "study.json"
    if not path.exists():
        if folder.is_dir() and any(folder.iterdir()):
            what = "a run" if (folder / "settings.json").exists() else "files that are no study's"
            raise FileExistsError(f"{folder} holds {what}; choose another name (--name)")
        return None
    try:
        found = files.read_json(path)
        kind = found["study"]
        if kind == KIND:
            recipe, _ = found["recipe"], [row["name"] for row in found["rows"]]
    except (OSError, ValueError, TypeError, KeyError) as error:
        why = files.reason(error) if isinstance(error, (OSError, ValueError)) else "it is no study's"
        what = f"corrupted ({why}); move it away, and the same command reads the runs again"
        raise ValueError(f"{path}: {what}") from None
    if kind != KIND:
        raise FileExistsError(f"{folder} holds a study of {kind}; choose another name (--name)")
    now = config.recipe()
    changed = {k: (recipe.get(k), v) for k, v in now.items() if k not in _FREE and v is not None and recipe.get(k) != v}
    if changed:
        options = {f"--{k.replace('_', '-')}": pair for k, pair in changed.items()}
        words = "; ".join(f"{option} {shown(old)}, now {shown(new)}" for option, (old, new) in options.items())
        raise ValueError(f"{folder} holds a study that was begun with {words}; give it the same, or another --name")
    return found


def write(config: DepthConfig, study: dict[str, Any]) -> None:
    """study.json, whole or not at all; a line for each of its parts, and of its rows.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    text = _lines(_finite(study))
    files.replace_file(path_of(config) / "study.json", lambda new: new.write_text(text, encoding="utf-8"))


def _lines(study: dict[str, Any]) -> str:
    parts = {name: json.dumps(part, allow_nan=False) for name, part in study.items()}
    for name in ("rows", "memory", "verdicts"):
        rows = ",\n".join(json.dumps(row, allow_nan=False) for row in study.get(name, []))
        parts[name] = f"[\n{rows}\n]"
    return "{\n" + ",\n".join(f"{json.dumps(name)}: {part}" for name, part in parts.items()) + "\n}\n"


def _finite(value: Any) -> Any:
    """JSON has no NaN and no infinity: null."""
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, dict):
        return {k: _finite(v) for k, v in value.items()}
    return [_finite(v) for v in value] if isinstance(value, (list, tuple)) else value


def make(config: DepthConfig) -> Path:
    """The folder, made if need be.

    Raises:
        SettingError: it cannot be written.
    """
    folder = path_of(config)
    for name, path in (("runs_dir", folder.parent), ("name", folder)):
        try:
            files.make_folder(path)
        except OSError as error:
            need = f"cannot be a folder of runs: {files.reason(error)}; name another"
            raise SettingError("DepthConfig", name, getattr(config, name), need) from None
        if not os.access(path, os.W_OK | os.X_OK):
            need = f"cannot be a folder of runs: {path} is not writable; name another"
            raise SettingError("DepthConfig", name, getattr(config, name), need)
    return folder
