"""What the depth study looks at in a trained model, and beside the training: gradients, tokens, time and memory."""

from __future__ import annotations

import dataclasses
import itertools
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ...data.sampler import sequential_batches
from ...kernels import support
from ...model.config import IMPLEMENTATION_SETS, GPTConfig
from ...model.gpt import GPT
from ...tools import memory
from ...train.devices import resolve_dtype
from ..smoothing_layers import smoothing_by_layer
from .config import Cell
from .runs import Runs

LOOKED_AT = 8  # sequences of the validation data on which gradients and tokens are looked at
ROUNDS = 7  # of timing, each cell once a round: what disturbs the machine disturbs all depths alike
POINTS = 200  # of a training curve
LAYERS, LENGTHS, HEADS = (2, 4, 8, 12), (256, 512, 1024, 2048), (2, 4, 8, 16)  # of memory on paper


def of_run(runs: Runs, cell: Cell) -> dict[str, Any]:
    """Figures of a finished run: losses, gradient norms and smoothing by layer, before and after training."""
    run, per_update = runs.of(cell), runs.recipe.tokens_per_update
    lines = run.lines
    validations = [line for line in lines if "val_loss" in line]
    idx, targets = next(sequential_batches(runs.data.val, LOOKED_AT, runs.recipe.seq_len, 1))
    trained, untrained = runs.trained_model(cell), runs.new_model(cell).to(runs.device)
    idx, targets = idx.to(runs.device), targets.to(runs.device)
    norms = [line["grad_norm"] for line in lines if line.get("grad_norm") is not None]
    after_warm_up = norms[len(norms) // 10 :] or norms
    speeds = [line["tokens_per_second"] for line in lines if line.get("tokens_per_second")]
    return run.losses(per_update) | {
        "parameters": trained.num_parameters(),
        "block_parameters": sum(p.numel() for p in trained.blocks.parameters()),
        "updates": lines[-1]["step"],
        "perplexity": validations[-1]["val_perplexity"],
        "bits_per_byte": validations[-1]["val_bits_per_byte"],
        "train_curve": thinned([(line["step"] * per_update, line["loss"]) for line in lines]),
        "val_curve": [(line["step"] * per_update, line["val_loss"]) for line in validations],
        "seconds_per_update": per_update / statistics.median(speeds) if speeds else None,
        **peak_memory(runs, cell, lines),
        "gradient_norm_largest": max(after_warm_up),
        "gradient_norm_median": statistics.median(after_warm_up),
        "gradient_norms": gradient_norms(trained, idx, targets),
        "gradient_norms_untrained": gradient_norms(untrained, idx, targets),
        "smoothing": [dataclasses.asdict(layer) for layer in smoothing_by_layer(trained, idx)],
        "smoothing_untrained": [dataclasses.asdict(layer) for layer in smoothing_by_layer(untrained, idx)],
    }


def peak_memory(runs: Runs, cell: Cell, lines: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Peak bytes of a run's updates: measured on a GPU; on a CPU, where a process's memory tells little, counted for
    torch's implementations."""
    if runs.device.type == "cuda":
        return {"peak_memory_bytes": max(line["memory_bytes"] for line in lines), "peak_memory_is": "measured"}
    config = runs.new_model(cell).config.replace(**IMPLEMENTATION_SETS["torch"])
    autocast = resolve_dtype(runs.recipe.dtype, runs.device) == torch.bfloat16
    step = memory.training_step(config, runs.recipe.micro_batch, runs.recipe.seq_len, autocast=autocast)
    return {"peak_memory_bytes": step.peak, "peak_memory_is": "counted"}


def gradient_norms(model: GPT, idx: Tensor, targets: Tensor) -> list[float]:
    """The norm of the loss's gradient over the parameters of each block of `model`, for (B, T) tokens.

    Leaves no gradient behind.
    """
    model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        model(idx, targets).loss.backward()
    norms = []
    for block in model.blocks:
        squares = [p.grad.double().square().sum() for p in block.parameters() if p.grad is not None]
        norms.append(float(torch.stack(squares).sum().sqrt()))
    model.zero_grad(set_to_none=True)
    return norms


def thinned(points: Sequence[tuple[int, float]], most: int = POINTS) -> list[tuple[float, float]]:
    """At most `most` points: each the mean of a stretch of the curve, at the stretch's end."""
    if len(points) <= most:
        return list(points)
    ends = [round(n * len(points) / most) for n in range(most + 1)]
    return [
        (points[stop - 1][0], statistics.fmean(y for _, y in points[start:stop]))
        for start, stop in itertools.pairwise(ends)
        if stop > start
    ]


def step_times(runs: Runs, cells: Sequence[Cell], on_round: Callable[[], None]) -> dict[str, dict[str, float]]:
    """Seconds of one update of micro_batch sequences, of each cell: median over rounds in which all take turns.

    {cell's name: {"seconds": median, "low": first quartile, "high": third}}
    """
    trainers = {cell.name: runs.throw_away(cell) for cell in cells}
    times: dict[str, list[float]] = {name: [] for name in trainers}
    for round_ in range(-1, ROUNDS):
        for name, trainer in trainers.items():
            began = time.perf_counter()
            trainer.train_step()
            if runs.device.type == "cuda":
                torch.cuda.synchronize(runs.device)
            if round_ >= 0:
                times[name].append(time.perf_counter() - began)
        on_round()
    found = {}
    for name, some in times.items():
        low, median, high = statistics.quantiles(some, n=4)
        found[name] = {"seconds": median, "low": low, "high": high}
    return found


def memory_grid(vocab_size: int, base: Cell, seq_len: int, say: Callable[[str], None]) -> list[dict[str, Any]]:
    """Bytes that one sequence needs, on paper: L, T and D varied one by one, the others as `base` has them.

    D by the number of heads, each as wide as those of `base`. [{"implementation", "layers", "seq_len", "width",
    "activations", "peak"}, ...]: what the blocks keep for the backward, and the peak of a whole training step
    (`tools/memory.py`).
    """
    head_dim = base.width // base.heads
    base = dataclasses.replace(base, layers=min(base.layers, memory.MOST_LAYERS))
    points = {(layers, seq_len, base.heads) for layers in (*LAYERS, base.layers)}
    points |= {(base.layers, length, base.heads) for length in LENGTHS}
    points |= {(base.layers, seq_len, heads) for heads in HEADS}
    sets = IMPLEMENTATION_SETS if support.has_triton() and head_dim <= support.MAX_HEAD_DIM else _WITHOUT_KERNELS
    rows = []
    for name, parts in sets.items():
        for layers, length, heads in sorted(points):
            width = heads * head_dim
            say(f"memory of {name}: {layers} layers, {length} tokens, width {width}")
            config = GPTConfig(vocab_size, length, layers, heads, width).replace(**parts)
            kept, step = memory.kept_activations(config, 1, length), memory.training_step(config, 1, length)
            rows.append({
                "implementation": name, "layers": layers, "seq_len": length, "width": width,
                "activations": kept, "peak": step.peak,
            })  # fmt: skip
    return rows


_WITHOUT_KERNELS = {name: parts for name, parts in IMPLEMENTATION_SETS.items() if name != "fastgpt"}
