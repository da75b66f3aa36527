"""One run in one folder, one process in one run: the second gets one line, and a dead one keeps nobody out."""

from __future__ import annotations

import dataclasses
import errno
import fcntl
import os
import signal
import time

import pytest

from fastgpt.base import files
from fastgpt.data import TokenDataset
from fastgpt.data.tokenizer import Tokenizer
from fastgpt.train import run_folder
from fastgpt.train.trainer import Trainer

from ...support import command
from ..training import tiny_data, tiny_model, tiny_trainer

TINY = [
    "--data", "a.txt", "--val-fraction", "0.2", "--tokenizer", "shakespeare", "--n-layers", "1", "--n-heads", "2",
    "--d-model", "16", "--max-len", "16", "--batch-size", "2", "--steps", "3", "--no-tensorboard", "--device", "cpu",
]  # fmt: skip


def is_free(folder) -> bool:
    try:
        with files.locked(folder):
            return True
    except BlockingIOError:
        return False


def test_a_killed_run_holds_nothing_though_its_worker_lives(tmp_path):
    """As a DataLoader's worker, forked while the run held its folder, outlives it."""
    reader, writer = os.pipe()
    run = os.fork()
    if run == 0:
        with files.locked(tmp_path):
            worker = os.fork()
            if worker == 0:
                time.sleep(60)
                os._exit(0)
            os.write(writer, str(worker).encode())
            time.sleep(60)
            os._exit(0)
    worker = int(os.read(reader, 20))
    try:
        assert not is_free(tmp_path)
        os.kill(run, signal.SIGKILL)
        os.waitpid(run, 0)
        os.kill(worker, 0)  # it lives
        assert is_free(tmp_path)
    finally:
        os.kill(worker, signal.SIGKILL)
        os.close(reader)
        os.close(writer)


def test_a_forked_process_does_not_let_go_of_its_parents_lock(tmp_path):
    with files.locked(tmp_path):
        child = os.fork()
        if child == 0:
            try:
                raise RuntimeError  # leaves the block as an error would
            finally:
                os._exit(0)
        os.waitpid(child, 0)
        child = os.fork()
        if child == 0:
            os._exit(17 if is_free(tmp_path) else 0)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert is_free(tmp_path)


def test_without_locks_it_is_said_once(tmp_path, monkeypatch, caplog):
    def none(*args):
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", none)
    for _ in range(2):
        assert tiny_trainer(tmp_path, name="a", steps=1).fit(overwrite=True).step == 1
    assert caplog.text.count("this file system has no locks") == 1


@pytest.mark.needs("tyro", "rich", "tiktoken")
@pytest.mark.parametrize("how", [[], ["--resume"], ["--overwrite"]])
def test_a_second_command_beside_a_running_one(tmp_path, how):
    (tmp_path / "a.txt").write_text("To be, or not to be, that is the question. " * 40)
    cache = {"FASTGPT_CACHE": str(tmp_path / "cache")}
    if how:
        assert command.run("train", *TINY, cwd=tmp_path, **cache).code == 0
    else:
        (tmp_path / "runs" / "run").mkdir(parents=True)
    before = sorted(tmp_path.rglob("*"))
    with files.locked(tmp_path / "runs" / "run"):
        done = command.run("train", *TINY, *how, cwd=tmp_path, **cache)
    assert (done.code, done.out) == (2, "")
    assert done.err == (
        "fastgpt train: error: runs/run: another process is training there; wait for its end, or choose another name "
        "(--name)\n"
    )
    assert sorted(tmp_path.rglob("*")) == before


def test_two_ranks_of_a_script_in_one_folder(tmp_path, monkeypatch):
    monkeypatch.setenv("WORLD_SIZE", "2")
    trainer = tiny_trainer(tmp_path, name="a", steps=1)
    with (
        run_folder.alone(trainer.config),
        pytest.raises(FileExistsError, match=r"another process.* one of several processes: .*launch\.world"),
    ):
        tiny_trainer(tmp_path, name="a", steps=1).fit()
    assert trainer.fit().step == 1


def test_a_tokenizer_that_is_not_the_datas():
    tokenizer = Tokenizer.named("shakespeare")
    data = TokenDataset.from_documents([[1, 2, 3]], tokenizer)
    Trainer(tiny_model(), data, tokenizer=tokenizer)
    data = dataclasses.replace(data, tokenizer_sha256="other")
    message = r"Trainer: tokenizer='shakespeare' \(.*\) is not the one that train_data was made with \(other\.\.\.\)"
    with pytest.raises(ValueError, match=message):
        Trainer(tiny_model(), data, tokenizer=tokenizer)


def test_validation_data_that_is_the_training_data(caplog):
    Trainer(tiny_model(), tiny_data(), val_data=tiny_data())
    assert caplog.text.count("the validation data is the training data, tiny: ") == 1
    caplog.clear()
    Trainer(tiny_model(), tiny_data(), val_data=tiny_data(seed=1))
    assert not caplog.text


def test_what_a_killed_run_was_writing_goes_though_all_steps_are_done(tmp_path):
    tiny_trainer(tmp_path, name="a", steps=1).fit()
    before = sorted(tmp_path.rglob("*"))
    for name in (".fastgpt-0123abcd", "checkpoints/.writing-0123abcd"):
        (tmp_path / "a" / name).mkdir()
        (tmp_path / "a" / name / "half").touch()
    (tmp_path / "a" / ".mine").mkdir()
    assert tiny_trainer(tmp_path, name="a", steps=1).fit(resume=True).losses == []
    assert sorted(tmp_path.rglob("*")) == sorted([*before, tmp_path / "a" / ".mine"])
