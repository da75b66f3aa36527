"""A run whose data changed while it was away is told so; one whose data only lies elsewhere goes on."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import numpy as np
import pytest

from fastgpt.base import checksums
from fastgpt.data import TokenDataset, prepare
from fastgpt.data.tokenizer import Tokenizer
from fastgpt.train import run_folder
from fastgpt.train.run_folder import SettingsChanged
from tests.support import command

from ..training import tiny_data, tiny_model, tiny_trainer
from .test_shards import big, flip

TINY = [
    "--tokenizer", "shakespeare", "--n-layers", "1", "--n-heads", "2", "--d-model", "16", "--max-len", "16", "--steps",
    "1", "--batch-size", "2", "--no-tensorboard", "--no-progress", "--threads", "1", "--device", "cpu",
]  # fmt: skip
TEXT = "To be, or not to be, that is the question. " * 20
OTHER = "To be, or not to be, this is the question. " * 20  # of as many tokens


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Path:
    """runs/text, trained on a text; runs/set, on a token folder, validated on another."""
    folder = tmp_path_factory.mktemp("trained")
    for name, text in (("a.txt", TEXT), ("b.txt", OTHER)):
        (folder / name).write_text(text)
        tokens = prepare(folder / name, folder / name[0], Tokenizer.named("shakespeare"), progress=False)
    assert len(tokens) == len(TokenDataset.open(folder / "a"))
    for name, data in (("text", ["a.txt"]), ("set", ["a", "--val-data", "b"])):
        done = train(folder, *TINY, "--name", name, "--data", *data)
        assert done.code == 0, done.err
    return folder


@pytest.fixture
def here(trained, tmp_path) -> Path:
    return Path(shutil.copytree(trained, tmp_path / "here"))


def train(folder: Path, *argv: str) -> command.Done:
    return command.run("train", *argv, cwd=folder, FASTGPT_CACHE=str(folder / "cache"))


def refused(done: command.Done) -> str:
    assert (done.code, done.err.count("\n")) == (2, 1), done.err
    return done.err


# ---- in Python -----------------------------------------------------------------------------------------------------


def test_other_data_of_the_same_length_is_refused(tmp_path, caplog):
    tiny_trainer(tmp_path, name="a", steps=2).fit()
    trainer = tiny_trainer(tmp_path, name="a", steps=2)
    trainer.train_data = tiny_data(seed=5)
    with pytest.raises(SettingsChanged, match=r"other training data \(sha256 [0-9a-f]{8}, now [0-9a-f]{8}\)") as found:
        trainer.fit(resume=True)
    assert found.value.differences.keys() == {"train_sha256"}
    trainer = tiny_trainer(tmp_path, name="a", steps=2)
    trainer.val_data = tiny_data(200, seed=6)
    with pytest.raises(SettingsChanged, match="other validation data"):
        trainer.fit(resume=True)
    trainer.fit(resume=True, allow_changes=True)
    assert "going on with changes: other validation data (sha256 " in caplog.text


def test_a_checkpoint_that_names_no_data_goes_on(tmp_path):
    trainer = tiny_trainer(tmp_path, name="a", steps=2)
    now = trainer._record()
    before = {name: value for name, value in now.items() if name not in ("train_sha256", "val_sha256")}
    assert len(before) == len(now) - 2
    assert run_folder.differences(before, now) == {}


def test_a_shard_that_is_cut_while_training_costs_nothing(tmp_path):
    """In a process of its own, for a map that is read beyond its file's end would end it."""
    (tmp_path / "a.txt").write_text(TEXT)
    dataset = prepare(tmp_path / "a.txt", tmp_path / "set", Tokenizer.named("shakespeare"), progress=False)
    trainer = tiny_trainer(tmp_path, model=tiny_model(), val=False, name="a", steps=9)
    trainer.train_data = trainer.sampler.dataset = dataset
    trainer.sampler.n_windows = (len(dataset) - 1) // 16
    child = os.fork()
    if child == 0:
        step = trainer.begin_step

        def cut_after_two():
            if trainer.step == 2:
                os.truncate(tmp_path / "set" / "tokens-00000.bin", 40)
            return step()

        trainer.begin_step = cut_after_two
        try:
            trainer.fit()
        except ValueError as error:
            (tmp_path / "said").write_text(str(error))
        os._exit(0)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert "tokens-00000.bin: cut to 40 bytes" in (tmp_path / "said").read_text()
    (kept,) = (tmp_path / "a" / "checkpoints").iterdir()
    assert kept.name in ("step-00000002", "step-00000003")  # the third step's batch was made before the cut, or not


# ---- on the command line -------------------------------------------------------------------------------------------


def test_an_edited_text_is_noticed_on_resume(here):
    (here / "a.txt").write_text(OTHER)
    said = refused(train(here, "--resume", "--name", "text"))
    assert "runs/text was trained with other training data (sha256 " in said
    assert "give it the same, or go on with the new by --allow-changes" in said
    assert train(here, "--resume", "--name", "text", "--allow-changes").code == 0


def test_a_text_that_is_tokenized_again_is_the_same(here):
    shutil.rmtree(here / "cache")
    (here / "a.txt").touch()
    done = train(here, "--resume", "--name", "text")
    assert done.code == 0, done.err


def test_shards_replaced_by_a_set_of_the_same_length(here):
    for one, other in (("a", "b"), ("b", "a")):
        (here / one).rename(here / f"was-{one}")
        shutil.copytree(here / (f"was-{other}" if other == "a" else other), here / one)
    said = refused(train(here, "--resume", "--name", "set"))
    assert "other training data (sha256 " in said
    assert "other validation data (sha256 " in said


def test_data_that_was_moved_is_the_same(here):
    (here / "a").rename(here / "moved")
    shutil.copytree(here / "b", here / "copied", copy_function=shutil.copyfile)
    done = train(here, "--resume", "--name", "set", "--data", "moved", "--val-data", "copied")
    assert done.code == 0, done.err
    said = refused(train(here, "--resume", "--name", "set", "--data", "b", "--val-data", "moved"))
    assert "--data a, now b; --val-data b, now moved; other training data" in said


@pytest.mark.parametrize("name", ["a/tokens-00000.bin", "a/documents.npy", "a/manifest.json", "b/tokens-00000.bin"])
def test_a_flipped_bit_is_noticed_by_train_resume_and_eval(here, name):
    flip(here / name)
    option = "--data" if name.startswith("a") else "--val-data"
    for argv in (["--resume", "--name", "set"], [*TINY, "--name", "new", "--data", "a", "--val-data", "b"]):
        said = refused(train(here, *argv))
        assert said.startswith(f"fastgpt train: error: {option} {name}: "), said
    done = command.run("eval", "runs/set", "--data", name[0], "--device", "cpu", cwd=here)
    assert refused(done).startswith(f"fastgpt eval: error: --data {name}: ")


def test_verify_reads_every_byte(here):
    """Of a file so large that its time stamp is believed."""
    big(here / "big", 600_000, 1 << 20)
    path = here / "big" / "tokens-00000.bin"
    times = path.stat()
    flip(path)
    os.utime(path, ns=(times.st_atime_ns, times.st_mtime_ns))
    evaluated = ["eval", "runs/set", "--data", "big", "--max-batches", "1", "--device", "cpu"]
    assert command.run(*evaluated, cwd=here).code == 0
    for argv in (["train", *TINY, "--name", "new", "--data", "big"], evaluated):
        done = command.run(*argv, "--verify", cwd=here)
        assert "--data big/tokens-00000.bin: its sha256 is not the manifest's" in refused(done)


def test_verify_reads_the_checkpoint_too(here):
    """What is not read otherwise: the optimizer's moments."""
    (path,) = (here / "runs" / "set" / "checkpoints").glob("*/training.safetensors")
    data, times = bytearray(path.read_bytes()), path.stat()
    path.write_bytes(bytes(data) + bytes(1 << 20))  # so large that its time stamp is believed
    flipped = path.stat()
    checksums.write(path.parent)
    data[-1] ^= 1
    path.write_bytes(bytes(data) + bytes(1 << 20))
    os.utime(path, ns=(times.st_atime_ns, flipped.st_mtime_ns))
    new = ["train", *TINY, "--name", "new", "--data", "a", "--init-from", "runs/set"]
    for argv in (["eval", "runs/set", "--data", "a", "--device", "cpu"], new):
        assert "training.safetensors: corrupted or altered" in refused(command.run(*argv, "--verify", cwd=here))
        assert command.run(*argv, cwd=here).code == 0, argv


@pytest.mark.parametrize("lost", ["gone", "a folder"])
def test_a_folder_that_lost_its_manifest_is_no_folder_of_texts(here, lost):
    (here / "a" / "manifest.json").unlink()
    if lost == "a folder":
        (here / "a" / "manifest.json").mkdir()
    assert "--data a/manifest.json: " in refused(train(here, *TINY, "--name", "new", "--data", "a"))


def test_documents_that_lie_in_memory_and_on_disk_are_the_same_to_a_run(here):
    tokenizer = Tokenizer.named("shakespeare")
    memory = TokenDataset.from_documents([tokenizer.encode(TEXT)], tokenizer)
    assert memory.split(0.2)[0].sha256 == TokenDataset.open(here / "a").split(0.2)[0].sha256
    assert np.array_equal(memory.documents, [0])
