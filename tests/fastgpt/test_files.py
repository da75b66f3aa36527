"""Files on disk: whole or not there, with the user's permissions, with a hash that damage does not have."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file, save_file

from fastgpt import GPT, GPTConfig, files
from fastgpt.interop import folder

SHAPE = {"vocab_size": 61, "max_len": 24, "n_layers": 2, "n_heads": 4, "d_model": 32}
TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor(3.0, dtype=torch.bfloat16),
    "c": torch.tensor([True, False]),
    "none": torch.zeros(0, 4),
    "t": torch.arange(6).reshape(2, 3).t(),
}


@pytest.fixture
def model(tmp_path):
    GPT(GPTConfig(**SHAPE)).save_pretrained(tmp_path / "m")
    return tmp_path / "m"


def mode(path) -> int:
    return stat.S_IMODE(path.stat().st_mode)


def overwrite(path, at: int, new: bytes) -> None:
    with open(path, "r+b") as file:
        file.seek(at)
        file.write(new)


@pytest.mark.parametrize("umask", [0o022, 0o077, 0o002])
@pytest.mark.parametrize("format", ["fastgpt", "hf", "nanogpt"])
def test_model_files_have_the_users_permissions(tmp_path, umask, format):
    before = os.umask(umask)
    try:
        GPT(GPTConfig(**SHAPE, gelu="none")).save_pretrained(tmp_path / "new" / "m", format)
        with files.working_folder(tmp_path / "new") as work:
            assert mode(work) == 0o777 & ~umask
    finally:
        os.umask(before)
    for path in (tmp_path / "new" / "m").iterdir():
        assert mode(path) == 0o666 & ~umask, path
    assert mode(tmp_path / "new" / "m") == 0o777 & ~umask


def test_tensors_come_back_and_their_hash_is_written(tmp_path):
    path = tmp_path / "x.safetensors"
    folder.write_safetensors(path, TENSORS)
    found = folder.read_safetensors(path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype, name
    assert folder.tensors_sha256(found) == folder.tensors_sha256(TENSORS)
    for other in ({"a": TENSORS["a"].reshape(3, 2)}, {"b": TENSORS["b"].view(torch.int16)}, {"c": ~TENSORS["c"]}):
        assert folder.tensors_sha256(TENSORS | other) != folder.tensors_sha256(TENSORS)


def test_four_bytes_overwritten_anywhere_are_found(model, seed):
    path = model / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in (*range(0, header, 61), header - 30, header, (header + len(whole)) // 2, len(whole) - 4):
        overwrite(path, at, bytes(b ^ 0x15 for b in whole[at : at + 4]))
        with pytest.raises(ValueError, match=r"model\.safetensors is (truncated or )?corrupted"):
            folder.read_safetensors(path)
        path.write_bytes(whole)
    record = whole.index(b"fastgpt_sha256")
    for at in (record, record + 10, whole.index(b'"format"') + 2, whole.index(b'"pt"')):
        overwrite(path, at, b"fort")
        with pytest.raises(ValueError, match=r"model\.safetensors is (truncated or )?corrupted"):
            folder.read_safetensors(path)
        path.write_bytes(whole)
    GPT.from_pretrained(model)


def test_a_file_that_other_tools_wrote_anew_is_taken(model):
    tensors = load_file(model / "model.safetensors")
    tensors["ln_f.bias"] += 1.0
    save_file(tensors, model / "model.safetensors", {"format": "pt"})
    assert GPT.from_pretrained(model).ln_f.bias[0] == 1.0


def test_files_are_read_to_the_cpu_whatever_the_default_device(model):
    torch.set_default_device("meta")
    try:
        loaded = GPT.from_pretrained(model)
    finally:
        torch.set_default_device(None)
    assert {p.device.type for p in loaded.parameters()} == {"cpu"}
    assert torch.equal(loaded.token_emb.weight, load_file(model / "model.safetensors")["token_emb.weight"])


def test_a_failure_or_ctrl_c_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "a.json"
    path.write_text("old")
    for error in (KeyboardInterrupt(), OSError(28, "No space left on device"), RuntimeError("PytorchStreamWriter")):

        def write(new, error=error):
            new.write_text("half")
            raise error

        with pytest.raises(KeyboardInterrupt if isinstance(error, KeyboardInterrupt) else OSError) as raised:
            files.replace_file(path, write)
        if not isinstance(error, KeyboardInterrupt):
            assert str(raised.value).startswith(f"could not write {path} (")
            assert ".fastgpt-" not in str(raised.value)
        assert path.read_text() == "old"
        assert list(tmp_path.iterdir()) == [path]
    files.replace_file(path, lambda new: new.write_text("new"))
    assert path.read_text() == "new"


def test_paths_that_cannot_be_written_name_the_file(tmp_path):
    (tmp_path / "file").write_text("")
    for path, said in (
        (tmp_path / ("x" * 300), "File name too long"),
        (tmp_path / "file" / "a", "Not a directory|File exists"),
        (tmp_path, "it is a folder"),
    ):
        with pytest.raises(OSError, match=rf"could not write {path}.*({said}).*choose another"):
            files.replace_file(path, lambda new: new.write_text("x"))


def test_what_a_killed_process_left_is_removed_and_a_running_ones_is_not(tmp_path):
    told, tell = os.pipe()
    process = os.fork()
    if process == 0:
        with files.working_folder(tmp_path) as work:
            (work / "big").write_text("x")
            os.write(tell, b"!")
            signal.pause()
    try:
        os.read(told, 1)
        (theirs,) = tmp_path.iterdir()
        with files.working_folder(tmp_path) as ours:
            assert sorted(tmp_path.iterdir()) == sorted([theirs, ours])
    finally:
        os.kill(process, signal.SIGKILL)
        os.waitpid(process, 0)
    with files.working_folder(tmp_path) as ours:
        assert list(tmp_path.iterdir()) == [ours]
    assert list(tmp_path.iterdir()) == []


def test_weights_and_config_are_replaced_together(model, monkeypatch):
    before = (model / "model.safetensors").read_bytes()

    def full(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("pathlib.Path.write_text", full)
    with pytest.raises(OSError, match="No space left"):
        GPT(GPTConfig(**SHAPE | {"n_layers": 1})).save_pretrained(model)
    assert (model / "model.safetensors").read_bytes() == before
    GPT.from_pretrained(model)


def test_a_folder_with_other_files_keeps_them(model):
    (model / "notes.txt").write_text("mine")
    GPT(GPTConfig(**SHAPE)).save_pretrained(model)
    assert sorted(p.name for p in model.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]


def test_reading_a_model_does_not_import_dynamo(model):
    code = "import sys; from fastgpt import GPT; "
    code += "GPT.from_pretrained(sys.argv[1]); assert 'torch._dynamo' not in sys.modules"
    assert subprocess.run([sys.executable, "-c", code, str(model)], timeout=120).returncode == 0
