"""Restarts by torch elastic: the same command line again, which must go on where its own job was.

`torchrun --max-restarts N` starts all ranks anew when one of them is gone. A checkpoint's training.json says which job
wrote it ("job"), so a restarted job knows its own checkpoints from those of a run that was there before it:

    newest checkpoint           a restart goes on
    its own                     from there, whatever the command line says
    another job's, or none      as the command line says: it had come to nothing that is worth keeping
"""

from __future__ import annotations

import contextlib
import logging
import os
import socket
import time
from collections.abc import Iterator
from pathlib import Path

from ..base import files
from ..parallel.world import World
from . import overwritten
from .train_config import TrainConfig

_log = logging.getLogger("fastgpt")

_PATIENCE = 15.0  # seconds that a restart waits for the run's lock: a process of the job before it may be ending
_POLL = 0.2


def is_restart() -> bool:
    """Whether torch elastic has started this process in place of one that was there before."""
    count = os.environ.get("TORCHELASTIC_RESTART_COUNT", "")
    return count.isdecimal() and int(count) > 0


def job() -> str | None:
    """What all processes of one elastic job have in common, restarted ones too, and those of no other; None of a
    process that torch elastic has not started.

    It is the job's id (torchrun --rdzv-id; --standalone makes one up). Where that is "none", torchrun's default, it is
    the launcher: the machine, the number of the parent process, and when that began.
    """
    name = os.environ.get("TORCHELASTIC_RUN_ID")
    if not name:
        return None
    if name != "none":
        return f"id {name}"
    parent = os.getppid()
    return f"launcher {socket.gethostname()} {parent} {_began(parent)}"


def _began(pid: int) -> str:
    """When a process began, as the system counts it; "" where it does not tell."""
    try:
        after_name = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
        return after_name[19]  # field 22 of proc(5), in ticks after the boot
    except (OSError, IndexError):
        return ""


def resume_of(
    config: TrainConfig, resume: bool | str | Path, overwrite: bool, world: World | None = None
) -> tuple[bool | str | Path, bool]:
    """`resume` and `overwrite` as `Trainer.fit` is to take them: as given, but for a restart whose job has saved.

    All ranks of `world` call it, and get what rank 0 finds.
    """
    world = World() if world is None else world
    if not any(world.objects(is_restart())):  # only the launcher of the rank that was gone counts it
        return resume, overwrite
    own = world.from_first(_newest_own(config) if world.is_first else None)
    if own is None:
        return resume, overwrite
    if world.is_first and (resume is not True or overwrite):
        _log.warning("restarted: going on from %s", own)
    return True, False


def _newest_own(config: TrainConfig) -> Path | None:
    """The newest checkpoint of the run, if this job has written it."""
    newest = overwritten.newest(config.folder / "checkpoints")
    if newest is None:
        return None
    try:
        state = files.read_json(newest / "training.json")
    except (OSError, ValueError):  # whoever goes on from it says what is wrong with it
        return None
    return newest if isinstance(state, dict) and job() is not None and state.get("job") == job() else None


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[bool]:
    """`files.locked(folder, must=False)`; a restart waits some seconds for a process of its job that is still ending.

    Raises:
        BlockingIOError: another process holds the lock. OSError: there is no such folder.
    """
    end = time.monotonic() + (_PATIENCE if is_restart() else 0.0)
    with contextlib.ExitStack() as held:
        while True:
            try:
                is_locked = held.enter_context(files.locked(folder, must=False))
                break
            except BlockingIOError:
                if time.monotonic() >= end:
                    raise
                time.sleep(_POLL)
        yield is_locked
