"""How far a grid of runs is, and the time that is left: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Iterator, Sequence
from typing import Any

from ...base.progress import has_bars
from ...model.size import count_parameters
from ...train.evaluation import Validation
from .config import Cell, DepthConfig
from .runs import Runs


class GridProgress:
    """Counts work, FLOPs, so that a deep run weighs as much as it takes."""

    def __init__(
        self, config: DepthConfig, runs: Runs, cells: Sequence[Cell], *, enabled: bool, say: Callable[[str], None]
    ) -> None:
        self.config, self.runs, self.count, self.enabled, self.say = config, runs, len(cells), enabled, say
        self.total = sum(self._work(cell) * cell.updates(config) for cell in cells)
        self.done = self.before = 0.0  # of them, at the start of this call
        self._began = time.perf_counter()
        self._bar: Any = None

    def _work(self, cell: Cell) -> float:
        """Of an update, in proportion to FLOPs: 6 N + 12 L d T a token (PaLM, appendix B)."""
        sizes = cell.model_config(self.runs.data.tokenizer.vocab_size, self.config).to_dict()
        return 6 * count_parameters(sizes) + 12 * cell.layers * cell.width * self.config.seq_len

    def __enter__(self) -> GridProgress:
        if self.enabled:
            self._bar = _bar()
        if self._bar is not None:
            self._bar.start()
            self._task = self._bar.add_task("grid", total=self.total)
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()
            self._bar = None

    def skip(self, cell: Cell) -> None:
        """This run is finished already."""
        self._move(self._work(cell) * cell.updates(self.config))
        self.before = self.done

    @contextlib.contextmanager
    def run(self, number: int, cell: Cell) -> Iterator[Callable[[], None]]:
        """A function to be called after every update of this run."""
        work, updates = self._work(cell), cell.updates(self.config)
        end = self.done + work * updates
        earlier = work * self.runs.of(cell).done
        self._move(earlier)
        self.before += earlier
        if self._bar is not None:
            self._bar.update(self._task, description=f"{number}/{self.count} {cell}")
        elif self.enabled:
            self.say(f"run {number} of {self.count}: {cell}, {updates:,} updates{self._left()}")
        yield lambda: self._move(work)
        self._move(end - self.done)

    def tell(self, number: int, cell: Cell, found: Validation) -> None:
        """The result of a run."""
        text = f"run {number} of {self.count}: {cell}: loss {found.loss:.4f}, perplexity {found.perplexity:.1f}"
        if self._bar is not None:
            self._bar.console.print(text, highlight=False, soft_wrap=True)
        elif self.enabled:
            self.say(text)

    @contextlib.contextmanager
    def rounds(self, what: str, count: int) -> Iterator[Callable[[], None]]:
        """A bar of its own over `count` rounds."""
        bar = _bar() if self.enabled else None
        if bar is None:
            if self.enabled:
                self.say(what)
            yield lambda: None
            return
        with bar:
            task = bar.add_task(what, total=count)
            yield lambda: bar.advance(task)

    @contextlib.contextmanager
    def saying(self) -> Iterator[Callable[[str], None]]:
        """A line that is replaced by the next."""
        bar = _bar() if self.enabled else None
        if bar is None:
            yield lambda text: None
            return
        with bar:
            task = bar.add_task("", total=None)
            yield lambda text: bar.update(task, description=text)

    def _move(self, work: float) -> None:
        self.done += work
        if self._bar is not None:
            self._bar.update(self._task, completed=self.done)

    def _left(self) -> str:
        made = self.done - self.before
        if made <= 0:
            return ""
        minutes = (time.perf_counter() - self._began) * (self.total - self.done) / made / 60
        return f", about {minutes:.0f} min left"


def _bar() -> Any:
    """rich's, if stderr is a terminal that can show it."""
    try:
        from rich.console import Console
        from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeRemainingColumn
    except ImportError:
        return None
    console = Console(stderr=True)
    if not has_bars(console):
        return None
    columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeRemainingColumn())
    return Progress(*columns, console=console, transient=True)
