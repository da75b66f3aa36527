"""Axes of charts: round numbers, in equal steps, that stand apart, and are written shortly."""

from __future__ import annotations

import itertools
import re

import pytest

from fastgpt.pages.axes import Axis, labels, log_ticks, short, text_width, ticks, wrapped


@pytest.mark.parametrize(
    ("low", "high"), [(0, 1), (4.7, 8.4), (1, 1000), (-3, 3), (0.001, 0.0017), (1e-15, 3e-15), (1e300, 2e300)]
)
def test_ticks_are_round_and_inside(low, high):
    found = ticks(low, high)
    assert 3 <= len(found) <= 8
    assert all(low <= t <= high for t in found)
    steps = {f"{b - a:.6e}" for a, b in itertools.pairwise(found)}
    assert len(steps) == 1
    assert re.match(r"[125]", steps.pop())


@pytest.mark.parametrize(
    ("low", "high", "expected"),
    [
        (1e3, 1e7, [1e3, 1e4, 1e5, 1e6, 1e7]),
        (256, 4096, [500, 1000, 2000]),
        (1e-20, 1e20, [10.0**n for n in range(-20, 21, 5)]),
        (90, 110, [90, 95, 100, 105, 110]),
    ],
)
def test_logarithmic_ticks(low, high, expected):
    assert log_ticks(low, high) == expected


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (0, "0"), (2.5, "2.5"), (4000, "4000"), (1e5, "100k"), (5e8, "500M"), (-5e8, "-500M"), (2e9, "2G"),
        (1e13, "10T"), (1e16, "1e16"), (1e-5, "1e-5"), (3e300, "3e300"), (0.1 + 0.2, "0.3"),
    ],
)  # fmt: skip
def test_numbers_are_short(number, expected):
    assert short(number) == expected


def test_labels_of_different_numbers_differ():
    assert labels([1e9, 1e9 + 1, 1e9 + 2]) == ["1G", "1.000000001G", "1.000000002G"]


def test_values_have_their_place():
    axis = Axis([1, 4000], 60, 700)
    assert (axis(1), axis(4000)) == (60, 700)
    axis = Axis([10, 1000], 300, 100, log=True, pad=0.5)
    assert axis(100) == pytest.approx(200)
    assert axis(10) - axis(100) == pytest.approx(axis(100) - axis(1000)) == pytest.approx(50)


@pytest.mark.parametrize("log", [False, True])
@pytest.mark.parametrize("room", [120, 300, 700])
@pytest.mark.parametrize("values", [(1, 4000), (3e-9, 5e-9), (1, 1e12), (7, 7), (1e9, 1e9 + 3), (2, 4, 8, 12)])
def test_labels_side_by_side_do_not_touch(values, room, log):
    axis = Axis(values, 40, 40 + room, log=log)
    found = axis.ticks(horizontal=True)
    assert found
    edges = [(axis(value) - text_width(label) / 2, axis(value) + text_width(label) / 2) for value, label in found]
    assert all(right + 4 < left for (_, right), (left, _) in itertools.pairwise(edges))


def test_few_values_are_named_themselves():
    assert [label for _, label in Axis([2, 4, 8, 12], 0, 500).ticks(horizontal=True)] == ["2", "4", "8", "12"]
    assert [value for value, _ in Axis([2, 4.56789, 8], 0, 500).ticks(horizontal=True)] == list(range(2, 9))


def test_long_texts_are_wrapped():
    text = "some words, and oneverylongwordwithoutanyspace, and more"
    lines = wrapped(text, 100)
    assert len(lines) > 4
    assert all(text_width(line) <= 100 for line in lines)
    assert "".join(lines).replace(" ", "") == text.replace(" ", "")
    assert wrapped("", 100) == []


def test_whole_numbers_have_whole_ticks():
    """Between layers 1 and 2 there is none; over numbers with fractions, fractions."""
    assert [label for _, label in Axis([1, 2], 0, 700).ticks(horizontal=True)] == ["1", "2"]
    assert [label for _, label in Axis([40], 0, 700).ticks(horizontal=True)] == ["38", "39", "40", "41", "42"]
    assert [label for _, label in Axis([1, 2.5], 0, 700).ticks(horizontal=True)][1] == "1.2"
