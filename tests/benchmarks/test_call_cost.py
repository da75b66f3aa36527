"""What `python -m benchmarks.call_cost` compares and prints. Timing compiles kernels, and is left to the command."""

from __future__ import annotations

import json

import pytest

from benchmarks import call_cost


@pytest.fixture
def runs(monkeypatch):
    """The processes that would have run: (tree, detour); each finds the same, but for another tree 10 more."""
    seen = []

    def run_in(tree, detour, rounds, calls):
        seen.append((tree, detour))
        slower = 0 if tree == call_cost.ROOT else 10
        return {"layer_norm": {"forward": [slower + turn + len(seen) for turn in range(3)]}}

    monkeypatch.setattr(call_cost, "run_in", run_in)
    return seen


def test_trees_take_turns_and_all_rounds_count(runs, capsys, tmp_path):
    assert call_cost.main(["--beside", str(tmp_path), "--turns", "2", "--json"]) == 0
    assert runs == [(tmp_path, True), (call_cost.ROOT, True), (call_cost.ROOT, False)] * 2
    medians = json.loads(capsys.readouterr().out)
    assert medians[tmp_path.name]["layer_norm"]["forward"] == 10 + 3.5  # of 1 2 3 4 5 6
    assert medians["this tree"]["layer_norm"]["forward"] == 4.5


def test_table(runs, capsys):
    call_cost.main(["--turns", "1"])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "| operator | call | this tree | without the detour |"
    assert lines[2:] == ["| layer_norm | forward | 2.0 | 3.0 |"]


def test_every_public_function_is_timed():
    pytest.importorskip("triton")
    from fastgpt import kernels

    timed = {name.split(",")[0] for name, *_ in call_cost.operators()}
    assert timed == {*kernels.__all__} - {"interpret", "reference"}
