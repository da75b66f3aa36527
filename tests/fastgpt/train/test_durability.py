"""After a power cut: what was written is on the disk whole, under its name, or the old is; no name without bytes."""

from __future__ import annotations

import pytest
import torch

from fastgpt import GPT, GPTConfig, OneHeadLM
from fastgpt.base import files
from fastgpt.data.dataset import TokenDataset
from fastgpt.data.preparation import prepare
from fastgpt.data.tokenizer import Tokenizer
from tests.support.power_cut import PowerCut, real

from ..training import tiny_trainer

SHAPE = {"vocab_size": 61, "max_len": 24, "n_layers": 1, "n_heads": 2, "d_model": 16}


def assert_durable(disk: PowerCut, *folders) -> None:
    assert disk.renamed_too_early == []
    for folder in folders:
        assert disk.left(folder) == real(folder), folder


def test_the_listener_itself(tmp_path):
    (tmp_path / "old").write_text("old")
    with PowerCut(tmp_path) as disk:
        (tmp_path / "a").write_text("new")
        assert disk.left(tmp_path) == {"old": b"old"}
        files.flush(tmp_path)
        assert disk.left(tmp_path) == {"old": b"old", "a": b""}
        (tmp_path / "a").replace(tmp_path / "b")
        files.flush(tmp_path / "b")
        assert disk.left(tmp_path) == {"old": b"old", "a": b"new"}
        files.flush(tmp_path)
        assert disk.left(tmp_path) == real(tmp_path) == {"old": b"old", "b": b"new"}
        assert len(disk.renamed_too_early) == 1
        (tmp_path / "c").mkdir()
        (tmp_path / "c" / "d").write_text("deep")
        files.flush_all(tmp_path / "c")
        (tmp_path / "c").rename(tmp_path / "e")
        assert len(disk.renamed_too_early) == 1


def test_one_file(tmp_path):
    (tmp_path / "a.json").write_text("old")
    with PowerCut(tmp_path) as disk:
        files.replace_file(tmp_path / "a.json", lambda new: new.write_text("new"))
    assert_durable(disk, tmp_path)
    assert real(tmp_path) == {"a.json": b"new"}


def test_several_files(tmp_path):
    with PowerCut(tmp_path) as disk:
        files.replace_files(tmp_path, lambda work: [(work / name).write_text(name) for name in ("a", "b.json", "c")])
    assert_durable(disk, tmp_path)
    assert len(real(tmp_path)) == 3


@pytest.mark.parametrize("format", ["fastgpt", "hf", "nanogpt"])
def test_a_model(tmp_path, format):
    with PowerCut(tmp_path) as disk:
        GPT(GPTConfig(**SHAPE, gelu="none")).save_pretrained(tmp_path, format)
    assert_durable(disk, tmp_path)
    names = {"ckpt.pt"} if format == "nanogpt" else {"config.json", "model.safetensors"}
    assert real(tmp_path).keys() == names


def test_a_one_head_model_and_a_tokenizer(tmp_path):
    with PowerCut(tmp_path) as disk:
        OneHeadLM(61, 16, 24).save_pretrained(tmp_path)
        Tokenizer.named("shakespeare").save(tmp_path)
    assert_durable(disk, tmp_path)
    assert len(real(tmp_path)) == 3


@pytest.mark.parametrize("again", [False, True])
def test_a_checkpoint(tmp_path, again):
    """All of its files, before it has its name, and the name; also where it takes another's place."""
    trainer = tiny_trainer(tmp_path, name="a", steps=1)
    root = tmp_path / "a" / "checkpoints"
    root.mkdir(parents=True)
    trainer.train_step()
    if again:
        trainer.save()
        with torch.no_grad():
            trainer.model.ln_f.weight.fill_(3.0)
    with PowerCut(tmp_path) as disk:
        folder = trainer.save()
    assert_durable(disk, folder)
    # The one that it replaced goes without being waited for.
    assert disk.left(root)[folder.name] == real(folder)
    assert len(real(folder)) == 5


def test_a_run_and_the_folders_that_it_makes(tmp_path):
    with PowerCut(tmp_path) as disk:
        tiny_trainer(tmp_path / "runs", name="a", steps=1).fit()
    left, there = disk.left(tmp_path)["runs"]["a"], real(tmp_path / "runs" / "a")
    assert left["settings.json"] == there["settings.json"]
    assert left["checkpoints"] == there["checkpoints"]
    assert there["checkpoints"].keys() == {"step-00000001"}
    assert disk.renamed_too_early == []


def test_new_folders_deep_below(tmp_path):
    with PowerCut(tmp_path) as disk:
        files.replace_file(tmp_path / "new" / "deep" / "a.json", lambda new: new.write_text("new"))
        files.make_folder(tmp_path / "new" / "empty")
        files.make_folder(tmp_path / "new")  # is there
    assert_durable(disk, tmp_path)
    assert disk.left(tmp_path) == {"new": {"deep": {"a.json": b"new"}, "empty": {}}}
    with pytest.raises(FileExistsError):
        files.make_folder(tmp_path / "new" / "deep" / "a.json")


@pytest.mark.parametrize("over", [False, True])
def test_token_shards(tmp_path, over):
    (tmp_path / "a.txt").write_text("to be or not to be, " * 9)
    tokenizer = Tokenizer.named("shakespeare")
    if over:
        prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer, shard_tokens=9, progress=False)
        (tmp_path / "a.txt").write_text("that is the question, " * 20)
    with PowerCut(tmp_path) as disk:
        prepare(tmp_path / "a.txt", tmp_path / "out", tokenizer, shard_tokens=30, overwrite=over, progress=False)
    assert_durable(disk, tmp_path / "out")
    assert disk.left(tmp_path)["out"] == real(tmp_path / "out")
    assert len(TokenDataset.open(tmp_path / "out", verify=True).shards) > 1
