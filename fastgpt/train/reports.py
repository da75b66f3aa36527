"""Where a step's measurements go: metrics.jsonl, TensorBoard, the terminal. None of them can end a run."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from ..base import files
from ..base.progress import Show
from . import metrics

_log = logging.getLogger("fastgpt")


@contextlib.contextmanager
def reports(
    folder: Path,
    shown: contextlib.AbstractContextManager[Show],
    *,
    first: int,
    tensorboard: bool,
    add: Iterable[dict[str, Any]] = (),
) -> Iterator[Reports]:
    """Where a run's measurements go, open as long as the block runs.

    Args:
        shown: of `fastgpt.base.progress`.
        first: steps before this run of the loop; what is there of later ones is dropped.
        add: lines of those steps, for metrics.jsonl where it lacks them.

    Raises:
        OSError: metrics.jsonl cannot be opened: nothing is lost yet.
    """
    log = metrics.MetricsLog(folder / "metrics.jsonl", keep_steps=first, add=add)
    kinds = (
        _Guarded(str(folder / "metrics.jsonl"), lambda: _metrics(log), again=True),
        _Guarded("TensorBoard", lambda: _scalars(folder / "tensorboard", tensorboard, first + 1)),
        _Guarded("the display of progress", lambda: shown),
    )
    with contextlib.ExitStack() as stack:
        for kind in kinds:
            stack.enter_context(kind)
        yield Reports(log, kinds)


class Reports:
    """Calling it with a step's line writes and shows it. What fails is said once, and training goes on.

    Without a log, and any kind, it does nothing: those of ranks that report nothing.
    """

    def __init__(self, log: metrics.MetricsLog | None, kinds: tuple[_Guarded, ...]) -> None:
        self._log, self._kinds = log, kinds

    def __call__(self, line: dict[str, Any]) -> None:
        for kind in self._kinds:
            kind(line)

    def sync(self) -> list[dict[str, Any]]:
        """Have the lines of metrics.jsonl on the disk. Returns those that could not be written."""
        if self._log is None:
            return []
        self._kinds[0].run(self._log.sync)
        return list(self._log.waiting)

    @property
    def failed(self) -> bool:
        """Whether metrics.jsonl could not be written, now or before."""
        return bool(self._kinds) and self._kinds[0].failed


@contextlib.contextmanager
def _metrics(log: metrics.MetricsLog) -> Iterator[Show]:
    with contextlib.closing(log):
        yield log.write


@contextlib.contextmanager
def _scalars(folder: Path, enabled: bool, first: int) -> Iterator[Show]:
    with contextlib.closing(metrics.Scalars(folder, enabled=enabled, first_step=first)) as scalars:
        yield lambda line: scalars.write(line["step"], {k: v for k, v in line.items() if k != "step"})


class _Guarded:
    """One kind of report, for as long as it works; with `again` it is tried at every step all the same."""

    def __init__(
        self, what: str, opened: Callable[[], contextlib.AbstractContextManager[Show]], *, again: bool = False
    ) -> None:
        self._what, self._opened, self._again = what, opened, again
        self._show: Show | None = None
        self.failed = False

    def __enter__(self) -> None:
        self._stack = contextlib.ExitStack()
        try:
            self._show = self._stack.enter_context(self._opened())
        except Exception as error:
            self._failed(error)

    def __call__(self, line: dict[str, Any]) -> None:
        show = self._show
        if show is not None:
            self.run(lambda: show(line))

    def __exit__(self, *_: object) -> None:
        self.run(self._stack.close)

    def run(self, action: Callable[[], object]) -> None:
        """Do it, or say once that it failed."""
        try:
            action()
        except Exception as error:
            self._failed(error)

    def _failed(self, error: Exception) -> None:
        if not self._again:
            self._show = None
        if not self.failed:
            self.failed = True
            _log.warning("%s: %s (%s); training goes on", self._what, files.reason(error), type(error).__name__)
