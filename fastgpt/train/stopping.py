"""Signals that end a loop where it can be ended: between two steps."""

from __future__ import annotations

import signal
import threading
from types import FrameType
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)  # Ctrl-C, kill, the terminal was closed


class StopSignals:
    """`with StopSignals() as signals:` around a loop that ends when `signals.stopped_by` is not None.

    The first of SIGINT, SIGTERM and SIGHUP sets `stopped_by` (to its name). A SIGINT after it does what it did before:
    raises KeyboardInterrupt; the others, which are told to all processes of a job, and more than once, change nothing.
    What the process was told to ignore (nohup) stays ignored. Outside of the main thread, the only one that may handle
    signals, `stopped_by` stays None.
    """

    def __init__(self) -> None:
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

    def _stop(self, number: int, frame: FrameType | None) -> None:
        self.stopped_by = self.stopped_by or signal.Signals(number).name
        if signal.SIGINT in self._before:
            signal.signal(signal.SIGINT, self._before[signal.SIGINT])
