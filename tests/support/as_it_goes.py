"""A pytest plugin that writes each test's outcome as soon as it is known: `-p tests.support.as_it_goes`.

pytest's own reports come at the end, which a run that is cut at its time limit does not reach.
"""

from __future__ import annotations

import json
from pathlib import Path

import pytest


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--as-it-goes", type=Path, metavar="FILE", help="append a JSON line to FILE for every test")


class Writer:
    """Lives in the process that collects the reports; under xdist that is not the one that runs the tests."""

    def __init__(self, file: Path) -> None:
        self.lines = file.open("a", buffering=1)
        self.seconds: dict[str, float] = {}
        self.failed: set[str] = set()

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        seconds = self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        if report.when != "call" and report.passed:
            return  # set-up and tear-down are worth a line only where they went wrong
        if report.when not in ("setup", "call", "teardown") and report.nodeid in self.failed:
            return  # xdist's word that the worker ended: as it should, behind a test that broke the GPU's context
        row = {"test": report.nodeid, "outcome": report.outcome, "when": report.when, "seconds": round(seconds, 3)}
        if report.failed:
            self.failed.add(report.nodeid)
            crash = getattr(report.longrepr, "reprcrash", None)
            row["message"] = (crash.message if crash else str(report.longrepr))[:1000]
            print(f"\nFAILED {report.nodeid}: {row['message'].splitlines()[0][:300]}")
        elif report.skipped and isinstance(report.longrepr, tuple):
            row["message"] = str(report.longrepr[2])[:300]
        self.lines.write(json.dumps(row) + "\n")


def pytest_configure(config: pytest.Config) -> None:
    file = config.getoption("--as-it-goes")
    if file is not None and not hasattr(config, "workerinput"):
        config.pluginmanager.register(Writer(file), "as-it-goes")
