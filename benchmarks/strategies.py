"""python -m benchmarks.strategies: what each strategy adds to the host's time of a training step.

    python -m benchmarks.strategies               a table
    python -m benchmarks.strategies --write       and benchmarks/results/strategies.md

One process, which is a world of one (gloo, CPU), trains the same tiny model by each strategy, a step of each in turn,
so that whatever else the machine does is spread over all. Nothing is sent to anybody, the products are small: what a
strategy adds is Python and torch's own bookkeeping. CPU time of the process, not of the clock; medians over rounds, and
of the differences within a round.
"""

from __future__ import annotations

import argparse
import platform
import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
import torch

from fastgpt import GPT, GPTConfig
from fastgpt.data import TokenDataset
from fastgpt.parallel import launch
from fastgpt.train.trainer import TrainConfig, Trainer

RESULT = Path(__file__).resolve().parent / "results" / "strategies.md"
STRATEGIES = ("single", "ddp", "fsdp", "hsdp")
LAYERS, WIDTH, T = 8, 32, 16
MICRO_BATCHES = 2


def trainer(strategy: str, folder: str) -> Trainer:
    """Of a new model, the same for each strategy."""
    torch.manual_seed(0)
    model = GPT(GPTConfig(64, T, n_layers=LAYERS, n_heads=2, d_model=WIDTH, dropout=0.0))
    ids = np.random.default_rng(0).integers(0, 64, 4000).astype(np.uint16)
    data = TokenDataset((ids,), np.zeros(1, np.int64), 64, "0" * 64, "random")
    is_alone = strategy == "single"
    config = TrainConfig(
        name=strategy, runs_dir=folder, steps=1_000_000, batch_size=1, grad_accum=MICRO_BATCHES, device="cpu",
        dtype="float32", tensorboard=False, strategy="auto" if is_alone else strategy,
        shard_ranks=1 if strategy == "hsdp" else None,
    )  # fmt: skip
    return Trainer(model, data, config, show_progress=False)


def measured(rounds: int, warmup: int = 5) -> dict[str, list[float]]:
    """Milliseconds of CPU of each step, by strategy; one of each a round, in an order that turns."""
    found: dict[str, list[float]] = {name: [] for name in STRATEGIES}
    with tempfile.TemporaryDirectory() as folder, launch.world("cpu", group=True):
        trainers = {name: trainer(name, folder) for name in STRATEGIES}
        for number in range(-warmup, rounds):
            first = number % len(STRATEGIES)
            for name in STRATEGIES[first:] + STRATEGIES[:first]:
                began = time.process_time()
                trainers[name].train_step()
                if number >= 0:
                    found[name].append(1e3 * (time.process_time() - began))
    return found


def table(found: dict[str, list[float]]) -> str:
    """In Markdown."""
    lines = ["| strategy | ms a step | added, paired | half of the rounds within |", "|---|---|---|---|"]
    for name, times in found.items():
        added = [one - alone for one, alone in zip(times, found["single"], strict=True)]
        low, _, high = statistics.quantiles(added, n=4)
        figures = "|  |  |" if name == "single" else f"| {statistics.median(added):+.2f} | {low:+.2f} to {high:+.2f} |"
        lines.append(f"| {name} | {statistics.median(times):.2f} {figures}")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).partition("\n")[0])
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--write", action="store_true", help="also to benchmarks/results/strategies.md")
    given = parser.parse_args()
    torch.set_num_threads(1)
    text = (
        f"{LAYERS} blocks of width {WIDTH}, {MICRO_BATCHES} micro-batches of {T} tokens an update; a world of one, "
        f"gloo; torch {torch.__version__}, Python {platform.python_version()}, {platform.machine()}; {given.rounds} "
        f"rounds.\n\n"
        f"{table(measured(given.rounds))}\n"
    )
    print(text)
    if given.write:
        RESULT.write_text(f"# CPU time that a strategy adds to a step\n\n{text}", encoding="utf-8")


if __name__ == "__main__":
    main()
