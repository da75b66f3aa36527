"""Signals that end a loop where it can be ended: between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, kill, the terminal was closed


class StopSignals:
    """`with StopSignals() as signals:` around a loop that ends when `signals.stopped_by` is not None.

    number      of the first signal that has come to this process, or 0
    stopped_by  its name; among several processes (not `alone`) that of one which all have agreed to stop by (`agree`)

    The first of SIGINT, SIGTERM and SIGHUP is the one that counts. A SIGINT after it does what it did before:
    raises KeyboardInterrupt; the others, which are told to all processes of a job, and more than once, change nothing.
    What the process was told to ignore (nohup) stays ignored. Outside of the main thread, the only one that may handle
    signals, `stopped_by` stays None.
    """

    def __init__(self, *, alone: bool = True) -> None:
        self.number, self._alone = 0, alone
        self.stopped_by: str | None = None
        self._before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in _NUMBERS:
                if signal.getsignal(number) not in (signal.SIG_IGN, None):  # None: a handler that is not Python's
                    self._before[number] = signal.signal(number, self._stop)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)

    def agree(self, number: int) -> None:
        """All processes know of the signal with this number, and end by it."""
        self.stopped_by = signal.Signals(number).name

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.number = self.number or number
        if self._alone:
            self.agree(self.number)
        if signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
