"""Plant one fault in a copy of the tree, and run the tests that must catch it.

The working tree is never touched: kernels, package and tests are copied to a temporary folder, the fault is written
there, and pytest runs there in a process of its own. The copy serves one fault after the other.
"""

from __future__ import annotations

import compileall
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, contextmanager
from dataclasses import dataclass
from pathlib import Path
from py_compile import PycInvalidationMode

from .changes import edit_of
from .definitions import find, unknown_names
from .edits import Edit
from .places import Change

ROOT = Path(__file__).parents[2]
COPIED = ("kernels", "fastgpt", "tests", "benchmarks", "pyproject.toml")
TIMEOUT = 300  # seconds for one fault's tests; a kernel that hangs is caught too
UNMUTATED_TIMEOUT = 3600  # seconds for the tests of all faults
# What --tb=line says of code that cannot run at all (E: while a test is set up): any test fails on that.
_CANNOT_RUN = re.compile(
    r"^(?:\S+:\d+:|E) +"
    r"((?:ImportError|ModuleNotFoundError|SyntaxError|IndentationError|NameError|UnboundLocalError)\b.*)",
    re.M,
)


@dataclass(frozen=True)
class Mutant:
    """A fault: in the function `where`, `change` is done to a place that is named by its role.

    where    a function, method, class or variable by its qualified name, after as much of the path to its file as tells
             it from others: "attention.visible", "Trainer.fit", "layer_norm.launch.forward" (`definitions.find`)
    change   `value("diagonal").becomes("0")` (`places.py`), or several that make one fault
    tests    the tests that must catch it, the fewest that can: node ids of pytest, separated by spaces
    """

    name: str
    where: str
    change: Change | tuple[Change, ...]
    tests: str

    @property
    def path(self) -> str:
        """The file in which `where` is, from the repository's root. Raises ValueError when there is no such thing."""
        return self._found[0]

    @property
    def family(self) -> str:
        """The part of the repository that is meant: "kernels/attention", "fastgpt/train"; "" of one that is stale."""
        try:
            package, *rest = self.path.removesuffix(".py").split("/")
        except ValueError:
            return ""
        return "/".join([package, *rest[:1]])

    def edits(self, text: str) -> list[Edit]:
        """What the fault changes in the text of its file, the last first. Raises ValueError when it is stale."""
        changes = self.change if isinstance(self.change, tuple) else (self.change,)
        try:
            found = [edit_of(change, text, self._found[1]) for change in changes]
        except (SyntaxError, LookupError) as error:
            raise self._stale(f"{error}") from error
        return sorted(found, key=lambda edit: edit.start, reverse=True)

    def plant(self, text: str) -> str:
        """The text of the file, with the fault. Raises ValueError when it is stale: its place is not there, or what it
        leaves does not compile or reads a name that nothing there has."""
        changed = text
        for edit in self.edits(text):
            changed = edit.apply(changed)
        try:
            compile(changed, self.path, "exec", dont_inherit=True)
        except SyntaxError as error:
            raise self._stale(f"what it leaves does not compile ({error})") from error
        if unknown := unknown_names(changed):
            raise self._stale(f"nothing there is called {' or '.join(sorted(unknown))}")
        return changed

    @property
    def _found(self) -> tuple[str, str]:
        try:
            return find(self.where, ROOT)
        except LookupError as error:
            raise self._stale(f"{error}") from error

    def _stale(self, why: str) -> ValueError:
        return ValueError(
            f"mutant {self.name!r} is stale: in {self.where}: {why}; bring it up to date in tests/mutants/faults/"
        )


@dataclass(frozen=True)
class Verdict:
    """What became of a fault: "caught", "survived", "timeout" (caught: it hung), "stale", or "broken" (no test ran, or
    any would have failed: a name or a module that is not there)."""

    mutant: Mutant
    outcome: str
    by: str  # the first test that failed, or what went wrong
    seconds: float

    @property
    def ok(self) -> bool:
        return self.outcome in ("caught", "timeout")


class Tree:
    """A copy of the repository at `folder`, and a process in it that runs its tests (`server.py`)."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        environment = {
            **os.environ,
            "PYTHONPATH": os.pathsep.join([str(folder), *filter(None, [os.environ.get("PYTHONPATH")])]),
            "PYTHONDONTWRITEBYTECODE": "1",  # what copy_of_tree compiled is kept, and nothing of a fault is
            "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",  # a third of the time until the first test, and none is needed
            "OMP_NUM_THREADS": "1",
            "OPENBLAS_NUM_THREADS": "1",
        }
        for variable in ("PYTEST_ADDOPTS", "PYTEST_CURRENT_TEST", "PYTEST_XDIST_WORKER", "FASTGPT_BUDGET_REPORT"):
            environment.pop(variable, None)
        self.server = subprocess.Popen(
            [sys.executable, str(folder / "tests" / "mutants" / "server.py")],
            cwd=folder, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip

    def run(self, tests: str, timeout: float = TIMEOUT) -> tuple[int | None, str]:
        """(exit code, output) of pytest on `tests`; None: not done after `timeout` seconds."""
        arguments = ["-x", "-q", "-rfE", "--tb=line", "-p", "no:cacheprovider", *tests.split()]
        self.server.stdin.write(json.dumps([arguments, timeout]) + "\n")
        self.server.stdin.flush()
        return tuple(json.loads(self.server.stdout.readline()))

    def close(self) -> None:
        self.server.terminate()
        self.server.communicate()


@contextmanager
def copy_of_tree(root: Path = ROOT) -> Iterator[Tree]:
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
        # By hashes: a fault is planted and taken out within the second that time stamps tell apart.
        for package in ("kernels", "fastgpt"):
            compileall.compile_dir(copy / package, quiet=2, invalidation_mode=PycInvalidationMode.CHECKED_HASH)
        with closing(Tree(copy)) as tree:
            yield tree


def judge(mutant: Mutant, tree: Tree) -> Verdict:
    """Plant `mutant` in the copy, run its tests, and take it out again."""
    started = time.time()
    try:
        file = tree.folder / mutant.path
        text = file.read_text()
        file.write_text(mutant.plant(text))
    except ValueError as error:
        return Verdict(mutant, "stale", str(error), 0.0)
    try:
        code, output = tree.run(mutant.tests)
    finally:
        file.write_text(text)
    seconds = time.time() - started
    if code is None:
        return Verdict(mutant, "timeout", f"no answer within {TIMEOUT} s", seconds)
    if code == 1 and (why := _CANNOT_RUN.search(output)):
        return Verdict(mutant, "broken", why[1], seconds)
    if code == 1 and (failed := re.search(r"^(?:FAILED|ERROR) (\S+)", output, re.M)):
        return Verdict(mutant, "caught", failed[1], seconds)
    if code == 0:
        return Verdict(mutant, "survived", mutant.tests, seconds)
    return Verdict(mutant, "broken", f"pytest exited with {code}: {output.strip()[-300:]}", seconds)


def unmutated(mutants: Sequence[Mutant], trees: Sequence[Tree]) -> str | None:
    """None if all the mutants' tests pass in the unchanged copies, which share them out, else pytest's output."""
    tests = list(dict.fromkeys(test for mutant in mutants for test in mutant.tests.split()))
    shares = [" ".join(tests[i :: len(trees)]) for i in range(min(len(trees), len(tests)))]  # pytest runs all of none
    with ThreadPoolExecutor(len(trees)) as pool:
        for code, output in pool.map(lambda tree, share: tree.run(share, UNMUTATED_TIMEOUT), trees, shares):
            if code != 0:
                return output.strip()[-2000:] or "no answer in time"
    return None
