"""Figures for readers: thinned points keep what stands out, durations are in words."""

from __future__ import annotations

import random

import pytest

from fastgpt.pages.figures import duration, means, thinned


@pytest.mark.parametrize("count", [3, 999, 1000, 1001, 12_345])
def test_thinned_points_keep_ends_and_peaks(count):
    draw = random.Random(count)
    points = [(x, draw.random()) for x in range(count)]
    if count > 2000:
        points[count // 3], points[2 * count // 3] = (count // 3, 1e6), (2 * count // 3, -1e6)
    found = thinned(points)
    assert len(found) <= 1000
    assert found == sorted(set(found))  # in their order, each once
    assert set(found) <= set(points)
    assert {points[0], points[-1], min(points, key=lambda p: p[1]), max(points, key=lambda p: p[1])} <= set(found)
    assert len(found) >= min(count, 500)
    if count <= 1000:
        assert found == points


def test_means_are_of_equal_groups():
    points = [(float(x), float(x * x)) for x in range(1, 11)]
    assert means(points, most=10) == (points, 1)
    found, size = means(points, most=4)
    assert size == 3
    assert found == [(2, (1 + 4 + 9) / 3), (5, (16 + 25 + 36) / 3), (8, (49 + 64 + 81) / 3), (10, 100)]
    assert means([], most=4) == ([], 1)


@pytest.mark.parametrize(
    ("seconds", "words"),
    [(0.25, "0.25 s"), (59.4, "59.4 s"), (60, "1 min"), (200, "3 min 20 s"), (3725, "1 h 2 min 5 s"), (7200, "2 h")],
)
def test_durations(seconds, words):
    assert duration(seconds) == words
