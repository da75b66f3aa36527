"""Faults of pages and charts."""

from __future__ import annotations

from ..places import call, comparison, condition, operation, returned, value
from ..plant import Mutant

_CHARTS = "tests/fastgpt/pages/test_charts.py::test_"
_AXES = "tests/fastgpt/pages/test_axes.py::test_"
_PAGE = "tests/fastgpt/pages/test_page.py::test_"
_FIGURES = "tests/fastgpt/pages/test_figures.py::test_"
_REPORT = "tests/fastgpt/train/test_run_report.py::test_"
_COMPARED = "tests/fastgpt/study/test_compare_runs.py::test_"
_COMMAND = "tests/fastgpt/commands/test_report_command.py::test_"

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
        "axis-of-layers-names-fractions",
        "Axis._candidates",
        operation("and", "whole").becomes("False"),
        _AXES + "whole_numbers_have_whole_ticks",
    ),
    Mutant(
        "page-prints-dark",
        "Page.__init__",
        call("asset", "paper.js").becomes("''"),
        _PAGE + "paper_is_white",
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
    # --- reports of runs ----------------------------------------------------------------------------------------------
    Mutant(
        "thinned-points-lose-their-peaks",
        "figures.thinned",
        value("high").becomes("stretch[-1]"),
        _FIGURES + "thinned_points_keep_ends_and_peaks",
    ),
    Mutant(
        "report-tokens-without-accumulation",
        "Run.tokens_per_step",
        returned().becomes("sizes[0] * sizes[2] if len(sizes) == 3 else None"),
        _REPORT + "a_report_has_the_numbers_of_the_run",
    ),
    Mutant(
        "report-figures-of-two-validations",
        "Run.validation",
        value("newest").becomes(
            "next((line for line in reversed(self.lines) if number(line.get('val_' + name)) is not None), None)"
        ),
        _REPORT + "garbled_and_missing_measurements_are_left_out",
    ),
    Mutant(
        "report-somebodys-file-is-replaced",
        "run_report.write_after",
        condition("is_ours").never(),
        _REPORT + "what_somebody_else_has_put_in_its_place_stays",
    ),
    Mutant(
        "report-of-a-killed-process-stays-away",
        "Trainer.fit",
        call("write_missing").dropped(),
        _REPORT + "a_report_that_a_killed_process_owes_is_written_when_the_run_is_resumed",
    ),
    Mutant(
        "report-of-the-old-run-stays-with-the-new-one",
        "overwritten._texts",
        operation("*", "is_ours").becomes("[]"),
        _REPORT + "a_run_that_is_started_over_has_a_new_one",
    ),
    Mutant(
        "comparison-tokens-are-steps",
        "compare_runs._chart",
        value("scale").becomes("1"),
        _COMPARED + "curves_over_tokens_are_scaled_by_each_runs_step",
    ),
    Mutant(
        "comparison-names-alike",
        "compare_runs.named",
        condition("labels").always(),
        _COMPARED + "names_tell_runs_apart",
    ),
    Mutant(
        "report-command-replaces-the-demos-page",
        "report.Command._checked",
        call("is_ours").argument(2).becomes("'fastgpt'"),
        _COMMAND + "the_demos_page_stays",
    ),
)
