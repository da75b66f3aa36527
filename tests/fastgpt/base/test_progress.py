"""Lines of progress in a log file: which steps have one, what is in it, and how much time it says is left."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from fastgpt.base import progress as module
from fastgpt.base.progress import progress

LINE = {"loss": 2.5, "lr": 1e-3, "tokens_per_second": 12345.6, "mfu": None, "memory_bytes": 2e9}
VALIDATION = {"val_loss": 2.25, "val_perplexity": 9.5, "val_bits_per_byte": 1.125}


@pytest.fixture
def clock(monkeypatch):
    """Set by hand."""
    at = SimpleNamespace(now=100.0)
    monkeypatch.setattr(module, "time", SimpleNamespace(perf_counter=lambda: at.now))
    return at


def shown(capsys, clock, *, seconds, **options) -> list[str]:
    """The lines of a run whose steps take so many seconds each."""
    with progress("lines", **options) as show:
        for step, took in enumerate(seconds, options["done"] + 1):
            clock.now += took
            show(LINE | {"step": step})
    return capsys.readouterr().out.splitlines()


@pytest.mark.parametrize(
    ("done", "every", "steps"), [(0, 3, [3, 6, 9]), (4, 3, [6, 9]), (0, 1, [*range(1, 11)]), (0, 0, [])]
)
def test_every_so_many_steps_there_is_a_line(capsys, clock, done, every, steps):
    lines = shown(capsys, clock, seconds=[1.0] * (10 - done), done=done, total=10, log_every=every)
    assert [int(line.split()[1].split("/")[0]) for line in lines] == steps
    assert all(line.split()[1].endswith("/10") for line in lines)


def test_what_a_line_says(capsys, clock):
    (line,) = shown(capsys, clock, seconds=[1.0], done=4, total=5, log_every=1)
    assert line == "step      5/5  loss 2.500  lr 1.0e-03  12,346 tokens/s  MFU n/a  2.0 GB  0:00:00 left"


@pytest.mark.parametrize("done", [0, 100])
def test_the_time_left_is_that_of_the_steps_after_the_first(capsys, clock, done):
    """Which compiles: 1000 s here, and 60 s for each of the others."""
    seconds = [1000.0] + [60.0] * 9
    lines = shown(capsys, clock, seconds=seconds, done=done, total=done + 100, log_every=1)
    left = [line.split("  ")[-1] for line in lines]
    assert left[0] == "27:30:00 left"  # 99 of 1000 s: the first is all that is known
    assert left[1:3] == ["1:38:00 left", "1:37:00 left"]
    assert left[9] == "1:30:00 left"


def test_a_validation_has_a_line_of_its_own(capsys, clock):
    with progress("lines", done=0, total=10, log_every=0) as show:
        show(LINE | VALIDATION | {"step": 7})
        show(LINE | VALIDATION | {"step": 8, "val_bits_per_byte": None})
    assert capsys.readouterr().out.splitlines() == [
        "step      7  validation loss 2.2500, perplexity 9.5, 1.125 bits/byte",
        "step      8  validation loss 2.2500, perplexity 9.5",
    ]


def test_false_shows_nothing(capsys):
    with progress(False, done=0, total=10, log_every=1) as show:
        show(LINE | VALIDATION | {"step": 1})
    assert capsys.readouterr().out == ""
