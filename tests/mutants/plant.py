"""Plant one fault in a copy of the tree, and run the tests that must catch it.

The working tree is never touched: kernels, package and tests are copied to a temporary folder, the fault is written
there, and pytest runs there in a process of its own.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).parents[2]
COPIED = ("kernels", "fastgpt", "tests", "benchmarks", "pyproject.toml")
TIMEOUT = 300  # seconds for one fault's tests; a kernel that hangs is caught too


@dataclass(frozen=True)
class Mutant:
    """A fault: in `path`, below kernels/, `source` becomes `replacement`.

    source  must occur exactly once in the file, so that a fault that no longer fits the code is an error
    tests   the tests that must catch it, the fewest that can: node ids of pytest, separated by spaces
    """

    name: str
    path: str
    source: str
    replacement: str
    tests: str

    @property
    def family(self) -> str:
        return self.path.split("/")[0]

    def apply(self, root: Path) -> None:
        """Write the fault into the tree at `root`. Raises ValueError when it is stale."""
        file = root / "kernels" / self.path
        text = file.read_text() if file.exists() else ""
        found = text.count(self.source)
        if found != 1:
            raise ValueError(
                f"mutant {self.name!r} is stale: its source text occurs {found} times in kernels/{self.path}, must be "
                f"once; bring it up to date in tests/mutants/faults/"
            )
        file.write_text(text.replace(self.source, self.replacement))


@dataclass(frozen=True)
class Verdict:
    """What became of a fault: "caught", "survived", "timeout" (caught: it hung), or "broken" (no test ran)."""

    mutant: Mutant
    outcome: str
    by: str  # the first test that failed, or what went wrong
    seconds: float

    @property
    def ok(self) -> bool:
        return self.outcome in ("caught", "timeout")


@contextmanager
def copy_of_tree(root: Path = ROOT) -> Iterator[Path]:
    """A temporary copy in which `fastgpt.kernels` is the copy's own kernels/."""
    with tempfile.TemporaryDirectory(prefix="fastgpt-mutant-") as folder:
        copy = Path(folder)
        ignore = shutil.ignore_patterns("__pycache__", "*.pyc", ".hypothesis")
        for name in COPIED:
            source = root / name
            if source.is_dir():
                shutil.copytree(source, copy / name, ignore=ignore)
            else:
                shutil.copy(source, copy / name)
        # An installed fastgpt keeps its kernels elsewhere; in the copy, a link stands for setuptools' package-dir.
        (copy / "fastgpt" / "kernels").symlink_to(copy / "kernels", target_is_directory=True)
        yield copy


def run_tests(folder: Path, tests: str) -> tuple[int | None, str]:
    """(exit code, output) of pytest on `tests` in `folder`; None: it hung."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-rfE", "--tb=no", "-p", "no:cacheprovider"]
    environment = {
        **os.environ,
        "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
        "PYTHONDONTWRITEBYTECODE": "1",
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
    }
    for variable in ("PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER", "FASTGPT_BUDGET_REPORT"):
        environment.pop(variable, None)
    try:
        done = subprocess.run(
            [*command, *tests.split()],
            cwd=folder, env=environment, capture_output=True, text=True, timeout=TIMEOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired:
        return None, ""
    return done.returncode, done.stdout + done.stderr


def judge(mutant: Mutant) -> Verdict:
    """Plant `mutant` and run its tests."""
    started = time.time()
    with copy_of_tree() as folder:
        mutant.apply(folder)
        code, output = run_tests(folder, mutant.tests)
    seconds = time.time() - started
    if code is None:
        return Verdict(mutant, "timeout", f"no answer within {TIMEOUT} s", seconds)
    if code == 1 and (failed := re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.M)):
        return Verdict(mutant, "caught", failed[1], seconds)
    if code == 0:
        return Verdict(mutant, "survived", mutant.tests, seconds)
    return Verdict(mutant, "broken", f"pytest exited with {code}: {output.strip()[-300:]}", seconds)


def unmutated(mutants: Sequence[Mutant]) -> str | None:
    """None if all the mutants' tests pass in an unchanged copy, else pytest's output: such failures prove nothing."""
    tests = dict.fromkeys(test for mutant in mutants for test in mutant.tests.split())
    with copy_of_tree() as folder:
        code, output = run_tests(folder, " ".join(tests))
    return None if code == 0 else output.strip()[-2000:] or "no answer in time"
