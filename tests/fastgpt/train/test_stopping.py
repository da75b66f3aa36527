"""Signals while a loop runs: the first asks for its end, the second Ctrl-C ends it, and afterwards all is as before."""

from __future__ import annotations

import os
import signal

import pytest

from fastgpt.train.stopping import StopSignals

NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@pytest.fixture(autouse=True)
def as_in_a_terminal():
    """Python's own handlers, which a process in the background has not."""
    before = {number: signal.getsignal(number) for number in NUMBERS}
    signal.signal(signal.SIGINT, signal.default_int_handler)
    for number in NUMBERS[1:]:
        signal.signal(number, signal.SIG_DFL)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.parametrize("arriving", [(), *((number,) for number in NUMBERS)])
def test_signals_are_handled_as_before_afterwards(arriving):
    before = [signal.getsignal(number) for number in NUMBERS]
    with StopSignals() as signals:
        assert not {signal.getsignal(number) for number in NUMBERS} & set(before)
        for number in arriving:
            os.kill(os.getpid(), number)
    assert [signal.getsignal(number) for number in NUMBERS] == before
    assert signals.stopped_by == (arriving[0].name if arriving else None)


def test_also_after_an_error():
    before = [signal.getsignal(number) for number in NUMBERS]
    with pytest.raises(RuntimeError, match="in the loop"), StopSignals():
        raise RuntimeError("in the loop")
    assert [signal.getsignal(number) for number in NUMBERS] == before


@pytest.mark.parametrize("first", NUMBERS)
def test_a_ctrl_c_after_the_first_signal_ends_at_once(first):
    with StopSignals() as signals:
        os.kill(os.getpid(), first)
        assert signals.stopped_by == first.name
        with pytest.raises(KeyboardInterrupt):
            os.kill(os.getpid(), signal.SIGINT)
        assert signals.stopped_by == first.name


def test_the_first_signal_is_named():
    with StopSignals() as signals:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGTERM)  # a second of these waits like the first
        assert signals.stopped_by == "SIGINT"
