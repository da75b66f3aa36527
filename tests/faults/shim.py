"""The shim (shim.c) from Python: compiled once, loaded before libc, told which calls to disturb."""

from __future__ import annotations

import ctypes
import errno
import functools
import os
import shutil
import signal
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

KINDS = ("open", "write", "fsync", "rename", "mkdir", "unlink", "rmdir", "truncate", "chmod", "link")  # as in shim.c
HALF, FAIL, BEFORE, AFTER = 1, 2, 4, 8
EVER = 1 << 40  # the last of a plan that goes on to the process's end


@dataclass(frozen=True)
class Plan:
    """What is done to the calls `first` ... `last` (from 1) of the kinds `kinds`.

    half    a write takes half of its bytes, and says so
    error   the call fails with this errno and does nothing
    signal  the process gets it, before the call or, with `after`, after it
    """

    kinds: tuple[str, ...]
    first: int
    last: int = 0  # `first`
    half: bool = False
    error: str = ""
    signal: str = ""
    after: bool = False

    @property
    def does(self) -> list[str]:
        """Words for what is done."""
        return ["half"] * self.half + [self.error] * bool(self.error) + [self.signal] * bool(self.signal)

    @property
    def words(self) -> str:
        kinds = "any call" if self.kinds == KINDS else "+".join(self.kinds)
        when = ["after" if self.after else "before"] * bool(self.signal)
        return " ".join([*self.does, *when, kinds, str(self.first), *["on"] * (self.last == EVER)])


def missing() -> str | None:
    """Why there can be no shim here, or None."""
    if sys.platform != "linux":
        return "faults are planted by LD_PRELOAD, which is Linux's"
    return None if _compiler() else "needs a C compiler (cc, gcc or clang), and there is none"


def _compiler() -> str | None:
    return next((found for name in ("cc", "gcc", "clang") if (found := shutil.which(name))), None)


def build(folder: Path) -> Path:
    """Compile shim.c into `folder`."""
    library = folder / "shim.so"
    source = Path(__file__).with_name("shim.c")
    subprocess.run([_compiler(), "-O1", "-shared", "-fPIC", "-o", library, source, "-ldl"], check=True)
    return library


@functools.cache
def _library() -> ctypes.CDLL:
    library = ctypes.CDLL(os.environ["LD_PRELOAD"])  # the same one, not another copy
    library.faults_watch.argtypes = [ctypes.c_char_p, ctypes.c_char_p, ctypes.c_int]
    library.faults_plan.argtypes = [ctypes.c_uint, ctypes.c_long, ctypes.c_long] + [ctypes.c_int] * 3
    return library


def arm(folder: Path, part: str, log: int, plans: list[Plan]) -> None:
    """From now on, in this process: count the calls about what lies in `folder` and has `part` in its path."""
    _library().faults_watch(str(folder).encode(), part.encode(), log)
    for plan in plans:
        action = HALF * plan.half + FAIL * bool(plan.error)
        action += (AFTER if plan.after else BEFORE) if plan.signal else 0
        _library().faults_plan(
            sum(1 << KINDS.index(kind) for kind in plan.kinds), plan.first, plan.last or plan.first, action,
            getattr(errno, plan.error) if plan.error else 0, getattr(signal, plan.signal) if plan.signal else 0,
        )  # fmt: skip
