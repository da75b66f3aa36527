"""What a checkpoint holds comes back to the bit; folders go by their numbers; hashes, locks and failures of files."""

from __future__ import annotations

import errno
import hashlib
import os
import signal

import pytest
import torch

from fastgpt.base import files
from fastgpt.model.formats.tensor_file import tensors_sha256
from fastgpt.train import checkpoint
from fastgpt.train.checkpoint import CheckpointError

from ..training import tiny_model, tiny_trainer


@pytest.fixture
def trained(tmp_path):
    """A trainer after two steps, and its checkpoint."""
    trainer = tiny_trainer(tmp_path, name="a")
    trainer.train_step()
    trainer.train_step()
    return trainer, trainer.save()


def test_all_of_the_state_comes_back(trained, tmp_path):
    trainer, path = trained
    state = torch.get_rng_state()
    again = tiny_trainer(tmp_path, model=tiny_model(seed=7), name="b")
    torch.manual_seed(12345)
    again.load(path)
    assert torch.equal(torch.get_rng_state(), state)
    assert (again.step, again.sampler.state_dict()) == (trainer.step, trainer.sampler.state_dict())
    for name, value in trainer.model.state_dict().items():
        assert torch.equal(again.model.state_dict()[name], value), name
    one, other = trainer.optimizer.state_dict(), again.optimizer.state_dict()
    assert one["state"].keys() == other["state"].keys()
    for number, moments in one["state"].items():
        assert moments.keys() == other["state"][number].keys() == {"step", "exp_avg", "exp_avg_sq"}
        for key, value in moments.items():
            assert other["state"][number][key].dtype == value.dtype, key
            assert torch.equal(other["state"][number][key], value), key
    for group, same in zip(one["param_groups"], other["param_groups"], strict=True):
        assert {k: v for k, v in group.items() if k != "lr"} == {k: v for k, v in same.items() if k != "lr"}
    following = []
    for one in (trainer, again):
        torch.set_rng_state(state)
        following.append(one.train_step())
    assert following[0] == following[1]


def test_what_was_loaded_does_not_change_with_the_files(trained, tmp_path):
    trainer, path = trained
    again = tiny_trainer(tmp_path, model=tiny_model(seed=7), name="b")
    again.load(path)
    for name in ("model.safetensors", "training.safetensors"):
        with open(path / name, "r+b") as file:
            file.write(bytes((path / name).stat().st_size))
    for one, other in zip(trainer.model.parameters(), again.model.parameters(), strict=True):
        assert torch.equal(one, other)
        for key, value in trainer.optimizer.state[one].items():
            assert torch.equal(value, again.optimizer.state[other][key]), key


def test_checkpoints_go_by_their_number(tmp_path):
    """Nine digits come after eight; what is no folder, is empty, or only begins like one, is none."""
    for name in ("step-00000009", "step-99999999", "step-100000000", "step-00000010", "step-00000011-copy", "step-12"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "model.safetensors").touch()
    (tmp_path / "step-00000013").mkdir()
    (tmp_path / "step-00000012").write_text("a file")
    found = checkpoint.all_checkpoints(tmp_path)
    assert [checkpoint.step_of(path) for path in found] == [9, 10, 99999999, 100000000]
    assert checkpoint.latest(tmp_path) == tmp_path / "step-100000000"
    checkpoint.prune(tmp_path, 3, found[-1])
    assert [checkpoint.step_of(path) for path in checkpoint.all_checkpoints(tmp_path)] == [10, 99999999, 100000000]


@pytest.mark.parametrize("text", ["{}", '{"model.safetensors": null}', "[]", "null", "", "{"])
def test_checksums_of_nothing_verify_nothing(trained, tmp_path, text):
    _, path = trained
    (path / "checksums.json").write_text(text)
    with pytest.raises(CheckpointError, match=str(path)):
        tiny_trainer(tmp_path, name="a").fit(resume=True)


def test_a_rename_that_fails_puts_the_old_one_back(trained, monkeypatch):
    trainer, path = trained
    before = {file.name: file.read_bytes() for file in path.iterdir()}
    with torch.no_grad():
        trainer.model.ln_f.weight.fill_(3.0)
    rename, failed = os.rename, []

    def failing(source, target, **options):
        if os.fspath(target) == str(path) and not failed:
            failed.append(source)
            raise OSError(errno.EIO, os.strerror(errno.EIO), str(source))
        rename(source, target, **options)

    monkeypatch.setattr(os, "rename", failing)
    with pytest.raises(CheckpointError, match="Input/output error"):
        trainer.save()
    assert failed
    assert [other.name for other in path.parent.iterdir()] == [path.name]
    assert {file.name: file.read_bytes() for file in path.iterdir()} == before


# ---- files ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("size", [0, 1, 1 << 20, (1 << 20) + 1, (5 << 19) + 7])
def test_every_byte_counts_in_a_hash(tmp_path, size):
    data = os.urandom(size)
    (tmp_path / "a").write_bytes(data)
    assert files.sha256(tmp_path / "a") == hashlib.sha256(data).hexdigest()


def test_names_count_in_the_hash_of_tensors():
    a, b = torch.ones(3), torch.zeros(3)
    assert tensors_sha256({"a": a, "b": b}) == tensors_sha256({"b": b, "a": a})
    assert tensors_sha256({"a": a, "b": b}) != tensors_sha256({"a": b, "b": a})
    assert tensors_sha256({"a": a}) != tensors_sha256({"c": a})


def test_an_fsync_that_fails_is_an_error(tmp_path, monkeypatch):
    """Of a file: its bytes may be lost. Some file systems have none for folders."""
    (tmp_path / "a").write_text("old")
    fsync = os.fsync

    def failing(descriptor: int) -> None:
        if os.path.isdir(f"/proc/self/fd/{descriptor}") == folders:
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", failing)
    folders = False
    with pytest.raises(OSError, match=r"could not write .*a \(Input/output error\)"):
        files.replace_file(tmp_path / "a", lambda new: new.write_text("new"))
    assert (tmp_path / "a").read_text() == "old"
    folders = True
    files.replace_file(tmp_path / "a", lambda new: new.write_text("new"))
    assert (tmp_path / "a").read_text() == "new"


def test_what_describes_the_others_is_replaced_last(tmp_path, monkeypatch):
    """A reader that finds the new config finds the new weights."""
    replace, order = os.replace, []
    monkeypatch.setattr(os, "replace", lambda a, b: order.append(os.path.basename(b)) or replace(a, b))
    files.replace_files(tmp_path, lambda work: [(work / name).write_text("") for name in ("a.json", "c", "b", "z.bin")])
    assert order == ["b", "c", "z.bin", "a.json"]


def test_a_lock_is_let_go_though_a_child_has_it_open(tmp_path):
    with files.locked(tmp_path):
        child = os.fork()
        if child == 0:
            signal.pause()
        with pytest.raises(BlockingIOError), files.locked(tmp_path):
            pass
    try:
        with files.locked(tmp_path):
            pass
    finally:
        os.kill(child, signal.SIGKILL)
        os.waitpid(child, 0)
