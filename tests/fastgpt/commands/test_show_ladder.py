"""`fastgpt show ladder`: what it prints and writes, and what it leaves alone."""

from __future__ import annotations

import json

import pytest

from tests.support import command

pytest.importorskip("triton")
pytestmark = pytest.mark.needs("tyro", "rich")
SMALL = ("show", "ladder", "--seq-len", "40", "--head-dim", "16", "--device", "cpu")


def test_table_and_page(tmp_path):
    done = command.run(*SMALL, "--page", "new/ladder.html", cwd=tmp_path, COLUMNS="80")
    assert (done.code, done.err) == (0, "")
    lines = done.out.splitlines()
    assert lines[0] == "causal attention: 1 head of 40 tokens x 16 numbers, float32, on cpu"
    assert lines[2].split() == ["time", "clock", "read", "written", "extra", "error"]
    names = [line.split()[1] for line in lines[3:10]]
    assert names == [
        "three_loops", "naive", "tiled", "online_softmax", "triton_forward", "tile_skipping", "flash_attention",
    ]  # fmt: skip
    assert "interpreter's time says nothing" in " ".join(done.out.split())
    assert max(map(len, lines)) <= 90
    assert lines[-1] == "new/ladder.html"
    page = (tmp_path / "new" / "ladder.html").read_text()
    assert "The kernel ladder" in page
    assert command.run(*SMALL, "--page", "new/ladder.html", cwd=tmp_path).code == 0  # its own may be written again
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["ladder.html"]


def test_json_and_seed(tmp_path):
    """The same seed gives the same errors, another one others; bytes do not hang on it."""
    runs = [json.loads(command.run(*SMALL, "--json", "--seed", seed, cwd=tmp_path).out) for seed in "001"]
    assert runs[0]["shape"] == {
        "seq_len": 40, "head_dim": 16, "heads": 1, "dtype": "float32", "device": "cpu", "seed": 0,
    }  # fmt: skip
    errors, sizes = ([[rung[key] for rung in run["rungs"]] for run in runs] for key in ("error", "read_bytes"))
    assert errors[0] == errors[1] != errors[2]
    assert sizes[0] == sizes[2]
    assert not list(tmp_path.iterdir())


def test_code(tmp_path):
    from fastgpt.study.ladder import source

    done = command.run("show", "ladder", "--code", "tile_skipping", cwd=tmp_path)
    assert (done.code, done.out, done.err) == (0, source("tile_skipping"), "")


def test_what_is_not_ours_stays(tmp_path):
    (tmp_path / "notes.html").write_text("mine")
    done = command.run(*SMALL, "--page", "notes.html", cwd=tmp_path)
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "fastgpt show ladder: error: --page notes.html is a file that `fastgpt show ladder` did not write; choose "
        "another\n"
    )
    assert (tmp_path / "notes.html").read_text() == "mine"


def test_ctrl_c_says_that_nothing_was_written(tmp_path, monkeypatch, capsys):
    from fastgpt import cli

    def stopped(*_):
        raise KeyboardInterrupt

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("fastgpt.study.ladder.climb", stopped)
    assert cli.main([*SMALL, "--page", "x.html"]) == 130
    assert "nothing was written" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
