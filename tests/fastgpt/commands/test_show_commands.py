"""`fastgpt show one-head` and `show block` as a user types them: the page, what it tells of itself."""

from __future__ import annotations

import errno
import json
import re

import pytest
import torch

from fastgpt import GPT, GPTConfig
from fastgpt.data.tokenizer import Tokenizer
from fastgpt.model.one_head import OneHeadLM
from tests.support import command

pytestmark = pytest.mark.needs("tyro", "tiktoken")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A folder with `one` (a OneHeadLM) and `gpt` (a GPT), each with its tokenizer."""
    folder = tmp_path_factory.mktemp("show")
    torch.manual_seed(0)
    OneHeadLM(4096, 8, 16).save_pretrained(folder / "one")
    GPT(GPTConfig(vocab_size=4096, max_len=16, n_layers=2, n_heads=2, d_model=16)).save_pretrained(folder / "gpt")
    GPT(GPTConfig(4096, 16, 2, 2, 16, gelu="tanh")).save_pretrained(folder / "hf", format="hf")
    for name in ("one", "gpt", "hf"):
        Tokenizer.named("shakespeare").save(folder / name)
    return folder


def done(*argv, cwd, **options):
    found = command.run(*argv, cwd=cwd, **options)
    assert found.code == 0, found.err
    return found


def test_one_head_learns_and_says_what_it_did(tmp_path):
    said = done("show", "one-head", "--steps", "2", "--seed", "3", cwd=tmp_path)
    assert said.out == "one-head.html\n"
    assert said.err.startswith("training a model of one head on the embedded Shakespeare: 2 steps, seed 3\n2 steps in ")
    page = (tmp_path / "one-head.html").read_text(encoding="utf-8")
    rows = dict(re.findall(r"<tr><td[^>]*>([^<]*)</td><td[^>]*>([^<]*)</td></tr>", page))
    assert (rows["seed"], rows["steps"], rows["tokens seen"]) == ("3", "2", f"{2 * 16 * 64:,}")
    assert rows["command"].endswith("show one-head --steps 2 --seed 3")
    assert {"date", "commit", "torch", "CPU", "training time", "model size"} <= rows.keys()
    assert "learned Shakespeare for 2 steps: loss 8." in page


def test_the_same_steps_and_seed_make_the_same_numbers(tmp_path):
    def data(*argv, name):
        done("show", "one-head", "hark", "--out", name, *argv, cwd=tmp_path)
        return (tmp_path / name).read_text(encoding="utf-8").split('id="step-data">')[1].split("</script>")[0]

    first = data("--steps", "2", name="a.html")
    assert data("--steps", "2", name="b.html") == first
    assert data("--steps", "2", "--seed", "1", name="b.html") != first  # a page of ours may be replaced
    assert data("--untrained", name="b.html") != first
    assert "as it was made, from random numbers" in (tmp_path / "b.html").read_text(encoding="utf-8")


def test_one_head_of_a_folder_and_a_text_on_stdin(run, tmp_path):
    said = done(
        "show", "one-head", "-", "--model", str(run / "one"), "--out", "p.html", cwd=tmp_path, stdin="hark, hark"
    )
    assert (said.out, said.err) == ("p.html\n", "")
    page = (tmp_path / "p.html").read_text(encoding="utf-8")
    assert f"The model is {run / 'one'}." in page
    assert "of 5 tokens" in page


def test_block_learns_too_and_starts_where_it_is_told(tmp_path):
    said = done("show", "block", "hark", "--steps", "1", "--layer", "-1", "--head", "2", cwd=tmp_path)
    assert said.out == "block.html\n"
    assert said.err.startswith("training a GPT of 3 layers on the embedded Shakespeare: 1 steps, seed 0\n")
    page = (tmp_path / "block.html").read_text(encoding="utf-8")
    assert json.loads(page.split('id="step-data">')[1].split("</script>")[0])["chosen"] == {"layer": 2, "head": 2}
    assert "3 layers, 4 heads, 64 wide" in page


@pytest.mark.parametrize("folder", ["gpt", "hf"])
def test_block_of_a_folder_ours_or_transformers(run, tmp_path, folder):
    said = done("show", "block", "hark, hark", "--model", str(run / folder), "--layer", "1", cwd=tmp_path)
    assert (said.out, said.err) == ("block.html\n", "")
    page = (tmp_path / "block.html").read_text(encoding="utf-8")
    scores = json.loads(page.split('id="step-data">')[1].split("</script>")[0])["arrays"]["1.1.scores"]
    assert scores["shape"] == [5, 5]


def test_files_that_are_not_ours_stay_and_ctrl_c_leaves_none(run, tmp_path):
    (tmp_path / "mine.html").write_text("mine")
    refused = command.run("show", "one-head", "hark", "--out", "mine.html", "--untrained", cwd=tmp_path)
    assert refused.code == 2
    assert (tmp_path / "mine.html").read_text() == "mine"
    stopped = command.run("show", "one-head", "--seconds", "60", cwd=tmp_path, interrupt_after=3.0)
    assert stopped.code == 130
    assert stopped.err.endswith("fastgpt show one-head: interrupted; nothing was written\n")
    assert [path.name for path in tmp_path.iterdir()] == ["mine.html"]


def test_a_full_disk_is_one_line(tmp_path, monkeypatch, capsys):
    from fastgpt import cli
    from fastgpt.base import files

    def full(path):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(files, "flush_all", full)
    assert cli.main(["show", "one-head", "hark", "--untrained"]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("fastgpt show one-head: error: ")
    assert "No space left" in error
    assert not list(tmp_path.iterdir())
