"""Where each implementation runs out of a GPU's memory: counted at both sides of the limit, no fit extended."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

from ...base.settings import SettingError
from ...model.config import IMPLEMENTATION_SETS
from ...tools import memory
from .config import CostConfig, Point
from .counting import Paper, _silent, left_out

MOST = {"layers": 128, "seq_len": 2**24, "batch_size": 2**24}  # looked at; each layer takes some 20 ms to lay out


def memory_limits(config: CostConfig, *, say: Callable[[str], None] = _silent) -> list[dict[str, Any]]:
    """The most layers, tokens per sequence and sequences of `config.base` whose step fits the GPU, margin left free.

    Returns:
        [{"implementation", "over": "layers", "seq_len" or "batch_size", "largest": 0 if not even one fits, "peak":
        bytes of a step of that size or None, "is_bound": False where `MOST` fits and no more were looked at}, ...]

    Raises:
        SettingError, SettingTypeError: an unknown GPU.
    """
    paper = Paper.of(config)
    room, base, without = paper.room(config), config.base_point, left_out(config, paper)
    found = []
    for name, parts in IMPLEMENTATION_SETS.items():
        if name in without:
            continue
        for over, start in (("layers", base.layers), ("seq_len", base.seq_len), ("batch_size", config.batch_size)):
            say(f"where {paper.gpu.name} is full: {name}, {over.replace('_', ' ')}")
            peak = functools.cache(functools.partial(_peak, config, parts, paper, over))
            most = largest(peak, room, start, MOST[over])
            found.append({
                "implementation": name, "over": over, "largest": most, "peak": int(peak(most)) if most else None,
                "is_bound": most < MOST[over],
            })  # fmt: skip
    return found


def _peak(config: CostConfig, parts: dict[str, str], paper: Paper, over: str, value: int) -> float:
    """Bytes of the base's step with `value` in the place of one size; infinite where they cannot be counted."""
    point, batch = config.base_point, config.batch_size
    point, batch = (point, value) if over == "batch_size" else (point._replace(**{over: value}), batch)
    try:
        return memory.training_step(config.model(Point(*point), parts), batch, point.seq_len, **paper.options).peak
    except SettingError:  # of the model's own sizes
        return math.inf
    except (ValueError, RuntimeError):  # more than a launch, or an address, can count
        return math.inf


def largest(peak: Callable[[int], float], room: int, start: int, most: int) -> int:
    """The n <= most with peak(n) <= room < peak(n + 1), for a peak that grows with n; 0 if peak(1) is over it.

    Doubles or halves from `start`, then closes in by the chord, which for a straight line hits at once, and by halves.
    """
    low, high = 0, min(max(start, 1), most)
    while peak(high) <= room:
        if high == most:
            return most
        low, high = high, min(2 * high, most)
    while low == 0 and high > 1:
        middle = high // 2
        low, high = (middle, high) if peak(middle) <= room else (0, middle)
    by_chord = True
    while low and high - low > 1:
        middle = (low + high) // 2
        if by_chord and math.isfinite(peak(high)):
            share = (room - peak(low)) / (peak(high) - peak(low))
            middle = min(max(low + int(share * (high - low)), low + 1), high - 1)
        if peak(middle) <= room:
            low = middle
            if by_chord and high - low > 1 and peak(low + 1) > room:
                return low
        else:
            high = middle
        by_chord = not by_chord
    return low
