"""`fastgpt export`: a checkpoint's model in a new folder, whole or not there; nothing of the user's is replaced."""

from __future__ import annotations

import errno
import os

import pytest
import torch

from fastgpt import GPT, OneHeadLM, cli
from fastgpt.data.tokenizer import Tokenizer

from ..training import tiny_model, tiny_trainer

pytestmark = pytest.mark.needs("tyro")


@pytest.fixture
def run(tmp_path, monkeypatch):
    """A finished run, ./a, of two checkpoints."""
    monkeypatch.chdir(tmp_path)
    tiny_trainer(tmp_path, name="a", save_every=4, tokenizer=Tokenizer.named("shakespeare")).fit()
    return tmp_path / "a"


def error_of(capsys, *words: str) -> str:
    assert cli.main(list(words)) == 2
    line = capsys.readouterr().err
    assert line.count("\n") == 1
    return line


def test_a_runs_newest_checkpoint_or_the_one_named(run, tmp_path, capsys):
    steps = sorted((run / "checkpoints").iterdir())
    for out, model, folder in (("new", "a", steps[-1]), ("old", str(steps[0]), steps[0])):
        assert cli.main(["export", model, out]) == 0
        assert f"{out}: " in capsys.readouterr().out
        expected, found = GPT.from_pretrained(folder).state_dict(), GPT.from_pretrained(tmp_path / out).state_dict()
        assert all(torch.equal(found[name], value) for name, value in expected.items())
        assert Tokenizer.from_pretrained(tmp_path / out) == Tokenizer.named("shakespeare")
        assert sorted(os.listdir(out)) == ["config.json", "fastgpt_tokenizer.json", "model.safetensors"]
    assert not torch.equal(*(GPT.from_pretrained(out).token_emb.weight for out in ("new", "old")))


def test_an_empty_folder_is_filled_and_a_full_one_stays(run, tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert cli.main(["export", "a", "empty", "--format", "hf"]) == 0
    assert (tmp_path / "empty" / "config.json").exists()
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "mine.txt").write_text("mine")
    assert "OUT full holds files, which stay as they are" in error_of(capsys, "export", "a", "full")
    assert os.listdir("full") == ["mine.txt"]


@pytest.mark.parametrize(
    ("format", "options", "why"),
    [
        ("hf", {"bias": False}, "GPT-2 has biases, and this model does not"),
        ("nanogpt", {"gelu": "tanh"}, "nanoGPT has gelu='none' only, and this model has 'tanh'"),
        ("nanogpt", {"tie_weights": False}, "nanoGPT has tie_weights=True only"),
    ],
)
def test_a_model_that_the_format_has_not(tmp_path, monkeypatch, capsys, format, options, why):
    monkeypatch.chdir(tmp_path)
    tiny_model(**options).save_pretrained("m")
    line = error_of(capsys, "export", "m", "out", "--format", format)
    assert f"--format {format} cannot hold this model: " in line
    assert why in line
    assert line.endswith("; take fastgpt\n")
    assert os.listdir() == ["m"]


def test_one_head_has_a_format_of_its_own(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    OneHeadLM(vocab_size=7, d_model=4, max_len=5).save_pretrained("m")
    assert "a OneHeadLM has no other format" in error_of(capsys, "export", "m", "out", "--format", "hf")
    assert cli.main(["export", "m", "out"]) == 0
    assert OneHeadLM.from_pretrained("out").config == OneHeadLM.from_pretrained("m").config


def test_of_a_full_disk_nothing_stays(run, tmp_path, monkeypatch, capsys):
    def full(self, folder):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(folder))

    monkeypatch.setattr(Tokenizer, "save", full)
    line = error_of(capsys, "export", "a", "out")
    assert "could not write out (No space left on device; " in line
    assert os.listdir() == ["a"]


def test_a_damaged_checkpoint_is_not_exported(run, capsys):
    newest = sorted((run / "checkpoints").iterdir())[-1]
    weights = newest / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1] + b"?")
    line = error_of(capsys, "export", "a", "out")
    assert f"{newest.name}/model.safetensors" in line
    assert "the checkpoint before it is" in line
    assert not os.path.exists("out")
