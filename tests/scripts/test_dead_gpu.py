"""A GPU that a test kills costs that test alone: under xdist, in one process, and in one that is started again."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from benchmarks.report import read_rows
from tests import conftest
from tests.support import dead_gpu

ROOT = Path(__file__).parents[2]
# A device that test 3 kills, and with it whatever its process does afterwards.
TESTS = """
import pytest, torch
@pytest.mark.parametrize("n", range(40))
def test_kernel(n):
    torch.cuda.dead |= n == 3
    assert n != 1
    torch.cuda.synchronize()
"""
TORCH = """
class cuda:
    dead = False
    is_available = is_initialized = staticmethod(lambda: True)
    memory_reserved = staticmethod(lambda: 0)
    def synchronize():
        if cuda.dead:
            raise RuntimeError("CUDA error: misaligned address")
set_num_threads = print
"""  # a file of this name, whose import takes no seconds


def run(folder: Path, *arguments: str, code: str = TESTS) -> tuple[subprocess.CompletedProcess, dict[str, list[str]]]:
    (folder / "test_some.py").write_text(code)
    (folder / "torch.py").write_text(TORCH)
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "-p", "tests.support.as_it_goes",
               f"--as-it-goes={folder}/tests.jsonl", str(folder / "test_some.py"), *arguments]  # fmt: skip
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_")}
    environment |= {"PYTHONPATH": str(folder), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    found: dict[str, list[str]] = {}
    for row in read_rows(folder / "tests.jsonl"):
        found.setdefault(row["outcome"], []).append(row["test"].split("[")[1].removesuffix("]"))
    return done, found


def test_xdist_replaces_the_worker(tmp_path):
    pytest.importorskip("xdist")
    done, found = run(tmp_path, "-p", "xdist.plugin", "-n", "1", "--dist", "worksteal", "-p", "tests.support.dead_gpu")
    assert done.returncode == 1, done.stdout + done.stderr
    assert found["failed"] == ["1", "3"]
    assert len(found["passed"]) == 38


def test_one_process_stops_and_says_why(tmp_path):
    done, found = run(tmp_path, "-p", "tests.support.dead_gpu")
    assert done.returncode == dead_gpu.LOST
    assert "test_kernel[3] has left the GPU's context unusable" in done.stdout + done.stderr
    assert found == {"passed": ["0", "2"], "failed": ["1", "3"]}


def test_the_same_command_goes_on(tmp_path):
    again = ("-p", "tests.support.dead_gpu", f"--begun={tmp_path}/begun")
    assert run(tmp_path, *again)[0].returncode == dead_gpu.LOST
    done, found = run(tmp_path, *again)
    assert done.returncode == 0
    assert found["failed"] == ["1", "3"]
    assert len(found["passed"]) == 38


def test_a_test_that_hangs_costs_no_other(tmp_path):
    hangs = "import tests.support.dead_gpu as d, time\nd.HANGS = 0.3\n@pytest.mark.parametrize('n', [3, 4])\n"
    code = TESTS + hangs + "def test_slow(n):\n    time.sleep(60 if n == 4 else 0)\n"
    again = ("-p", "tests.support.dead_gpu", f"--begun={tmp_path}/begun", "-k", "test_slow")
    assert run(tmp_path, *again, code=code)[0].returncode == dead_gpu.LOST
    done, found = run(tmp_path, *again, code=code)
    assert done.returncode == 5  # nothing is left
    assert found == {"passed": ["3"]}


def test_all_tests_are_run_so():
    for name in ("pytest_runtest_logreport", "pytest_runtest_logfinish"):
        assert getattr(conftest, name) is getattr(dead_gpu, name)


def test_a_process_without_a_gpu_is_not_asked(monkeypatch):
    monkeypatch.setattr(dead_gpu.measure, "fatal", pytest.fail)
    monkeypatch.setattr(dead_gpu, "_failed", {"t"})
    monkeypatch.setattr(dead_gpu.torch.cuda, "is_initialized", lambda: False)
    dead_gpu.pytest_runtest_logfinish("t")
    monkeypatch.setattr(dead_gpu.torch.cuda, "is_initialized", lambda: True)
    dead_gpu.pytest_runtest_logfinish("passed")
