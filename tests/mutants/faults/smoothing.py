"""Faults of the study of over-smoothing: its measures, the layers that it looks at, its page and command."""

from __future__ import annotations

from ..places import (
    argument,
    assignment,
    call,
    comparison,
    condition,
    item,
    literal,
    operand,
    operation,
    returned,
    statement,
    value,
)
from ..plant import Mutant

_MEASURES = "tests/fastgpt/study/test_measures.py::test_"
_RECORD = "tests/fastgpt/study/test_smoothing_record.py::test_"
_PAGE = "tests/fastgpt/study/test_smoothing_page.py::test_"
_COMPARISON = "tests/fastgpt/study/test_smoothing_comparison.py::test_"
_COMMAND = "tests/fastgpt/commands/test_study_smoothing.py::test_"

MUTANTS = (
    # --- the measures -------------------------------------------------------------------------------------------------
    Mutant(
        "smoothing-rounding-taken-for-a-direction",
        "measures.smoothing",
        assignment("centred", "where").dropped(),
        _MEASURES + "what_rounding_leaves_of_equal_tokens_is_no_direction",
    ),
    Mutant(
        "smoothing-rank-of-squares",
        "measures.smoothing",
        value("share").becomes("sigma.square() / sigma.square().sum(-1, keepdim=True)"),
        _RECORD + "layers_of_a_model_are_those_of_float64",
    ),
    Mutant(
        "smoothing-energy-twice",
        "measures.dirichlet_energy",
        literal(0.5).becomes("1.0"),
        _MEASURES + "dirichlet_energy_is_its_formula",
    ),
    # --- layers -------------------------------------------------------------------------------------------------------
    Mutant(
        "smoothing-the-stream-without-what-is-still-to-be-added",
        "smoothing_layers.residual_streams",
        operation("+", nth=-1).operand(2).dropped(),
        _RECORD + "layers_of_a_model_are_those_of_float64",
    ),
    Mutant(
        "smoothing-average-of-the-first",
        "smoothing_layers._by_head",
        returned().becomes("known[0] if known else None"),
        _RECORD + "an_average_is_that_of_each_number",
    ),
    Mutant(
        "smoothing-sequences-from-the-beginning-only",
        "smoothing_record.windows",
        value("starts").becomes("[length * n for n in range(count)]"),
        _RECORD + "sequences_are_spread_over_the_text_and_do_not_overlap",
    ),
    Mutant(
        "smoothing-a-comparison-is-replaced",
        "smoothing_record.is_ours",
        comparison("recipe").always(),
        _RECORD + "what_may_be_replaced",
    ),
    # --- page and command ---------------------------------------------------------------------------------------------
    Mutant(
        "smoothing-page-shades-from-nought",
        "smoothing_page.heads_table",
        value("low").becomes("0.0"),
        _PAGE + "heads_are_shaded_from_the_lowest_to_the_highest",
    ),
    Mutant(
        "smoothing-page-heads-one-block-early",
        "smoothing_page.chart",
        value("x").becomes("same[0]['layer']"),
        _PAGE + "a_chart_has_a_point_for_each_layer_and_a_bar_for_the_heads",
    ),
    Mutant(
        "smoothing-command-one-file-for-both",
        "_outputs.check_both",
        condition("realpath").never(),
        _COMMAND + "mistakes",
    ),
    # --- the comparison -----------------------------------------------------------------------------------------------
    Mutant(
        "comparison-dropout-in-all-runs",
        "Variant.model_config",
        argument("dropout").becomes("config.dropout"),
        _COMPARISON + "four_runs_that_differ_in_dropout_and_weight_decay",
    ),
    Mutant(
        "comparison-another-model-each-run",
        "Comparison._train",
        call("manual_seed").dropped(),
        _COMPARISON + "four_runs_that_differ_in_dropout_and_weight_decay",
    ),
    Mutant(
        "comparison-finished-runs-again",
        "Comparison._run",
        condition("is_finished").never(),
        _COMPARISON + "finished_runs_are_not_made_again_and_new_seeds_are",
    ),
    Mutant(
        "comparison-starts-over",
        "Comparison.updates_left",
        operand("done").dropped(),
        _COMPARISON + "an_interrupted_comparison_goes_on_where_it_was",
    ),
    Mutant(
        "comparison-pairs-of-different-seeds",
        "smoothing_effects._matched",
        item("seed").dropped(),
        _COMPARISON + "effects_are_differences_of_pairs_that_differ_in_nothing_else",
    ),
    Mutant(
        "comparison-signs-counted-whatever-they-are",
        "smoothing_effects.effects",
        comparison().always(),
        _COMPARISON + "effects_are_differences_of_pairs_that_differ_in_nothing_else",
    ),
    Mutant(
        "comparison-a-higher-rank-is-more-alike",
        "smoothing_comparison_page.LESS_ALIKE",
        item("Effective rank").becomes("-1"),
        _COMPARISON + "what_a_change_says",
    ),
    Mutant(
        "comparison-says-more-than-the-pairs",
        "smoothing_comparison_page.verdict",
        condition("alike").never(),
        _COMPARISON + "what_a_change_says",
    ),
    Mutant(
        "comparison-command-ignores-options-without-train",
        "study_smoothing.Command.run",
        statement("for", "changed").dropped(),
        _COMMAND + "mistakes",
    ),
)
