"""The same training run by one process, and by several under each strategy: `python -m tests.support.strategy_runs`
prints its losses side by side.

float32 on a CPU, dropout off, 8 sequences an update however they are dealt. The text is so short that its last window,
of 2 targets in 24, comes several times: micro-batches and ranks differ in the tokens that count.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch

from fastgpt import GPT, GPTConfig
from fastgpt.data import TokenDataset
from fastgpt.model.initial import on_meta
from fastgpt.parallel.world import World
from fastgpt.train.metrics import read_metrics
from fastgpt.train.trainer import TrainConfig, Trainer

STEPS, T, SEQUENCES = 20, 24, 8
CONFIG = GPTConfig(
    4096, T, n_layers=3, n_heads=2, d_model=18, dropout=0.0, attn_impl="sdpa", norm_impl="torch", ffn_impl="torch",
    loss_impl="torch",
)  # fmt: skip


class Case(NamedTuple):
    """A run: by which strategy, with how many sequences per rank and micro-batch."""

    strategy: str
    batch_size: int
    shard_ranks: int | None = None

    def __str__(self) -> str:
        return self.strategy + ("" if self.shard_ranks is None else f" ({self.shard_ranks} shard)")


CASES = {
    2: [Case("ddp", 4), Case("ddp", 2), Case("fsdp", 4), Case("fsdp", 1), Case("hsdp", 2, 1)],
    4: [Case("ddp", 1), Case("fsdp", 2), Case("hsdp", 1, 2)],
}


class Run(NamedTuple):
    """What a run leaves: of each step, of each validation, and whether the head is the embedding at the end."""

    losses: list[float]
    norms: list[float]
    validations: list[float]
    weights: dict[str, torch.Tensor]
    tied: bool


def data(n: int, seed: int) -> TokenDataset:
    ids = np.random.default_rng(seed).integers(0, 50, n).astype(np.uint16)
    return TokenDataset((ids,), np.zeros(1, np.int64), 4096, "0" * 64, f"data-{seed}")


def run(case: Case, folder: str, world: World | None = None) -> Run:
    """In each process of `world`, or alone."""
    torch.manual_seed(3)
    is_sharded = case.strategy in ("fsdp", "hsdp")
    model = on_meta(lambda: GPT(CONFIG)) if is_sharded else GPT(CONFIG)
    name = f"{case.strategy}-{case.batch_size}-{1 if world is None else world.size}"
    trainer = Trainer(
        model, data(30 * T + 3, 0), TrainConfig(
            name=name, runs_dir=folder, steps=STEPS, lr=3e-3, device="cpu", dtype="float32", tensorboard=False,
            eval_every=7, save_every=0, strategy=case.strategy, shard_ranks=case.shard_ranks,
            batch_size=case.batch_size, global_batch_size=SEQUENCES,
        ), val_data=data(5 * T + 8, 1), show_progress=False, world=world,
    )  # fmt: skip
    losses = trainer.fit().losses
    weights = {n: _whole(p) for n, p in trainer.model.named_parameters()}
    lines = read_metrics(Path(folder, name, "metrics.jsonl"))
    validations = [line["val_loss"] for line in lines if "val_loss" in line]
    made: Any = trainer.model
    is_tied = made.head.weight is made.token_emb.weight
    return Run(losses, [line["grad_norm"] for line in lines], validations, weights, is_tied)


def _whole(parameter: Any) -> torch.Tensor:
    return (parameter.full_tensor() if hasattr(parameter, "full_tensor") else parameter).detach().clone()


def ranks(rank: int, cases: list[Case], folder: str) -> list[Run]:
    """What `tests.support.ranks.run_ranks` calls."""
    import torch.distributed as dist

    size = dist.get_world_size()
    return [run(case, folder, World(rank, size, rank, size)) for case in cases]


def differs(found: Run, alone: Run) -> float:
    """The largest difference of a step's loss."""
    return max(abs(a - b) for a, b in zip(found.losses, alone.losses, strict=True))


def main() -> None:
    """Print the table."""
    from .ranks import run_ranks

    with tempfile.TemporaryDirectory() as folder:
        alone = run(Case("auto", SEQUENCES), folder)
        found = [("1 process", alone)]
        for size, cases in CASES.items():
            first = run_ranks(ranks, size, cases, folder)[0]
            found += [(f"{size} {case}, {case.batch_size} each", one) for case, one in zip(cases, first, strict=True)]
    shown = [0, 4, 9, 14, 19]
    print("| ranks, strategy | " + " | ".join(f"step {n + 1}" for n in shown) + " | largest difference | validation |")
    print("|---|" + "---|" * (len(shown) + 2))
    for name, one in found:
        values = " | ".join(f"{one.losses[n]:.7f}" for n in shown)
        print(f"| {name} | {values} | {differs(one, alone):.1e} | {one.validations[-1]:.7f} |")


if __name__ == "__main__":
    main()
