"""Training with context parallel: the losses, norms, validations and weights of one process."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.distributed as dist

from fastgpt import GPT, GPTConfig, OneHeadLM
from fastgpt.base.settings import SettingError
from fastgpt.data import TokenDataset
from fastgpt.data.sampler import BatchSampler
from fastgpt.data.tokenizer import BUNDLED, Tokenizer
from fastgpt.model.one_head_config import OneHeadConfig
from fastgpt.parallel import ring as rings
from fastgpt.parallel.world import World
from fastgpt.train import sharing
from fastgpt.train.metrics import read_metrics
from fastgpt.train.trainer import TrainConfig, Trainer, evaluate
from tests.support.ranks import run_ranks

STEPS, T, SEQUENCES = 8, 24, 4
CONFIG = GPTConfig(
    4096, T, n_layers=2, n_heads=4, n_kv_heads=2, d_model=16, dropout=0.0, attn_impl="sdpa", norm_impl="torch",
    ffn_impl="torch", loss_impl="torch",
)  # fmt: skip


class Case(NamedTuple):
    """How the ranks share the work: by which strategy, how many a sequence, how many sequences each at a time, and
    what is computed again."""

    strategy: str
    context_parallel: int
    batch_size: int
    remat: str = "none"


CASES = [Case("ddp", 2, 1), Case("fsdp", 2, 2, "selective"), Case("fsdp", 4, 4, "full")]
RANKS = 4


def data(n: int, seed: int) -> TokenDataset:
    """Of which the last window has two targets: a rank of its ring has none that count."""
    ids = np.random.default_rng(seed).integers(0, 50, n).astype(np.uint16)
    return TokenDataset((ids,), np.zeros(1, np.int64), 4096, BUNDLED["shakespeare"][1], f"data-{seed}")


def trained(case: Case, folder: str, world: World | None = None) -> dict[str, Any]:
    torch.manual_seed(3)
    name = "-".join(map(str, (*case, 1 if world is None else world.size)))
    config = TrainConfig(
        name=name, runs_dir=folder, steps=STEPS, lr=3e-3, device="cpu", dtype="float32", tensorboard=False,
        eval_every=3, save_every=0, strategy=case.strategy, context_parallel=case.context_parallel,
        batch_size=case.batch_size, global_batch_size=SEQUENCES, remat=case.remat,
    )  # fmt: skip
    trainer = Trainer(
        GPT(CONFIG), data(9 * T + 3, 0), config, val_data=data(5 * T + 3, 1), show_progress=False, world=world,
        tokenizer=Tokenizer.load("shakespeare"),
    )  # fmt: skip
    trainer.fit()
    lines = read_metrics(Path(folder, name, "metrics.jsonl"))
    found = {key: [line[key] for line in lines if key in line] for key in ("loss", "grad_norm", "val_loss", "epoch")}
    weights = [p.full_tensor() if hasattr(p, "full_tensor") else p for p in trainer.model.parameters()]
    return found | {
        "weights": [weight.detach().clone() for weight in weights], "record": trainer._record(),
        "bits": trainer.validate().bits_per_byte,
    }  # fmt: skip


def ranks(rank: int, folder: str) -> list[dict[str, Any]]:
    size = dist.get_world_size()
    world = World(rank, size, rank, size)
    return [trained(case, folder, world) for case in CASES] + [misuse(world)]


def misuse(world: World) -> dict[str, str]:
    def config(**fields: Any) -> TrainConfig:
        return TrainConfig(**{"batch_size": 2, "device": "cpu", "context_parallel": 2} | fields)

    def made(model: Any, **fields: Any) -> Any:
        return Trainer(model, data(100, 0), config(**fields), world=world)

    gpt = GPT(CONFIG)
    rings.use(gpt)
    tries = {
        "length": lambda: made(GPT(CONFIG), seq_len=22),
        "ranks": lambda: made(GPT(CONFIG), context_parallel=3),
        "dropout": lambda: made(GPT(CONFIG.replace(dropout=0.1))),
        "model": lambda: made(OneHeadLM(4096, 8, T)),
        "global": lambda: made(GPT(CONFIG), global_batch_size=5),
        "alone": lambda: evaluate(gpt, data(100, 0), batch_size=1, device=world.device),
    }
    told = {}
    for name, attempt in tries.items():
        try:
            attempt()
        except SettingError as error:
            told[name] = str(error)
    return told


@pytest.fixture(scope="module")
def alone(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    return trained(Case("auto", 1, SEQUENCES), str(tmp_path_factory.mktemp("alone")))


@pytest.fixture(scope="module")
def together(tmp_path_factory: pytest.TempPathFactory) -> list[list[dict[str, Any]]]:
    return run_ranks(ranks, RANKS, str(tmp_path_factory.mktemp("together")))


def test_a_run_is_that_of_one_process(together, alone):
    assert alone["epoch"][-1] > 3  # the short window has been there
    for of_rank in together:
        for case, found in zip(CASES, of_rank):
            for key in ("loss", "grad_norm", "val_loss", "epoch"):
                np.testing.assert_allclose(found[key], alone[key], rtol=1e-5, atol=1e-5, err_msg=f"{case} {key}")
            assert found["bits"] == pytest.approx(alone["bits"], rel=1e-6)
            for mine, theirs in zip(found["weights"], alone["weights"], strict=True):
                torch.testing.assert_close(mine, theirs, rtol=1e-3, atol=1e-4)
            assert found["record"].get("ranks", 1) == RANKS // case.context_parallel


def test_what_cannot_be_is_said(together):
    told = together[0][-1]
    assert "seq_len=22 must be a multiple of 4" in told["length"]
    assert "20 or 24 would do" in told["length"]
    assert "context_parallel=3 must divide the ranks, and there are 4 ranks: 1, 2, 4 would do" in told["ranks"]
    assert "dropout=0.1 must be 0 where ranks share a sequence" in told["dropout"]
    assert "context_parallel=2 must be 1 for a OneHeadLM" in told["model"]
    assert "must be a multiple of batch_size 2 times 2 groups of 2 ranks, 4; take 4 or 8" in told["global"]
    assert "world='1 ranks' must be that of all ranks" in told["alone"]


def test_alone():
    place = sharing.place(None, World(1, 3), 7)
    assert (place.rank, place.size, place.columns) == (1, 3, None)
    with pytest.raises(SettingError, match="context_parallel=2 must divide the ranks, and there is 1 rank"):
        Trainer(GPT(CONFIG), data(100, 0), TrainConfig(context_parallel=2, device="cpu"))
    with pytest.raises(SettingError, match="must be 1 for a OneHeadLM"):
        sharing.check_sharing(TrainConfig(context_parallel=2), OneHeadConfig(vocab_size=9, d_model=8, max_len=T), T, 2)


def test_a_sampler_takes_its_columns():
    columns = torch.tensor([0, 1, 6, 7])
    whole, part = (BatchSampler(data(100, 0), 3, 8, seed=5, columns=c) for c in (None, columns))
    for _ in range(3):
        for x, y in zip(whole.next_batch(), part.next_batch()):
            assert torch.equal(x[:, columns], y)
