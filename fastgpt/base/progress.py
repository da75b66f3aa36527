"""What a run shows while it goes on: a bar on a terminal, lines elsewhere. Each line is one of metrics.jsonl."""

from __future__ import annotations

import contextlib
import sys
import time
from collections.abc import Callable, Iterator
from typing import Any

Show = Callable[[dict[str, Any]], None]


def progress(mode: bool | str, *, done: int, total: int, log_every: int) -> contextlib.AbstractContextManager[Show]:
    """A function that is called with each step's line.

    Args:
        mode: True: a bar on a terminal, else lines; "lines": always lines; False: nothing.
        done, total: steps.
        log_every: steps from line to line; 0: validations only.
    """
    if not mode:
        return contextlib.nullcontext(lambda line: None)
    if mode != "lines":
        try:
            from rich.console import Console
        except ImportError:
            pass
        else:
            console = Console()
            if has_bars(console) or console.is_jupyter:
                return _bar(console, done, total)
    return contextlib.nullcontext(_Lines(done, total, log_every))


def has_bars(console: Any) -> bool:
    """Whether a bar can be drawn there. FORCE_COLOR makes a terminal of every file in rich's eyes, as it is set where
    colours are wanted in logs; but what moves the cursor does not belong into one."""
    return console.is_interactive and console.file.isatty()


@contextlib.contextmanager
def bytes_bar(
    what: str, total: int, *, enabled: bool = True, transient: bool = False
) -> Iterator[Callable[[int], None]]:
    """A bar on stderr (stdout is for results) over `total` bytes, if that is a terminal. Calling it with how many are
    done moves it. transient: nothing stays of it."""
    if not enabled or sys.stderr is None or not sys.stderr.isatty():  # and rich need not be imported
        yield lambda done: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    console = Console(stderr=True)
    columns = (TextColumn(what), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=console, transient=transient, disable=not has_bars(console)) as bar:
        task = bar.add_task(what, total=total)
        yield lambda done: bar.update(task, completed=done)


@contextlib.contextmanager
def _bar(console: Any, done: int, total: int) -> Iterator[Show]:
    from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        MofNCompleteColumn(), BarColumn(bar_width=12), TextColumn("{task.fields[status]}"), TextColumn("ETA"),
        TimeRemainingColumn(compact=True),
    )  # fmt: skip
    with Progress(*columns, console=console) as bar:
        task = bar.add_task("training", total=total, completed=done, status="")

        def show(line: dict[str, Any]) -> None:
            bar.update(task, completed=line["step"], status=describe(line))
            if "val_loss" in line:
                bar.console.print(describe_validation(line), highlight=False, soft_wrap=True)

        yield show


class _Lines:
    """For a log file: a line every `every` steps, with the time that is left."""

    def __init__(self, done: int, total: int, every: int) -> None:
        self.done, self.total, self.every = done, total, every
        self._began = self._first_ended = time.perf_counter()

    def __call__(self, line: dict[str, Any]) -> None:
        step, now = line["step"], time.perf_counter()
        if step == self.done + 1:
            self._first_ended = now
        if self.every and step % self.every == 0:
            print(f"step {step:>6}/{self.total}  {describe(line)}  {self._left(step, now)} left", flush=True)
        if "val_loss" in line:
            print(describe_validation(line), flush=True)

    def _left(self, step: int, now: float) -> str:
        # The first step is slow (it compiles, it allocates): the others tell more, once there are some.
        others = step - self.done - 1
        a_step = (now - self._first_ended) / others if others > 0 else now - self._began
        minutes, seconds = divmod(round(a_step * (self.total - step)), 60)
        hours, minutes = divmod(minutes, 60)
        return f"{hours}:{minutes:02}:{seconds:02}"


def describe(line: dict[str, Any]) -> str:
    """A line of metrics.jsonl for people; one that a checkpoint kept has no timings."""
    words = [f"loss {line['loss']:.3f}", f"lr {line['lr']:.1e}"]
    if "tokens_per_second" in line:
        utilisation = "n/a" if line["mfu"] is None else f"{line['mfu']:.1%}"
        words += [f"{line['tokens_per_second']:,.0f} tokens/s", f"MFU {utilisation}"]
        words += [f"{line['memory_bytes'] / 1e9:.1f} GB"]
    return "  ".join(words)


def describe_validation(line: dict[str, Any]) -> str:
    """The validation in a line of metrics.jsonl, for people."""
    per_byte = line["val_bits_per_byte"]
    return (
        f"step {line['step']:>6}  validation loss {line['val_loss']:.4f}, perplexity {line['val_perplexity']:.1f}"
        f"{'' if per_byte is None else f', {per_byte:.3f} bits/byte'}"
    )
