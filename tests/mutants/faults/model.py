"""Faults of the model: what a GPT computes and tells, its cache, tied weights."""

from __future__ import annotations

from ..places import argument, assignment, call, choice, literal, name, operand, operation, returned, statement, value
from ..plant import Mutant

_MODEL = "tests/fastgpt/model/test_model.py::test_"
_IMPL = "tests/fastgpt/nn/test_impl.py::test_"
_SAMPLING = "tests/fastgpt/model/test_sampling.py::test_"
_INTEROP = "tests/fastgpt/model/test_interop.py::test_"
_TIED = "tests/fastgpt/model/test_tied.py::test_"
_EFFECTS = "tests/fastgpt/model/test_model_effects.py::test_"

MUTANTS = (
    # --- what a GPT computes ------------------------------------------------------------------------------------------
    Mutant(
        "model-residual-dropped",
        "AddLayerNorm.forward",
        operand("residual").dropped(),
        _MODEL + "equals_the_reference_model",
    ),
    Mutant(
        "model-residual-is-the-normed",
        "Block.compute",
        assignment("h", "ln2").followed_by("residual = h"),
        _MODEL + "equals_the_reference_model",
    ),
    Mutant(
        "model-attention-sees-the-future",
        "model._torch_sdpa",
        argument("is_causal").never(),
        _MODEL + "nothing_leaks_from_the_future",
    ),
    Mutant(
        "model-keys-for-values",
        "CausalSelfAttention.project",
        returned().swapped(2, 3),
        _MODEL + "equals_the_reference_model",
    ),
    Mutant(
        "model-grouped-queries-not-said-to-torch",
        "model._torch_sdpa",
        value("grouped").never(),
        _MODEL + "grouped_queries_equal_repeated_keys",
    ),
    Mutant(
        "model-dropout-of-attention-in-evaluation",
        "CausalSelfAttention.attend",
        choice().always(),
        _MODEL + "dropout_only_in_training",
    ),
    Mutant(
        "model-dropout-of-sub-layers-in-evaluation",
        "AddLayerNorm.forward",
        choice().always(),
        _MODEL + "dropout_only_in_training",
    ),
    Mutant(
        "model-dropout-of-embeddings-in-evaluation",
        "GPT.hidden_states",
        name("training").dropped(),
        _MODEL + "dropout_only_in_training",
    ),
    Mutant(
        "model-dropout-of-embeddings-forgotten",
        "GPT.hidden_states",
        assignment("residual", "dropout").dropped(),
        _MODEL + "dropout_in_every_place",
    ),
    Mutant("model-eps-ignored", "AddLayerNorm.__init__", argument("eps").dropped(), _INTEROP + "equals_transformers"),
    Mutant(
        "model-gelu-kind-ignored",
        "FeedForward.__init__",
        argument("approximate").dropped(),
        _MODEL + "equals_the_reference_model",
    ),
    Mutant(
        "model-gelu-kind-not-told-the-fused-ffn",
        "FeedForward.forward",
        name("approximate").becomes("'none'"),
        _EFFECTS + "fused_logits_are_those_of_the_formulas",
    ),
    Mutant(
        "model-weight-of-the-first-product-biased-only",
        "FeedForward.__init__",
        argument("bias", nth=-1).dropped(),
        _MODEL + "equals_the_reference_model",
    ),
    Mutant(
        "model-fused-norm-keeps-autocast-out",
        "model._product_dtype",
        call("autocast_dtype").dropped(),
        _IMPL + "autocast_keeps_the_residual_stream_in_float32",
    ),
    Mutant(
        "model-fused-norm-without-dropout",
        "AddLayerNorm.forward",
        argument(4, "dropout_p").becomes("0.0"),
        _EFFECTS + "fused_dropout_in_every_place",
    ),
    Mutant(
        "model-fused-attention-without-dropout",
        "CausalSelfAttention.attend",
        returned("kernels").argument("dropout_p").dropped(),
        _EFFECTS + "fused_dropout_in_every_place",
    ),
    Mutant(
        "model-fused-loss-is-always-a-mean",
        "model.logits_and_loss",
        value("loss", "head").argument("reduction").dropped(),
        _EFFECTS + "fused_losses_of_every_reduction",
    ),
    Mutant(
        "model-loss-of-half-precision-logits",
        "model._cross_entropy",
        choice("float").always(),
        _EFFECTS + "torchs_loss_of_half_precision_logits_is_taken_in_float32",
    ),
    Mutant(
        "model-head-with-a-bias-taken-for-one-without",
        "model.why_head_runs",
        choice().never(),
        _EFFECTS + "a_head_with_a_bias_is_called",
    ),
    Mutant(
        "model-initial-weights-of-the-residual-stream-too-large",
        "GPT.init_weights",
        literal(2).dropped(),
        _MODEL + "initialisation_is_gpt2s",
    ),
    Mutant(
        "model-logits-dropped-with-the-fused-loss",
        "model.logits_and_loss",
        choice("head").never(),
        _IMPL + "fused_loss_makes_no_logits_unless_asked",
    ),
    # --- the cache ----------------------------------------------------------------------------------------------------
    Mutant(
        "model-positions-behind-the-cache",
        "GPT.hidden_states",
        name("length").becomes("max(0, it - 1)"),
        _SAMPLING + "cached_hidden_states_are_those_of_one_pass",
    ),
    Mutant(
        "model-cache-counts-calls",
        "LayerCache.append",
        assignment("length").becomes("self.length += 1"),
        _SAMPLING + "cached_hidden_states_are_those_of_one_pass",
    ),
    Mutant(
        "model-mask-of-a-cached-chunk-aligned-top-left",
        "model._torch_sdpa",
        operation("-").dropped(),
        _SAMPLING + "cached_hidden_states_are_those_of_one_pass",
    ),
    Mutant(
        "model-one-cache-for-all-layers",
        "GPT.hidden_states",
        name("i").becomes("0"),
        _SAMPLING + "cached_hidden_states_are_those_of_one_pass",
    ),
    # --- what a GPT tells ---------------------------------------------------------------------------------------------
    Mutant(
        "model-attention-maps-of-a-training-model",
        "GPT.attention_maps",
        statement("with").becomes("self.hidden_states(idx)"),
        _EFFECTS + "attention_maps_of_a_model_in_training_are_without_dropout",
    ),
    Mutant(
        "model-attention-maps-of-all-heads",
        "GPT.attention_maps.watch",
        name("heads").becomes("None"),
        _MODEL + "attention_maps",
    ),
    Mutant(
        "model-negative-layers-count-from-the-front",
        "model.chosen_indices",
        operation("%").becomes("abs(n)"),
        _MODEL + "attention_maps",
    ),
    Mutant(
        "model-fused-attention-maps-of-all-heads",
        "CausalSelfAttention.weights",
        returned("lse").argument("heads").dropped(),
        _IMPL + "attention_maps_and_generation_in_triton",
    ),
    Mutant(
        "model-flops-of-the-forward-only",
        "GPT.flops_per_token",
        literal(6).becomes("2"),
        _MODEL + "flops_per_token_by_hand",
    ),
    Mutant(
        "model-tied-head-counted-out",
        "GPT.num_parameters",
        returned("numel").choice().never(),
        _MODEL + "num_parameters",
    ),
    Mutant(
        "model-config-does-not-follow-its-implementations",
        "GPT.use_implementations",
        assignment("config").dropped(),
        _IMPL + "swapping_changes_no_parameter",
    ),
    Mutant(
        "model-implementations-of-the-head-unchanged",
        "GPT.use_implementations",
        value("impl").becomes("it if module is not self.head else module.impl"),
        _EFFECTS + "implementations_are_changed_in_every_part_and_in_the_config",
    ),
    Mutant(
        "model-overrides-ignored-on-reading",
        "GPT.from_pretrained",
        call("replace").becomes("config"),
        _INTEROP + "overrides_dtype_and_device",
    ),
    Mutant(
        "model-read-in-training-mode",
        "GPT.from_pretrained",
        call("eval").unwrapped(),
        _INTEROP + "own_round_trip_is_exact",
    ),
    Mutant(
        "model-reading-in-another-dtype-ignored",
        "formats.filled",
        call("to").operand(1).dropped(),
        _INTEROP + "overrides_dtype_and_device",
    ),
    # --- tied weights -------------------------------------------------------------------------------------------------
    Mutant(
        "tied-weights-apart-from-the-start",
        "GPT.__init__",
        assignment("_parameters").dropped(),
        _TIED + "moves_keep_the_tie",
    ),
    Mutant(
        "tied-weights-apart-after-a-move",
        "model.kept",
        call("_tie").dropped(),
        _TIED + "moves_that_make_new_parameters",
    ),
    Mutant(
        "model-hooks-of-attention-maps-stay",
        "GPT.attention_maps",
        call("remove").dropped(),
        _EFFECTS + "a_look_at_attention_leaves_no_hooks",
    ),
)
