"""A run is the same by any strategy, on any number of ranks; and no rank of a sharded one ever holds all of a model."""

from __future__ import annotations

import contextlib
import io
import warnings
from pathlib import Path
from typing import Any

import pytest
import torch

from fastgpt import GPT, GPTConfig
from fastgpt.base.settings import SettingError
from fastgpt.data.sampler import sequential_batches
from fastgpt.model.initial import filled_from, on_meta
from fastgpt.parallel.strategy import Sharded, shard_ranks_of
from fastgpt.parallel.world import World
from fastgpt.train.evaluation import evaluate
from fastgpt.train.placing import choose
from fastgpt.train.train_config import TrainConfig
from fastgpt.train.trainer import Trainer

from ...support import strategy_runs
from ...support.ranks import run_ranks
from ...support.strategy_runs import CASES, CONFIG, SEQUENCES, Case, T, data, differs

WIDE = GPTConfig(512, 64, n_layers=24, n_heads=4, d_model=320, dropout=0.0)  # 119 MB, its largest parameter 1.6 MB


@pytest.fixture(scope="module")
def alone(tmp_path_factory) -> strategy_runs.Run:
    return strategy_runs.run(Case("auto", SEQUENCES), str(tmp_path_factory.mktemp("alone")))


@pytest.fixture(scope="module")
def model_folder(tmp_path_factory) -> str:
    torch.manual_seed(8)
    folder = tmp_path_factory.mktemp("model")
    GPT(CONFIG).save_pretrained(folder)
    return str(folder)


@pytest.fixture(scope="module", params=[2, 4])
def ranks(request, tmp_path_factory, model_folder) -> list[dict[str, Any]]:
    """What each of so many processes has found."""
    folder = str(tmp_path_factory.mktemp("ranks"))
    return run_ranks(found_by, request.param, CASES[request.param], folder, model_folder)


def found_by(rank: int, cases: list[Case], folder: str, model_folder: str) -> dict[str, Any]:
    import torch.distributed as dist

    world = World(rank, dist.get_world_size(), rank, dist.get_world_size())
    said = io.StringIO()
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")  # tests/fastgpt/model/ has an eye on it
    with contextlib.redirect_stdout(said), contextlib.redirect_stderr(said):
        runs = [strategy_runs.run(case, folder, world) for case in cases]
    return {
        "runs": runs, "said": said.getvalue(), "peak": peak_of_init(world), "filled": filled(world, model_folder),
        "validations": validations(world), "bfloat16": in_bfloat16(world, folder) if world.size == 2 else None,
        "made": made(world),
    }  # fmt: skip


def peak_of_init(world: World) -> int:
    """Bytes by which this process grows while WIDE is made, at most."""
    Sharded(on_meta(lambda: GPT(CONFIG)), world)  # what torch imports for it
    Path("/proc/self/clear_refs").write_text("5")  # VmHWM is that from here on
    before = memory("VmRSS")
    model = on_meta(lambda: GPT(WIDE))
    Sharded(model, world)
    model.to_empty(device="cpu")
    model.init_weights()
    return memory("VmHWM") - before


def memory(what: str) -> int:
    lines = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(lines[what].split()[0]) * 1024


def made(world: World) -> dict[str, Any]:
    """A sharded model of the seed, whole, and where torch's generator is after it."""
    torch.manual_seed(5)
    model = on_meta(lambda: GPT(CONFIG))
    Sharded(model, world)
    model.to_empty(device="cpu")
    model.init_weights()
    state = torch.get_rng_state()
    return {"weights": {n: p.full_tensor() for n, p in model.named_parameters()}, "state": state}


def filled(world: World, folder: str) -> dict[str, torch.Tensor]:
    model = on_meta(lambda: GPT(CONFIG))
    Sharded(model, world)
    model.to_empty(device="cpu")
    filled_from(folder)(model)
    return {n: p.full_tensor() for n, p in model.named_parameters()}


def validations(world: World) -> list[Any]:
    torch.manual_seed(3)
    model, cpu = GPT(CONFIG), torch.device("cpu")
    found = []
    for n_tokens, most in ((5 * T + 8, None), (T + 1, None), (29 * T, 2)):
        found.append(evaluate(model, data(n_tokens, 1), batch_size=8 // world.size, device=cpu,
                              max_batches=None if most is None else most * world.size, world=world))  # fmt: skip
    # Only the last rank is told to stop, after its first batch.
    asked: list[bool] = []
    stop = lambda: asked.append(True) is None and world.rank == world.size - 1 and len(asked) > 1  # noqa: E731
    found.append(evaluate(model, data(29 * T, 1), batch_size=1, device=cpu, world=world, stop=stop))
    return [*found, len(asked)]


def bfloat16_trainer(folder: str, world: World | None, **options: Any) -> Trainer:
    torch.manual_seed(3)
    model = GPT(CONFIG) if world is None else on_meta(lambda: GPT(CONFIG))
    settings = {"runs_dir": folder, "steps": 20, "lr": 3e-3, "device": "cpu", "dtype": "bfloat16", "batch_size": 4}
    return Trainer(model, data(700, 0), TrainConfig(**settings | options), show_progress=False, world=world)


def in_bfloat16(world: World, folder: str) -> dict[str, Any]:
    trainer = bfloat16_trainer(folder, world, strategy="fsdp")
    model: Any = trainer.model
    seen: dict[str, set[torch.dtype]] = {"stream": set(), "weight": set()}

    def watch(block: Any, args: tuple[Any, ...]) -> None:
        seen["stream"].add(args[1].dtype)
        seen["weight"].add(block.ffn[0].weight.dtype)

    model.blocks[1].register_forward_pre_hook(watch)
    losses = [trainer.train_step()[0] for _ in range(8)]
    return {"losses": losses, "seen": seen, "kept": {p.dtype for p in model.parameters()}}


def test_the_losses_are_those_of_one_process(ranks, alone):
    for case, found in zip(CASES[len(ranks)], ranks[0]["runs"], strict=True):
        assert len(found.losses) == strategy_runs.STEPS
        assert differs(found, alone) < 1e-5, case
        torch.testing.assert_close(torch.tensor(found.norms), torch.tensor(alone.norms), rtol=1e-4, atol=1e-6)
        for name, weight in alone.weights.items():
            torch.testing.assert_close(found.weights[name], weight, rtol=1e-4, atol=2e-5, msg=f"{case}: {name}")


def test_the_validations_are_those_of_one_process(ranks, alone):
    for found in ranks[0]["runs"]:
        assert len(found.validations) == 3
        torch.testing.assert_close(torch.tensor(found.validations), torch.tensor(alone.validations), rtol=0, atol=1e-5)
    torch.manual_seed(3)
    model, cpu = GPT(CONFIG), torch.device("cpu")
    expected = [
        evaluate(model, data(n, 1), batch_size=8, device=cpu, max_batches=most)
        for n, most in ((5 * T + 8, None), (T + 1, None), (29 * T, 2))
    ]
    for rank in ranks:
        for found, one in zip(rank["validations"][:3], expected, strict=True):
            assert found.tokens == one.tokens
            assert found.loss == pytest.approx(one.loss, abs=1e-6)
        assert rank["validations"][3:] == [None, 2]  # all stopped where one was told to


def test_the_tied_weight_is_one_and_the_same_on_all_ranks(ranks):
    for number, found in enumerate(ranks[0]["runs"]):
        assert found.tied
        for other in ranks[1:]:
            assert other["runs"][number].losses == found.losses
            for name, weight in found.weights.items():
                assert torch.equal(other["runs"][number].weights[name], weight), name


def test_others_than_the_first_say_nothing(ranks):
    assert [rank["said"] for rank in ranks[1:]] == [""] * (len(ranks) - 1)


def test_a_sharded_model_has_the_bits_of_a_whole_one(ranks, model_folder):
    torch.manual_seed(5)
    whole = GPT(CONFIG)
    state = torch.get_rng_state()
    for rank in ranks:
        assert rank["made"]["weights"].keys() == dict(whole.named_parameters()).keys()
        for name, weight in whole.named_parameters():
            assert torch.equal(rank["made"]["weights"][name], weight), name
        assert torch.equal(rank["made"]["state"], state)
    given = dict(GPT.from_pretrained(model_folder).named_parameters())
    for name, weight in ranks[-1]["filled"].items():
        assert torch.equal(weight, given[name]), name


def test_no_rank_ever_holds_the_whole_model(ranks):
    whole = 4 * sum(p.numel() for p in on_meta(lambda: GPT(WIDE)).parameters())
    for rank in ranks:
        assert rank["peak"] < 0.75 * whole  # Python's objects of 24 blocks take their part


def test_bfloat16_shards_are_gathered_in_it_around_a_float32_stream(ranks, tmp_path):
    found = ranks[0]["bfloat16"]
    if found is None:  # of two ranks only
        return
    assert found["seen"] == {"stream": {torch.float32}, "weight": {torch.bfloat16}}
    assert found["kept"] == {torch.float32}
    one = bfloat16_trainer(str(tmp_path), None, batch_size=8)
    assert found["losses"] == pytest.approx([one.train_step()[0] for _ in range(8)], abs=0.01)  # they fall by 0.5


@pytest.mark.parametrize("max_batches", [None, 1, 5])
def test_each_rank_yields_as_often_and_the_windows_of_one_process(max_batches):
    text = data(29 * T + 5, 2)
    idx, targets = (torch.cat(parts) for parts in zip(*sequential_batches(text, 3, T, max_batches), strict=True))
    dealt = [list(sequential_batches(text, 3, T, max_batches, rank=rank, world_size=4)) for rank in range(4)]
    in_turn = list(zip(*dealt, strict=True))  # each yields as often
    mine = [(i, t) for at_once in in_turn for i, t in at_once if (t != -100).any()]
    assert torch.equal(torch.cat([i for i, _ in mine]), idx)
    assert torch.equal(torch.cat([t for _, t in mine]), targets)


def test_what_is_chosen(monkeypatch):
    config, model = TrainConfig(device="cpu"), CONFIG
    assert choose(config, model, World()).name == "single"
    two = World(0, 2, 0, 2)
    assert choose(config, model, two).name == "ddp"
    assert str(choose(config, model, two)).startswith("ddp (all fits one rank: weights, gradients and AdamW's moments ")
    # 16 bytes of each parameter; two ranks of a machine share its memory.
    from fastgpt.base import machine
    from fastgpt.model.size import count_parameters

    needed = 16 * count_parameters(model.to_dict())
    for n_bytes, name in ((2 * needed, "ddp"), (2 * needed - 2, "fsdp")):
        monkeypatch.setattr(machine, "host_room", lambda n_bytes=n_bytes: machine.Room(n_bytes, "it has"))
        found = choose(config, model, two)
        assert (found.name, found.shards) == (name, 2 if name == "fsdp" else 1)
    assert "one rank cannot hold all" in found.why
    with pytest.raises(SettingError, match=r"strategy='fsdp' needs the processes of torchrun"):
        choose(TrainConfig(strategy="fsdp"), model, World())


def test_shard_ranks_divide_the_world():
    assert shard_ranks_of(World(0, 8, 0, 4), None) == 4
    assert shard_ranks_of(World(0, 8, 0, 4), 2) == 2
    with pytest.raises(SettingError, match=r"shard_ranks=3 must divide the 8 ranks; take one of 1, 2, 4, 8"):
        shard_ranks_of(World(0, 8, 0, 4), 3)
