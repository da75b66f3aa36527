"""Faults of the depth study: its grid, its budget, what it measures and what it says of the papers' claims."""

from __future__ import annotations

from ..places import assignment, call, caught, comparison, condition, operand, operation, returned, value
from ..plant import Mutant

_CONFIG = "tests/fastgpt/study/depth/test_config.py::test_"
_CLAIMS = "tests/fastgpt/study/depth/test_claims.py::test_"
_STUDY = "tests/fastgpt/study/depth/test_study.py::test_"

MUTANTS = (
    Mutant(
        "depth-runs-without-layer-norm-take-all-tokens",
        "Cell.updates",
        value("share").becomes("1.0"),
        _CONFIG + "cells_of_a_part_of_the_grid",
    ),
    Mutant(
        "depth-an-update-is-a-micro-batch",
        "Cell.train_config",
        operation("//", "micro_batch", nth=1).becomes("1"),
        _CONFIG + "the_papers_grid_is_the_default",
    ),
    Mutant(
        "depth-budget-counts-one-run",
        "depth.tokens_within",
        call("sum").becomes("max(seconds_per_token(cell) for cell in config.cells())"),
        _CONFIG + "a_budget_is_filled_and_not_overdrawn",
    ),
    Mutant(
        "depth-budget-beyond-the-data",
        "depth.tokens_within",
        condition("most").never(),
        _CONFIG + "a_budget_too_short_or_too_long",
    ),
    Mutant(
        "depth-budget-in-minutes-only",
        "depth.seconds_of",
        call("sum").becomes("60 * float(parts[0][0])"),
        _CONFIG + "budgets",
    ),
    Mutant(
        "depth-perplexities-anywhere-are-near",
        "depth.perplexity_values",
        call("all").becomes("True"),
        _CLAIMS + "what_is_not_so_is_not_confirmed",
    ),
    Mutant(
        "depth-values-of-a-small-study-count",
        "depth.perplexity_values",
        comparison("FULL_SCALE").never(),
        _CLAIMS + "at_a_small_scale_values_are_not_testable_and_the_shape_is",
    ),
    Mutant(
        "depth-a-fall-within-the-seeds-range-counts",
        "depth.perplexity_falls",
        comparison("spread").operand("spread").becomes("0"),
        _CLAIMS + "a_fall_within_the_range_of_seeds_confirms_nothing",
    ),
    Mutant(
        "depth-any-time-is-linear",
        "depth.time_is_linear",
        value("holds").becomes("True"),
        _CLAIMS + "what_is_not_so_is_not_confirmed",
    ),
    Mutant(
        "depth-tokens-grow-alike-if-any-do",
        "depth.tokens_alike",
        call("all", "pairwise").becomes("any(a < b for a, b in itertools.pairwise(last.values()))"),
        _CLAIMS + "what_is_not_so_is_not_confirmed",
    ),
    Mutant(
        "depth-runs-that-diverge-are-not-seen",
        "depth.less_stable",
        value("failed").becomes("[]"),
        _CLAIMS + "deep_runs_that_diverge_without_layer_norm_confirm_it",
    ),
    Mutant(
        "depth-finished-runs-are-made-again",
        "StudyRun.is_finished",
        returned("any").becomes("False"),
        _STUDY + "finished_runs_are_not_made_again",
    ),
    Mutant(
        "depth-a-failed-run-ends-the-study",
        "_Study._train",
        caught("Exception").becomes("ZeroDivisionError"),
        _STUDY + "a_run_that_fails_is_reported_and_the_rest_goes_on",
    ),
    Mutant(
        "depth-another-recipe-is-gone-on-with",
        "StudyFolder.read",
        condition("options").never(),
        _STUDY + "other_settings_other_data_other_folders",
    ),
    Mutant(
        "depth-other-data-is-gone-on-with",
        "depth._check_same_data",
        comparison("sha256").never(),
        _STUDY + "other_settings_other_data_other_folders",
    ),
    Mutant(
        "depth-the-variant-normalises",
        "GPTWithoutLayerNorm.__init__",
        assignment("__class__").dropped(),
        _STUDY + "without_layer_norm_nothing_is_normalised",
    ),
    Mutant(
        "depth-gradients-of-squares",
        "depth.gradient_norms",
        call("sqrt").becomes("torch.stack(squares).sum()"),
        _STUDY + "gradient_norms_are_those_of_each_block",
    ),
    Mutant(
        "depth-a-thinned-curve-drops-its-end",
        "depth.thinned",
        operand(1, "most").becomes("most - 1"),
        _STUDY + "a_thinned_curve_keeps_its_mean_and_its_end",
    ),
    Mutant(
        "smoothing-a-token-beside-itself",
        "study._pairs",
        value("together").operand(2).dropped(),
        "tests/fastgpt/study/test_measures.py::test_orthogonal_tokens",
    ),
    Mutant(
        "fits-an-interval-without-its-degrees",
        "study._least_squares",
        call("student_t").becomes("1.96"),
        "tests/fastgpt/study/test_fits.py::test_a_line_by_hand",
    ),
    Mutant(
        "fits-points-are-the-degrees",
        "study._least_squares",
        operation("-", "n", "p", nth=2).becomes("n"),
        "tests/fastgpt/study/test_fits.py::test_a_line_by_hand",
    ),
    Mutant(
        "fits-r2-of-nothing-explained",
        "study._least_squares",
        value("r2").choice().then().becomes("squares / spread"),
        "tests/fastgpt/study/test_fits.py::test_a_line_by_hand",
    ),
)
