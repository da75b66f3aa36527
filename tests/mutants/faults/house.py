"""Faults of the tokenizer, of sampling, and of what every part of the package uses."""

from __future__ import annotations

from ..places import (
    argument,
    assignment,
    call,
    choice,
    comparison,
    condition,
    context,
    item,
    literal,
    name,
    operand,
    operation,
    returned,
    statement,
    value,
)
from ..plant import Mutant

_TOKENIZER = "tests/fastgpt/data/test_tokenizer.py::test_"
_SAMPLING = "tests/fastgpt/model/test_sampling.py::test_"
_FILES = "tests/fastgpt/base/test_files.py::test_"
_SETTINGS = "tests/fastgpt/base/test_settings.py::test_"
_TIED = "tests/fastgpt/model/test_tied.py::test_"
_OUTPUT = "tests/fastgpt/model/test_output.py::test_"
_IMPL = "tests/fastgpt/nn/test_impl.py::test_"
_ROUNDING = "tests/fastgpt/tools/test_rounding.py::test_"
_BUDGET = "tests/fastgpt/tools/test_budget.py::test_"
_CHARTS = "tests/fastgpt/pages/test_charts.py::test_"
_MOVED = "tests/fastgpt/test_moved.py::test_"
_PAGE = "tests/fastgpt/pages/test_page.py::test_"

MUTANTS = (
    # --- tokenizer ----------------------------------------------------------------------------------------------------
    Mutant(
        "tokenizer-end-of-text-in-a-text-becomes-the-id",
        "Tokenizer._encoded_piece",
        value("allowed").choice().always(),
        _TOKENIZER + "end_of_text_is_ordinary_text_unless_allowed",
    ),
    Mutant(
        "tokenizer-end-of-text-counted-as-a-byte",
        "Tokenizer.token_bytes",
        name("zeros").becomes("np.ones"),
        _TOKENIZER + "every_id_stands_for_its_bytes_and_end_of_text_for_none",
    ),
    Mutant(
        "tokenizer-decodes-negative-ids",
        "Tokenizer.decode_bytes",
        literal(0).dropped(),
        _TOKENIZER + "id_out_of_range",
    ),
    Mutant(
        "tokenizer-other-ranks-than-were-saved",
        "Tokenizer.from_pretrained",
        condition("loaded").never(),
        _TOKENIZER + "saved_tokenizer_of_other_ranks_is_refused",
    ),
    Mutant(
        "tokenizer-stream-splits-characters",
        "Tokenizer.decode_stream",
        returned("decode_bytes").becomes("self.decode([i])"),
        _TOKENIZER + "stream_never_cuts_a_character",
    ),
    Mutant(
        "tokenizer-equal-by-name",
        "Tokenizer.__eq__",
        comparison().becomes("self.name == other.name"),
        _TOKENIZER + "tokenizers_of_other_ranks_are_others_whatever_their_name",
    ),
    Mutant(
        "tokenizer-ranks-with-holes",
        "data._parse_ranks",
        condition("range").never(),
        _TOKENIZER + "malformed_ranks_file",
    ),
    # --- sampling -----------------------------------------------------------------------------------------------------
    Mutant(
        "sampling-temperature-ignored",
        "model._draw",
        operand("tiny").becomes("1.0"),
        _SAMPLING + "temperature_scales_the_logits",
    ),
    Mutant(
        "sampling-top-p-without-the-token-that-reaches-p",
        "model._draw",
        value("before").becomes(operand("dim")),
        _SAMPLING + "top_k_and_top_p_keep_the_likeliest_with_their_ratios",
    ),
    Mutant(
        "sampling-window-stays-at-the-start",
        "model._stream",
        item("max_len").becomes(":max_len"),
        _SAMPLING + "the_model_sees_the_last_tokens",
    ),
    Mutant(
        "sampling-finished-rows-go-on",
        "model._stream",
        call("where").becomes("drawn"),
        _SAMPLING + "eos_stops_a_row_and_then_everything",
    ),
    Mutant(
        "sampling-seed-ignored",
        "model._checked_generator",
        argument(1, "seed").becomes("0"),
        _SAMPLING + "seed_and_generator",
    ),
    Mutant(
        "sampling-draws-by-infinity",
        "model._draw",
        value("undrawable").becomes("highest.isnan()"),
        _SAMPLING + "logits_that_are_no_numbers_are_refused_by_their_rows",
    ),
    Mutant("sampling-with-dropout", "model.evaluating", call("eval").dropped(), _SAMPLING + "dropout_is_off"),
    # --- files --------------------------------------------------------------------------------------------------------
    Mutant(
        "files-what-describes-the-others-goes-first",
        "base.replace_files",
        returned().becomes("name"),
        _FILES + "what_describes_the_other_files_takes_its_place_after_them",
    ),
    # --- settings -----------------------------------------------------------------------------------------------------
    Mutant("settings-true-is-the-integer-1", "base.check_integer", condition("bool").never(), _SETTINGS + "integers"),
    Mutant(
        "settings-infinity-is-a-number",
        "base.check_number",
        operation("not", "number").becomes("math.isnan(number)"),
        _SETTINGS + "where_ranges_end",
    ),
    Mutant(
        "settings-above-includes-its-end",
        "base.check_number",
        comparison("number", "above").operator("<"),
        _SETTINGS + "where_ranges_end",
    ),
    Mutant(
        "settings-most-excludes-itself",
        "base.check_integer",
        comparison("number", "end").operator(">="),
        _SETTINGS + "where_ranges_end",
    ),
    # --- the tie of head and embedding --------------------------------------------------------------------------------
    Mutant(
        "tied-loading-by-assignment-unties",
        "model.after_loading",
        call("_tie").dropped(),
        _TIED + "any_load_keeps_the_tie",
    ),
    Mutant(
        "tied-loads-one-of-two-weights-that-differ",
        "model.before_loading",
        condition("_same").never(),
        _TIED + "two_different_weights_are_refused",
    ),
    Mutant(
        "tied-saves-one-of-two-weights-that-differ",
        "model.check_saveable",
        condition().never(),
        _TIED + "saving_what_a_file_could_not_hold_is_refused",
    ),
    # --- what a model returns -----------------------------------------------------------------------------------------
    Mutant(
        "output-logits-by-a-head-that-has-changed",
        "Unembedding._lent",
        condition("values").never(),
        _OUTPUT + "logits_of_changed_weights_are_refused",
    ),
    Mutant(
        "output-logits-outside-of-autocast",
        "Unembedding.logits",
        context().becomes("contextlib.nullcontext()"),
        _OUTPUT + "logits_computed_later_are_those_of_the_forwards_autocast",
    ),
    Mutant(
        "output-walking-through-it-computes-logits-in-training",
        "GPTOutput.__iter__",
        operand("_evaluating").dropped(),
        _OUTPUT + "who_walks_through_an_output_in_training_computes_no_logits",
    ),
    Mutant(
        "output-a-copy-forgets-its-logits",
        "GPTOutput._with",
        assignment("_lost").becomes("other._pending = False"),
        _OUTPUT + "logits_are_computed_when_asked_for_by_name_or_number",
    ),
    # --- which implementation -----------------------------------------------------------------------------------------
    Mutant(
        "impl-auto-takes-the-interpreter",
        "nn._explained",
        statement("if", "interpreting").dropped(),
        _IMPL + "auto_does_not_interpret",
    ),
    Mutant(
        "impl-auto-takes-kernels-under-forward-mode",
        "nn._explained",
        condition("tangents").never(),
        _IMPL + "auto_on_a_gpu_takes_heads_up_to_the_limit_and_no_forward_mode",
    ),
    Mutant(
        "impl-head-dim-of-256-refused",
        "kernels.head_dim_why_not",
        condition().operator("<", 2),
        _IMPL + "auto_on_a_gpu_takes_heads_up_to_the_limit_and_no_forward_mode",
    ),
    Mutant(
        "impl-layers-between-two-shown-as-one-span",
        "nn._spans",
        comparison("spans").operator(">="),
        _IMPL + "layers_in_a_row_are_one_span",
    ),
    # --- what rounding does -------------------------------------------------------------------------------------------
    Mutant(
        "rounding-half-a-roundoff",
        "tools._moved",
        value("moved", "size").literal(2).becomes("4"),
        _ROUNDING + "one_operation_is_off_by_one_rounding_up_or_down",
    ),
    Mutant(
        "rounding-four-roundoffs",
        "tools._moved",
        value("moved", "size").literal(2).becomes("0.5"),
        _BUDGET + "the_scale_is_that_of_the_expression_over_absolute_values",
    ),
    Mutant(
        "rounding-sums-in-the-dtype-of-the-result",
        "tools._moved",
        call("min").unwrapped(),
        _ROUNDING + "sums_and_products_of_matrices_round_on_the_way",
    ),
    Mutant(
        "rounding-long-sums-of-one-sign",
        "tools._on_the_way",
        literal(0.18).becomes("0.0"),
        _ROUNDING + "long_sums_of_one_sign_round_as_often_as_they_have_terms",
    ),
    # --- pages --------------------------------------------------------------------------------------------------------
    Mutant(
        "page-cells-of-a-table-not-escaped",
        "page._cell",
        call("escape").unwrapped(),
        _PAGE + "page_is_one_escaped_file",
    ),
    Mutant(
        "report-chart-upside-down",
        "Axis.__call__",
        operation("-", "start", "end").becomes("self.start - self.end"),
        _CHARTS + "line_chart_draws_every_point_and_level",
    ),
    Mutant(
        "report-chart-of-infinities",
        "Chart._drawn",
        returned().becomes("list(points)"),
        _CHARTS + "line_chart_draws_every_point_and_level",
    ),
    Mutant(
        "chart-logarithmic-axis-is-linear",
        "Axis._scale",
        choice("log10").becomes("float(value)"),
        _CHARTS + "logarithmic_axes_have_equal_steps_for_equal_factors",
    ),
    Mutant(
        "charts-in-a-row-lie-on-each-other",
        "in_a_row",
        assignment("left", "chart_width").dropped(),
        _CHARTS + "charts_in_a_row_are_one_svg",
    ),
    Mutant(
        "old-import-path-is-another-module",
        "_OldNames.exec_module",
        assignment("modules", "import_module").becomes("import_module(MOVED[old])"),
        _MOVED + "an_old_path_is_the_new_module",
    ),
    Mutant(
        "old-import-path-says-nothing",
        "_OldNames.exec_module",
        call("warn_explicit").dropped(),
        _MOVED + "an_old_path_is_the_new_module",
    ),
    Mutant(
        "old-name-is-told-of-twice",
        "_moved.old_name",
        call("setattr").dropped(),
        _MOVED + "a_name_that_is_elsewhere_now_is_found_under_its_old_path",
    ),
)
