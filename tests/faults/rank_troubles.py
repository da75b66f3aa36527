"""Jobs of several ranks that cannot go on: wrong options, a checkpoint that does not fit, a rank that hangs.

Each ends with one line on rank 0, exit status 2 of the ranks, no process left, and the run as it was.
"""

from __future__ import annotations

import contextlib
import re
import shutil
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path

from fastgpt.base import checksums, files
from fastgpt.train import checkpoint

from . import checks
from .rank_jobs import Done
from .rank_worker import CALLS, FOLDER, Fault

_NEWEST = Path("runs", "a", "checkpoints", "step-00000008")


@dataclass(frozen=True)
class Trouble:
    """what: of the table; words: options added; says: a pattern of the line; prepare: changes the folder, in which an
    undisturbed run is, and may hold something while the job runs; fault: of a rank; again: whether `--resume` then
    ends with an undisturbed run's bits."""

    what: str
    words: tuple[str, ...]
    says: str
    prepare: Callable[[Path], AbstractContextManager[None] | None] | None = None
    fault: Fault | None = None
    again: bool = False

    @property
    def name(self) -> str:
        return f"trouble: {self.what}"


def _another_model(folder: Path) -> None:
    """The newest checkpoint is whole, and says that its model has one block."""
    path = folder / _NEWEST / "config.json"
    path.write_text(path.read_text().replace('"n_layers": 2', '"n_layers": 1'))
    checksums.write(path.parent)


def _without_a_part(folder: Path) -> None:
    next((folder / _NEWEST / "sharded").glob("shard-00002-*")).unlink()


def _held(folder: Path) -> AbstractContextManager[None]:
    """Another process trains in the run's folder."""
    held = contextlib.ExitStack()
    held.enter_context(files.locked(folder / "runs" / "a"))
    return held  # type: ignore[return-value]


def _elsewhere(folder: Path) -> None:
    """Another machine's folder, in which the text is another."""
    (folder / "other").mkdir()
    (folder / "other" / "a.txt").write_text((folder / "a.txt").read_text().replace("the", "one"))
    (folder / "other" / "runs").symlink_to(folder / "runs")


TROUBLES = (
    Trouble("ranks that do not divide the batch", ("--name", "b", "--global-batch-size", "7"),
            r"--global-batch-size 7 must be a multiple of .*; take 4 or 8"),
    Trouble("an unknown strategy", ("--name", "b", "--strategy", "zero3"), "--strategy zero3 must be one of auto, ddp"),
    Trouble("no GPU", ("--name", "b", "--device", "cuda"), "--device cuda .*take auto or cpu"),
    Trouble("a run that is there", (), "holds a run of 8 steps; go on with --resume"),
    Trouble("no run to resume", ("--resume", "--name", "b"), "no such file, so nothing to resume"),
    Trouble("another model than the run's", ("--resume", "--n-layers", "3"), "--n-layers 3 is not what the model in"),
    Trouble("a checkpoint of another model", ("--resume",), r"--n-layers 2 is not what .* has \(1\)", _another_model),
    Trouble("a rank's file is missing", ("--resume",), "shard-00002.*missing.*the one before it", _without_a_part),
    Trouble("two jobs in one folder", ("--resume", "--steps", "9", "--allow-changes"),
            "another process is training there", _held),
    Trouble("a rank with other data", ("--name", "b"), "rank 1 has .*other training data .*same files", _elsewhere,
            Fault(1, 0, FOLDER, 1, does="other")),
    Trouble("a rank hangs", ("--name", "b", "--timeout", "6"), "rank 1 is gone, or standing still.*at step 6", None,
            Fault(1, 0, "step", 6, does="SIGSTOP"), again=True),
    Trouble("no space left, in one rank", ("--name", "b"), r"could not save .*step-00000004: No space left on device.*"
            "step-00000002 is kept", None, Fault(1, 0, CALLS, 2, does="ENOSPC", kinds=("write",)), again=True),
)  # fmt: skip


def told(trouble: Trouble, done: Done) -> list[str]:
    """What is wrong with how the job ended."""
    errors = [line for line in done.err.splitlines() if line.startswith("fastgpt train: error: ")]
    found = []
    if len(errors) != 1:
        found.append(f"{len(errors)} lines of errors")
    elif not re.search(trouble.says, errors[0]):
        found.append(f"it says: {errors[0]}")
    if "Traceback" in done.err:
        found.append("a traceback")
    if done.code is None:
        found.append("it hung")
    elif not done.code:
        found.append("exit status 0")
    if trouble.fault is None and not re.search(r"exitcode *: 2\b", done.log):
        found.append("the exit status of the ranks is not 2")
    if trouble.fault is not None and not done.struck:
        found.append("the fault was not reached")
    if done.orphans:
        found.append(f"{len(done.orphans)} processes outlived it")
    return found


def kept(folder: Path, before: dict[str, bytes], name: str) -> list[str]:
    """What is lost: of the run that was there anything, of one that was begun a checkpoint that is not whole."""
    found = [] if checks.contents(folder / "runs" / "a") == before else ["the run that was there has changed"]
    for path in [] if name == "a" else checkpoint.all_checkpoints(folder / "runs" / name / "checkpoints"):
        try:
            checkpoint.verify(path)
        except checkpoint.CheckpointError as error:
            found.append(f"not whole: {error}")
    return found


def copied(reference: Path, folder: Path) -> None:
    """An undisturbed run into `folder`."""
    shutil.copytree(reference / "runs", folder / "runs")
