"""The folders of a run's checkpoints: which there are, which is the newest, which may go.

<run>/checkpoints/
    step-00001000/              a finished checkpoint
    set-aside-step-00001500/    of a later step than the one that the run went on from
    .writing-*                  no checkpoint yet, or none any more
"""

from __future__ import annotations

import logging
import os
import re
import secrets
import shlex
import shutil
from pathlib import Path

from ..base import checksums, files
from ..kernels._notice import say_once

_log = logging.getLogger("fastgpt")

WRITING = ".writing-"  # how folders begin that are no checkpoints; `files.working_folder` removes them
_REPLACED = ".replaced-"
_STEP = re.compile(r"(?:\.replaced-)?step-(\d{8,})")


class CheckpointError(RuntimeError):
    """A checkpoint that could not be written or read: the message names the file and the way out."""


def folder_of(root: Path, step: int) -> Path:
    return root / f"step-{step:08d}"


def step_of(folder: Path) -> int:
    return int(folder.name.rpartition("-")[2])


def is_named_for(folder: Path, step: int) -> bool:
    """False where the folder's name says that it is another step's."""
    return _STEP.fullmatch(folder.name) is None or step_of(folder) == step


def all_checkpoints(root: str | os.PathLike[str]) -> list[Path]:
    """The finished checkpoints under `root`, oldest first. (A folder with nothing in it is none.)"""
    root = Path(root)
    if not root.is_dir():
        return []
    found = {p.name: p for p in root.iterdir() if _STEP.fullmatch(p.name) and p.is_dir() and _holds_any(p)}
    alone = [
        p for p in found.values() if not (p.name.startswith(_REPLACED) and folder_of(root, step_of(p)).name in found)
    ]
    return sorted(alone, key=step_of)


def _holds_any(folder: Path) -> bool:
    """Whether there is something in it; one that may not be looked into is not to be taken for empty."""
    try:
        return any(folder.iterdir())
    except PermissionError:
        return True


def replaced_checkpoints(root: Path) -> list[tuple[Path, Path]]:
    """Those that were about to be replaced, and where they were."""
    return [(path, path.with_name(path.name.removeprefix(_REPLACED))) for path in root.glob(f"{_REPLACED}step-*")]


def replace(work: Path, target: Path) -> None:
    """Rename `work` to `target`. A checkpoint there is gone then, at no moment before; what is none is set aside."""
    replaced = target.with_name(f"{_REPLACED}{target.name}")
    if target in all_checkpoints(target.parent):
        if replaced.exists():
            shutil.rmtree(replaced)
        target.rename(replaced)
    elif os.path.lexists(target):
        _log.warning("%s is in the place of a checkpoint; it is now %s", target, set_aside(target))
    try:
        work.rename(target)
    except BaseException:
        if replaced.exists():
            replaced.rename(target)
        raise
    files.flush(target.parent)
    if replaced.exists():
        _delete_or_warn(replaced)


def latest(root: str | os.PathLike[str]) -> Path | None:
    """The newest finished checkpoint under `root`, or None."""
    found = all_checkpoints(root)
    return found[-1] if found else None


def prune(root: Path, keep: int, newest: Path) -> None:
    """Delete checkpoints under `root` until `keep` are left, `newest` among them: the oldest first.

    Those of later steps than `newest` are none of this run's past, and stay. What cannot be deleted costs a warning.
    """
    try:
        before = [path for path in all_checkpoints(root) if step_of(path) < step_of(newest)]
    except OSError as error:
        say_once(f"could not look for old checkpoints in {root} ({files.reason(error)}); training goes on")
        return
    for old in before[: max(0, len(before) - (keep - 1))]:
        _delete_or_warn(old)


def _delete_or_warn(folder: Path) -> None:
    try:
        delete(folder)
    except OSError as error:
        say_once(f"could not delete the old checkpoint {folder} ({files.reason(error)}); training goes on")


def delete(folder: Path) -> None:
    """Delete a checkpoint's folder; it is none as soon as this begins, whenever it ends.

    Raises:
        OSError: it, or a part of it, cannot be deleted.
    """
    gone = folder.rename(folder.with_name(f"{WRITING}{secrets.token_hex(4)}"))
    if gone.is_symlink():  # somebody keeps the checkpoint itself elsewhere
        gone.unlink()
    else:
        shutil.rmtree(gone)


def set_aside_after(root: Path, step: int) -> list[Path]:
    """Rename the checkpoints of later steps, so that none of them is taken for the newest. Returns their new paths."""
    return [set_aside(path) for path in all_checkpoints(root) if step_of(path) > step]


def set_aside(path: Path) -> Path:
    """Rename what lies at `path`, so that it is taken for no checkpoint. Returns its new path."""
    numbers = (path.with_name(f"set-aside-{path.name}{'' if n == 1 else f'-{n}'}") for n in range(1, 1 << 30))
    return path.rename(next(new for new in numbers if not os.path.lexists(new)))


def instead(folder: Path) -> str:
    """The way out of a checkpoint that cannot be used: the newest of those before it that can."""
    for other in reversed(all_checkpoints(folder.parent)):
        if _STEP.fullmatch(folder.name) and step_of(other) < step_of(folder) and _is_whole(other):
            return (
                f"go on from the one before it: fastgpt train --resume-from {shlex.quote(str(other))} (in Python: "
                "fit(resume=...) of that folder)"
            )
    return "there is none before it: restore it from a copy, or start a new run"


def _is_whole(folder: Path) -> bool:
    """Whether every file has its hash; reads them all."""
    try:
        return bool(checksums.check(folder, whole=True))
    except (OSError, ValueError):
        return False
