"""The mutation check itself: no fault is stale, a sample is caught, and a fault that no test catches is reported."""

from __future__ import annotations

import ast
import dataclasses
import functools
from collections import defaultdict

import pytest

from . import __main__ as cli
from . import plant
from .edits import Edit, same
from .faults import MUTANTS
from .places import call, comparison, default, name, operand, returned
from .plant import ROOT, Mutant

HARMLESS = Mutant(
    "a-comparison-turned-round",
    "device.keep_mask",
    returned().becomes("threshold <= word"),
    "tests/kernels/test_dropout.py::test_mask_is_philox",
)


@functools.cache
def text_of(path: str) -> str:
    return (ROOT / path).read_text()


def test_no_fault_is_stale():
    """Nor would any be, were its file laid out in another way: nothing of the layout is left in what unparse writes."""
    by_file = defaultdict(list)
    for mutant in MUTANTS:
        by_file[mutant.path].append(mutant)
    for path, mutants in by_file.items():
        text = text_of(path)
        whole = ast.parse(text)
        plain = ast.unparse(whole)
        laid_out_anew = ast.parse(plain)
        for mutant in mutants:
            number, changed = part_with(mutant.edits(text), text, whole)
            assert not same(changed, ast.Module([whole.body[number]], [])), f"{mutant.name} changes nothing"
            mutant.plant(text)
            again = part_with(mutant.edits(plain), plain, laid_out_anew)
            assert again[0] == number
            assert same(again[1], changed), mutant.name
    assert len({m.name for m in MUTANTS}) == len(MUTANTS)


def part_with(edits: list[Edit], text: str, tree: ast.Module) -> tuple[int, ast.Module]:
    """The statement of the module in which the edits are, by its number, and as it is after them."""
    number = next(i for i, statement in enumerate(tree.body) if edits[-1].start[0] <= statement.end_lineno)
    first = tree.body[number - 1].end_lineno if number else 0  # the line before: decorators are part of it
    behind = len(text.split("\n")) - tree.body[number].end_lineno
    for edit in edits:
        text = edit.apply(text)
    lines = text.split("\n")
    return number, ast.parse("\n".join(lines[first : len(lines) - behind]))


def test_the_tests_named_exist():
    for mutant in MUTANTS:
        for test in mutant.tests.split():
            file, *_, function = test.split("[")[0].split("::")  # a class may stand between
            assert f"def {function}(" in text_of(file), mutant.name


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"change": call("no_such_name").dropped()}, r"call\('no_such_name'\) is there 0 times, must be once"),
        ({"change": name("zero").becomes("0")}, r"name\('zero'\) is there \d times \(lines [\d, ]+\), must be once"),
        ({"change": default("word").becomes("0")}, "is there 0 times"),
        ({"change": comparison().unwrapped()}, "nothing is wrapped"),
        ({"where": "device.no_such_function"}, "there is no 'device.no_such_function'"),
        ({"where": "forward"}, "'forward' is in .* and "),
        ({"change": returned().becomes("break")}, "what it leaves does not compile"),
        ({"change": returned().becomes("words >= threshold")}, "nothing there is called words"),
    ],
)  # fmt: skip
def test_a_stale_fault_is_an_error(changes, message):
    stale = dataclasses.replace(HARMLESS, **changes)
    with pytest.raises(ValueError, match=rf"'a-comparison-turned-round' is stale: in {stale.where}: .*{message}"):
        stale.plant(text_of(stale.path))


def test_a_fault_is_caught_and_taken_out_again():
    (mutant,) = [m for m in MUTANTS if m.name == "dropout-keeps-what-it-should-drop"]
    before = (ROOT / mutant.path).read_text()
    with plant.copy_of_tree() as tree:
        assert tree.run(mutant.tests, timeout=0.1)[0] is None  # what hangs is killed, and does not end the others
        verdict = plant.judge(mutant, tree)
        assert (tree.folder / mutant.path).read_text() == before
    assert verdict.outcome == "caught", verdict.by
    assert verdict.by.startswith(mutant.tests)
    assert (ROOT / mutant.path).read_text() == before


def test_what_cannot_run_is_not_caught():
    """Whatever a test looks at, it fails on that."""
    faults = [
        Mutant(
            "cannot-run",
            "train.learning_rate",
            operand("step", nth=1).becomes(new),
            "tests/fastgpt/train/test_optim.py::test_learning_rate_curve",
        )
        for new in ("eval('no_such_name')", "__import__('no_such_module')")
    ]
    with plant.copy_of_tree() as tree:
        verdicts = [plant.judge(fault, tree) for fault in faults]
    assert [(verdict.outcome, verdict.by) for verdict in verdicts] == [
        ("broken", "NameError: name 'no_such_name' is not defined"),
        ("broken", "ModuleNotFoundError: No module named 'no_such_module'"),
    ]
    assert not any(verdict.ok for verdict in verdicts)


def test_faults_that_escape_or_are_stale_are_reported(monkeypatch, capsys):
    stale = dataclasses.replace(HARMLESS, name="out-of-date", change=call("no_such_name").dropped())
    monkeypatch.setattr(cli, "MUTANTS", (stale, HARMLESS))
    monkeypatch.setattr(cli, "unmutated", lambda *_: None)
    monkeypatch.setattr(cli, "RESULT", ROOT / "must" / "not" / "be" / "written")
    assert cli.main(["--jobs", "1"]) == 1
    out = capsys.readouterr().out
    assert "survived  a-comparison-turned-round" in out
    assert "-    return word >= threshold\n+    return threshold <= word\n" in out
    assert "stale     out-of-date " in out
    assert "0 of 2 faults caught" in out


def test_tests_that_fail_anyway_prove_nothing(monkeypatch, capsys):
    monkeypatch.setattr(cli, "MUTANTS", (HARMLESS,))
    monkeypatch.setattr(plant.Tree, "run", lambda *_: (1, "1 failed"))
    assert cli.main(["--jobs", "1"]) == 1
    assert "fail without any fault, which proves nothing:\n1 failed" in capsys.readouterr().out


class AsksFor:
    """In a Tree's place: what it is asked to run."""

    def __init__(self) -> None:
        self.asked: list[str] = []

    def run(self, tests: str, timeout: float) -> tuple[int, str]:
        self.asked.append(tests)
        return 0, ""


def test_a_copy_without_a_share_of_the_tests_runs_none():
    trees = AsksFor(), AsksFor()
    assert plant.unmutated((HARMLESS, dataclasses.replace(HARMLESS, name="another")), trees) is None
    assert [tree.asked for tree in trees] == [[HARMLESS.tests], []]


def test_samples_take_the_families_in_turn():
    families = {m.family for m in MUTANTS}
    assert {m.family for m in cli.sample(len(families), seed=0)} == families
    assert cli.sample(3, seed=0) != cli.sample(3, seed=1)
    assert set(cli.sample(len(MUTANTS), seed=5)) == set(MUTANTS)


def test_what_would_be_planted_is_listed(capsys):
    assert cli.main(["--list", "--family", "kernels/device"]) == 0
    listed = capsys.readouterr().out
    assert "dropout-keeps-what-it-should-drop" in listed
    assert "kernels/attention" not in listed


def test_the_table_counts_each_file():
    other = dataclasses.replace(HARMLESS, name="other", where="Trainer.fit")
    verdicts = [plant.Verdict(m, "caught", "a test", 1.0) for m in (HARMLESS, other)]
    kernels, fastgpt = cli.table(verdicts).split("## fastgpt")
    assert "| kernels/device/dropout.py | 1 | 1 |\n| all | 1 | 1 |" in kernels
    assert "| other | fastgpt/train/trainer.py | caught | `a test` |" in fastgpt
