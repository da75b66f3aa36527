"""The mutation check itself: no fault is stale, a sample is caught, and a fault that no test catches is reported."""

from __future__ import annotations

import dataclasses
import shutil

import pytest

from . import __main__ as cli
from . import plant
from .faults import MUTANTS
from .plant import ROOT, Mutant

HARMLESS = Mutant(
    "a-comment-changed",
    "_dropout.py",
    "broadcasts, and keeps",
    "broadcasts, and leaves",
    "tests/kernels/test_dropout.py::test_known_answer",
)


def test_no_fault_is_stale(tmp_path):
    for mutant in MUTANTS:
        shutil.rmtree(tmp_path / "kernels", ignore_errors=True)
        shutil.copytree(ROOT / "kernels", tmp_path / "kernels")
        mutant.apply(tmp_path)
        changed = (tmp_path / "kernels" / mutant.path).read_text()
        assert changed != (ROOT / "kernels" / mutant.path).read_text(), mutant.name
        compile(changed, mutant.path, "exec")
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)


def test_the_tests_named_exist():
    for mutant in MUTANTS:
        for test in mutant.tests.split():
            file, *_, function = test.split("::")  # a class may stand between
            assert f"def {function}(" in (ROOT / file).read_text(), mutant.name


def test_a_stale_fault_is_an_error(tmp_path):
    shutil.copytree(ROOT / "kernels", tmp_path / "kernels")
    for source in ("no such text", "tl."):
        with pytest.raises(ValueError, match=r"is stale: its source text occurs \d+ times"):
            dataclasses.replace(HARMLESS, source=source).apply(tmp_path)


def test_a_fault_is_caught_and_the_working_tree_left_alone():
    (mutant,) = [m for m in MUTANTS if m.name == "dropout-keeps-what-it-should-drop"]
    before = (ROOT / "kernels" / mutant.path).read_text()
    verdict = plant.judge(mutant)
    assert verdict.outcome == "caught", verdict.by
    assert verdict.by.startswith(mutant.tests)
    assert (ROOT / "kernels" / mutant.path).read_text() == before


def test_a_fault_that_escapes_is_reported(monkeypatch, capsys):
    monkeypatch.setattr(cli, "MUTANTS", (HARMLESS,))
    monkeypatch.setattr(cli, "unmutated", lambda mutants: None)
    monkeypatch.setattr(cli, "RESULT", ROOT / "must" / "not" / "be" / "written")
    assert cli.main(["--jobs", "1"]) == 1
    out = capsys.readouterr().out
    assert "survived  a-comment-changed" in out
    assert "0 of 1 faults caught" in out


def test_tests_that_fail_anyway_prove_nothing(monkeypatch, capsys):
    monkeypatch.setattr(cli, "MUTANTS", (HARMLESS,))
    monkeypatch.setattr(plant, "run_tests", lambda folder, tests: (1, "1 failed"))
    assert cli.main(["--jobs", "1"]) == 1
    assert "fail without any fault, which proves nothing:\n1 failed" in capsys.readouterr().out


def test_samples_take_the_families_in_turn():
    families = {m.family for m in MUTANTS}
    assert {m.family for m in cli.sample(len(families), seed=0)} == families
    assert cli.sample(3, seed=0) != cli.sample(3, seed=1)
    assert set(cli.sample(len(MUTANTS), seed=5)) == set(MUTANTS)
