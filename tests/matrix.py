"""Run the test suite on the stack at hand, and write what came of it to benchmarks/results/matrix.md.

    python -m tests.matrix [--jobs N] [--out FILE] [TESTS...]

`make matrix` does so on what GPU machines have, torch 2.11 and the oldest Triton that pyproject.toml allows, in a
virtual environment of its own; CI runs the suite on the newest. TESTS (default: all) are for trying this out.
"""

from __future__ import annotations

import argparse
import os
import platform
import re
import subprocess
import sys
import tempfile
import time
import xml.etree.ElementTree as ElementTree
from collections import Counter
from dataclasses import dataclass, field
from datetime import datetime, timezone
from importlib import metadata
from pathlib import Path

from fastgpt.tools.budget import REPORT

ROOT = Path(__file__).parents[1]
RESULT = ROOT / "benchmarks" / "results" / "matrix.md"
PACKAGES = ("torch", "triton", "numpy")
# The check of the result that a run is about to replace: a failure in it would keep the next from passing.
LAST_RESULT = "tests/test_matrix.py::test_the_committed_result_names_versions_in_range_and_nothing_failed"
# (what the table calls it, what pytest is told, what the environment says besides)
PARTS = (
    ("`make test`", ["-m", "not slow", f"--deselect={LAST_RESULT}"], {}),
    (
        "kernels, in processes of TRITON_INTERPRET=1",
        ["-m", "not slow", "tests/kernels"],
        {"TRITON_INTERPRET": "1"},
    ),
)

HEADER = """\
# The test suite on other versions

Written by `make matrix`, on the versions of `constraints-gpu.txt`: what GPU machines have. CI runs the suite on those
of `constraints.txt`, and checks of this file that it is there, that its versions are those of `constraints-gpu.txt` and
in pyproject.toml's ranges, and that nothing failed.
"""


@dataclass
class Outcome:
    """What one run of pytest came to: counts, the failed tests by name, the reasons of the skipped ones."""

    name: str
    passed: int = 0
    failures: list[str] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    seconds: float = 0.0


def read_junit(path: Path, name: str, seconds: float) -> Outcome:
    """Outcome of pytest's JUnit XML. A test that fails and then fails in its teardown too counts once."""
    outcome, failed = Outcome(name, seconds=seconds), set()
    for case in ElementTree.parse(path).iter("testcase"):
        test = f"{case.get('classname', '')}::{case.get('name', '')}"
        if case.find("failure") is not None or case.find("error") is not None:
            if test not in failed:
                failed.add(test)
                outcome.failures.append(test)
        elif (skip := case.find("skipped")) is not None:
            reason = skip.get("message") or "no reason given"
            outcome.skipped[f"expected failure: {reason}" if skip.get("type") == "pytest.xfail" else reason] += 1
        else:
            outcome.passed += 1
    return outcome


def run(name: str, arguments: list[str], environment: dict[str, str], jobs: int) -> Outcome:
    """Run pytest once.

    Raises:
        SystemExit: pytest did not run its tests to their end (interrupted, an internal error, none found).
    """
    print(f"\n=== {name}", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        report = Path(folder) / "report.xml"
        command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", f"--junitxml={report}", *arguments]
        command += ["-p", "tests.support.as_it_goes", "--as-it-goes", f"{folder}/as_it_goes.jsonl"]  # failures show now
        if jobs > 1:
            command += ["-n", str(jobs), "--dist", "worksteal"]
        # A test of this is a run in a run. And where a report is asked for (tools/budget.py), no verdict would fail.
        outside = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_") and k != REPORT}
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        start = time.monotonic()
        code = subprocess.run(command, cwd=ROOT, env=outside | threads | environment).returncode
        if code not in (0, 1):
            raise SystemExit(f"matrix: pytest ended with exit status {code} in {name!r}; nothing is written")
        outcome = read_junit(report, name, time.monotonic() - start)
    if code == 1 and not outcome.failures:
        raise SystemExit(f"matrix: pytest says that {name!r} failed and names no test; nothing is written")
    return outcome


def versions() -> str:
    """Python 3.12.1, torch 2.11.0, ... as they are installed here."""
    return ", ".join(
        [f"Python {platform.python_version()}", *(f"{package} {metadata.version(package)}" for package in PACKAGES)]
    )


def commit() -> str:
    """The commit at hand, and whether files that git knows have changed since; unknown outside a repository."""

    def git(*arguments: str) -> str:
        return subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()

    try:
        changed = git("status", "--porcelain", "--untracked-files=no", "--", ".", f":!{RESULT.relative_to(ROOT)}")
        return f"commit {git('rev-parse', '--short=10', 'HEAD')}" + (", with uncommitted changes" if changed else "")
    except (OSError, subprocess.CalledProcessError):
        return "commit unknown"


def machine() -> str:
    import torch

    gpu = torch.cuda.get_device_name() if torch.cuda.is_available() else "no GPU"
    return f"{gpu}, CPU capability {torch.backends.cpu.get_cpu_capability()}"


def render(outcomes: list[Outcome], *, stack: str, date: str, commit: str, machine: str) -> str:
    lines = [HEADER, f"- {stack}", f"- {date}, {commit}", f"- {machine}", ""]
    lines += ["| part | passed | failed | skipped | minutes |", "| --- | ---: | ---: | ---: | ---: |"]
    lines += [
        f"| {o.name} | {o.passed} | {len(o.failures)} | {o.skipped.total()} | {o.seconds / 60:.1f} |" for o in outcomes
    ]
    for o in outcomes:
        if o.failures:
            lines += ["", f"Failed in {o.name}:", "", *(f"- `{test}`" for test in o.failures)]
    reasons = sum((o.skipped for o in outcomes), Counter())
    if reasons:
        lines += ["", "| skipped because | tests |", "| --- | ---: |"]
        lines += [f"| {' '.join(reason.split()).replace('|', '/')} | {n} |" for reason, n in reasons.most_common()]
    return "\n".join(lines) + "\n"


def parse(text: str) -> tuple[dict[str, str], dict[str, tuple[int, int, int]]]:
    """({"Python": "3.12.1", "torch": ...}, {part: (passed, failed, skipped)}) of what `render` wrote."""
    stack = next(line for line in text.splitlines() if line.startswith("- Python "))
    found = dict(item.rsplit(" ", 1) for item in stack.removeprefix("- ").split(", "))
    rows = re.findall(r"^\| (.+?) \| (\d+) \| (\d+) \| (\d+) \| [\d.]+ \|$", text, re.MULTILINE)
    return found, {name: (int(passed), int(failed), int(skipped)) for name, passed, failed, skipped in rows}


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.matrix", description=__doc__.partition("\n")[0])
    parser.add_argument(
        "--jobs", type=int, default=os.cpu_count() or 1, help="processes of pytest (default: the cores)"
    )
    parser.add_argument("--out", type=Path, default=RESULT, help="default: %(default)s")
    parser.add_argument("tests", nargs="*", help="instead of the whole suite; needs an --out of its own")
    options = parser.parse_args(argv)
    if options.tests and options.out == RESULT:
        parser.error("a part of the suite is no result to commit: name another --out")
    at = commit()
    outcomes = []
    for name, arguments, environment in PARTS:
        if options.tests:
            arguments = [a for a in arguments if not a.startswith("tests")] + options.tests
        outcomes.append(run(name, arguments, environment, options.jobs))
    date = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    options.out.write_text(render(outcomes, stack=versions(), date=date, commit=at, machine=machine()))
    print(f"\n{options.out.read_text()}\nwritten to {options.out}")
    return int(any(o.failures for o in outcomes))


if __name__ == "__main__":
    sys.exit(main())
