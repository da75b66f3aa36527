"""`fastgpt study cost` as a user types it: tables, JSON, files, what is left alone."""

from __future__ import annotations

import errno
import json

import pytest

from fastgpt import cli
from tests.support import command

pytest.importorskip("triton")
pytestmark = pytest.mark.needs("tyro", "rich")
GRID = (
    "study", "cost", "--layers", "1", "2", "--seq-lens", "32", "--widths", "16", "--base", "1", "32", "16",
    "--heads", "2", "--vocab-size", "31", "--batch-size", "2", "--gpu", "0.0006", "--margin", "0", "--device", "cpu",
)  # fmt: skip


def test_table_files_and_json_say_the_same(tmp_path):
    done = command.run(*GRID, "--out", "new/cost.json", "--page", "cost.html", cwd=tmp_path, timeout=120)
    assert done.code == 0, done.err
    record = json.loads((tmp_path / "new" / "cost.json").read_text())
    lines = [line.split("  ") for line in done.out.splitlines()]
    rows = {cells[0].strip(): [cell.strip() for cell in cells[1:] if cell.strip()] for cells in lines if len(cells) > 1}
    names = ["fastgpt", "torch", "reference"]
    assert rows[""] == names
    for fit in record["exponents"]:
        quantity = "activ. + transient" if fit["quantity"] == "working" else fit["quantity"]
        assert rows[f"{quantity} ~ L"][names.index(fit["implementation"])] == f"{fit['exponent']:.2f}"
    for what, over in (("layers, L", "layers"), ("sequences in a batch", "batch_size")):
        found = [limit["largest"] for limit in record["limits"] if limit["over"] == over]
        assert rows[f"largest {what}"] == [f"{n:,}" for n in found]
    assert done.out.splitlines()[-2:] == ["new/cost.json", "cost.html"]
    assert record["times"] is None
    assert record["config"]["layers"] == [1, 2]
    assert "Exponents" in (tmp_path / "cost.html").read_text()

    # Files of its own are replaced; those of others, its own in the other place among them, stay.
    for options, option in (
        (["--out", "cost.html"], "--out cost.html"),
        (["--page", "new/cost.json"], "--page new/cost.json"),
    ):
        refused = command.run(*GRID, *options, cwd=tmp_path)
        assert (refused.code, refused.out) == (2, "")
        assert f"{option} is a file that `fastgpt study cost` did not write; choose another" in refused.err
    assert json.loads((tmp_path / "new" / "cost.json").read_text()) == record


def test_json_with_time_and_a_full_disk(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    assert cli.main([*GRID, "--time", "--time-limit", "600", "--json", "--out", "a.json"]) == 0
    printed = json.loads(capsys.readouterr().out)
    kept = json.loads((tmp_path / "a.json").read_text())
    assert printed == kept
    assert [row["implementation"] for row in kept["times"]["rows"]] == ["torch", "reference"] * 2
    assert {fit["quantity"] for fit in kept["exponents"]} == {"activations", "working", "weights", "peak", "seconds"}
    assert "interpreter" in kept["left_out"]["fastgpt, in time"]

    def full(work):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr("fastgpt.base.files.flush_all", full)
    assert cli.main([*GRID, "--out", "a.json"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert "could not write a.json (No space left on device); free disk space" in line
    assert json.loads((tmp_path / "a.json").read_text()) == kept


def test_interrupted_it_says_what_is_there(tmp_path, monkeypatch, capsys):
    def stop(*args, **more):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastgpt.study.cost.page.save", stop)
    assert cli.main([*GRID, "--out", "a.json", "--page", "a.html"]) == 130
    assert capsys.readouterr().err == "fastgpt study cost: interrupted; wrote a.json only\n"
    monkeypatch.setattr("fastgpt.study.cost.study.memory_cost", stop)
    assert cli.main([*GRID, "--out", "b.json"]) == 130
    assert capsys.readouterr().err == "fastgpt study cost: interrupted; nothing was written\n"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.json"]
