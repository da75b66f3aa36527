"""Every file of a checkpoint, damaged in every way, in front of every reader: an error that names it."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch

from fastgpt import GPT, cli, interop
from fastgpt.base import checksums, files
from fastgpt.base.checksums import DamagedFile
from fastgpt.commands import _inputs
from fastgpt.data.tokenizer import Tokenizer
from fastgpt.model.formats.tensor_file import read_safetensors, write_safetensors
from fastgpt.train import checkpoint
from fastgpt.train.checkpoint import CheckpointError

from ..training import tiny_model, tiny_trainer

pytestmark = pytest.mark.needs("tiktoken")

NAMES = (
    "checksums.json", "config.json", "fastgpt_tokenizer.json", "model.safetensors", "tokenizer.tiktoken",
    "training.json", "training.safetensors",
)  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A run of 4 steps with checkpoints of steps 2 and 4, and a tokenizer that is not bundled."""
    folder = tmp_path_factory.mktemp("run")
    ranks = Tokenizer.named("shakespeare").ranks_file.splitlines()[:2000]
    own = Tokenizer("own", b"\n".join(ranks) + b"\n")
    trainer = tiny_trainer(folder, name="a", steps=4, save_every=2, val=False)
    trainer.tokenizer = own  # which its data need not be made with, for what is done here
    trainer.fit()
    return folder / "a"


@pytest.fixture
def whole(run, tmp_path):
    """The checkpoint of step 4, in a run that one may damage."""
    shutil.copytree(run, tmp_path / "a")
    return tmp_path / "a" / "checkpoints" / "step-00000004"


def change(path: Path, at: float, mask: int, count: int = 1) -> None:
    content = bytearray(path.read_bytes())
    begin = int(at * (len(content) - count))
    content[begin : begin + count] = bytes(byte ^ mask for byte in content[begin : begin + count])
    path.write_bytes(content)


def put_a_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def put_a_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


DAMAGES = {
    "emptied": lambda path: path.write_bytes(b""),
    "halved": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "garbled": lambda path: change(path, 0.5, 0x95, 16),
    "one bit": lambda path: change(path, 0.01, 0x04),
    "missing": lambda path: path.unlink(),
    "a folder": put_a_folder,
    "a pipe": put_a_pipe,
    "of another step": lambda path: shutil.copy(path.parent.with_name("step-00000002") / path.name, path),
}
READERS = {
    "fit(resume), --resume": checkpoint.read_state,
    "from_pretrained": GPT.from_pretrained,
    "open_model": interop.open_model,
    "sample, eval, inspect": lambda folder: _inputs.open_model(str(folder), torch.device("cpu"), None),
    "--init-from": interop.open_config,
    "the tokenizer": Tokenizer.from_pretrained,
}


@pytest.mark.parametrize("damage", DAMAGES)
@pytest.mark.parametrize("name", NAMES)
def test_a_damaged_file_is_named_by_every_reader(whole, name, damage):
    before = (whole / name).read_bytes()
    DAMAGES[damage](whole / name)
    if (whole / name).is_file() and (whole / name).read_bytes() == before:
        assert damage == "of another step"  # what all steps have in common
        return
    for reader, read in READERS.items():
        with pytest.raises((CheckpointError, OSError, ValueError), match=name.replace(".", r"\.")) as raised:
            read(whole)
        assert str(whole) in str(raised.value), reader


@pytest.mark.parametrize("number", [errno.EIO, errno.EACCES])
@pytest.mark.parametrize("name", ["checksums.json", "model.safetensors", "training.safetensors"])
def test_a_file_that_a_disk_does_not_give_is_named(whole, monkeypatch, name, number):
    """The system's error of a read has no name of a file, and of none of them the way out."""

    def failing(read):
        def wrapped(path, *args, **options):
            if path == whole / name:
                raise OSError(number, os.strerror(number))
            return read(path, *args, **options)

        return wrapped

    monkeypatch.setattr(checksums, "_known", {})  # as in a process that has hashed nothing yet
    monkeypatch.setattr(files, "sha256", failing(files.sha256))
    monkeypatch.setattr(files, "read_json", failing(files.read_json))
    message = rf"{name}: cannot be read \({os.strerror(number)}\); go on from the one before it: fastgpt train --res"
    with pytest.raises(CheckpointError, match=message):
        checkpoint.read_state(whole)


@pytest.mark.needs("tyro")
@pytest.mark.parametrize(
    "argv",
    [
        "train --resume --runs-dir {0} --name a", "train --resume-from {0}/a/checkpoints/step-00000004",
        "train --init-from {0}/a --name b", "sample {0}/a", "eval {0}/a", "inspect {0}/a To",
    ],
)  # fmt: skip
def test_every_command_notices_a_bit_in_a_file_that_it_may_not_read(whole, capsys, argv):
    change(whole / "training.safetensors", 0.9, 0x01)
    assert cli.main(argv.format(whole.parents[2]).split()) == 2
    said = capsys.readouterr().err
    assert "step-00000004/training.safetensors: corrupted or altered" in said
    assert said.count("\n") == 1


def test_any_bit_of_the_files_of_text(whole):
    for name in ("checksums.json", "config.json", "training.json"):
        content = (whole / name).read_bytes()
        for bit in range(0, 8 * len(content), 211):
            change(whole / name, bit // 8 / (len(content) - 1), 1 << bit % 8)
            with pytest.raises(DamagedFile):
                checksums.check(whole)
            (whole / name).write_bytes(content)
    checksums.check(whole)


def test_any_bit_of_a_file_of_tensors_that_stands_alone(tmp_path):
    path = tmp_path / "x.safetensors"
    write_safetensors(path, {"weight": torch.arange(6.0).reshape(2, 3), "bias": torch.tensor(3, dtype=torch.int8)})
    content = path.read_bytes()
    for bit in range(0, 8 * len(content), 13):
        path.write_bytes(content[: bit // 8] + bytes([content[bit // 8] ^ (1 << bit % 8)]) + content[bit // 8 + 1 :])
        with pytest.raises(ValueError, match=r"x\.safetensors is (truncated or )?corrupted"):
            read_safetensors(path)


NOTHING = ["{}", "null", "[]", "3", '{"stamps": {}}', '{"stamps": null}', '{"model.safetensors": null}', '{"a": {}}']


@pytest.mark.parametrize("text", NOTHING)
def test_a_record_of_nothing_verifies_nothing(whole, text):
    (whole / "checksums.json").write_text(text)
    for read in READERS.values():
        with pytest.raises((CheckpointError, ValueError), match=r"checksums\.json: corrupted"):
            read(whole)


@pytest.mark.parametrize("name", [name for name in NAMES if name != "checksums.json"])
@pytest.mark.parametrize("stamps", [True, False])
def test_a_record_that_lacks_a_file_is_no_record(whole, name, stamps):
    records = json.loads((whole / "checksums.json").read_text())
    del records[name]
    if not stamps:
        del records["stamps"]
    (whole / "checksums.json").write_text(json.dumps(records))
    for read in READERS.values():
        with pytest.raises((CheckpointError, ValueError), match=rf"checksums\.json: .* has no sha256 of {name}"):
            read(whole)


def test_a_checkpoint_under_another_steps_name_is_not_gone_on_from(whole):
    moved = whole.rename(whole.with_name("step-00000009"))
    with pytest.raises(CheckpointError, match=r"training\.json: of step 4, and not of step-00000009; go on from"):
        checkpoint.read_state(moved)


STATES = {
    "a step": {"step": True},
    "a tokenizer": {"tokenizer_sha256": None},
    "settings": {"settings": 3},
    "a sampler": {"sampler": None},
    "a position": {"sampler": {"position": -3, "seed": 0, "seq_len": 16, "n_tokens": 700}},
    "a seed": {"sampler": {"position": 3, "seed": "0", "seq_len": 16, "n_tokens": 700}},
    "a number of tokens": {"sampler": {"position": 3, "seed": 0, "seq_len": 16, "n_tokens": 0}},
    "what is owed": {"owed": 3},
    "owed lines": {"owed": {"lines": [1], "validation": True}},
    "an owed validation": {"owed": {"lines": [], "validation": 1}},
    "what another version owes": {"owed": {"lines": [], "validation": True, "scalars": []}},
    "trained parameters": {"trained": 3},
}


@pytest.mark.parametrize("state", STATES.values(), ids=STATES)
def test_a_state_that_is_none_is_named_though_its_hash_is_right(whole, state):
    path = whole / "training.json"
    checkpoint.read_state(whole)
    path.write_text(json.dumps(json.loads(path.read_text()) | state))
    checksums.write(whole)
    with pytest.raises(CheckpointError, match=r"training\.json: .*; go on from the one before it"):
        checkpoint.read_state(whole)


def test_files_of_a_models_own_are_recorded_too(tmp_path):
    class Own(type(tiny_model())):
        def save_pretrained(self, folder):
            super().save_pretrained(folder)
            (folder / "more").mkdir()
            (folder / "more" / "notes.txt").write_text("mine")

    model = Own(tiny_model().config)
    path = tiny_trainer(tmp_path, model=model, name="a", steps=1, val=False).fit().checkpoint
    checkpoint.verify(path)
    (path / "more" / "notes.txt").write_text("yours")
    with pytest.raises(CheckpointError, match=r"more/notes\.txt: corrupted or altered"):
        checkpoint.verify(path)


# ---- how much is read ----------------------------------------------------------------------------------------------


@pytest.fixture
def hashed(monkeypatch):
    """The names of the files that are hashed, in a world in which every file is large and old."""
    names: list[str] = []
    sha256 = files.sha256
    monkeypatch.setattr(files, "sha256", lambda path: (names.append(path.name), sha256(path))[1])
    monkeypatch.setattr(checksums, "_QUICK_FROM", 0)
    monkeypatch.setattr(checksums, "_SETTLED_NS", 0)
    return names


def test_a_resume_hashes_every_file_once(whole, hashed):
    checkpoint.verify(whole)
    tiny_trainer(whole.parents[2], name="a", steps=4, save_every=2, val=False).fit(resume=True)
    interop.open_model(whole)
    assert sorted(hashed) == sorted(set(NAMES) - {"checksums.json"})


def test_what_is_not_read_is_believed_by_its_stamp(whole, hashed):
    GPT.from_pretrained(whole)
    assert sorted(hashed) == ["config.json", "model.safetensors"]
    path = whole / "training.safetensors"
    os.utime(path, ns=(0, 0))  # a copy
    GPT.from_pretrained(whole)
    assert hashed[2:] == ["training.safetensors"]
    stamp = os.stat(path)
    change(path, 0.5, 0x10)
    os.utime(path, ns=(0, stamp.st_mtime_ns))
    with pytest.raises(DamagedFile, match=r"training\.safetensors: corrupted"):
        GPT.from_pretrained(whole)


def test_damage_behind_an_unchanged_stamp_is_seen_by_who_reads_and_by_a_whole_look(whole, hashed):
    path = whole / "training.safetensors"
    stamp = os.stat(path)
    change(path, 0.5, 0x10)
    os.utime(path, ns=(0, stamp.st_mtime_ns))
    GPT.from_pretrained(whole)
    for look in (checkpoint.verify, lambda folder: checksums.check(folder, whole=True)):
        with pytest.raises((CheckpointError, ValueError), match=r"training\.safetensors: corrupted"):
            look(whole)


def test_a_change_within_the_clocks_tick_is_seen(whole, hashed, monkeypatch):
    monkeypatch.setattr(checksums, "_SETTLED_NS", 2_000_000_000)
    checkpoint.verify(whole)
    checkpoint.verify(whole)
    assert len(hashed) == 2 * (len(NAMES) - 1)


def test_a_record_of_the_first_version_is_verified_whole(whole, hashed):
    records = json.loads((whole / "checksums.json").read_text())
    del records["stamps"]
    (whole / "checksums.json").write_text(json.dumps(records))
    assert GPT.from_pretrained(whole)
    assert sorted(hashed) == sorted(set(NAMES) - {"checksums.json"})
    change(whole / "training.json", 0.5, 0x01)
    with pytest.raises(DamagedFile, match=r"training\.json: corrupted"):
        GPT.from_pretrained(whole)


@pytest.mark.needs("tyro")
@pytest.mark.parametrize("argv", ["inspect {0}/a To", "eval {0}/a", "train --init-from {0}/a --name b"])
def test_commands_take_a_whole_look_if_they_are_asked_to(whole, hashed, capsys, argv):
    path = whole / "training.safetensors"
    stamp = os.stat(path)
    change(path, 0.5, 0x10)
    os.utime(path, ns=(0, stamp.st_mtime_ns))
    assert cli.main([*argv.format(whole.parents[2]).split(), "--device", "cpu", "--verify"]) == 2
    assert "step-00000004/training.safetensors: corrupted or altered" in capsys.readouterr().err


# ---- the settings of the run ---------------------------------------------------------------------------------------


@pytest.mark.needs("tyro")
@pytest.mark.parametrize("damage", ["emptied", "halved", "garbled", "a folder"])
def test_damaged_settings_are_named(whole, capsys, damage):
    runs = whole.parents[2]
    DAMAGES[damage](runs / "a" / "settings.json")
    with pytest.raises((OSError, ValueError), match=r"settings\.json: corrupted"):
        tiny_trainer(runs, name="a", steps=4, val=False).fit(resume=True)
    for argv in (["--resume", "--runs-dir", str(runs), "--name", "a"], ["--resume-from", str(whole)]):
        assert cli.main(["train", *argv]) == 2
        said = capsys.readouterr().err
        assert str(runs / "a" / "settings.json") in said
        assert said.count("\n") == 1
