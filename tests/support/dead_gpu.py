"""What pytest does where a fault has left the GPU's context unusable: every later test of that process would fail.

A test that failed may be why; so once its reports are sent, the device is asked. If it is dead, the process ends: under
xdist the worker, which xdist replaces; else pytest, which says so.

    -p tests.support.dead_gpu --begun FILE

notes in FILE each test before it runs, and leaves out those that are there: the same command again goes on behind the
test that ended the process, in whatever way. A test that takes more than a minute then ends it too.
"""

from __future__ import annotations

import os
import threading
from pathlib import Path

import pytest
import torch

from benchmarks import measure

LOST = 70  # pytest's exit status, by which a session knows that a new process would go on
_failed = set()


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.failed:
        _failed.add(report.nodeid)


@pytest.hookimpl(trylast=True)  # behind xdist, which sends the reports
def pytest_runtest_logfinish(nodeid: str) -> None:
    # Not in a process that has not used the GPU: it would make a context, only to ask (xdist's own, above all).
    if nodeid not in _failed or not torch.cuda.is_initialized() or not measure.fatal():
        return
    if "PYTEST_XDIST_WORKER" in os.environ:
        os._exit(LOST)  # an ordinary exit would wait for the device
    reason = f"{nodeid} has left the GPU's context unusable: every test after it would fail."
    pytest.exit(f"{reason} Run it alone, or all with xdist (-n 2), which replaces the process.", returncode=LOST)


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--begun", type=Path, metavar="FILE", help="go on behind the tests that FILE says were begun")


@pytest.hookimpl(trylast=True)  # of those that were selected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    file = config.getoption("--begun", default=None)
    if file is None or not file.exists():
        return
    begun = set(file.read_text().splitlines())
    config.hook.pytest_deselected(items=[item for item in items if item.nodeid in begun])
    items[:] = [item for item in items if item.nodeid not in begun]


HANGS = 60.0  # seconds of one test; a signal would not interrupt its wait for the GPU


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol(item: pytest.Item):
    file = item.config.getoption("--begun", default=None)
    if file is None:
        return (yield)
    with file.open("a") as lines:
        lines.write(item.nodeid + "\n")
    watchdog = threading.Timer(HANGS, os._exit, [LOST])
    watchdog.start()
    try:
        return (yield)
    finally:
        watchdog.cancel()
