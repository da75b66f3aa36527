"""Faults of fits and of the cost study: what is counted, fitted, measured and drawn."""

from __future__ import annotations

from ..places import call, choice, comparison, condition, operation, returned, value
from ..plant import Mutant

_FITS = "tests/fastgpt/study/test_fits.py::test_"
_COST = "tests/fastgpt/study/test_cost.py::test_"
_PAGE = "tests/fastgpt/study/test_cost_page.py::test_"

MUTANTS = (
    # --- fits ---------------------------------------------------------------------------------------------------------
    Mutant(
        "fits-intervals-of-a-normal-distribution",
        "study.student_t",
        returned().becomes("1.959964"),
        _FITS + "student_t_is_that_of_the_tables",
    ),
    Mutant(
        "fits-variance-over-n",
        "study._least_squares",
        value("covariance").operation("-").becomes("n"),
        _FITS + "a_line_by_hand",
    ),
    Mutant(
        "fits-r2-about-zero",
        "study._least_squares",
        value("spread").operation("-").becomes("ys"),
        _FITS + "a_line_by_hand",
    ),
    Mutant(
        "fits-factor-left-as-its-logarithm",
        "study.powers",
        returned().call("math.exp").unwrapped(),
        _FITS + "powers_of_several_names_are_found",
    ),
    # --- the cost study -----------------------------------------------------------------------------------------------
    Mutant(
        "cost-copies-of-weights-among-activations",
        "cost._counted",
        operation("-", "twice").becomes("once"),
        _COST + "activations_leave_out_what_does_not_grow_with_the_batch",
    ),
    Mutant(
        "cost-gradients-forgotten",
        "cost._counted",
        operation("*", "parameters").becomes("step.parameters"),
        _COST + "bytes_are_those_of_the_memory_counter",
    ),
    Mutant(
        "cost-activations-blind-to-autocast",
        "tools.kept_activations",
        choice("autocast").never(),
        _COST + "activations_leave_out_what_does_not_grow_with_the_batch",
    ),
    Mutant(
        "cost-margin-taken",
        "Paper.room",
        returned().becomes("self.gpu.memory"),
        _COST + "the_margin_stays_free",
    ),
    Mutant(
        "cost-interval-of-two-points",
        "cost.known",
        choice().never(),
        _COST + "two_points_have_no_interval_and_one_no_exponent",
    ),
    Mutant(
        "cost-what-just-fits-does-not",
        "cost.largest",
        comparison("middle", "room", nth=2).operator("<"),
        _COST + "the_largest_that_fits_is_that_of_brute_force",
    ),
    Mutant(
        "cost-none-fits-not-noticed",
        "cost.largest",
        value("low", nth=1).becomes("1"),
        _COST + "the_largest_that_fits_is_that_of_brute_force",
    ),
    Mutant(
        "cost-time-limit-of-one-round",
        "cost.step_times",
        condition("ROUNDS").operation("*", "ROUNDS").becomes("(spent + speed[turn.name] * turn.flops)"),
        _COST + "what_would_take_longer_than_the_limit_is_left_out",
    ),
    Mutant(
        "cost-memory-of-the-machine-not-looked-at",
        "cost._too_large",
        returned("peak").choice().never(),
        _COST + "what_the_memory_does_not_hold_is_left_out",
    ),
    Mutant(
        "cost-fits-drawn-in-bytes",
        "cost.charts",
        value("fitted", nth=2).operation("*", "exponent").becomes('fit["factor"] * x ** fit["exponent"]'),
        _PAGE + "the_plots_end_at_the_gpus_memory",
    ),
    Mutant(
        "cost-limit-not-drawn",
        "cost.charts",
        value("limit").becomes("None"),
        _PAGE + "the_plots_end_at_the_gpus_memory",
    ),
    Mutant(
        "charts-fits-in-their-own-colours",
        "Chart._looks",
        call("self.like.get").becomes("name"),
        "tests/fastgpt/pages/test_charts.py::test_a_fit_has_the_colour_of_its_points",
    ),
    Mutant(
        "outputs-others-files-replaced",
        "_outputs.check_file",
        condition("is_ours").never(),
        "tests/fastgpt/commands/test_study_cost.py::test_table_files_and_json_say_the_same",
    ),
)
