"""`Watch`: who has come how far, so that a rank that waits in vain can say for whom.

Each rank counts the places that all ranks come to in the same order (collectives, micro-batches), and a thread of it
writes that number, and the step, to torch's store every second. So of ranks that wait for each other, those with the
smaller number have not arrived; and one whose number is no longer written is gone, or stands still as a whole.
"""

from __future__ import annotations

import contextlib
import json
import os
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, TypeVar

T = TypeVar("T")

BEAT = 1.0  # seconds from one word of a rank to the next
_GONE = 2.5  # seconds without a word of a rank after which it is gone
_ANSWER = 5.0  # seconds within which the store answers; one that lies in a process that is gone never does
_GRACE = 15.0  # seconds that are left to torch's own time-out, which ends a collective without ending the process


@dataclass(frozen=True)
class _Word:
    """What a rank has written last: beats so far, places that it has come to, step."""

    beat: int
    places: int
    step: int


class Watch:
    """One rank's, on `store`, a torch.distributed.Store that nobody else uses.

    timeout: seconds that a rank waits for another. One that has waited for longer while another is behind it, and that
    torch has not woken, says so and ends its process: a collective of NCCL cannot be broken off from outside.
    """

    def __init__(self, store: Any, rank: int, size: int, timeout: float) -> None:
        self._store, self.rank, self.size, self.timeout = store, rank, size, timeout
        self._places, self._step, self._beat = 0, 0, 0
        self._moved = time.monotonic()
        self._ended = threading.Event()
        self._write()
        self._thread = threading.Thread(target=self._run, name="fastgpt-watch", daemon=True)
        self._thread.start()

    def mark(self, step: int | None = None) -> None:
        """This rank has come to the next place."""
        self._places += 1
        self._moved = time.monotonic()
        if step is not None:
            self._step = step

    def failed(self, message: str) -> None:
        """Tell the others what ends this rank."""
        within(_ANSWER, lambda: self._store.set(f"failed/{self.rank}", message))

    def lost(self, blamed: list[int], line: str) -> None:
        """Tell the others whom this rank has waited for in vain: they will see this one gone too."""
        within(_ANSWER, lambda: self._store.set(f"lost/{self.rank}", json.dumps([blamed, line])))

    def close(self) -> None:
        """End the thread; the others are told nothing any more."""
        self._ended.set()
        self._thread.join(timeout=2 * BEAT)

    def failure(self) -> tuple[int, str] | None:
        """The first rank that has told what ends it, and what it told."""
        for rank in range(self.size):
            if rank != self.rank and self._store.check([f"failed/{rank}"]):
                return rank, self._store.get(f"failed/{rank}").decode()
        return None

    def why(self) -> tuple[list[int], str]:
        """After a collective that failed: the ranks that are to blame, and a line that says so; takes seconds."""
        waited = max(0.0, time.monotonic() - self._moved)
        found = within(_GONE + _ANSWER, lambda: self._found(waited))
        if found is None:
            return [0], f"rank 0, where the ranks meet, is gone, or standing still; {self._where()}"
        return found

    def _found(self, waited: float) -> tuple[list[int], str]:
        first = self._words()
        end = time.monotonic() + _GONE
        while time.monotonic() < end:
            failure = self.failure()
            if failure is not None:
                return [failure[0]], f"rank {failure[0]}: {failure[1]}"
            told = self._told()
            if told is not None:
                return told
            time.sleep(0.1)
        return self._blamed(first, self._words(), waited)

    def _told(self) -> tuple[list[int], str] | None:
        """What a rank that knew earlier has told (`lost`), unless it waited for this one."""
        for rank in range(self.size):
            if rank != self.rank and self._store.check([f"lost/{rank}"]):
                blamed, line = json.loads(self._store.get(f"lost/{rank}"))
                if self.rank not in blamed:
                    return blamed, line
        return None

    def _blamed(self, before: dict[int, _Word], now: dict[int, _Word], waited: float) -> tuple[list[int], str]:
        others = [rank for rank in range(self.size) if rank != self.rank]
        gone = [rank for rank in others if rank not in now or (rank in before and before[rank].beat == now[rank].beat)]
        if gone:
            where = f"{self._where()}, {waited:.0f} s long"
            return gone, f"{_ranks(gone)} gone, or standing still: nothing is heard any more; {where}"
        behind = [rank for rank in others if now[rank].places < self._places]
        if behind:
            have = f"{_ranks(behind)} not arrived".replace(" is ", " has ").replace(" are ", " have ")
            return behind, f"{have}; {self._where()}, {waited:.0f} s long (--timeout {self.timeout:.0f})"
        return [], f"the ranks wait for each other; {self._where()}, {waited:.0f} s long (--timeout {self.timeout:.0f})"

    def _where(self) -> str:
        return (
            f"rank {self.rank} waited at step {self._step}" if self._step else f"rank {self.rank} waited at the start"
        )

    def _words(self) -> dict[int, _Word]:
        found = {}
        for rank in range(self.size):
            if self._store.check([f"at/{rank}"]):
                found[rank] = _Word(*map(int, self._store.get(f"at/{rank}").split()))
        return found

    def _write(self) -> None:
        self._beat += 1
        self._store.set(f"at/{self.rank}", f"{self._beat} {self._places} {self._step}")

    def _run(self) -> None:
        while not self._ended.wait(BEAT):
            try:
                self._write()
                waited = time.monotonic() - self._moved
                if waited > self.timeout + _GRACE:
                    self._end_if_alone()
            except Exception:  # the store went with the rank that held it, which the next collective tells
                return

    def _end_if_alone(self) -> None:
        blamed, line = self.why()
        if blamed and not self._ended.is_set():
            if self.rank == min(rank for rank in range(self.size) if rank not in blamed):
                print(f"fastgpt: error: {line}", file=sys.stderr, flush=True)
            os._exit(2)


def within(seconds: float, ask: Callable[[], T]) -> T | None:
    """What `ask` gives; None where it gives nothing in that time, or fails: torch's stores may wait for ever."""
    found: list[T] = []

    def run() -> None:
        with contextlib.suppress(Exception):
            found.append(ask())

    thread = threading.Thread(target=run, name="fastgpt-asks", daemon=True)
    thread.start()
    thread.join(seconds)
    return found[0] if found else None


def _ranks(ranks: list[int]) -> str:
    if len(ranks) == 1:
        return f"rank {ranks[0]} is"
    return f"ranks {', '.join(map(str, ranks[:8]))}{' and others' if len(ranks) > 8 else ''} are"
