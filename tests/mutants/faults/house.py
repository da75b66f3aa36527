"""Faults of the tokenizer, of sampling, and of what every part of the package uses."""

from __future__ import annotations

from ..plant import Mutant

_TOKENIZER = "tests/fastgpt/data/test_tokenizer.py::test_"
_SAMPLING = "tests/fastgpt/model/test_sampling.py::test_"
_FILES = "tests/fastgpt/base/test_files.py::test_"
_SETTINGS = "tests/fastgpt/base/test_settings.py::test_"
_TIED = "tests/fastgpt/model/test_tied.py::test_"
_OUTPUT = "tests/fastgpt/model/test_output.py::test_"
_IMPL = "tests/fastgpt/nn/test_impl.py::test_"
_ROUNDING = "tests/fastgpt/tools/test_rounding.py::test_"
_REPORT = "tests/fastgpt/study/test_report.py::test_"

MUTANTS = (
    # --- tokenizer ----------------------------------------------------------------------------------------------------
    Mutant(
        "tokenizer-end-of-text-in-a-text-becomes-the-id",
        "fastgpt/data/tokenizer.py",
        "{END_OF_TEXT} if special else set()",
        "{END_OF_TEXT}",
        _TOKENIZER + "end_of_text_is_ordinary_text_unless_allowed",
    ),
    Mutant(
        "tokenizer-end-of-text-counted-as-a-byte",
        "fastgpt/data/tokenizer.py",
        "np.zeros(self.vocab_size, dtype=np.int64)",
        "np.ones(self.vocab_size, dtype=np.int64)",
        _TOKENIZER + "every_id_stands_for_its_bytes_and_end_of_text_for_none",
    ),
    Mutant(
        "tokenizer-decodes-negative-ids",
        "fastgpt/data/tokenizer.py",
        "0 <= i < self.vocab_size",
        "i < self.vocab_size",
        _TOKENIZER + "id_out_of_range",
    ),
    Mutant(
        "tokenizer-other-ranks-than-were-saved",
        "fastgpt/data/tokenizer.py",
        "loaded.sha256 != sha256",
        "False",
        _TOKENIZER + "saved_tokenizer_of_other_ranks_is_refused",
    ),
    Mutant(
        "tokenizer-stream-splits-characters",
        "fastgpt/data/tokenizer.py",
        "yield decoder.decode(self.decode_bytes([i]))",
        "yield self.decode([i])",
        _TOKENIZER + "stream_never_cuts_a_character",
    ),
    Mutant(
        "tokenizer-equal-by-name",
        "fastgpt/data/tokenizer.py",
        "self.sha256 == other.sha256",
        "self.name == other.name",
        _TOKENIZER + "tokenizers_of_other_ranks_are_others_whatever_their_name",
    ),
    Mutant(
        "tokenizer-ranks-with-holes",
        "fastgpt/data/tokenizer.py",
        "sorted(ranks.values()) != list(range(len(ranks)))",
        "False",
        _TOKENIZER + "malformed_ranks_file",
    ),
    # --- sampling -----------------------------------------------------------------------------------------------------
    Mutant(
        "sampling-temperature-ignored",
        "fastgpt/model/sampling.py",
        "max(config.temperature, torch.finfo(torch.float32).tiny)",
        "1.0",
        _SAMPLING + "temperature_scales_the_logits",
    ),
    Mutant(
        "sampling-top-p-without-the-token-that-reaches-p",
        "fastgpt/model/sampling.py",
        "weights.cumsum(dim=-1) - weights",
        "weights.cumsum(dim=-1)",
        _SAMPLING + "top_k_and_top_p_keep_the_likeliest_with_their_ratios",
    ),
    Mutant(
        "sampling-window-stays-at-the-start",
        "fastgpt/model/sampling.py",
        "seen[:, -max_len:]",
        "seen[:, :max_len]",
        _SAMPLING + "the_model_sees_the_last_tokens",
    ),
    Mutant(
        "sampling-finished-rows-go-on",
        "fastgpt/model/sampling.py",
        "torch.where(finished, token, drawn)",
        "drawn",
        _SAMPLING + "eos_stops_a_row_and_then_everything",
    ),
    Mutant(
        "sampling-seed-ignored",
        "fastgpt/model/sampling.py",
        "torch.Generator(device=device).manual_seed(seed)",
        "torch.Generator(device=device).manual_seed(0)",
        _SAMPLING + "seed_and_generator",
    ),
    Mutant(
        "sampling-draws-by-infinity",
        "fastgpt/model/sampling.py",
        "~highest.isfinite()",
        "highest.isnan()",
        _SAMPLING + "logits_that_are_no_numbers_are_refused_by_their_rows",
    ),
    Mutant(
        "sampling-with-dropout",
        "fastgpt/model/modes.py",
        "model.eval()",
        "",
        _SAMPLING + "dropout_is_off",
    ),
    # --- files --------------------------------------------------------------------------------------------------------
    Mutant(
        "files-what-describes-the-others-goes-first",
        "fastgpt/base/files.py",
        '(name.endswith(".json"), name)',
        "name",
        _FILES + "what_describes_the_other_files_takes_its_place_after_them",
    ),
    # --- settings -----------------------------------------------------------------------------------------------------
    Mutant(
        "settings-true-is-the-integer-1",
        "fastgpt/base/settings.py",
        "isinstance(value, bool)",
        "False",
        _SETTINGS + "integers",
        where="check_integer",
    ),
    Mutant(
        "settings-infinity-is-a-number",
        "fastgpt/base/settings.py",
        "not math.isfinite(number)",
        "math.isnan(number)",
        _SETTINGS + "where_ranges_end",
    ),
    Mutant(
        "settings-above-includes-its-end",
        "fastgpt/base/settings.py",
        "number <= above",
        "number < above",
        _SETTINGS + "where_ranges_end",
    ),
    Mutant(
        "settings-most-excludes-itself",
        "fastgpt/base/settings.py",
        "number > most",
        "number >= most",
        _SETTINGS + "where_ranges_end",
        where="check_integer",
    ),
    # --- the tie of head and embedding --------------------------------------------------------------------------------
    Mutant(
        "tied-loading-by-assignment-unties",
        "fastgpt/model/tied.py",
        "_tie([place for place, _ in before], new[0])",
        "",
        _TIED + "any_load_keeps_the_tie",
    ),
    Mutant(
        "tied-loads-one-of-two-weights-that-differ",
        "fastgpt/model/tied.py",
        "not _same(state[given[0]], state[other])",
        "False",
        _TIED + "two_different_weights_are_refused",
    ),
    Mutant(
        "tied-saves-one-of-two-weights-that-differ",
        "fastgpt/model/tied.py",
        'config.tie_weights and not _same(state["token_emb.weight"], state["head.weight"])',
        "False",
        _TIED + "saving_what_a_file_could_not_hold_is_refused",
    ),
    # --- what a model returns -----------------------------------------------------------------------------------------
    Mutant(
        "output-logits-by-a-head-that-has-changed",
        "fastgpt/model/output.py",
        "self.versions is not None and self.versions != [_version(p) for p in now.values()]",
        "False",
        _OUTPUT + "logits_of_changed_weights_are_refused",
    ),
    Mutant(
        "output-logits-outside-of-autocast",
        "fastgpt/model/output.py",
        "_autocast(hidden.device.type, self.autocast)",
        "contextlib.nullcontext()",
        _OUTPUT + "logits_computed_later_are_those_of_the_forwards_autocast",
    ),
    Mutant(
        "output-walking-through-it-computes-logits-in-training",
        "fastgpt/model/output.py",
        "self._pending and self.unembedding.evaluating",
        "self._pending",
        _OUTPUT + "who_walks_through_an_output_in_training_computes_no_logits",
        where="GPTOutput.__iter__",
    ),
    Mutant(
        "output-a-copy-forgets-its-logits",
        "fastgpt/model/output.py",
        "other._pending, other._lost = self._pending, self._lost",
        "other._pending = False",
        _OUTPUT + "logits_are_computed_when_asked_for_by_name_or_number",
    ),
    # --- which implementation -----------------------------------------------------------------------------------------
    Mutant(
        "impl-auto-takes-the-interpreter",
        "fastgpt/nn/impl.py",
        "if interpreting:\n"
        "    obstacle = 'the CPU interpreter is for tests and teaching; request \"triton\" by name to run it'",
        "",
        _IMPL + "auto_does_not_interpret",
    ),
    Mutant(
        "impl-auto-takes-kernels-under-forward-mode",
        "fastgpt/nn/impl.py",
        "obstacle is None and tangents",
        "False",
        _IMPL + "auto_on_a_gpu_takes_heads_up_to_the_limit_and_no_forward_mode",
    ),
    Mutant(
        "impl-head-dim-of-256-refused",
        "kernels/support.py",
        "1 <= head_dim <= MAX_HEAD_DIM",
        "1 <= head_dim < MAX_HEAD_DIM",
        _IMPL + "auto_on_a_gpu_takes_heads_up_to_the_limit_and_no_forward_mode",
        where="head_dim_why_not",
    ),
    Mutant(
        "impl-layers-between-two-shown-as-one-span",
        "fastgpt/nn/implementations.py",
        "n == spans[-1][1] + 1",
        "n >= spans[-1][1] + 1",
        _IMPL + "layers_in_a_row_are_one_span",
    ),
    # --- what rounding does -------------------------------------------------------------------------------------------
    Mutant(
        "rounding-half-a-roundoff",
        "fastgpt/tools/rounding.py",
        "roundings * info.eps / 2",
        "roundings * info.eps / 4",
        _ROUNDING + "one_operation_is_off_by_one_rounding_up_or_down",
    ),
    Mutant(
        "rounding-sums-in-the-dtype-of-the-result",
        "fastgpt/tools/rounding.py",
        "min(info.eps, torch.finfo(torch.float32).eps)",
        "info.eps",
        _ROUNDING + "sums_and_products_of_matrices_round_on_the_way",
    ),
    Mutant(
        "rounding-long-sums-of-one-sign",
        "fastgpt/tools/rounding.py",
        "0.18 * steps * partial.square()",
        "0.0 * steps * partial.square()",
        _ROUNDING + "long_sums_of_one_sign_round_as_often_as_they_have_terms",
    ),
    # --- pages --------------------------------------------------------------------------------------------------------
    Mutant(
        "report-cells-of-a-table-not-escaped",
        "fastgpt/study/report.py",
        'f"<{tag}>{html.escape(str(cell))}</{tag}>"',
        'f"<{tag}>{cell}</{tag}>"',
        _REPORT + "report_is_one_escaped_file",
    ),
    Mutant(
        "report-chart-upside-down",
        "fastgpt/study/report.py",
        "y_high - y",
        "y - y_low",
        _REPORT + "line_chart_draws_every_point_and_level",
        where="line_chart.py",
    ),
    Mutant(
        "report-chart-of-infinities",
        "fastgpt/study/report.py",
        "[(x, y) for x, y in points if math.isfinite(y)]",
        "list(points)",
        _REPORT + "line_chart_draws_every_point_and_level",
    ),
    Mutant(
        "attention-maps-a-token-ends-the-script",
        "fastgpt/study/attention_maps.py",
        'json.dumps({"tokens": list(tokens), "panels": panels}).replace("</", "<\\\\/")',
        'json.dumps({"tokens": list(tokens), "panels": panels})',
        _REPORT + "html_maps_hold_the_weights",
    ),
    Mutant(
        "attention-maps-weights-cut-off",
        "fastgpt/study/attention_maps.py",
        "(weights.clamp(0.0, 1.0) * 255.0).round()",
        "(weights.clamp(0.0, 1.0) * 255.0)",
        _REPORT + "html_maps_hold_the_weights",
    ),
    Mutant(
        "attention-maps-heads-numbered-anew",
        "fastgpt/study/attention_maps.py",
        "heads if heads is not None else range(weights.shape[1])",
        "range(weights.shape[1])",
        _REPORT + "html_maps_hold_the_weights",
    ),
)
