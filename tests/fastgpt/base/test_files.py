"""Files on disk: whole or not there, with the user's permissions, with a hash that damage does not have."""

from __future__ import annotations

import json
import os
import signal
import stat

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch.utils._python_dispatch import TorchDispatchMode

from fastgpt import GPT, GPTConfig, OneHeadLM
from fastgpt.base import files
from fastgpt.data.tokenizer import Tokenizer
from fastgpt.model.formats import folder, tensor_file

SHAPE = {"vocab_size": 61, "max_len": 24, "n_layers": 2, "n_heads": 4, "d_model": 32}
TENSORS = {
    "a": torch.arange(6.0).reshape(2, 3),
    "b": torch.tensor(3.0, dtype=torch.bfloat16),
    "c": torch.tensor([True, False]),
    "none": torch.zeros(0, 4),
    "t": torch.arange(6).reshape(2, 3).t(),
    "one": torch.arange(6.0)[::6],
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
    tensor_file.write_safetensors(path, TENSORS)
    found = tensor_file.read_safetensors(path)
    assert found.keys() == TENSORS.keys()
    for name, tensor in TENSORS.items():
        assert torch.equal(found[name], tensor), name
        assert found[name].dtype == tensor.dtype, name
    assert tensor_file.tensors_sha256(found) == tensor_file.tensors_sha256(TENSORS)
    for other in ({"a": TENSORS["a"].reshape(3, 2)}, {"b": TENSORS["b"].view(torch.int16)}, {"c": ~TENSORS["c"]}):
        assert tensor_file.tensors_sha256(TENSORS | other) != tensor_file.tensors_sha256(TENSORS)


def test_four_bytes_overwritten_anywhere_are_found(model, seed):
    path = model / "model.safetensors"
    whole = path.read_bytes()
    header = 8 + int.from_bytes(whole[:8], "little")
    for at in (*range(0, header, 61), header - 30, header, (header + len(whole)) // 2, len(whole) - 4):
        overwrite(path, at, bytes(b ^ 0x15 for b in whole[at : at + 4]))
        with pytest.raises(ValueError, match=r"model\.safetensors is (truncated or )?corrupted"):
            tensor_file.read_safetensors(path)
        path.write_bytes(whole)
    record = whole.index(b"fastgpt_sha256")
    for at in (record, record + 10, whole.index(b'"format"') + 2, whole.index(b'"pt"')):
        overwrite(path, at, b"fort")
        with pytest.raises(ValueError, match=r"model\.safetensors is (truncated or )?corrupted"):
            tensor_file.read_safetensors(path)
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


def test_what_describes_the_other_files_takes_its_place_after_them(tmp_path, monkeypatch):
    """A process killed between two renames leaves no description of files that are still to come."""
    renamed = []
    monkeypatch.setattr(files.os, "replace", lambda new, path: renamed.append(path.name))
    files.replace_files(tmp_path, lambda work: [(work / name).touch() for name in ("a.json", "b.bin", "c.json", "d")])
    assert renamed == ["b.bin", "d", "a.json", "c.json"]


def test_a_folder_with_other_files_keeps_them(model):
    (model / "notes.txt").write_text("mine")
    GPT(GPTConfig(**SHAPE)).save_pretrained(model)
    assert sorted(p.name for p in model.iterdir()) == ["config.json", "model.safetensors", "notes.txt"]


def test_reading_a_model_draws_no_numbers_first():
    # On meta tensors that imports torch._dynamo, a second of every command.
    called = []

    class Record(TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            called.append(func.name())
            return func(*args, **(kwargs or {}))

    with Record():
        made = folder.skeleton(lambda: GPT(GPTConfig(**SHAPE)))
    assert "aten::empty.memory_format" in called
    assert not any("normal" in name or "fill" in name or "zero" in name for name in called)
    assert made.state_dict().keys() == GPT(GPTConfig(**SHAPE)).state_dict().keys()
    assert {p.device.type for p in made.parameters()} == {"meta"}


# ---- what from_pretrained is given ---------------------------------------------------------------------------------


def test_what_is_no_checkpoint_is_named(model):
    text = model.parent / "notes.txt"
    text.write_text("x")
    for path, error, message in (
        (None, TypeError, r"path_or_name=None must be the path of a saved model"),
        (3, TypeError, r"path_or_name=3 must be"),
        (text, FileNotFoundError, r"is a file, and no checkpoint"),
        ("x" * 300, FileNotFoundError, r"does not exist"),
    ):
        with pytest.raises(error, match=message):
            GPT.from_pretrained(path)
    assert GPT.from_pretrained(model / "model.safetensors").config == GPT.from_pretrained(model).config


def test_weights_under_another_name_are_named(model):
    (model / "model.safetensors").rename(model / "pytorch_model-best.safetensors")
    with pytest.raises(FileNotFoundError, match=r"pytorch_model-best.safetensors is there: if that .*, rename it"):
        GPT.from_pretrained(model)


def test_weights_without_a_config_are_named(model):
    (model / "config.json").unlink()
    with pytest.raises(FileNotFoundError, match=r"model.safetensors is there: put the model's config.json beside it"):
        GPT.from_pretrained(model)


def test_a_run_names_its_newest_checkpoint(tmp_path):
    for step in (9, 10):
        (tmp_path / "checkpoints" / f"step-{step:08d}").mkdir(parents=True)
    with pytest.raises(FileNotFoundError, match=r"holds a run: .*checkpoints/step-00000010' is the newest"):
        GPT.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is truncated, corrupted"),
        (b"text", "is truncated, corrupted"),
        ([1, 2], r"a nanoGPT checkpoint is a dict.*list"),
        ({1: 2, "model": {}}, r"a nanoGPT checkpoint is a dict with"),
        ({"model": [], "model_args": {}}, r"'model' is a list, in nanoGPT's a dict"),
        ({"model": {}, "model_args": {"n_layer": "2"}}, r"model_args lacks"),
    ],
)
def test_files_of_torch_that_hold_no_model(tmp_path, content, message):
    path = tmp_path / "ckpt.pt"
    if isinstance(content, bytes):
        path.write_bytes(content)
    else:
        torch.save(content, path)
    with pytest.raises(ValueError, match=message):
        GPT.from_pretrained(path)


def test_four_bytes_overwritten_in_a_torch_file_are_found(tmp_path):
    GPT(GPTConfig(**SHAPE)).save_pretrained(tmp_path, "nanogpt")
    path = tmp_path / "ckpt.pt"
    whole = path.read_bytes()
    for at in range(0, len(whole) - 4, 9973):
        overwrite(path, at, bytes(b ^ 0x15 for b in whole[at : at + 4]))
        with pytest.raises(ValueError, match=r"ckpt\.pt.*corrupted"):
            folder.read_pickle(path)
        path.write_bytes(whole)
    torch.serialization.set_crc32_options(False)
    try:
        torch.save({"a": torch.ones(3)}, path)
    finally:
        torch.serialization.set_crc32_options(True)
    assert folder.read_pickle(path)["a"].tolist() == [1.0] * 3


def test_weights_that_are_no_dict_of_tensors(model):
    (model / "model.safetensors").unlink()
    for content in ([1], {"a": 1}):
        torch.save(content, model / "pytorch_model.bin")
        with pytest.raises(ValueError, match=r"pytorch_model\.bin holds no dict of tensors"):
            GPT.from_pretrained(model)


def test_a_config_that_cannot_be_names_the_file(model):
    path = model / "config.json"
    fields = json.loads(path.read_text())
    for name, value in (("n_layers", "2"), ("dropout", 7), ("gelu", None), ("vocab_size", None)):
        path.write_text(json.dumps(fields | {name: value}))
        with pytest.raises(ValueError, match=rf"^{path}: .*{name}") as raised:
            GPT.from_pretrained(model)
        assert not hasattr(raised.value, "need")  # a SettingError would name the command's own option


def test_files_of_a_training_checkpoint_are_checked_when_read(model):
    names = ["config.json", "model.safetensors", "fastgpt_tokenizer.json"]
    Tokenizer.named("shakespeare").save(model)
    save_file(load_file(model / "model.safetensors"), model / "model.safetensors")  # as before it had its own hash
    (model / "checksums.json").write_text(json.dumps({name: files.sha256(model / name) for name in names}))
    GPT.from_pretrained(model)
    for name, read in zip(names, (GPT.from_pretrained, GPT.from_pretrained, Tokenizer.from_pretrained)):
        whole = (model / name).read_bytes()
        (model / name).write_bytes(whole.replace(b" ", b"\t", 1))
        with pytest.raises(ValueError, match=rf"{name}: corrupted or altered"):
            read(model)
        (model / name).write_bytes(whole)
    (model / "checksums.json").write_text("[]")
    with pytest.raises(ValueError, match=r"checksums\.json: corrupted"):
        GPT.from_pretrained(model)


def test_one_format_does_not_hide_behind_another(model):
    with pytest.raises(ValueError, match=r"holds another model \(config.json\)"):
        GPT(GPTConfig(**SHAPE)).save_pretrained(model, "nanogpt")
    with pytest.raises(ValueError, match=r"save_pretrained: folder='.*config.json' is a file; choose a folder"):
        GPT(GPTConfig(**SHAPE)).save_pretrained(model / "config.json")
    with pytest.raises(TypeError, match=r"save_pretrained: folder=None must be the path"):
        GPT(GPTConfig(**SHAPE)).save_pretrained(None)


@pytest.mark.parametrize(
    ("config", "kept"),
    [
        ('{"model_type": "llama"}', True),
        ('{"port": 80}', True),
        ("[]", True),
        ('{"model_type": "gpt2"}', False),
        ('{"model_type": "fastgpt-one-head"}', False),
        ('{"n_layers": 1}', False),
        ('{"model_type": ', False),
    ],
)
@pytest.mark.parametrize("make", [lambda: GPT(GPTConfig(**SHAPE)), lambda: OneHeadLM(61, 16, 24)])
def test_another_programs_config_is_not_replaced(tmp_path, config, kept, make):
    (tmp_path / "config.json").write_text(config)
    (tmp_path / "model.safetensors").write_bytes(b"theirs")
    if kept:
        with pytest.raises(ValueError, match=r"which would be lost; choose another folder"):
            make().save_pretrained(tmp_path)
    else:
        make().save_pretrained(tmp_path)
    assert ((tmp_path / "model.safetensors").read_bytes() == b"theirs") == kept


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("dtype", [torch.float16, torch.float32])
def test_numbers_that_are_not_finite_are_counted(bad, dtype):
    tensor = torch.full((7,), torch.finfo(dtype).max, dtype=dtype)
    folder.check_finite(tensor, "x")  # whose sum overflows
    tensor[3] = bad
    with pytest.raises(ValueError, match="x holds 1 of 7 numbers"):
        folder.check_finite(tensor, "x")
