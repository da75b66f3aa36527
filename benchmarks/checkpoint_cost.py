"""What a checkpoint costs: seconds and peak memory of saving, of a verified load, of a look at it.

    python -m benchmarks.checkpoint_cost                    a model of 16 million parameters
    python -m benchmarks.checkpoint_cost --write            the same, kept in benchmarks/results/checkpoint_cost.md
    python -m benchmarks.checkpoint_cost --preset gpt2

Each row is a process of its own on one thread, whose peak is that of its resident set above what it had before (files
that are mapped count in it). CPU seconds, the least of --rounds, with the system's cache warm: of this package, not of
the disk.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import torch
from safetensors.torch import save_file

from fastgpt import GPT, GPTConfig
from fastgpt.base import checksums
from fastgpt.train import checkpoint
from fastgpt.train.optim import build_adamw
from fastgpt.train.training_state import optimizer_tensors

RESULT = Path(__file__).parent / "results" / "checkpoint_cost.md"
SMALL = GPTConfig(vocab_size=50304, max_len=256, n_layers=4, n_heads=4, d_model=256)
STATE = {"step": 1, "sampler": {}, "settings": {}, "tokenizer_sha256": ""}


class Trained:
    """A model with the optimizer that trained it for a step, and where its checkpoint is."""

    def __init__(self, config: GPTConfig, folder: Path) -> None:
        torch.manual_seed(0)
        self.model = GPT(config)
        self.optimizer = build_adamw(self.model, 1e-3)
        for parameter in self.model.parameters():
            self.optimizer.state[parameter] = {
                "step": torch.tensor(1.0),
                "exp_avg": torch.randn_like(parameter),
                "exp_avg_sq": torch.rand_like(parameter),
            }
        self.path = folder / "step-00000001"

    def save(self) -> None:
        checkpoint.save(self.path, self.model, self.optimizer, STATE)

    def save_by_the_library(self) -> None:
        """The optimizer's tensors alone, as safetensors' own writer takes them: all copied, all at once."""
        copies = {k: v.clone().contiguous() for k, v in optimizer_tensors(self.model, self.optimizer).items()}
        save_file(copies, self.path / "by-the-library")
        (self.path / "by-the-library").unlink()

    def resume(self) -> None:
        checkpoint.verify(self.path)
        checkpoint.restore(self.path, self.model, self.optimizer)

    def load(self) -> None:
        GPT.from_pretrained(self.path)

    def look(self) -> None:
        checksums.check(self.path)

    def look_whole(self) -> None:
        checksums.check(self.path, whole=True)


ROWS: dict[str, tuple[str, Callable[[Trained], None]]] = {
    "save": ("*", Trained.save),
    "optimizer by safetensors' own writer": ("training.safetensors", Trained.save_by_the_library),
    "resume: all verified and read": ("*", Trained.resume),
    "GPT.from_pretrained: the weights verified and read": ("model.safetensors", Trained.load),
    "quick look, by size and time stamp": ("*", Trained.look),
    "whole look, --verify": ("*", Trained.look_whole),
}


def peak_bytes() -> int:
    """The high-water mark of this process's resident set."""
    line = next(line for line in Path("/proc/self/status").read_text().splitlines() if line.startswith("VmHWM"))
    return int(line.split()[1]) * 1024


def measured(name: str, config: GPTConfig, folder: Path, rounds: int) -> tuple[float, int]:
    """(CPU seconds, bytes of memory above those before) of a row, in this process."""
    torch.set_num_threads(1)
    trained = Trained(config, folder)
    Path("/proc/self/clear_refs").write_text("5")  # the mark falls to what is resident now
    before, seconds = peak_bytes(), []
    for _ in range(rounds):
        checksums._known.clear()  # a round hashes every file, as a process of its own would
        began = time.process_time()
        ROWS[name][1](trained)
        seconds.append(time.process_time() - began)
    return min(seconds), peak_bytes() - before


def table(config: GPTConfig, rounds: int) -> Iterator[str]:
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        Trained(config, folder).save()
        size = sum(path.stat().st_size for path in (folder / "step-00000001").iterdir())
        n = GPT(config).num_parameters()
        yield f"{n / 1e6:.0f} M parameters in float32, a checkpoint of {size / 1e9:.2f} GB; {torch.__version__},"
        yield f"{os.cpu_count()} CPUs, load {os.getloadavg()[0]:.1f}; least of {rounds}"
        yield ""
        yield "| | GB | CPU seconds | CPU seconds per GB | peak memory above, MB |"
        yield "|---|---|---|---|---|"
        for row, (pattern, _) in ROWS.items():
            read = sum(path.stat().st_size for path in (folder / "step-00000001").glob(pattern)) / 1e9
            with multiprocessing.get_context("spawn").Pool(1) as pool:
                seconds, peak = pool.apply(measured, (row, config, folder, rounds))
            yield f"| {row} | {read:.2f} | {seconds:.4f} | {seconds / read:.3f} | {peak / 1e6:.0f} |"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--preset", help="a model of GPTConfig.preset in place of the small one")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--write", action="store_true", help=f"keep the table in {RESULT.name}")
    options = parser.parse_args()
    lines = []
    for line in table(GPTConfig.preset(options.preset) if options.preset else SMALL, options.rounds):
        print(line, flush=True)
        lines.append(line)
    if options.write:
        title = "# What a checkpoint costs\n\nWritten by `python -m benchmarks.checkpoint_cost --write`.\n\n"
        RESULT.write_text(title + "\n".join(lines) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
