"""Ctrl-C, SIGTERM and SIGHUP (the terminal was closed), the same for every command: one line that says what was kept,
exit status 130, 143 or 129.

A command that has written something catches KeyboardInterrupt, puts things in order, and raises
`KeyboardInterrupt("the shards that were there are intact") from None`; of one that says nothing, nothing was written.
The others arrive as KeyboardInterrupt too.
"""

from __future__ import annotations

import contextlib
import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..study.interrupted import Interrupted

STATUS = {signal.SIGINT: 130, signal.SIGTERM: 143, signal.SIGHUP: 129}  # what a shell gives for a process that they end
WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated", signal.SIGHUP: "hung up"}


class Signals:
    """Handlers of the process that runs one command; `with Signals("fastgpt train") as signals:` around all of it.

    Afterwards a signal ends the process without a word: Python's own handler of Ctrl-C would raise in the midst of
    whatever Python, or torch, does at its exit, and a traceback would follow the line that said what was kept.

    Only the handlers that Python starts with are replaced: what a parent process ignores (`nohup`, a background job of
    a script) stays ignored.
    """

    def __init__(self, prog: str) -> None:
        self.prog = prog
        self._number = signal.SIGINT
        self._ours: list[signal.Signals] = []

    def __enter__(self) -> Signals:
        for number in STATUS:
            default = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
            if signal.getsignal(number) is default:
                signal.signal(number, self._leave)
                self._ours.append(number)
        return self

    def __exit__(self, *_: object) -> None:
        for number in self._ours:
            signal.signal(number, signal.SIG_DFL)

    def start_work(self) -> None:
        """From now on there may be something to put in order: they raise KeyboardInterrupt."""
        for number in self._ours:
            signal.signal(number, self._interrupt)

    def message(self, stop: KeyboardInterrupt) -> str:
        """The line that says what stopped the command, and what it kept; one that writes something says so itself."""
        return "; ".join([f"{self.prog}: {WORDS[self._number]}", *map(str, stop.args or ["nothing was written"])])

    @property
    def status(self) -> int:
        """The exit status after a KeyboardInterrupt."""
        return STATUS[self._number]

    def _leave(self, number: int, frame: FrameType | None) -> None:
        # An exception could be swallowed: C code under the import of torch and numpy clears what it did not expect.
        number = signal.Signals(number)
        with contextlib.suppress(OSError):
            os.write(2, f"{self.prog}: {WORDS[number]}; nothing was done\n".encode())
        os._exit(STATUS[number])

    def _interrupt(self, number: int, frame: FrameType | None) -> None:
        self._number = signal.Signals(number)
        raise KeyboardInterrupt


def status_of(prog: str, stop: Interrupted) -> int:
    """The exit status of a study that a signal has stopped, after the line that says what was kept.

    Raises:
        KeyboardInterrupt: it was Ctrl-C, whose line is said like every command's.
    """
    if stop.stopped_by == "SIGINT":
        raise KeyboardInterrupt(str(stop)) from None
    number = signal.Signals[stop.stopped_by]
    print(f"{prog}: {WORDS[number]}; {stop}", file=sys.stderr)
    return STATUS[number]
