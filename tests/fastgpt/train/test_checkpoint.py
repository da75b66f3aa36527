"""Checkpoints are whole or absent: full disks, corruption, foreign shapes; nothing is pickled."""

from __future__ import annotations

import dataclasses
import errno
import hashlib
import json
import os
import resource

import pytest
import torch
from safetensors import SafetensorError

from fastgpt import GPT
from fastgpt.data.tokenizer import Tokenizer
from fastgpt.train import checkpoint
from fastgpt.train.checkpoint import CheckpointError
from fastgpt.train.run_folder import SettingsChanged
from fastgpt.train.train_config import TrainConfig

from ..training import tiny_model, tiny_trainer


@pytest.fixture
def run(tmp_path):
    """A finished run with checkpoints of steps 4 and 8."""
    pytest.importorskip("tiktoken")
    trainer = tiny_trainer(tmp_path, name="a", save_every=4, tokenizer=Tokenizer.named("shakespeare"))
    trainer.fit()
    return tmp_path / "a" / "checkpoints"


def names(root) -> list[str]:
    return sorted(p.name for p in root.iterdir())


def test_layout(run):
    assert names(run) == ["step-00000004", "step-00000008"]
    assert names(run / "step-00000008") == [
        "checksums.json", "config.json", "fastgpt_tokenizer.json", "model.safetensors", "training.json",
        "training.safetensors",
    ]  # fmt: skip
    assert checkpoint.latest(run).name == "step-00000008"
    assert checkpoint.latest(run / "nowhere") is None


def test_a_checkpoint_is_a_model_folder(run):
    model = GPT.from_pretrained(run / "step-00000008")
    trained = tiny_trainer(run.parent.parent, name="a")
    trained.load(run / "step-00000008")
    for name, value in trained.model.state_dict().items():
        assert torch.equal(value, model.state_dict()[name])
    assert Tokenizer.from_pretrained(run / "step-00000008") == Tokenizer.named("shakespeare")


def test_nothing_is_pickled(run):
    for path in (run / "step-00000008").iterdir():
        start = path.read_bytes()[:16]
        assert start[:2] not in (b"PK", b"\x80\x02", b"\x80\x04"), path


def test_only_the_newest_are_kept(tmp_path):
    tiny_trainer(tmp_path, name="a", steps=8, save_every=1, keep=3).fit()
    assert names(tmp_path / "a" / "checkpoints") == [f"step-{n:08d}" for n in (6, 7, 8)]


def full_disk(path):
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC), str(path))


@pytest.mark.parametrize("where", ["model", "optimizer", "state", "flush"])
def test_full_disk_leaves_the_earlier_checkpoints_intact(tmp_path, run, monkeypatch, where):
    trainer = tiny_trainer(tmp_path, name="a", steps=12)
    if where == "model":
        monkeypatch.setattr(GPT, "save_pretrained", lambda self, folder: full_disk(folder))
    elif where == "optimizer":
        monkeypatch.setattr(checkpoint, "write_safetensors", lambda path, tensors: full_disk(path))
    elif where == "state":
        write = type(run).write_text
        monkeypatch.setattr(
            type(run), "write_text",
            lambda self, *a, **k: full_disk(self) if self.name == "training.json" else write(self, *a, **k),
        )  # fmt: skip
    else:
        fsync = os.fsync
        monkeypatch.setattr(
            os, "fsync",
            lambda n: full_disk(n) if ".writing-" in os.readlink(f"/proc/self/fd/{n}") else fsync(n),
        )  # fmt: skip
    with pytest.raises(CheckpointError, match=r"could not save .*step-00000012: .*No space left.*GB free.*--resume"):
        trainer.fit(resume=True, allow_changes=True)
    monkeypatch.undo()
    assert names(run) == ["step-00000004", "step-00000008"]
    for folder in run.iterdir():
        checkpoint.verify(folder)
    assert tiny_trainer(tmp_path, name="a", steps=12).fit(resume=True, allow_changes=True).step == 12


@pytest.mark.parametrize("is_saved", [True, False])
@pytest.mark.parametrize(
    ("number", "remedy"),
    [
        (errno.ENOSPC, "Free disk space"), (errno.EDQUOT, "Free disk space"), (errno.EACCES, "Fix the permissions"),
        (errno.EPERM, "Fix the permissions"), (errno.EROFS, "Mount it for writing"), (errno.EIO, "Check the disk"),
        (errno.ENAMETOOLONG, "Choose a shorter name"), (errno.EMFILE, "Raise the limit of open files (ulimit -n)"),
        (errno.EFBIG, "Raise the limit of a file's size (ulimit -f)"), (errno.EBUSY, "Mend that"),
    ],
)  # fmt: skip
def test_an_error_says_what_is_so_and_what_helps(tmp_path, number, remedy, is_saved):
    root = tmp_path / "checkpoints"
    if is_saved:
        (root / "step-00000001").mkdir(parents=True)
        (root / "step-00000001" / "config.json").touch()
    with pytest.raises(CheckpointError) as raised, checkpoint.atomic_folder(root / "step-00000002"):
        raise OSError(number, os.strerror(number))
    said = str(raised.value)
    assert said.startswith(f"could not save {root / 'step-00000002'}: {os.strerror(number)}")
    assert ("GB free there" in said) == (number == errno.ENOSPC)
    if is_saved:
        assert said.endswith(f"step-00000001 is kept. {remedy}, and go on with resume=True (--resume)")
    else:
        assert said.endswith(f"nothing is saved. {remedy}, and start again")


def test_a_models_own_writer_in_rust_says_no_space_too(tmp_path):
    message = r"GB free there\. nothing is saved\. Free disk space, and start again"
    with pytest.raises(CheckpointError, match=message), checkpoint.atomic_folder(tmp_path / "step-00000002"):
        raise SafetensorError("I/O error: No space left on device (os error 28)")


def test_the_writer_of_safetensors_fails_for_real(tmp_path, run):
    """A limit on file sizes makes the operating system refuse the write, as a full disk does."""
    trainer = tiny_trainer(tmp_path, name="a", steps=9)
    trainer.load(run / "step-00000008", allow_changes=True)
    trainer.train_step()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (50_000, limits[1]))
    try:
        with pytest.raises(CheckpointError, match=r"could not save .*step-00000009"):
            trainer.save()
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert names(run) == ["step-00000004", "step-00000008"]


def test_leftovers_of_a_killed_process_are_no_checkpoint(run, tmp_path):
    (run / ".writing-dead").mkdir()
    (run / ".writing-dead" / "model.safetensors").write_bytes(b"half")
    assert checkpoint.latest(run).name == "step-00000008"
    tiny_trainer(tmp_path, name="a", steps=9).fit(resume=True, allow_changes=True)
    assert names(run) == ["step-00000008", "step-00000009"]


@pytest.mark.parametrize("name", ["model.safetensors", "training.safetensors", "training.json"])
def test_corrupted_file_is_named_with_the_way_out(tmp_path, run, name):
    path = run / "step-00000008" / name
    data = bytearray(path.read_bytes())
    data[-3] ^= 1
    path.write_bytes(data)
    message = rf"{name}: corrupted.*go on from the one before it: fastgpt train --resume-from {run / 'step-00000004'} "
    with pytest.raises(CheckpointError, match=message):
        tiny_trainer(tmp_path, name="a").fit(resume=True)
    # The way out works, and what is damaged is no longer the newest.
    assert tiny_trainer(tmp_path, name="a").fit(resume=run / "step-00000004").step == 8
    assert names(run) == ["set-aside-step-00000008", "step-00000004", "step-00000008"]
    checkpoint.verify(run / "step-00000008")


def test_truncated_and_missing_files(tmp_path, run):
    path = run / "step-00000008" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:1000])
    with pytest.raises(CheckpointError, match="corrupted"):
        tiny_trainer(tmp_path, name="a").fit(resume=True)
    with pytest.raises(CheckpointError, match="cannot be read"):
        checkpoint.check_fits(path.parent, tiny_model())
    path.unlink()
    with pytest.raises(CheckpointError, match=r"model\.safetensors: missing"):
        tiny_trainer(tmp_path, name="a").fit(resume=True)
    (path.parent / "checksums.json").unlink()
    with pytest.raises(CheckpointError, match=r"checksums\.json: missing from the checkpoint"):
        tiny_trainer(tmp_path, name="a").fit(resume=True)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"d_model": 32}, r"in_proj_weight \(48, 16\) against the model's \(96, 32\)"),
        ({"n_layers": 2}, r"missing blocks\.1\."),
        ({"tie_weights": False}, r"missing head\.weight"),
    ],
)
def test_checkpoint_of_another_shape(tmp_path, run, options, message):
    trainer = tiny_trainer(tmp_path, model=tiny_model(**options), name="a")
    with pytest.raises(CheckpointError, match=rf"made by a model of another shape.*({message})"):
        trainer.fit(resume=True)


def test_fewer_layers_than_the_checkpoint(tmp_path):
    tiny_trainer(tmp_path, model=tiny_model(n_layers=2), name="b", steps=1).fit()
    with pytest.raises(CheckpointError, match=r"unknown blocks\.1\."):
        tiny_trainer(tmp_path, name="b", steps=2).fit(resume=True)


def test_other_data_is_refused(tmp_path, run):
    trainer = tiny_trainer(tmp_path, name="a")
    object.__setattr__(trainer.train_data, "tokenizer_sha256", "other-hash-of-ranks")
    with pytest.raises(CheckpointError, match=r"trained with the tokenizer 8a35.*made with other-hash-o"):
        trainer.fit(resume=True)
    with pytest.raises(SettingsChanged, match="was trained with seq_len=16, now 8"):
        tiny_trainer(tmp_path, name="a", seq_len=8).fit(resume=True)


def test_replacing_a_checkpoint_of_the_same_step(run, tmp_path):
    trainer = tiny_trainer(tmp_path, name="a")
    trainer.load(run / "step-00000008")
    with torch.no_grad():
        trainer.model.ln_f.weight.fill_(3.0)
    trainer.save()
    assert names(run) == ["step-00000004", "step-00000008"]
    assert (GPT.from_pretrained(run / "step-00000008").ln_f.weight == 3.0).all()


def test_a_checkpoint_of_the_first_version_loads(tmp_path):
    """Its blocks registered their parameters as ln1, attn, ln2, ffn, and training.json had the config alone."""
    options = {"grad_clip": 0}  # the gradient's norm is a sum in the parameters' order
    straight = tiny_trainer(tmp_path, name="straight", **options)
    straight.fit()
    model = tiny_model()
    for block in model.blocks:
        block._modules = {name: block._modules[name] for name in ("ln1", "attn", "ln2", "ffn")}
    tiny_trainer(tmp_path, model=model, name="a", save_every=5, **options).fit()
    root = tmp_path / "a" / "checkpoints"
    old = root / "step-00000005"
    state = json.loads((old / "training.json").read_text())
    names = [field.name for field in dataclasses.fields(TrainConfig) if field.name != "log_every"]
    asked = state.pop("settings")
    state["config"] = {name: asked[name] for name in names} | {"seq_len": None, "dtype": "auto"}
    (old / "training.json").write_text(json.dumps(state))
    hashes = json.loads((old / "checksums.json").read_text())
    hashes["training.json"] = hashlib.sha256((old / "training.json").read_bytes()).hexdigest()
    (old / "checksums.json").write_text(json.dumps(hashes))

    with pytest.raises(SettingsChanged, match=r"lr=0\.01, now 0\.5"):
        tiny_trainer(tmp_path, name="a", lr=0.5, **options).fit(resume=old)
    again = tiny_trainer(tmp_path, model=tiny_model(seed=7), name="a", **options)
    again.fit(resume=old)
    for (_, p), (_, q) in zip(straight.model.named_parameters(), again.model.named_parameters()):
        assert torch.equal(p, q)


def test_a_resumed_run_does_not_live_in_the_checkpoints_files(tmp_path, run):
    """They may be deleted, or truncated, while it goes on."""
    trainer = tiny_trainer(tmp_path, name="a")
    trainer.load(run / "step-00000008")
    (run / "step-00000008" / "training.safetensors").write_bytes(b"")
    (run / "step-00000008" / "model.safetensors").write_bytes(b"")
    trainer.train_step()
