"""Our writer of safetensors, read back by the library's own reader."""

from __future__ import annotations

import json
import weakref

import pytest
import torch
from safetensors import safe_open

from fastgpt.model.formats import tensor_file
from fastgpt.model.formats.tensor_file import read_safetensors, write_safetensors
from fastgpt.train.training_state import optimizer_tensors

from ..training import tiny_trainer

DTYPES = sorted(tensor_file._NAMES, key=str)


def read_back(path) -> dict[str, torch.Tensor]:
    with safe_open(path, framework="pt") as file:
        assert file.metadata()["format"] == "pt"
        return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def same(a: torch.Tensor, b: torch.Tensor) -> bool:
    if a.dtype != b.dtype or a.shape != b.shape:
        return False
    one, other = (torch.cat([x.reshape(-1), x.reshape(-1)]).view(torch.uint8) for x in (a, b))  # new, so dense, memory
    return torch.equal(one, other)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_every_dtype_and_layout_comes_back_to_the_bit(tmp_path, seed, dtype):
    generator = torch.Generator().manual_seed(seed)
    width = torch.empty(0, dtype=dtype).element_size()
    content = torch.randint(0, 2 if dtype == torch.bool else 256, (6, 4 * width), generator=generator).to(torch.uint8)
    full = content.view(dtype)
    tensors = {
        "whole": full, "0-d": full[0, 0].clone(), "none": full[:0].clone(), "transposed": full.t(),
        "columns": full[:, ::3],
        "one": full.clone()[1:2, 0], "expanded": full[2, :1].expand(3, 2),
        "byte": torch.tensor([7], dtype=torch.uint8),
        'a name, "quoted" and ü': full.flip(0),
    }  # fmt: skip
    write_safetensors(tmp_path / "x.safetensors", tensors)
    for found in (read_back(tmp_path / "x.safetensors"), read_safetensors(tmp_path / "x.safetensors")):
        assert found.keys() == tensors.keys()
        for name, tensor in tensors.items():
            assert same(found[name], tensor), name


def test_lazy_views_are_what_they_stand_for(tmp_path):
    z = torch.tensor([1 + 2j, 3 - 4j], dtype=torch.complex64)
    write_safetensors(
        tmp_path / "x.safetensors", {"conj": z.conj(), "neg": z.conj().imag, "grad": torch.ones(2).requires_grad_()}
    )
    found = read_back(tmp_path / "x.safetensors")
    assert found["conj"].tolist() == z.conj().tolist()
    assert found["neg"].tolist() == [-2.0, 4.0]


def test_equal_tensors_give_equal_bytes_in_any_order(tmp_path):
    tensors = {"b": torch.ones(3), "a": torch.zeros(2, dtype=torch.int8), "c": torch.zeros(1, dtype=torch.int64)}
    write_safetensors(tmp_path / "x", tensors)
    write_safetensors(tmp_path / "y", dict(reversed(tensors.items())))
    assert (tmp_path / "x").read_bytes() == (tmp_path / "y").read_bytes()
    content = (tmp_path / "x").read_bytes()
    header = json.loads(content[8 : 8 + int.from_bytes(content[:8], "little")])
    assert [header[name]["data_offsets"] for name in "cba"] == [[0, 8], [8, 20], [20, 22]]  # all aligned
    write_safetensors(tmp_path / "none", {})
    assert read_safetensors(tmp_path / "none") == {}


def test_what_no_file_can_keep_is_refused_before_it_is_written(tmp_path):
    x = torch.arange(12.0).reshape(3, 4)
    for tensors, error, message in (
        ({"a": x, "b": x}, RuntimeError, "a and b share memory"),
        ({"a": x[:2], "b": x[1:]}, RuntimeError, "a and b share memory"),
        ({"a": x, "b": x.view(4, 3).detach()}, RuntimeError, "a and b share memory"),
        ({"a": torch.zeros(2, dtype=torch.complex128)}, ValueError, r"safetensors has no torch\.complex128"),
        ({"a": x.to_sparse()}, ValueError, r"no tensors of layout torch\.sparse_coo"),
    ):
        with pytest.raises(error, match=message):
            write_safetensors(tmp_path / "x", tensors)
        assert not (tmp_path / "x").exists()
    write_safetensors(tmp_path / "x", {"a": x[:2], "b": x[2:], "c": x.t()})  # side by side, and what is copied anyway


def test_no_more_than_one_tensor_is_copied_at_a_time(tmp_path, monkeypatch):
    """Of tensors that must be copied, as all are on a GPU."""
    bytes_of, copies, alive = tensor_file._bytes_of, [], []

    def counted(tensor):
        values = bytes_of(tensor)
        alive.append(sum(copy() is not None for copy in copies))
        copies.append(weakref.ref(values))
        return values

    monkeypatch.setattr(tensor_file, "_bytes_of", counted)
    write_safetensors(tmp_path / "x", {str(n): torch.ones(3, 4).t() for n in range(5)})
    assert alive == [0, 1, 1, 1, 1]  # that of the tensor before is let go when the name gets the next


def test_saving_copies_neither_weights_nor_moments(tmp_path, monkeypatch):
    trainer = tiny_trainer(tmp_path, name="a", val=False)
    trainer.train_step()
    states = [value for state in trainer.optimizer.state.values() for value in state.values()]
    tensors = optimizer_tensors(trainer.model, trainer.optimizer)
    assert {tensor.data_ptr() for tensor in tensors.values()} == {value.data_ptr() for value in states}
    monkeypatch.setattr(torch, "allclose", None)  # four copies, to see that a tied weight is itself
    contiguous = torch.Tensor.contiguous

    def the_same(tensor, *args, **options):
        found = contiguous(tensor, *args, **options)
        assert found.data_ptr() == tensor.data_ptr()
        return found

    monkeypatch.setattr(torch.Tensor, "contiguous", the_same)
    trainer.save()
