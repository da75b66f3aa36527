"""Numbers for readers: points that a chart can draw, durations and counts in words."""

from __future__ import annotations

import math
from collections.abc import Sequence


def thinned(points: Sequence[tuple[float, float]], most: int = 1000) -> list[tuple[float, float]]:
    """At most `most` of the points: the first, the last, and of each stretch between them the lowest and the highest.

    So no peak is lost, as it would be to every n-th point or to means.
    """
    points = list(points)
    if len(points) <= most:
        return points
    inner, stretches = points[1:-1], max(1, (most - 2) // 2)
    found = [points[0]]
    for n in range(stretches):
        stretch = range(len(inner) * n // stretches, len(inner) * (n + 1) // stretches)
        low, high = (pick(stretch, key=lambda i: inner[i][1]) for pick in (min, max))
        found += [inner[i] for i in sorted({low, high})]
    return [*found, points[-1]]


def means(points: Sequence[tuple[float, float]], most: int = 200) -> tuple[list[tuple[float, float]], int]:
    """(points, how many of the given ones each is the mean of), at most `most`: what noise hides is seen."""
    size = max(1, math.ceil(len(points) / most))
    groups = [points[start : start + size] for start in range(0, len(points), size)]
    return [(sum(x for x, _ in g) / len(g), sum(y for _, y in g) / len(g)) for g in groups], size


def duration(seconds: float) -> str:
    """3725 as "1 h 2 min 5 s", 0.25 as "0.25 s"."""
    if seconds < 60:
        return f"{seconds:.3g} s"
    minutes, rest = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return " ".join(f"{n:,} {unit}" for n, unit in ((hours, "h"), (minutes, "min"), (rest, "s")) if n)
