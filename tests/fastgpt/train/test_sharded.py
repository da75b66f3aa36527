"""Checkpoints of many ranks: any number of them and any strategy writes, any other reads the same bits."""

from __future__ import annotations

import errno
import json
import os
import shutil
from pathlib import Path

import pytest
import torch
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard

from fastgpt import GPT, cli
from fastgpt.base import checksums, files
from fastgpt.model.formats import sharded
from fastgpt.parallel.world import OtherRankError, World
from fastgpt.train import checkpoint, run_record, step_folders
from fastgpt.train.checkpoint import CheckpointError
from fastgpt.train.optim import build_adamw
from fastgpt.train.saver import Saver
from tests.support.ranks import run_ranks

from ..training import tiny_data, tiny_model, tiny_trainer

# Fewer rows than ranks in some, and widths that 2 and 4 do not divide.
SHAPE = {"vocab_size": 11, "max_len": 3, "n_layers": 2, "n_heads": 2, "d_model": 6, "d_ff": 24, "dropout": 0.0}


def made(seed: int, rank: int, how: str):
    """A model, as it lies on this rank, and its optimizer; after two updates that depend on `seed` alone."""
    model = tiny_model(seed, **SHAPE)
    size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    if how in ("fsdp", "hsdp"):
        shape, names = ((size,), ("shard",)) if how == "fsdp" else ((2, size // 2), ("copy", "shard"))
        mesh = init_device_mesh("cpu", shape, mesh_dim_names=names)
        for block in model.blocks:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
    optimizer = build_adamw(model, 1e-2, weight_decay=0.1)
    for step in range(2):
        generator = torch.Generator().manual_seed(100 * seed + step)
        ids = torch.randint(0, 11, (2, 3), generator=generator)
        model(ids, ids).loss.backward()
        optimizer.step()
        optimizer.zero_grad()
    return model, optimizer


def whole(tensor: torch.Tensor) -> torch.Tensor:
    return (tensor.full_tensor() if hasattr(tensor, "full_tensor") else tensor).detach().clone()


def state_of(model, optimizer) -> dict[str, torch.Tensor]:
    """Every weight and moment, whole, by name: a collective."""
    found = {name: whole(tensor) for name, tensor in model.state_dict().items()}
    for name, parameter in model.named_parameters():
        found |= {f"{name} {kind}": whole(value) for kind, value in optimizer.state[parameter].items()}
    return found


def state(step: int) -> dict:
    return {
        "step": step, "sampler": {"position": 0, "seed": 5, "seq_len": 3, "n_tokens": 9}, "settings": {},
        "tokenizer_sha256": "",
    }  # fmt: skip


def saved(rank: int, folder: str, how: str, seed: int) -> dict[str, torch.Tensor]:
    """Saves under `how`, trains on while it is written, and returns what is to be in the checkpoint."""
    size = torch.distributed.get_world_size()
    world = World(rank, size, rank, size)
    model, optimizer = made(seed, rank, how)
    saver = Saver(world, strategy=how)
    expected = state_of(model, optimizer)
    torch.manual_seed(1000 + rank)
    expected["rng"] = torch.get_rng_state()
    target = checkpoint.folder_of(Path(folder), seed)
    saver.save(target, model, optimizer, state(seed))
    with torch.no_grad():  # what is saved is what was, whatever comes next
        for parameter in model.parameters():
            getattr(parameter, "to_local", lambda tensor=parameter: tensor)().fill_(9.0)
            moment = optimizer.state[parameter]["exp_avg"]
            getattr(moment, "to_local", lambda tensor=moment: tensor)().fill_(9.0)
            optimizer.state[parameter]["step"].fill_(9.0)
    torch.manual_seed(0)
    assert saver.holds(target)
    saver.wait()
    assert checkpoint.latest(folder) == target
    return expected


def loaded(rank: int, folder: Path, model, optimizer) -> dict[str, torch.Tensor]:
    """What a model of other weights has after loading."""
    size = torch.distributed.get_world_size() if torch.distributed.is_initialized() else 1
    world = World(rank, size, rank, size)
    assert checkpoint.read_state(folder, world)["step"] == checkpoint.step_of(folder)
    torch.manual_seed(0)
    checkpoint.restore(folder, model, optimizer, world)
    found = {"rng": torch.get_rng_state()}  # which a collective may use
    if model.config.tie_weights:
        assert model.head.weight is model.token_emb.weight
    return found | state_of(model, optimizer)


def differing(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> list[str]:
    assert one.keys() | {"rng"} == other.keys() | {"rng"}
    return [name for name in one if name != "rng" and not torch.equal(one[name], other[name])]


def all_of_them(rank: int, folder: str, alone: str) -> list:
    """Saves in each way; loads all of that, and a checkpoint of one process, in each way. Returns what differs."""
    size = torch.distributed.get_world_size()
    ways = ("ddp", "fsdp", "hsdp") if size > 2 else ("ddp", "fsdp")
    expected = {way: saved(rank, f"{folder}/{way}-{size}", way, seed) for seed, way in enumerate(ways, 1)}
    lying = {way: made(77, rank, way) for way in ways}
    found = []
    for seed, way in enumerate(ways, 1):
        path = checkpoint.folder_of(Path(f"{folder}/{way}-{size}"), seed)
        for other in ways:
            again = loaded(rank, path, *lying[other])
            found += [f"{way} by {other}: {name}" for name in differing(expected[way], again)]
            if not torch.equal(again["rng"], expected[way]["rng"]):
                found.append(f"{way} by {other}: random state")
    for fewer in sorted(Path(folder).glob("*-2")) if size > 2 else ():
        values = torch.load(fewer / "expected.pt")
        for other in ways:
            again = loaded(rank, checkpoint.latest(fewer), *lying[other])
            found += [f"{fewer.name} by {other}: {name}" for name in differing(values, again)]
    once = torch.load(Path(alone, "expected.pt"))
    for other in ways:
        again = loaded(rank, checkpoint.latest(alone), *lying[other])
        found += [f"alone by {other}: {name}" for name in differing(once, again)]
        own = once["rng"] if rank == 0 else torch.Generator().manual_seed(5 + rank).get_state()
        if not torch.equal(again["rng"], own):
            found.append(f"alone by {other}: random state")
    told = failing(rank, f"{folder}/failing") if size == 2 else None
    return [found, expected, told]


def failing(rank: int, folder: str) -> list[str]:
    """What the ranks are told where one cannot write its file, rank 0 cannot finish, and one cannot read."""
    world = World(rank, 2, rank, 2)
    model, optimizer = made(1, rank, "fsdp")
    saver, told = Saver(world, strategy="fsdp"), []
    target = checkpoint.folder_of(Path(folder), 1)
    sha256, replace = files.sha256, step_folders.replace

    def full(*args, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    for broken in (1, 0):
        if rank == broken:
            if broken:
                files.sha256 = full
            else:
                step_folders.replace = full
        saver.save(target, model, optimizer, state(1))
        try:
            saver.wait()
        except CheckpointError as error:
            told.append(str(error))
        world.wait()
        told.append(str(sorted(os.listdir(folder))))
        world.wait()
        files.sha256, step_folders.replace = sha256, replace
    saver.save(target, model, optimizer, state(1))
    later = checkpoint.folder_of(Path(folder), 2)
    saver.save(later, model, optimizer, state(2))  # waits for the first
    saver.prune(later.parent, 1, later)
    told.append(str(target.exists()))  # as long as the next is not whole
    saver.wait()
    world.wait()
    told.append(str(sorted(os.listdir(folder))))
    try:
        with world.together():
            checkpoint.read_state(later if rank == 0 else later.with_name("step-00000003"), world)
    except (CheckpointError, OtherRankError) as error:
        told.append(str(error))
    return told


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    """Checkpoints of 1, 2 and 4 ranks; (folder, {way: what is in it}, what differed when they were loaded, what each of
    2 ranks was told of failures)."""
    folder = tmp_path_factory.mktemp("sharded")
    alone = folder / "alone"
    model, optimizer = made(9, 0, "single")
    once = state_of(model, optimizer)
    torch.manual_seed(4)
    once["rng"] = torch.get_rng_state()
    checkpoint.save(checkpoint.folder_of(alone, 9), model, optimizer, state(9))
    torch.save(once, alone / "expected.pt")
    expected, different, told = {}, [], []
    for size in (2, 4):
        results = run_ranks(all_of_them, size, str(folder), str(alone))
        for way, values in results[0][1].items():
            expected[f"{way}-{size}"] = values
            torch.save(values, folder / f"{way}-{size}" / "expected.pt")
        different += [f"rank {rank} of {size}: {what}" for rank, (found, *_) in enumerate(results) for what in found]
        told = told or [of_rank for *_, of_rank in results]
    return folder, expected, different, told


def test_every_way_to_save_is_read_by_every_other_to_the_bit(written):
    _, expected, different, _ = written
    assert len(expected) == 5
    assert different == []


def test_one_process_reads_what_many_wrote(written):
    folder, expected, *_ = written
    for way, values in expected.items():
        again = loaded(0, checkpoint.latest(folder / way), *made(77, 0, "single"))
        assert differing(values, again) == [], way
        assert torch.equal(again["rng"], values["rng"])


def test_layout(written):
    folder, *_ = written
    path = checkpoint.latest(folder / "hsdp-4")
    assert sorted(p.name for p in path.iterdir()) == ["checksums.json", "config.json", "sharded", "training.json"]
    assert len(list((path / "sharded").iterdir())) == 4
    assert [json.loads((path / "training.json").read_text())[key] for key in ("ranks", "strategy")] == [4, "hsdp"]
    for file in (path / "sharded").iterdir():
        assert file.read_bytes()[8:9] == b"{", "no pickle"
    assert [p.name for p in path.parent.iterdir() if p.name != "expected.pt"] == [path.name]  # none half-written


@pytest.fixture
def copy(written, tmp_path):
    """The checkpoint of 4 ranks under fsdp, alone in a folder."""
    path = checkpoint.latest(written[0] / "fsdp-4")
    return Path(shutil.copytree(path, tmp_path / path.name))


def test_the_model_and_its_size_are_read_from_it(written, copy):
    model = GPT.from_pretrained(copy)
    for name, value in model.state_dict().items():
        assert torch.equal(value, written[1]["fsdp-4"][name]), name
    assert run_record._counted(copy) == model.num_parameters()


@pytest.mark.needs("tyro")
@pytest.mark.parametrize("format", ["fastgpt", "hf", "nanogpt"])
def test_export_writes_what_the_whole_model_would(written, copy, tmp_path, format):
    model = tiny_model(**SHAPE)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            parameter.copy_(written[1]["fsdp-4"][name])
    model.save_pretrained(tmp_path / "whole", format=format)
    assert cli.main(["export", str(copy), str(tmp_path / "out"), "--format", format]) == 0
    assert sorted(os.listdir(tmp_path / "out")) == sorted(os.listdir(tmp_path / "whole"))
    for path in (tmp_path / "whole").iterdir():
        if path.suffix != ".pt":  # torch.save's archives have names of their own in them
            assert (tmp_path / "out" / path.name).read_bytes() == path.read_bytes(), path.name
    again = GPT.from_pretrained(tmp_path / "out")
    assert all(torch.equal(value, again.state_dict()[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize("what", ["missing", "altered", "more", "unrecorded"])
def test_files_that_are_not_those_that_were_written(copy, what):
    shard = sorted((copy / "sharded").iterdir())[2]
    if what == "missing":
        shard.unlink()
    elif what == "altered":
        whole_file = shard.read_bytes()
        shard.write_bytes(whole_file[:-1] + bytes([whole_file[-1] ^ 1]))
    elif what == "more":
        shard = Path(shutil.copy(shard, shard.with_name("shard-00009-model-00001-of-00001.safetensors")))
    else:
        shard = copy / "checksums.json"
        shard.unlink()
    with pytest.raises(CheckpointError, match=f"{shard.name}.*there is none before it"):
        checkpoint.read_state(copy)
    with pytest.raises(ValueError, match=shard.name):
        GPT.from_pretrained(copy)


def test_the_ranks_share_the_hashing(copy, monkeypatch):
    monkeypatch.setattr(checksums, "_QUICK_FROM", 0)  # else files so small are hashed by all
    before = {path: path.stat() for path in (copy / "sharded").iterdir()}
    for path, stat in before.items():
        path.write_bytes(path.read_bytes()[:-1] + b"?")
        os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    told = []
    for rank in range(2):
        with pytest.raises(CheckpointError) as error:
            checkpoint.verify(copy, World(rank, 2))
        told.append(str(error.value).partition(":")[0])
    first, second, *_ = sorted(map(str, before))
    assert sorted(told) == [first, second]


def test_pieces_that_are_missing_where_no_hashes_tell(copy):
    """Who copies a model out of its checkpoint leaves the hashes behind."""
    (copy / "checksums.json").unlink()
    (copy / "training.json").unlink()
    sorted((copy / "sharded").iterdir())[0].unlink()
    with pytest.raises(ValueError, match=r"pieces of \S+ are missing; copy the files of all ranks"):
        GPT.from_pretrained(copy)


def test_another_model_is_told_from_its_shapes(copy):
    model = tiny_model(**SHAPE | {"d_ff": 12})
    with pytest.raises(CheckpointError, match=r"sharded: made by a model of another shape: .*ffn.0.weight \(24, 6\)"):
        checkpoint.restore(copy, model, build_adamw(model, 1e-2, weight_decay=0.1))


def test_every_rank_is_told_of_one_that_fails(written):
    folder, *_, results = written
    assert len(results) == 2
    for told in results:
        space = f"could not save {folder / 'failing' / 'step-00000001'}: No space left on device"
        assert told[0].startswith(space)
        assert told[2].startswith(space)
        assert told[1] == told[3] == "[]"  # neither half a checkpoint nor a folder that was left behind
        assert told[4:6] == ["True", "['step-00000002']"]
        assert "step-00000003: not a training checkpoint" in told[6]
    assert results[0][6].startswith("rank 1: ")


def test_tensors_of_a_trainer_of_one_process_are_read_by_the_same_reader(tmp_path):
    trainer = tiny_trainer(tmp_path, name="a")
    trainer.train_step()
    path = trainer.save()
    assert trainer.train_data.tokenizer_sha256 == tiny_data().tokenizer_sha256
    (path / "other.safetensors").write_bytes(b"of somebody else")
    found = sharded.read_whole(path, lambda name: True)
    expected = checkpoint._read(path / "model.safetensors") | checkpoint._read(path / "training.safetensors")
    assert found.keys() == expected.keys()
    for name, value in expected.items():
        assert torch.equal(found[name], value), name
