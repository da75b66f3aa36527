"""Faults of what meets others: transformers' attention and GPT-2, nanoGPT, nn.TransformerEncoder, patch, files."""

from __future__ import annotations

from ..places import (
    argument,
    assignment,
    call,
    choice,
    comparison,
    condition,
    element,
    item,
    iterated,
    literal,
    name,
    operand,
    operation,
    returned,
    statement,
    value,
)
from ..plant import Mutant

_ATTENTION = "tests/fastgpt/interop/test_hf_attention.py::test_"
_HF_PATCH = "tests/fastgpt/interop/test_hf_patch.py::test_"
_PATCH = "tests/fastgpt/interop/test_patch.py::test_"
_INTEROP = "tests/fastgpt/model/test_interop.py::test_"
_PEFT = "tests/fastgpt/nn/test_exact_peft.py::test_"
_EFFECTS = "tests/fastgpt/nn/test_nn_effects.py::test_"
_FIELDS = "tests/fastgpt/model/test_interop_fields.py::test_"
_MASKS = _ATTENTION + "every_mask_is_the_one_that_transformers_builds"

MUTANTS = (
    # --- attention in transformers' models ----------------------------------------------------------------------------
    Mutant(
        "interop-encoders-made-causal",
        "interop.attention",
        choice("module").becomes("True"),
        _EFFECTS + "what_the_call_says_of_causality_counts_before_the_module",
    ),
    Mutant(
        "interop-encoders-masks-made-causal",
        "interop._causal_and_window",
        statement("if", "hasattr").value().always(),
        _MASKS,
    ),
    Mutant(
        "interop-causality-said-in-the-call-ignored",
        "interop.attention",
        choice("module").always(),
        _EFFECTS + "what_the_call_says_of_causality_counts_before_the_module",
    ),
    Mutant(
        "interop-static-caches-aligned-as-others",
        "interop.mask",
        comparison("q_offset").dropped(),
        _ATTENTION + "static_caches",
    ),
    Mutant(
        "interop-padding-of-a-sliding-cache-from-the-first-token",
        "interop._keys_kept",
        item("kv_offset").becomes(":kv_length"),
        _MASKS,
    ),
    Mutant("interop-padding-with-holes-taken-for-none", "interop._bounds", call("bool").never(), _MASKS),
    Mutant(
        "interop-sliding-window-ignored",
        "interop.attention",
        assignment("sees", "window").dropped(),
        _ATTENTION + "a_window_without_a_mask_is_not_forgotten",
    ),
    Mutant(
        "interop-sliding-window-of-a-mask-ignored",
        "interop._causal_and_window",
        statement("if", "causal").choice().never(),
        _MASKS,
    ),
    Mutant(
        "interop-sliding-window-ignored-where-torch-runs",
        "interop._dense_mask",
        comparison("limits").dropped(),
        _ATTENTION + "a_window_without_a_mask_is_not_forgotten",
    ),
    Mutant(
        "interop-a-mask-that-was-written-into-is-still-described",
        "KeyMask.__torch_dispatch__",
        assignment("_as_built").dropped(),
        _ATTENTION + "a_mask_that_a_model_works_on_is_an_ordinary_mask",
    ),
    Mutant(
        "interop-attentions-scale-ignored",
        "interop.attention",
        item("softmax_scale").dropped(),
        _EFFECTS + "the_models_scale_counts",
    ),
    Mutant(
        "interop-attentions-dropout-ignored",
        "interop.attention",
        value("lse").argument("dropout_p").dropped(),
        _EFFECTS + "the_models_dropout_counts",
    ),
    Mutant(
        "interop-attentions-dropout-ignored-where-torch-runs",
        "interop.attention",
        returned("query").argument(6).becomes("0.0"),
        _EFFECTS + "the_models_dropout_counts",
    ),
    Mutant(
        "interop-attentions-scale-ignored-where-torch-runs",
        "interop.attention",
        argument(7, "scaling").becomes("None"),
        _EFFECTS + "the_models_scale_counts",
    ),
    Mutant(
        "interop-packed-documents-see-each-other",
        "interop.attention",
        item("cu_seqlens").dropped(),
        _ATTENTION + "packed_documents_do_not_see_each_other",
    ),
    Mutant(
        "interop-sinks-reach-the-kernels",
        "interop._why_torchs",
        statement("if", "_sinks").dropped(),
        _ATTENTION + "extras_do_not_reach_the_kernels",
    ),
    Mutant(
        "interop-soft-cap-reaches-the-kernels",
        "interop._why_torchs",
        statement("if", "softcap").dropped(),
        _ATTENTION + "extras_do_not_reach_the_kernels",
    ),
    Mutant(
        "interop-plain-attention-orders-grouped-heads-the-other-way",
        "interop.plain_attention",
        element().becomes("x.repeat(1, q.shape[1] // max(1, x.shape[1]), 1, 1)"),
        _ATTENTION + "extras_are_computed_as_the_models_own_eager_does",
    ),
    Mutant(
        "interop-plain-attention-caps-without-scaling-back",
        "interop.plain_attention",
        value("scores", "tanh").becomes(call("tanh")),
        _ATTENTION + "extras_are_computed_as_the_models_own_eager_does",
    ),
    Mutant(
        "interop-plain-attention-never-drops",
        "interop.plain_attention",
        call("dropout").unwrapped(),
        _EFFECTS + "the_models_dropout_counts",
    ),
    # --- transformers' GPT-2 ------------------------------------------------------------------------------------------
    Mutant(
        "hf-conv1d-not-transposed",
        "formats._BLOCK",
        literal(True, nth=2).never(),
        _INTEROP + "equals_transformers",
    ),
    Mutant(
        "hf-norms-change-places",
        "formats._BLOCK",
        literal("ln_1.{}").becomes("'ln_2.{}'"),
        _INTEROP + "equals_transformers",
    ),
    Mutant(
        "hf-eps-ignored",
        "formats.config_from_hf",
        argument("layer_norm_eps").dropped(),
        _INTEROP + "equals_transformers",
    ),
    Mutant(
        "hf-inner-width-ignored",
        "formats.config_from_hf",
        argument("d_ff").dropped(),
        _INTEROP + "equals_transformers",
    ),
    Mutant(
        "hf-activation-ignored",
        "formats.config_from_hf",
        argument("gelu").becomes("'tanh'"),
        _INTEROP + "equals_transformers",
    ),
    Mutant(
        "hf-scale-by-layer-passes",
        "formats.config_from_hf",
        literal("scale_attn_by_inverse_layer_idx").becomes("'scale_attn_by_inverse_layer_idx_'"),
        _INTEROP + "variants_of_gpt2_that_we_do_not_have",
    ),
    Mutant(
        "hf-head-taken-for-tied",
        "formats.config_from_hf",
        argument("tie_weights").dropped(),
        _INTEROP + "equals_transformers",
    ),
    Mutant(
        "hf-dropout-of-attention-for-all",
        "formats.config_from_hf",
        argument("dropout").becomes("dropouts['attn_pdrop']"),
        _INTEROP + "different_dropouts_become_one_and_it_says_so",
    ),
    Mutant(
        "hf-eps-not-written",
        "formats.config_to_hf",
        item("layer_norm_epsilon").becomes("1e-05"),
        _FIELDS + "transformers_reads_every_field_that_we_write_and_computes_the_same",
    ),
    Mutant(
        "hf-inner-width-not-written",
        "formats.config_to_hf",
        item("n_inner").becomes("None"),
        _FIELDS + "transformers_reads_every_field_that_we_write_and_computes_the_same",
    ),
    Mutant(
        "hf-exact-gelu-written-as-the-other",
        "formats.config_to_hf",
        choice().always(),
        _FIELDS + "transformers_reads_every_field_that_we_write_and_computes_the_same",
    ),
    Mutant(
        "hf-untied-head-not-written",
        "formats.state_to_hf",
        assignment("theirs", "head.weight").dropped(),
        _INTEROP + "transformers_round_trip_is_exact_both_ways",
    ),
    # --- nanoGPT, nn.TransformerEncoder -------------------------------------------------------------------------------
    Mutant(
        "nanogpt-context-is-its-width",
        "formats._ARGUMENTS",
        item("max_len").becomes("'n_embd'"),
        _INTEROP + "nanogpt_checkpoint",
    ),
    Mutant(
        "nanogpt-gelu-taken-for-gpt2s",
        "formats.from_checkpoint",
        argument("gelu").becomes("'tanh'"),
        _INTEROP + "nanogpt_checkpoint",
    ),
    Mutant(
        "nanogpt-biases-by-habit",
        "formats.from_checkpoint",
        comparison("ln_f.bias").always(),
        _FIELDS + "nanogpts_of_before_it_had_a_bias_to_choose",
    ),
    Mutant(
        "nanogpt-dropout-forgotten",
        "formats.from_checkpoint",
        value("fields").condition().becomes("it and name != 'dropout'"),
        _FIELDS + "nanogpts_of_before_it_had_a_bias_to_choose",
    ),
    Mutant(
        "nanogpt-another-ffn-width-is-written",
        "formats.to_checkpoint",
        item("d_model").becomes("config.d_ff"),
        _INTEROP + "models_that_others_cannot_express",
    ),
    Mutant(
        "encoder-norms-change-places",
        "formats._PARTS",
        value("_PARTS").swapped(1, 3),
        _INTEROP + "transformer_encoder_stack",
    ),
    Mutant(
        "encoder-layers-of-two-digits-lost",
        "formats.blocks_from_encoder",
        literal("d").becomes("f\"{re.escape(prefix)}layers\\\\.(\\\\d)\\\\.({'|'.join(_PARTS)})\\\\.(.+)\""),
        _FIELDS + "encoders_of_more_than_ten_layers",
    ),
    # --- files --------------------------------------------------------------------------------------------------------
    Mutant(
        "folder-head-of-a-tied-file-not-found",
        "formats.load",
        call("setdefault").dropped(),
        _FIELDS + "a_file_of_a_tied_model_holds_the_weight_once_under_either_name",
    ),
    Mutant(
        "folder-shapes-not-compared",
        "formats.compare_names",
        condition("shape").never(),
        _INTEROP + "a_damaged_or_foreign_checkpoint_is_named",
    ),
    Mutant(
        "folder-names-that-nobody-asked-for-pass",
        "formats.compare_names",
        operand("unexpected").dropped(),
        _INTEROP + "a_damaged_or_foreign_checkpoint_is_named",
    ),
    Mutant(
        "folder-weights-not-checked-for-numbers",
        "formats.filled",
        call("check_finite").dropped(),
        "tests/fastgpt/commands/test_files_commands.py::test_weights_that_are_not_finite_are_refused "
        "tests/fastgpt/model/test_model_effects.py::test_a_one_head_model_with_weights_that_are_no_numbers_is_not_read",
    ),
    # --- patch --------------------------------------------------------------------------------------------------------
    Mutant(
        "patch-leaves-the-model-itself",
        "interop.patch",
        iterated("ffn").becomes("it if path else ()"),
        _PATCH + "the_model_itself_may_be_the_match",
    ),
    Mutant(
        "patch-switch-of-the-ffn-ignored",
        "interop._classes_for",
        condition("Sequential").operand("ffn").dropped(),
        _PATCH + "switches",
    ),
    Mutant(
        "patch-converts-subclasses",
        "interop._classes_for",
        comparison("LayerNorm").becomes("issubclass(kind, nn.LayerNorm)"),
        _PATCH + "a_second_patch_finds_nothing_left",
    ),
    Mutant(
        "patch-converts-what-has-a-forward-of-its-own",
        "interop.patch",
        condition("vars").never(),
        _HF_PATCH + "a_forward_that_somebody_has_set_is_left",
    ),
    Mutant(
        "patch-what-is-left-loses-its-own-attention",
        "interop._attention",
        call("set_attn_implementation", "was").dropped(),
        _HF_PATCH + "a_part_that_is_left_inside_of_a_model_that_is_not",
    ),
    Mutant(
        "patch-capped-scores-converted",
        "interop.why_scores_differ",
        condition("cap").never(),
        _HF_PATCH + "attention_that_has_more_than_the_kernels_is_left",
    ),
    Mutant(
        "patch-sinks-converted",
        "interop.why_scores_differ",
        call("any").never(),
        _HF_PATCH + "attention_that_has_more_than_the_kernels_is_left",
    ),
    Mutant(
        "patch-gpt2-ffn-of-another-activation-converted",
        "interop._classes_for",
        comparison("act").dropped(),
        _FIELDS + "a_gpt2_of_another_activation_keeps_its_ffn",
    ),
    Mutant(
        "patch-gpt2-labels-not-shifted",
        "GPT2LMHeadModel.forward",
        value("shifted", "pad").becomes(call("long")),
        _PATCH + "gpt2_trains_as_before",
    ),
    Mutant(
        "patch-gpt2-last-label-counts",
        "GPT2LMHeadModel.forward",
        argument("value").becomes("0"),
        _PATCH + "gpt2_trains_as_before",
    ),
    Mutant(
        "patch-gpt2-ignore-index-ignored",
        "GPT2LMHeadModel.forward",
        value("ignore_index").becomes("it * 0 - 100"),
        _EFFECTS + "labels_that_a_patched_gpt2_is_told_not_to_count_do_not",
    ),
    Mutant(
        "patch-gpt2-loss-of-a-step-not-over-its-items",
        "GPT2LMHeadModel.forward",
        choice("loss").always(),
        _PATCH + "gpt2_loss_settings",
    ),
    Mutant(
        "patch-gpt2-evaluation-without-logits",
        "GPT2LMHeadModel.forward",
        operation("not", "training").never(),
        _PATCH + "gpt2_trains_as_before",
    ),
    Mutant(
        "patch-gpt2-ffn-drops-in-evaluation",
        "GPT2MLP.forward",
        choice().always(),
        _EFFECTS + "the_ffn_of_a_patched_gpt2_drops_in_training_only",
    ),
    Mutant(
        "patch-gpt2-ffn-never-drops",
        "GPT2MLP.forward",
        choice().never(),
        _EFFECTS + "the_ffn_of_a_patched_gpt2_drops_in_training_only",
    ),
    Mutant(
        "patch-gpt2-gelu-kind-ignored",
        "GPT2MLP.forward",
        argument("approximate").becomes("'none'"),
        _PATCH + "gpt2_trains_as_before",
    ),
    Mutant(
        "patch-gpt2-bias-of-the-head-dropped",
        "GPT2LMHeadModel.forward",
        name("bias").becomes("None"),
        _PEFT + "a_gpt2_head_with_a_bias_or_a_hook",
    ),
    Mutant(
        "patch-gpt2-hooks-on-the-head-passed-over",
        "GPT2LMHeadModel.why_children",
        returned().becomes("None"),
        _PEFT + "a_gpt2_head_with_a_bias_or_a_hook",
    ),
    Mutant(
        "patch-gpt2-children-of-the-ffn-passed-over",
        "GPT2MLP.why_children",
        operand("fc").becomes("None"),
        _PEFT + "what_is_done_to_the_children_of_gpt2s_mlp_counts",
    ),
)
