"""Starting a run over: its files stand aside until the new run's first checkpoint is whole.

    <run>/.overwriting/    some of them: they are on their way here, or back, and belong back
    <run>/.overwritten/    all of them: they belong back, unless the new run has a checkpoint by now

Whatever moment a process dies at, `settle` goes on from there. Who moves files holds the run's lock
(`run_folder.alone`); who only reads finds the newest checkpoint by `newest`, in any of these places.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

from ..base import files
from ..kernels._notice import say_once
from ..pages.page import is_ours
from .step_folders import WRITING, all_checkpoints, replaced_checkpoints, step_of

_MOVING, _ASIDE = ".overwriting", ".overwritten"
_CHECKPOINTS = "checkpoints"


def newest(root: Path) -> Path | None:
    """The newest checkpoint of the run whose checkpoints are in `root`, or stand aside; None if there is none."""
    run = root.parent
    there = all_checkpoints(root) + all_checkpoints(run / _MOVING / root.name)
    return max(there or all_checkpoints(run / _ASIDE / root.name), key=step_of, default=None)


def kept(root: Path) -> str:
    """Words for what is safe under `root`, whatever happens next: what stands aside will be back by then."""
    found = newest(root)
    return "nothing is saved" if found is None else f"{root / found.name} is kept"


def set_aside(run: Path) -> None:
    """Move the run's files aside, and nothing else. What is no run's, for it has no checkpoint, is deleted.

    Raises:
        OSError: one cannot be moved; then all are where they were.
    """
    if not all_checkpoints(run / _CHECKPOINTS):
        for path in _scalars(run):
            path.unlink()
        return
    try:
        for path in list(_files(run)):
            _move(path, run, run / _MOVING)
        _flush(run / _MOVING)
        (run / _MOVING).rename(run / _ASIDE)
        _flush(run)
    except BaseException as error:
        settle(run)
        if isinstance(error, OSError):
            raise type(error)(
                f"could not set the run in {run} aside ({files.reason(error)}), so {kept(run / _CHECKPOINTS)}; "
                f"{files.remedy(error) or 'delete the run'}, or choose another name (--name)"
            ) from error
        raise


def settle(run: Path) -> None:
    """Delete what stands aside, if there is a checkpoint of the new run, or else put it back; delete what a killed
    process left half written or deleted. A failure is a warning, and costs nothing: the next call tries again."""
    try:
        files.remove_left_behind(run)
        files.remove_left_behind(run / _CHECKPOINTS, WRITING)
        _settle_checkpoints(run / _CHECKPOINTS)
        if (run / _ASIDE).is_dir() and all_checkpoints(run / _CHECKPOINTS):
            # Under a name that `files.working_folder` removes: half of it is no run.
            shutil.rmtree((run / _ASIDE).rename(run / f"{files.PREFIX}{secrets.token_hex(4)}"))
        if (run / _ASIDE).is_dir():
            for path in [*_texts(run), *_scalars(run)]:  # of a new run that came to nothing
                path.unlink()
            (run / _ASIDE).rename(run / _MOVING)
        if (run / _MOVING).is_dir():
            for path in list(_files(run / _MOVING)):
                _move(path, run / _MOVING, run)
            for folder in (_CHECKPOINTS, "tensorboard", "."):
                with contextlib.suppress(FileNotFoundError):
                    (run / _MOVING / folder).rmdir()
            _flush(run)
    except OSError as error:
        say_once(f"could not clear up after a run that was started over in {run} ({files.reason(error)})")


def _settle_checkpoints(root: Path) -> None:
    """A checkpoint that was to be replaced by another of its step, and was not: it is put back."""
    for path, target in replaced_checkpoints(root):
        if target.exists():
            shutil.rmtree(path)
        else:
            path.rename(target)


def _files(run: Path) -> Iterator[Path]:
    """What a run consists of."""
    yield from all_checkpoints(run / _CHECKPOINTS)
    yield from (run / _CHECKPOINTS).glob("set-aside-step-*")
    yield from _texts(run)
    yield from _scalars(run)


def _texts(run: Path) -> list[Path]:
    texts = [run / name for name in ("settings.json", "metrics.jsonl", "spikes.jsonl") if os.path.lexists(run / name)]
    return texts + [run / "report.html"] * is_ours(run / "report.html")


def _scalars(run: Path) -> list[Path]:
    return list((run / "tensorboard").glob("events.out.tfevents.*"))


def _flush(run: Path) -> None:
    for folder in (run / _CHECKPOINTS, run / "tensorboard", run):
        if folder.is_dir():
            files.flush(folder)


def _move(path: Path, run: Path, to: Path) -> None:
    target = to / path.relative_to(run)
    target.parent.mkdir(parents=True, exist_ok=True)
    path.rename(target)
