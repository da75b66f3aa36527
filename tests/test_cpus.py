"""Which instruction sets a CPU has, what of them is skipped and why, and which tests are run for each."""

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from fastgpt.tools.budget import REPORT
from tests import cpus
from tests.support.sampled import sample

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    ("capability", "expected"),
    [("AVX512", ["default", "avx2", "avx512"]), ("AVX2", ["default", "avx2"]), ("DEFAULT", ["default"]),
     ("SVE256", ["default"])],
)  # fmt: skip
def test_no_more_than_the_cpu_has(capability, expected):
    assert cpus.available(capability) == expected


def test_each_set_is_run_or_said_to_be_skipped(monkeypatch, capsys):
    calls = []

    def run(command, env, **options):
        calls.append((command, env.get("ATEN_CPU_CAPABILITY")))
        assert REPORT not in env, "a run that reports fails nothing"
        return SimpleNamespace(stdout="AVX2\n", returncode=1 if "pytest" in command and calls[-1][1] == "avx2" else 0)

    monkeypatch.setenv(REPORT, "ratios.jsonl")
    monkeypatch.setenv("ATEN_CPU_CAPABILITY", "default")  # must not hide from torch what the CPU has
    monkeypatch.setattr(subprocess, "run", run)
    assert cpus.main(["-n", "2"]) == 1
    assert [capability for _, capability in calls] == [None, "default", "avx2"]
    assert calls[1][0][-2:] == ["-n", "2"]
    lines = capsys.readouterr().out.splitlines()
    assert lines[1].startswith("default: passed")
    assert lines[2].startswith("avx2: FAILED (pytest exited with 1)")
    assert lines[3] == "avx512: skipped, since torch finds AVX2 on this CPU and no more"
    calls.clear()
    assert cpus.main(["--only", "default"]) == 0
    assert len(calls) == 2
    assert cpus.main(["--only", "avx512"]) == 1, "asked for by name, and not done"


def test_files_that_use_the_budget_are_marked():
    from tests import conftest
    from tests.fastgpt.data import test_data
    from tests.fastgpt.nn import test_nn_ffn
    from tests.kernels.layer_norm import test_accuracy, test_traffic

    assert [conftest._uses_the_budget(m) for m in (test_nn_ffn, test_accuracy)] == [True, True]
    assert [conftest._uses_the_budget(m) for m in (test_data, test_traffic)] == [False, False]


def test_a_sample_has_some_of_each_test():
    one, many = ["t.py::one"], [f"t.py::many[{dtype}-{size}]" for dtype in ("fp16", "fp32") for size in range(6)]
    kept = sample([*one, *many], one_in=4)
    assert "t.py::one" in kept
    assert len(kept) == 1 + 3
    assert kept == sample(reversed([*one, *many]), one_in=4)
    assert sample([*one, *many], one_in=1) == {*one, *many}


FILE = """
import pytest

@pytest.mark.parametrize("n", range(8))
def test_many(n): ...

@pytest.mark.parametrize("n", range(4))
def test_others(n): ...
"""


def test_the_sample_is_of_the_tests_that_were_selected(tmp_path):
    (tmp_path / "test_file.py").write_text(FILE)
    command = [sys.executable, "-m", "pytest", "-p", "tests.support.sampled", "--one-in", "4", "-k"]
    environment = os.environ | {"PYTHONPATH": str(ROOT)}
    for expression, said in (("many", "2 passed, 10 deselected"), *((f"many and {n}", "1 passed") for n in (0, 7))):
        done = subprocess.run([*command, expression], cwd=tmp_path, env=environment, capture_output=True, text=True)
        assert said in done.stdout, done.stdout
