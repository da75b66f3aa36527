"""How a quantity grows: y = factor · x^exponent over one of L, T, D, and over all three at once, by least squares."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from ...base.settings import SettingError
from ..fits import Interval, power, powers
from .config import SYMBOLS, CostConfig

Rows = Sequence[Mapping[str, Any]]
BYTES = ("activations", "working", "weights", "peak")
TIMES = ("seconds", "measured_peak")


def along(config: CostConfig, rows: Rows, implementation: str, quantity: str, axis: str) -> list[tuple[int, float]]:
    """The points (x, y) of one implementation where `axis` varies and the others stay at the base, ascending."""
    found = {
        tuple(row[name] for name in SYMBOLS): row[quantity] for row in rows if row["implementation"] == implementation
    }
    line = [(getattr(point, axis), found.get(tuple(point))) for point in config.line(axis)]
    return [(x, y) for x, y in line if y]


def exponents(config: CostConfig, rows: Rows, quantities: Sequence[str] = BYTES) -> list[dict[str, Any]]:
    """The power law of each quantity over each axis, one implementation after the other.

    Returns:
        [{"implementation", "quantity", "over": "layers", "seq_len" or "width", "exponent", "interval": (low, high) at
        95 % or None for two points, "factor", "r2", "points": how many}, ...]; nothing of fewer than two points.
        Bytes on paper have no noise: there the interval says how far they are from a power law.
    """
    found = []
    for name in dict.fromkeys(row["implementation"] for row in rows):
        for quantity in quantities:
            for axis in config.axes:
                line = along(config, rows, name, quantity, axis)
                if len(line) < 2:
                    continue
                fit = power(*zip(*line))
                found.append({
                    "implementation": name, "quantity": quantity, "over": axis, "exponent": fit.exponents["x"],
                    "interval": known(fit.intervals["x"]), "factor": fit.factor, "r2": fit.r2, "points": len(line),
                })  # fmt: skip
    return found


def joint(config: CostConfig, rows: Rows, quantities: Sequence[str] = BYTES) -> list[dict[str, Any]]:
    """One power law over all axes that vary, factor · L^a · T^b · D^c, from all points of an implementation.

    Returns:
        [{"implementation", "quantity", "exponents": {axis: exponent}, "intervals": {axis: (low, high) or None},
        "factor", "r2", "points"}, ...]
    """
    found = []
    for name in dict.fromkeys(row["implementation"] for row in rows):
        for quantity in quantities:
            some = [row for row in rows if row["implementation"] == name and row[quantity]]
            try:
                fit = powers({axis: [row[axis] for row in some] for axis in config.axes}, [r[quantity] for r in some])
            except SettingError:  # too few points, or too few values of one axis
                continue
            intervals = {axis: known(interval) for axis, interval in fit.intervals.items()}
            found.append({
                "implementation": name, "quantity": quantity, "exponents": fit.exponents, "intervals": intervals,
                "factor": fit.factor, "r2": fit.r2, "points": len(some),
            })  # fmt: skip
    return found


def known(interval: Interval) -> Interval | None:
    return None if any(map(math.isnan, interval)) else interval
