"""Faults of the drop-in modules (attention, FFN, LayerNorm, loss), and of when they may stand in for children."""

from __future__ import annotations

from ..places import argument, assignment, call, choice, comparison, condition, item, name, operand, value
from ..plant import Mutant

_ATTENTION = "tests/fastgpt/nn/test_nn_attention.py::test_"
_FFN = "tests/fastgpt/nn/test_nn_ffn.py::test_"
_NORM = "tests/fastgpt/nn/test_nn_layer_norm.py::test_"
_LOSS = "tests/fastgpt/nn/test_nn_loss.py::test_"
_EXACT = "tests/fastgpt/nn/test_exact.py::test_"
_TRANSFORMS = "tests/fastgpt/model/test_transforms.py::test_"
_EFFECTS = "tests/fastgpt/nn/test_nn_effects.py::test_"

MUTANTS = (
    # --- attention ----------------------------------------------------------------------------------------------------
    Mutant(
        "nn-attention-drops-in-evaluation",
        "FlashMultiheadAttention._attend",
        choice("dropout").always(),
        _ATTENTION + "dropout_is_for_training_only",
    ),
    Mutant(
        "nn-attention-never-drops",
        "FlashMultiheadAttention._attend",
        choice("dropout").never(),
        _ATTENTION + "dropout_is_for_training_only",
    ),
    Mutant(
        "nn-attention-key-mask-inverted",
        "nn._read_key_padding_mask",
        value("kept").unwrapped(),
        _ATTENTION + "key_padding",
    ),
    Mutant(
        "nn-attention-holes-of-a-key-mask-ignored",
        "nn._read_key_padding_mask",
        operand("whole").dropped(),
        _ATTENTION + "what_the_kernels_cannot_take_goes_to_torch_and_is_said_once",
    ),
    Mutant(
        "nn-attention-padding-on-the-left-ignored",
        "FlashMultiheadAttention._attend",
        item("key_starts").becomes("None"),
        _ATTENTION + "key_padding",
    ),
    Mutant(
        "nn-attention-added-masks-taken-for-hiding",
        "nn._read",
        call("all").becomes("hidden.new_ones(())"),
        _ATTENTION + "what_the_kernels_cannot_take_goes_to_torch_and_is_said_once",
    ),
    Mutant(
        "nn-attention-any-mask-is-causal",
        "nn._read_attn_mask",
        choice("causal").becomes("'causal' if hides else 'empty'"),
        _ATTENTION + "what_the_kernels_cannot_take_goes_to_torch_and_is_said_once",
    ),
    Mutant(
        "nn-attention-causal-aligned-bottom-right",
        "FlashMultiheadAttention._attend",
        value("causal").becomes("(masks.causal, None)"),
        _ATTENTION + "causal_masks",
    ),
    Mutant(
        "nn-attention-mask-of-the-hint-forgotten-where-torch-runs",
        "FlashMultiheadAttention.forward",
        assignment("attn_mask").dropped(),
        _ATTENTION + "is_causal_alone_needs_no_mask",
    ),
    Mutant(
        "nn-attention-weights-not-averaged",
        "FlashMultiheadAttention._attend",
        choice("dim").always(),
        _ATTENTION + "self_attention",
    ),
    Mutant(
        "nn-attention-weights-of-hidden-keys-left-out",
        "FlashMultiheadAttention._attend",
        assignment("weights", "pad").dropped(),
        _ATTENTION + "causal_masks",
    ),
    Mutant(
        "nn-attention-batch-and-time-change-places",
        "FlashMultiheadAttention._attend",
        choice("out").always(),
        _ATTENTION + "self_attention",
    ),
    Mutant(
        "nn-attention-values-projected-by-the-keys-weight",
        "FlashMultiheadAttention._project",
        item("v_proj_weight").becomes("self.k_proj_weight"),
        _ATTENTION + "cross_attention",
    ),
    Mutant(
        "nn-attention-bias-dropped-in-cross-attention",
        "FlashMultiheadAttention._project",
        value("biases").choice().always(),
        _ATTENTION + "cross_attention",
    ),
    Mutant(
        "nn-attention-output-projection-read-though-changed",
        "FlashMultiheadAttention._torchs_own",
        value("reason").becomes("None"),
        _EXACT + "what_is_done_to_attentions_output_projection_counts",
    ),
    Mutant(
        "nn-attention-added-keys-forgotten",
        "FlashMultiheadAttention._why_torchs_ever",
        operand("add_zero_attn").dropped(),
        _ATTENTION + "what_the_kernels_cannot_take_goes_to_torch_and_is_said_once",
    ),
    Mutant(
        "nn-attention-fast-path-of-torch-under-transforms",
        "FlashMultiheadAttention.forward",
        condition("are_on").always(),
        _TRANSFORMS + "the_attention_module_in_forward_mode",
    ),
    # --- the FFN ------------------------------------------------------------------------------------------------------
    Mutant(
        "nn-ffn-drops-in-evaluation",
        "GELUFFN.forward",
        operand("training").dropped(),
        _FFN + "dropout_in_training_only_and_residual_after_it",
    ),
    Mutant(
        "nn-ffn-residual-dropped-where-torch-runs",
        "GELUFFN.forward",
        choice("y").always(),
        _FFN + "dropout_in_training_only_and_residual_after_it",
    ),
    Mutant(
        "nn-ffn-residual-dropped-by-the-kernel",
        "GELUFFN.forward",
        item("residual").dropped(),
        _FFN + "dropout_in_training_only_and_residual_after_it",
    ),
    Mutant(
        "nn-ffn-gelu-kind-ignored",
        "GELUFFN.forward",
        name("approximate").becomes("'none'"),
        _FFN + "same_as_sequential",
    ),
    Mutant(
        "nn-ffn-never-recomputes",
        "GELUFFN.forward",
        assignment("function", "options").becomes("function = gelu_ffn"),
        _EFFECTS + "an_ffn_that_recomputes_keeps_its_input_only",
    ),
    Mutant(
        "nn-ffn-dropout-of-everything-goes-to-the-kernel",
        "SequentialFFN.why_children",
        condition("reason").never(),
        _EFFECTS + "dropout_of_everything_leaves_the_residual",
    ),
    Mutant(
        "nn-ffn-other-children-passed-over",
        "SequentialFFN.why_children",
        value("reason").becomes("None"),
        _EXACT + "what_is_done_to_a_linear_of_an_ffn_counts",
    ),
    # --- LayerNorm ----------------------------------------------------------------------------------------------------
    Mutant("nn-norm-eps-ignored", "LayerNorm.forward", item("eps").becomes("1e-05"), _NORM + "same_results"),
    Mutant("nn-norm-weight-ignored", "LayerNorm.forward", item("weight").becomes("None"), _NORM + "same_results"),
    Mutant(
        "nn-norm-tangents-are-lost-in-the-kernel",
        "kernels.why_not",
        call("forward_mode_is_on").never(),
        _EFFECTS + "a_layer_norm_has_a_derivative_in_forward_mode_where_kernels_run",
    ),
    # --- the loss -----------------------------------------------------------------------------------------------------
    Mutant(
        "nn-loss-ignore-index-ignored",
        "LinearCrossEntropyLoss.__init__",
        choice().always(),
        _LOSS + "every_setting_arrives",
    ),
    Mutant(
        "nn-loss-reduction-ignored",
        "LinearCrossEntropyLoss.__init__",
        value("reduction").becomes("'mean'"),
        _EFFECTS + "losses_of_every_reduction",
    ),
    Mutant(
        "nn-loss-smoothing-and-z-loss-change-places",
        "LinearCrossEntropyLoss.forward",
        value("settings").swapped(3, 4),
        _LOSS + "every_setting_arrives",
    ),
    Mutant(
        "nn-loss-softcap-of-a-changed-linear-ignored",
        "LinearCrossEntropyLoss.forward",
        name("_SETTINGS").becomes("it[:4]"),
        _EXACT + "what_is_done_to_the_linear_of_a_loss_counts",
    ),
    Mutant(
        "nn-loss-chunks-ignored",
        "LinearCrossEntropyLoss.forward",
        argument("num_chunks").dropped(),
        _EFFECTS + "a_loss_passes_its_number_of_chunks_on",
    ),
    Mutant(
        "nn-loss-bias-dropped",
        "LinearCrossEntropyLoss.forward",
        value("bias").becomes("None"),
        _LOSS + "equals_torch",
    ),
    Mutant(
        "nn-loss-changed-linear-passed-over",
        "LinearCrossEntropyLoss.why_children",
        choice().always(),
        _EXACT + "what_is_done_to_the_linear_of_a_loss_counts",
    ),
    # --- whether a kernel may stand in for a child --------------------------------------------------------------------
    Mutant(
        "exact-hooks-not-seen",
        "nn.why_children_run",
        condition("_forward_hooks").never(),
        _EXACT + "what_is_done_to_a_linear_of_an_ffn_counts",
    ),
    Mutant(
        "exact-hooks-before-the-backward-not-seen",
        "nn.why_children_run",
        operand("_backward_pre_hooks").dropped(),
        _EXACT + "what_is_done_to_a_linear_of_an_ffn_counts",
    ),
    Mutant(
        "exact-subclasses-taken-for-their-base",
        "nn.why_children_run",
        condition("type").becomes("not isinstance(child, kind)"),
        _EXACT + "what_is_done_to_a_linear_of_an_ffn_counts",
    ),
    Mutant(
        "exact-a-forward-of-its-own-not-seen",
        "nn.why_children_run",
        condition("own").never(),
        _EXACT + "what_is_done_to_a_linear_of_an_ffn_counts",
    ),
    Mutant(
        "exact-a-forward-replaced-in-the-class-not-seen",
        "nn.why_children_run",
        comparison("code").never(),
        _EXACT + "a_forward_replaced_in_the_class_counts",
    ),
    Mutant(
        "exact-hooks-on-all-modules-not-seen",
        "nn.why_children_run",
        condition("_forward").becomes("_forward"),
        _EXACT + "hooks_on_all_modules_count",
    ),
    Mutant(
        "exact-a-call-replaced-for-all-modules-not-seen",
        "nn.why_children_run",
        value("replaced").never(),
        _EXACT + "a_call_replaced_for_all_modules_counts",
    ),
    Mutant(
        "exact-weights-that-multiply-their-own-way-are-read",
        "nn.why_children_run",
        condition("held").never(),
        _EXACT + "weights_that_multiply_their_own_way_count",
    ),
)
