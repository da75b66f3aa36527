"""Faults of what goes in and comes out beside the model: token ids, outputs, OneHeadLM, settings and presets."""

from __future__ import annotations

from ..places import argument, assignment, call, comparison, condition, item, literal, operand, statement, then, value
from ..plant import Mutant

_MODEL = "tests/fastgpt/model/test_model.py::test_"
_IMPL = "tests/fastgpt/nn/test_impl.py::test_"
_OUTPUT = "tests/fastgpt/model/test_output.py::test_"
_ONE_HEAD = "tests/fastgpt/model/test_one_head.py::test_"
_CONFIG = "tests/fastgpt/model/test_config.py::test_"
_TOKENS = "tests/fastgpt/model/test_token_ids.py::test_"
_EFFECTS = "tests/fastgpt/model/test_model_effects.py::test_"

MUTANTS = (
    # --- token ids and targets ----------------------------------------------------------------------------------------
    Mutant(
        "tokens-one-past-the-vocabulary-pass",
        "model.checked_ids",
        comparison("high").operator(">"),
        _TOKENS + "bad_ids_are_named_at_every_entrance",
    ),
    Mutant(
        "tokens-targets-one-past-the-vocabulary-pass",
        "model.checked_targets",
        comparison("high").operator(">"),
        _TOKENS + "bad_targets_are_named",
    ),
    Mutant(
        "tokens-negative-targets-pass",
        "model.checked_targets",
        condition("low").comparison("low").dropped(),
        _TOKENS + "bad_targets_are_named",
    ),
    Mutant(
        "tokens-what-does-not-count-is-minus-one",
        "model.IGNORE_INDEX",
        value().becomes("-1"),
        _TOKENS + "targets_that_do_not_count",
    ),
    Mutant(
        "tokens-longer-than-the-context-pass",
        "model.checked_ids",
        condition("shape").never(),
        _TOKENS + "bad_ids_are_named_at_every_entrance",
    ),
    Mutant(
        "tokens-targets-of-another-shape-pass",
        "model.checked_targets",
        condition("idx").becomes("targets.numel() != idx.numel()"),
        _EFFECTS + "targets_of_as_many_numbers_in_another_shape_are_refused",
    ),
    # --- outputs ------------------------------------------------------------------------------------------------------
    Mutant(
        "output-walking-through-it-in-training-computes-logits",
        "Unembedding.__init__",
        value("evaluating").always(),
        _OUTPUT + "who_walks_through_an_output_in_training_computes_no_logits",
    ),
    Mutant(
        "output-logits-computed-again-and-again",
        "GPTOutput.logits",
        assignment("_pending").dropped(),
        _MODEL + "return_logits_false_still_gives_logits_when_asked",
    ),
    Mutant(
        "output-loss-and-logits-change-places",
        "model._ORDER",
        value("_ORDER").swapped(),
        _OUTPUT + "what_modeloutput_answers",
    ),
    Mutant(
        "output-a-copy-without-logits-gives-none",
        "GPTOutput.__init__",
        assignment("_lost", "hidden").dropped(),
        _OUTPUT + "a_librarys_copy_without_logits_says_so",
    ),
    Mutant(
        "output-weights-lent-by-functional-call-forgotten",
        "Unembedding._lent",
        call("any").never(),
        _OUTPUT + "functional_call_lends_its_weights_to_logits_computed_later",
    ),
    Mutant(
        "output-of-a-transform-refused-inside-of-it",
        "model._outside_of_transforms",
        call("_are_functorch_transforms_active").never(),
        _EFFECTS + "logits_asked_for_inside_of_a_transform_are_differentiated",
    ),
    # --- OneHeadLM ----------------------------------------------------------------------------------------------------
    Mutant("one-head-scale-omitted", "OneHeadLM.forward", operand("D").dropped(), _ONE_HEAD + "every_formula"),
    Mutant(
        "one-head-residual-dropped",
        "OneHeadLM.forward",
        operand("x_BxTxD").dropped(),
        _ONE_HEAD + "every_formula",
    ),
    Mutant(
        "one-head-residual-of-the-normed",
        "OneHeadLM.forward",
        operand("x_BxTxD").becomes("h_BxTxD"),
        _ONE_HEAD + "every_formula",
    ),
    Mutant(
        "one-head-sees-one-token-ahead",
        "OneHeadLM.forward",
        argument("diagonal").becomes("2"),
        _ONE_HEAD + "nothing_leaks_from_the_future",
    ),
    Mutant(
        "one-head-windows-do-not-slide",
        "OneHeadBase._limits",
        item("max_len").becomes("2 * it"),
        _ONE_HEAD + "generation_is_the_likeliest_token_of_a_plain_forward_past_max_len_too",
    ),
    # --- settings and presets -----------------------------------------------------------------------------------------
    Mutant(
        "presets-gpt2-large-has-other-heads",
        "model._GPT2",
        literal(20).becomes("16"),
        _EFFECTS + "every_number_of_gpt2s_presets",
    ),
    Mutant(
        "presets-gpt2-has-the-exact-gelu",
        "model.fields_of",
        item("tanh", nth=1).becomes("'none'"),
        _CONFIG + "gpt2_sizes",
    ),
    Mutant(
        "presets-gpt2-has-half-the-context",
        "model.fields_of",
        literal(1024).becomes("512"),
        _CONFIG + "gpt2_sizes",
    ),
    Mutant(
        "presets-width-and-heads-change-places",
        "model.fields_of",
        assignment("d_model", "split", nth=-1).collection().swapped(2, 3),
        _CONFIG + "depth_study_grid",
    ),
    Mutant("presets-one-head-of-another-width", "model.ONE_HEAD_SIZES", value().swapped(2, 3), _ONE_HEAD + "presets"),
    Mutant(
        "config-a-new-width-keeps-the-old-ffn",
        "GPTConfig.replace",
        call("setdefault", "d_ff").dropped(),
        _CONFIG + "replace_moves_dependent_defaults",
    ),
    Mutant(
        "config-dropout-of-everything-passes",
        "GPTConfig.__post_init__",
        call("check_number", "dropout").argument("below").becomes("2"),
        _CONFIG + "bad_fields_are_named",
    ),
    Mutant(
        "config-a-set-of-implementations-mixes-two",
        "model.IMPLEMENTATION_SETS",
        then().becomes("'reference'"),
        _EFFECTS + "the_sets_of_implementations_are_whole",
    ),
    Mutant(
        "impl-a-head-dim-beyond-the-kernels-passes",
        "kernels.head_dim_why_not",
        condition().always(),
        _IMPL + "auto_on_a_gpu_passes_over_what_kernels_cannot_take",
    ),
    Mutant(
        "impl-float64-goes-to-the-kernels",
        "kernels.dtype_why_not",
        condition().always(),
        _IMPL + "auto_on_a_gpu_passes_over_what_kernels_cannot_take",
    ),
    Mutant(
        "impl-layers-of-the-table-lose-their-last",
        "nn._spans",
        value("spans[-1]").becomes("n - 1"),
        _IMPL + "table_names_layer_request_and_reason",
    ),
    Mutant(
        "modes-everything-trains-after-an-evaluation",
        "model.evaluating",
        statement("for", nth=-1).becomes("model.train(True)"),
        "tests/fastgpt/model/test_modes.py::test_modes_are_what_they_were",
    ),
    Mutant(
        "sampling-top-p-one-too-many",
        "model._draw",
        comparison("least").operator(">"),
        "tests/fastgpt/model/test_sampling.py::test_what_reaches_top_p_exactly_is_enough",
    ),
    Mutant(
        "sampling-top-p-without-its-least",
        "model._from_the_likeliest",
        literal(0.9).becomes("2.0"),
        "tests/fastgpt/model/test_sampling.py::test_the_least_of_what_top_p_keeps_is_drawn",
    ),
)
