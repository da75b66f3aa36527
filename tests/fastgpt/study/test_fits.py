"""Lines and power laws: what is known by hand, and beside numpy in float64."""

from __future__ import annotations

import math

import numpy as np
import pytest

from fastgpt.base.settings import SettingError
from fastgpt.study.fits import line, power, powers, student_t


@pytest.mark.parametrize(
    ("degrees", "known"), [(1, 12.7062), (2, 4.3027), (3, 3.1824), (7, 2.3646), (10, 2.2281), (30, 2.0423)]
)
def test_student_t_is_that_of_the_tables(degrees, known):
    assert student_t(0.95, degrees) == pytest.approx(known, abs=5e-5)


def test_a_line_by_hand():
    """y = 1, 3, 2 at 0, 1, 2: slope 1/2, intercept 3/2, misfit 3/2 on 1 degree of freedom, r2 = 1/4."""
    found = line([0, 1, 2], [1, 3, 2])
    assert (found.slope, found.intercept, found.r2) == pytest.approx((0.5, 1.5, 0.25))
    half = 12.7062 * math.sqrt(1.5 / 2)
    assert found.slope_interval == pytest.approx((0.5 - half, 0.5 + half), rel=1e-4)
    half = 12.7062 * math.sqrt(1.5 * (1 / 3 + 1 / 2))
    assert found.intercept_interval == pytest.approx((1.5 - half, 1.5 + half), rel=1e-4)
    assert found.at(10) == pytest.approx(6.5)


def test_two_points_have_no_interval():
    found = line([2, 4], [1, 5])
    assert (found.slope, found.intercept, found.r2) == pytest.approx((2, -3, 1))
    assert all(map(math.isnan, (*found.slope_interval, *found.intercept_interval)))


def test_powers_of_several_names_are_found():
    rng = np.random.default_rng(0)
    xs = {"L": rng.integers(1, 20, 30), "D": rng.integers(1, 20, 30)}
    found = powers(xs, 3.0 * xs["L"] ** 1.0 * xs["D"] ** 2.0)
    assert found.exponents == pytest.approx({"L": 1.0, "D": 2.0})
    assert found.factor == pytest.approx(3.0)
    assert found.at(L=2, D=3) == pytest.approx(54.0)
    noisy = powers(xs, xs["L"] ** 1.5 * np.exp(0.1 * rng.standard_normal(30)))
    low, high = noisy.intervals["L"]
    assert low < 1.5 < high
    assert high - low < 0.2
    expected, *_ = np.linalg.lstsq(np.column_stack([np.ones(30), np.log(xs["L"]), np.log(xs["D"])]),
                                   np.log(noisy.at(**xs)), rcond=None)  # fmt: skip
    assert expected[1:] == pytest.approx(list(noisy.exponents.values()))


@pytest.mark.parametrize(
    ("call", "match"),
    [
        (lambda: line([1], [2]), "ys=1 is too few points for 2 unknowns; give at least 2"),
        (lambda: line([1, 2], [2]), "xs=2 must be as many numbers as ys, 1"),
        (lambda: line([3, 3], [1, 2]), "xs=3.0 is the same everywhere"),
        (lambda: line([1, 2], [1, math.nan]), "must be finite"),
        (lambda: power([1, 0], [1, 2]), "x=0 must be above 0"),
        (lambda: power([1, 2], [1, -2]), "ys=-2 must be above 0"),
        (lambda: powers({"a": [1, 2, 4], "b": [2, 4, 8]}, [1, 2, 3]), "changes only as another one does"),
    ],
)
def test_what_cannot_be_fitted(call, match):
    with pytest.raises(SettingError, match=match):
        call()
