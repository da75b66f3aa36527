"""`make matrix`: its committed result speaks of versions that we declare, and its script tells failures from passes."""

import re
import subprocess
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet

from tests import matrix

ROOT = Path(__file__).parents[1]

SAMPLE = """
import pytest
import torch
from fastgpt.tools.budget import assert_within_budget, exactly

def test_passes(): pass
def test_fails():
    x = torch.ones(2)
    assert_within_budget("x", x + 1, x, *exactly(lambda x: x * 1.0, x))
@pytest.fixture
def broken():
    yield
    raise OSError("in the teardown")
def test_error(broken): pass
def test_fails_twice(broken): assert False
@pytest.mark.skip(reason="no | here")
def test_skipped(): pass
@pytest.mark.xfail(reason="known")
def test_expected_failure(): assert False
@pytest.mark.slow
def test_slow(): assert False
@pytest.mark.parametrize("i", range(3))
def test_interprets(i):
    import os
    assert i != 1 or "TRITON_INTERPRET" not in os.environ
"""


def pinned() -> dict[str, str]:
    lines = (ROOT / "constraints-gpu.txt").read_text().splitlines()
    return dict(line.partition(";")[0].strip().split("==") for line in lines if not line.startswith("#"))


def declared() -> dict[str, SpecifierSet]:
    """The range of each package that pyproject.toml declares: {"torch": >=2.10}."""
    requirements = re.findall(
        r'^ *"([\w-]+(?:[<>=!~]=?[^;"]+))[;"]', (ROOT / "pyproject.toml").read_text(), re.MULTILINE
    )
    return {r.name: r.specifier for r in map(Requirement, requirements)}


def test_the_committed_result_names_versions_in_range_and_nothing_failed():
    stack, parts = matrix.parse(matrix.RESULT.read_text())
    assert stack["Python"].startswith("3.12.")
    for package in matrix.PACKAGES:
        version = stack[package].partition("+")[0]
        assert version == pinned()[package], "run `make matrix`, and commit its result"
        assert declared()[package].contains(version)
    assert list(parts) == [name for name, *_ in matrix.PARTS]
    for passed, failed, skipped in parts.values():
        assert passed > 1000
        assert failed == 0
        assert skipped < passed / 10, "a suite that skips itself says nothing"


def test_the_constraints_are_in_the_declared_ranges():
    for package in matrix.PACKAGES:
        assert declared()[package], package
    for package in declared().keys() & pinned().keys():
        assert declared()[package].contains(pinned()[package]), package
    assert pinned()["triton"].startswith("3.6."), "the oldest that we declare, and what torch 2.11 comes with"


def test_a_run_is_counted_and_written(tmp_path, monkeypatch):
    """Two parts over a sample of every outcome; the second in processes of TRITON_INTERPRET=1."""
    monkeypatch.delenv("TRITON_INTERPRET", raising=False)
    monkeypatch.setenv("FASTGPT_BUDGET_REPORT", str(tmp_path / "ratios.jsonl"))  # under which verdicts would not fail
    sample, out = tmp_path / "test_sample.py", tmp_path / "matrix.md"
    sample.write_text(SAMPLE)
    code = matrix.main(["--jobs", "1", "--out", str(out), str(sample)])
    assert code == 1
    text = out.read_text()
    stack, parts = matrix.parse(text)
    assert set(stack) == {"Python", *matrix.PACKAGES}
    assert [*parts.values()] == [(4, 3, 2), (3, 4, 2)]
    assert re.findall(r"^- `.*::(.*)`$", text, re.MULTILINE) == [
        "test_fails", "test_error", "test_fails_twice",
        "test_fails", "test_error", "test_fails_twice", "test_interprets[1]",
    ]  # fmt: skip
    assert "no / here | 2 |" in text
    assert "expected failure: known | 2 |" in text


@pytest.mark.parametrize(
    ("sample", "status"), [("", 5), ("import missing_module", 2)], ids=["no test", "cannot be collected"]
)
def test_nothing_is_written_where_pytest_did_not_run(tmp_path, sample, status):
    test, out = tmp_path / "test_sample.py", tmp_path / "matrix.md"
    test.write_text(sample)
    with pytest.raises(SystemExit, match=f"exit status {status}.*nothing is written"):
        matrix.main(["--jobs", "1", "--out", str(out), str(test)])
    assert not out.exists()


def test_a_run_leaves_out_the_check_of_the_result_that_it_replaces():
    file, _, name = matrix.LAST_RESULT.partition("::")
    assert (ROOT / file).samefile(__file__)
    assert name in globals()


def test_a_part_of_the_suite_does_not_replace_the_result(capsys):
    with pytest.raises(SystemExit):
        matrix.main(["tests/test_matrix.py"])
    assert "name another --out" in capsys.readouterr().err


def test_make_says_what_it_needs(tmp_path):
    """Without a Python 3.12, in words, and no half of an environment stays."""
    done = subprocess.run(
        ["make", "matrix", f"PYTHON312={tmp_path / 'python3.12'}", f"GPU_VENV={tmp_path / 'venv'}"],
        cwd=ROOT, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode != 0
    assert "needs Python 3.12" in done.stdout
    assert "PYTHON312=/path/to/python3.12" in done.stdout
    assert not (tmp_path / "venv").exists()
