"""How memory grows with the sequence: attention, a block, a whole model; ours, torch's and the plain formulas'.

    python -m benchmarks.memory [--write]       --write: benchmarks/results/memory.json, which the README's table shows

Bytes are counted on meta tensors (`fastgpt.tools.memory`), workspaces included, so any machine gives the same figures.
"""

from __future__ import annotations

import argparse
import json
import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

import torch
from torch import Tensor

from fastgpt import GPT, GPTConfig
from fastgpt.kernels import flash_attention, linear_cross_entropy, reference
from fastgpt.model.config import IMPLEMENTATION_SETS
from fastgpt.tools.memory import peak_bytes, saved_bytes, training_step

LENGTHS = [2**i for i in range(8, 18)]  # 256 ... 131072
RESULTS = Path(__file__).parent / "results" / "memory.json"
HEADS, HEAD_DIM = 12, 64  # GPT-2 124M


def slope(lengths: Sequence[int], sizes: Sequence[float]) -> float:
    """Least-squares slope of log(bytes) over log(T): 1 is linear, 2 quadratic."""
    from statistics import linear_regression

    return linear_regression([math.log(n) for n in lengths], [math.log(s) for s in sizes]).slope


def qkv(T: int) -> list[Tensor]:
    """q, k, v (1, 12, T, 64) bfloat16, on paper."""
    with torch.device("meta"):
        return [torch.empty(1, HEADS, T, HEAD_DIM, dtype=torch.bfloat16, requires_grad=True) for _ in range(3)]


ATTENTION: dict[str, Callable[..., Tensor]] = {"fastgpt": flash_attention, "reference": reference.flash_attention}


def attention_peaks(implementation: str, lengths: Sequence[int] = LENGTHS) -> list[int]:
    """Peak bytes of forward + backward beyond q, k and v, for each T."""
    return [peak_bytes(ATTENTION[implementation], qkv(T)) for T in lengths]


def model_peaks(implementation: str, lengths: Sequence[int] = LENGTHS, n_layers: int = 12) -> list[int]:
    """Peak bytes of a training step beyond weights and optimizer state; GPT-2 124M's width, batch 1."""
    peaks = []
    for T in lengths:
        config = GPTConfig(50257, T, n_layers, HEADS, HEADS * HEAD_DIM, **IMPLEMENTATION_SETS[implementation])
        step = training_step(config, 1, T)
        peaks.append(step.peak - step.parameters - step.optimizer)
    return peaks


def block_peaks(implementation: str, lengths: Sequence[int] = LENGTHS) -> list[int]:
    """Peak bytes of forward + backward of one bfloat16 block of GPT-2 124M's width, beyond weights and inputs.

    With the weights' gradients, as training needs them: torch's own backward leaves out what nobody asks for.
    """
    width, peaks = HEADS * HEAD_DIM, []
    for T in lengths:
        config = GPTConfig(1, 1, 1, HEADS, width, **IMPLEMENTATION_SETS[implementation])
        with torch.device("meta"):
            block = GPT(config).blocks[0].bfloat16()
            inputs = [torch.empty(1, T, width, dtype=torch.bfloat16, requires_grad=True) for _ in range(2)]
        names, weights = zip(*block.named_parameters())

        def forward(x: Tensor, residual: Tensor, *weights: Tensor, block=block, names=names) -> Tensor:
            return sum(torch.func.functional_call(block, dict(zip(names, weights)), (x, residual)))

        peaks.append(peak_bytes(forward, [*inputs, *weights]))
    return peaks


def loss_peaks(chunk_counts: Sequence[int] = (1, 2, 4, 8, 16), N: int = 16384, d: int = 768, V: int = 50257):
    """{"eager": bytes, "1": bytes with one chunk, ...}: forward + backward of head and loss, beyond the inputs."""
    with torch.device("meta"):
        x = torch.empty(N, d, dtype=torch.bfloat16, requires_grad=True)
        weight = torch.empty(V, d, dtype=torch.bfloat16, requires_grad=True)
        target = torch.empty(N, dtype=torch.int64)
    peaks = {"eager": peak_bytes(reference.linear_cross_entropy, [x, weight, target])}
    for n in chunk_counts:
        peaks[str(n)] = peak_bytes(lambda *a, n=n: linear_cross_entropy(*a, num_chunks=n), [x, weight, target])
    return peaks


def collect() -> dict:
    """Everything that the committed file holds."""
    attention = {name: attention_peaks(name) for name in ATTENTION}
    block = {name: block_peaks(name) for name in IMPLEMENTATION_SETS}
    model = {name: model_peaks(name) for name in IMPLEMENTATION_SETS}
    return {
        "lengths": LENGTHS,
        "attention": attention,
        "attention_slope": {name: round(slope(LENGTHS, sizes), 3) for name, sizes in attention.items()},
        "attention_saved": {name: saved_bytes(ATTENTION[name], qkv(4096)) for name in ATTENTION},
        "block": block,
        "block_slope": {name: round(slope(LENGTHS, sizes), 3) for name, sizes in block.items()},
        "model": model,
        "model_slope": {name: round(slope(LENGTHS[2:], sizes[2:]), 3) for name, sizes in model.items()},
        "linear_cross_entropy": loss_peaks(),
    }


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.memory", description=__doc__.split("\n\n")[0])
    parser.add_argument("--write", action="store_true", help=f"write {RESULTS}")
    write = parser.parse_args(argv).write
    text = json.dumps(collect(), indent=1)
    if write:
        RESULTS.write_text(text + "\n")
    print(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
