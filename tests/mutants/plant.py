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

from .syntax import Edit, edits

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
    """A fault: in the file `path`, from the repository's root, `source` becomes `replacement`.

    source       Python that occurs exactly once inside `where`, compared by syntax tree: layout, comments, quotes and
                 superfluous parentheses do not matter
    replacement  Python of the same kind, or "": what was found is taken out
    tests        the tests that must catch it, the fewest that can: node ids of pytest, separated by spaces
    where        the function, method or class, decorators included, by its qualified name ("Trainer.fit"; a function
                 inside another: "outer.inner"); "" is the whole file

    What `source` may be, and an example of each:

    an expression           "j <= i + upper" -> "j < i + upper"; a string or f-string is one, and only as a whole
    operands of a chain     consecutive ones of `and`, `or`, `&`, `|`, `+`, `*`: "a & b" -> "a" in x & a & b; of a
                            comparison: "i < end" -> "i <= end" in 0 <= i < end
    statements              consecutive ones of a block: "x = f(x); x += 1" -> "x += 1"; an expression that is a
                            statement: "os.fsync(f)" -> ""; definitions and whole loops too
    a keyword argument      "eps=eps" -> "eps=0.0", or "" (one argument; for more, the whole call)
    a parameter's default   "eps=1e-5" -> "eps=1e-6", with its annotation if it has one: "eps: float = 1e-5"
    a decorator             "@torch.no_grad()" -> "", or another
    """

    name: str
    path: str
    source: str
    replacement: str
    tests: str
    where: str = ""

    @property
    def family(self) -> str:
        """The part of the repository that is meant: "kernels/attention", "fastgpt/trainer"."""
        package, *rest = self.path.removesuffix(".py").split("/")
        return "/".join([package, *rest[:1]])

    def edit(self, text: str) -> Edit:
        """What the fault changes in the text of its file. Raises ValueError when it is stale."""
        try:
            places = edits(text, self.source, self.replacement, self.where)
        except (SyntaxError, LookupError) as error:
            raise self._stale(f"{error}") from error
        if len(places) != 1:
            lines = ", ".join(str(place.start[0]) for place in places)
            raise self._stale(
                f"its source occurs {len(places)} times{f' (lines {lines})' if lines else ''}"
                f"{f' inside {self.where}' if self.where else ''}, must be once"
            )
        return places[0]

    def plant(self, text: str) -> str:
        """The text of the file, with the fault. Raises ValueError when it is stale, or leaves what does not compile."""
        changed = self.edit(text).apply(text)
        try:
            compile(changed, self.path, "exec", dont_inherit=True)
        except SyntaxError as error:
            raise self._stale(f"what it leaves does not compile ({error})") from error
        return changed

    def _stale(self, why: str) -> ValueError:
        return ValueError(
            f"mutant {self.name!r} is stale: {why}: {self.path}; bring it up to date in tests/mutants/faults/"
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
    file = tree.folder / mutant.path
    text = file.read_text()
    try:
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
    shares = [" ".join(tests[i :: len(trees)]) for i in range(len(trees))]
    with ThreadPoolExecutor(len(trees)) as pool:
        for code, output in pool.map(lambda tree, share: tree.run(share, UNMUTATED_TIMEOUT), trees, shares):
            if code != 0:
                return output.strip()[-2000:] or "no answer in time"
    return None
