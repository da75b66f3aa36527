"""Lines and power laws through measured points, by least squares, with 95 % intervals.

time = line([2, 4, 8, 12], milliseconds)          # milliseconds = intercept + slope · layers
time.slope, time.slope_interval, time.r2, time.at(24)
growth = powers({"T": [...], "D": [...]}, sizes)  # size = factor · T^a · D^b
growth.exponents["T"], growth.intervals["T"]

Ordinary least squares; intervals by Student's t with n - p degrees of freedom (any textbook: Draper & Smith, "Applied
regression analysis", chapter 1 and 5). Points that are no sample (counts, which have no noise) still have a misfit, and
the interval says how large it is.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from ..base.settings import SettingError

CONFIDENCE = 0.95
Interval = tuple[float, float]


@dataclass(frozen=True)
class Line:
    """y = intercept + slope · x. r2: share of the variance explained; intervals: NaN for two points only."""

    intercept: float
    slope: float
    r2: float
    intercept_interval: Interval
    slope_interval: Interval

    def at(self, x: float) -> float:
        return self.intercept + self.slope * x


@dataclass(frozen=True)
class Powers:
    """y = factor · Π x_name^exponents[name]. r2: of the logarithms; intervals: NaN for as few points as unknowns."""

    factor: float
    exponents: dict[str, float]
    intervals: dict[str, Interval]
    r2: float

    def at(self, **xs: float) -> float:
        return self.factor * math.prod(xs[name] ** exponent for name, exponent in self.exponents.items())


def line(xs: Sequence[float], ys: Sequence[float]) -> Line:
    """The line through points (x, y).

    Raises:
        SettingError: fewer than two points, lists of different lengths, numbers that are not finite, all x the same.
    """
    (intercept, slope), (a, b), r2 = _least_squares(
        "line", {"xs": _finite("line", "xs", xs)}, _finite("line", "ys", ys)
    )
    return Line(intercept, slope, r2, a, b)


def power(xs: Sequence[float], ys: Sequence[float]) -> Powers:
    """y = factor · x^exponent, as `powers` of one name, "x"."""
    return powers({"x": xs}, ys)


def powers(xs: Mapping[str, Sequence[float]], ys: Sequence[float]) -> Powers:
    """y as a product of powers of several x: the plane through the logarithms.

    Raises:
        SettingError: as `line`; a number that is not above 0; an x that never changes, or only as another one does.
    """
    for name, values in {**xs, "ys": ys}.items():
        if any(value <= 0 for value in values):
            raise SettingError(
                "powers", name, min(values), "must be above 0, to have a logarithm; leave such points out"
            )
    logs = {name: np.log(_finite("powers", name, values)) for name, values in xs.items()}
    found, intervals, r2 = _least_squares("powers", logs, np.log(_finite("powers", "ys", ys)))
    return Powers(math.exp(found[0]), dict(zip(xs, found[1:])), dict(zip(xs, intervals[1:])), r2)


def _finite(owner: str, name: str, values: Sequence[float]) -> np.ndarray:
    found = np.asarray(values, dtype=np.float64)
    if not np.isfinite(found).all():
        raise SettingError(owner, name, list(values), "must be finite numbers; leave the others out")
    return found


def _least_squares(
    owner: str, xs: Mapping[str, np.ndarray], ys: np.ndarray
) -> tuple[list[float], list[Interval], float]:
    """(intercept, then a slope for each of xs), their intervals, r2."""
    for name, values in xs.items():
        if len(values) != len(ys):
            raise SettingError(owner, name, len(values), f"must be as many numbers as ys, {len(ys)}")
    design = np.column_stack([np.ones(len(ys)), *xs.values()])  # (n, p)
    n, p = design.shape
    if n < p:
        raise SettingError(owner, "ys", n, f"is too few points for {p} unknowns; give at least {p}")
    centre = design[:, 1:] - design[:, 1:].mean(axis=0)
    scale = np.abs(centre).max(axis=0)
    still = [name for name, size in zip(xs, scale) if size == 0]
    if still or np.linalg.matrix_rank(centre / scale) < p - 1:
        name = still[0] if still else next(iter(xs))
        need = "is the same everywhere" if still else "changes only as another one does"
        raise SettingError(owner, name, float(next(iter(xs.values()))[0]), f"{need}, so nothing tells what it does")
    found, *_ = np.linalg.lstsq(design, ys, rcond=None)
    misfit = ys - design @ found
    squares, spread = float(misfit @ misfit), float(((ys - ys.mean()) ** 2).sum())
    r2 = 1.0 - squares / spread if spread > 0 else 1.0
    if n == p:
        return found.tolist(), [(math.nan, math.nan)] * p, r2
    covariance = np.linalg.inv(design.T @ design) * (squares / (n - p))
    half = student_t(CONFIDENCE, n - p) * np.sqrt(np.diag(covariance))
    return found.tolist(), [(float(b - h), float(b + h)) for b, h in zip(found, half)], r2


@functools.cache
def student_t(confidence: float, degrees: int) -> float:
    """t so that a Student variable of so many degrees of freedom lies within ±t with this probability."""
    low, high = 0.0, 1.0
    while _within(high, degrees) < confidence:
        high *= 2
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if _within(middle, degrees) < confidence else (low, middle)
    return (low + high) / 2


def _within(t: float, degrees: int) -> float:
    """P(|Student| <= t), by the finite sums of Abramowitz & Stegun 26.7.3 and 26.7.4."""
    angle = math.atan(t / math.sqrt(degrees))
    cosine, sine = math.cos(angle), math.sin(angle)
    if degrees % 2:
        term, total = cosine, cosine if degrees > 1 else 0.0
        for k in range(3, degrees - 1, 2):
            term *= cosine * cosine * (k - 1) / k
            total += term
        return 2 / math.pi * (angle + sine * total)
    term = total = 1.0
    for k in range(2, degrees - 1, 2):
        term *= cosine * cosine * (k - 1) / k
        total += term
    return sine * total
