"""Seconds of a training step at each point of the grid, measured: all points take turns, round by round."""

from __future__ import annotations

import gc
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch

from ...base import machine
from ...base.settings import check_number
from ...model.config import IMPLEMENTATION_SETS, GPTConfig
from ...model.gpt import GPT
from ...tools import memory
from ...train.devices import autocast, resolve_device, resolve_dtype
from ...train.optim import build_adamw
from .config import CostConfig, Point
from .counting import _silent

ROUNDS, STEPS = 3, 3  # what disturbs the machine for a while disturbs one round of each point; after an untimed step
ON_A_CPU = "on a CPU the Triton kernels run only in the interpreter, whose speed means nothing"


@dataclass
class Times:
    """What was measured. rows: as of `step_times`; left_out: {"implementation", "layers", ..., "why"} of each point."""

    device: str
    dtype: str
    rows: list[dict[str, Any]] = field(default_factory=list)
    left_out: list[dict[str, Any]] = field(default_factory=list)


@dataclass
class _Turn:
    name: str
    point: Point
    model: GPTConfig
    flops: float
    seconds: list[float] = field(default_factory=list)
    peak: int = 0

    @property
    def place(self) -> dict[str, Any]:
        return {"implementation": self.name, **self.point._asdict()}


def step_times(
    config: CostConfig, device: str | torch.device = "auto", *, limit: float = 60.0,
    say: Callable[[str], None] = _silent,
) -> Times:  # fmt: skip
    """Training steps of AdamW on random tokens, of each implementation that runs on `device`.

    Points with the fewest operations come first; those that would take the whole beyond `limit` seconds, by the speed
    of the ones before, are left out, and so are those that the memory does not hold.

    Returns:
        Times, whose rows are {"implementation", "layers", "seq_len", "width", "seconds": median, "low" and "high":
        quartiles, "measured_peak": bytes that torch allocated on a GPU at most, None on a CPU}.

    Raises:
        SettingError, SettingTypeError: no such device; a limit that is no number above 0.
    """
    device = resolve_device(device, owner="CostConfig")
    check_number("CostConfig", "time_limit", limit, above=0)
    dtype = resolve_dtype(config.dtype, device, owner="CostConfig")
    found = Times(str(device), str(dtype).removeprefix("torch."))
    turns = _turns(config, device)
    kept: list[_Turn] = []
    spent, speed = 0.0, dict.fromkeys(IMPLEMENTATION_SETS, 0.0)
    if turns and _too_large(config, turns[0], device, dtype) is None:
        say("timing, a first step, which loads what the others find there")
        _take(turns[0], config.batch_size, device, dtype)
        turns[0].seconds.clear()
    for n, turn in enumerate(turns):
        say(f"timing, round 1 of {ROUNDS}, {n + 1} of {len(turns)}: {turn.name}, {turn.point}")
        why = _too_large(config, turn, device, dtype)
        if (spent + speed[turn.name] * turn.flops) * ROUNDS > limit and speed[turn.name]:
            why = "would take longer than the time limit"
        began = time.perf_counter()
        if why is None:
            why = _take(turn, config.batch_size, device, dtype)
        if why is not None:
            found.left_out.append({**turn.place, "why": why})
            continue
        seconds = time.perf_counter() - began
        spent, speed[turn.name] = spent + seconds, seconds / turn.flops
        kept.append(turn)
    for round_ in range(1, ROUNDS):
        for n, turn in enumerate(kept):
            say(f"timing, round {round_ + 1} of {ROUNDS}, {n + 1} of {len(kept)}: {turn.name}, {turn.point}")
            _take(turn, config.batch_size, device, dtype)
    for turn in kept:
        low, median, high = statistics.quantiles(turn.seconds, n=4)
        peak = turn.peak if device.type == "cuda" else None
        found.rows.append({**turn.place, "seconds": median, "low": low, "high": high, "measured_peak": peak})
    return found


def _turns(config: CostConfig, device: torch.device) -> list[_Turn]:
    """Every point of every implementation that is to be timed, quick ones first."""
    turns = []
    for point in config.points():
        with torch.device("meta"):
            flops = GPT(config.model(point, IMPLEMENTATION_SETS["reference"])).flops_per_token(point.seq_len)
        for name, parts in IMPLEMENTATION_SETS.items():
            if name != "fastgpt" or device.type == "cuda":
                turns.append(_Turn(name, point, config.model(point, parts), flops * point.seq_len))
    return sorted(turns, key=lambda turn: turn.flops)


def _too_large(config: CostConfig, turn: _Turn, device: torch.device, dtype: torch.dtype) -> str | None:
    """Why a step is not even tried: a CPU's memory would be full, and the system would end this process."""
    room = machine.host_room() if device.type == "cpu" else None
    if room is None:
        return None
    lower = dtype != torch.float32
    step = memory.training_step(turn.model, config.batch_size, turn.point.seq_len, autocast=lower)
    return "does not fit this machine's memory" if step.peak > room.n_bytes / 2 else None


def _take(turn: _Turn, batch: int, device: torch.device, dtype: torch.dtype) -> str | None:
    """Make the model, run an untimed step and `STEPS` timed ones, and drop it; or why that cannot be."""
    try:
        _steps(turn, batch, device, dtype)
    except torch.OutOfMemoryError:
        return f"out of memory on {device}"
    finally:
        if device.type == "cuda":
            gc.collect()
            torch.cuda.empty_cache()
    return None


def _steps(turn: _Turn, batch: int, device: torch.device, dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    with device:
        model = GPT(turn.model)
    optimizer = build_adamw(model, 1e-4)
    tokens = torch.randint(turn.model.vocab_size, (batch, turn.point.seq_len + 1), device=device)
    idx, targets = tokens[:, :-1].contiguous(), tokens[:, 1:].contiguous()
    synchronize = torch.cuda.synchronize if device.type == "cuda" else lambda: None
    for n in range(1 + STEPS):
        if n == 1 and device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        synchronize()
        began = time.perf_counter()
        with autocast(device, dtype):
            loss = model(idx, targets, return_logits=False).loss
        loss.backward()
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        synchronize()
        if n:
            turn.seconds.append(time.perf_counter() - began)
    if device.type == "cuda":
        turn.peak = torch.cuda.max_memory_allocated(device)
