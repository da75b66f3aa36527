"""Faults of pages and charts."""

from __future__ import annotations

from ..places import comparison, condition, operation, value
from ..plant import Mutant

_CHARTS = "tests/fastgpt/pages/test_charts.py::test_"
_AXES = "tests/fastgpt/pages/test_axes.py::test_"
_PAGE = "tests/fastgpt/pages/test_page.py::test_"

MUTANTS = (
    Mutant(
        "chart-zero-on-a-logarithmic-axis",
        "charts._is_on",
        operation("and").becomes("math.isfinite(value)"),
        _CHARTS + "a_chart_draws_what_its_axes_can_show",
    ),
    Mutant(
        "chart-fits-have-points",
        "Chart._dotted",
        condition("dashed").never(),
        _CHARTS + "lines_are_told_apart_without_their_colours",
    ),
    Mutant(
        "chart-all-points-of-one-shape",
        "legend.Look.dot",
        value("shape").becomes("_SHAPES[0]"),
        _CHARTS + "lines_are_told_apart_without_their_colours",
    ),
    Mutant(
        "axis-of-one-value-has-no-length",
        "Axis.__init__",
        condition("abs").never(),
        _CHARTS + "points_are_inside_the_axes_where_a_range_is_zero",
    ),
    Mutant(
        "axis-labels-touch",
        "Axis._fits",
        comparison("before").becomes("False"),
        _AXES + "labels_side_by_side_do_not_touch",
    ),
    Mutant(
        "axis-measured-values-not-named",
        "Axis._candidates",
        condition("_is_short").never(),
        _AXES + "few_values_are_named_themselves",
    ),
    Mutant(
        "axis-labels-of-different-numbers-alike",
        "axes.labels",
        condition("set").always(),
        _AXES + "labels_of_different_numbers_differ",
    ),
    Mutant(
        "legend-in-one-row",
        "legend.legend",
        condition("wide").never(),
        _CHARTS + "no_text_lies_on_another_or_outside",
    ),
    Mutant(
        "chart-numbers-of-very-many-points",
        "page._numbers",
        condition("MOST_ROWS").never(),
        _PAGE + "the_numbers_of_a_chart_stand_below_it",
    ),
)
