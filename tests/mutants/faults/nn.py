"""Faults of the drop-in modules (attention, FFN, LayerNorm, loss), and of when they may stand in for children."""

from __future__ import annotations

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
        "fastgpt/nn/attention.py",
        "self.dropout if self.training else 0.0",
        "self.dropout",
        _ATTENTION + "dropout_is_for_training_only",
    ),
    Mutant(
        "nn-attention-never-drops",
        "fastgpt/nn/attention.py",
        "self.dropout if self.training else 0.0",
        "0.0",
        _ATTENTION + "dropout_is_for_training_only",
    ),
    Mutant(
        "nn-attention-key-mask-inverted",
        "fastgpt/nn/attention.py",
        "~(hidden if hidden.dim() == 2 else hidden[None])",
        "hidden if hidden.dim() == 2 else hidden[None]",
        _ATTENTION + "key_padding",
    ),
    Mutant(
        "nn-attention-holes-of-a-key-mask-ignored",
        "fastgpt/nn/attention.py",
        "bool(whole & plain)",
        "bool(plain)",
        _ATTENTION + "what_the_kernels_cannot_take_goes_to_torch_and_is_said_once",
    ),
    Mutant(
        "nn-attention-padding-on-the-left-ignored",
        "fastgpt/nn/attention.py",
        '{"causal": causal, "window": window, "key_lengths": key_lengths, "key_starts": key_starts}',
        '{"causal": causal, "window": window, "key_lengths": key_lengths, "key_starts": None}',
        _ATTENTION + "key_padding",
    ),
    Mutant(
        "nn-attention-added-masks-taken-for-hiding",
        "fastgpt/nn/attention.py",
        "read(hidden, (hidden | (mask == 0)).all())",
        "read(hidden, hidden.new_ones(()))",
        _ATTENTION + "what_the_kernels_cannot_take_goes_to_torch_and_is_said_once",
    ),
    Mutant(
        "nn-attention-any-mask-is-causal",
        "fastgpt/nn/attention.py",
        '"causal" if causal else None if hides else "empty"',
        '"causal" if hides else "empty"',
        _ATTENTION + "what_the_kernels_cannot_take_goes_to_torch_and_is_said_once",
    ),
    Mutant(
        "nn-attention-causal-aligned-bottom-right",
        "fastgpt/nn/attention.py",
        "top_left(T_q, T_k) if masks.causal else (False, None)",
        "(masks.causal, None)",
        _ATTENTION + "causal_masks",
    ),
    Mutant(
        "nn-attention-mask-of-the-hint-forgotten-where-torch-runs",
        "fastgpt/nn/attention.py",
        "attn_mask = _hidden_by_causality(query.shape[time], key.shape[time], query.device)",
        "pass",
        _ATTENTION + "is_causal_alone_needs_no_mask",
    ),
    Mutant(
        "nn-attention-weights-not-averaged",
        "fastgpt/nn/attention.py",
        "weights.mean(dim=1) if average else weights",
        "weights.mean(dim=1)",
        _ATTENTION + "self_attention",
    ),
    Mutant(
        "nn-attention-weights-of-hidden-keys-left-out",
        "fastgpt/nn/attention.py",
        "weights = F.pad(weights, (0, T_k - T_q))",
        "pass",
        _ATTENTION + "causal_masks",
    ),
    Mutant(
        "nn-attention-batch-and-time-change-places",
        "fastgpt/nn/attention.py",
        "out if self.batch_first else out.transpose(0, 1)",
        "out",
        _ATTENTION + "self_attention",
    ),
    Mutant(
        "nn-attention-values-projected-by-the-keys-weight",
        "fastgpt/nn/attention.py",
        "(self.q_proj_weight, self.k_proj_weight, self.v_proj_weight)",
        "(self.q_proj_weight, self.k_proj_weight, self.k_proj_weight)",
        _ATTENTION + "cross_attention",
    ),
    Mutant(
        "nn-attention-bias-dropped-in-cross-attention",
        "fastgpt/nn/attention.py",
        "(None, None, None) if self.in_proj_bias is None else self.in_proj_bias.chunk(3)",
        "(None, None, None)",
        _ATTENTION + "cross_attention",
    ),
    Mutant(
        "nn-attention-output-projection-read-though-changed",
        "fastgpt/nn/attention.py",
        "_exact.why_children_run((self.out_proj,), _OUT_PROJ)",
        "None",
        _EXACT + "what_is_done_to_attentions_output_projection_counts",
    ),
    Mutant(
        "nn-attention-added-keys-forgotten",
        "fastgpt/nn/attention.py",
        "self.bias_k is not None or self.add_zero_attn",
        "self.bias_k is not None",
        _ATTENTION + "what_the_kernels_cannot_take_goes_to_torch_and_is_said_once",
    ),
    Mutant(
        "nn-attention-fast-path-of-torch-under-transforms",
        "fastgpt/nn/attention.py",
        "not _transforms.are_on()",
        "True",
        _TRANSFORMS + "the_attention_module_in_forward_mode",
    ),
    # --- the FFN ------------------------------------------------------------------------------------------------------
    Mutant(
        "nn-ffn-drops-in-evaluation",
        "fastgpt/nn/ffn.py",
        "dropout and dropout[0].training",
        "dropout",
        _FFN + "dropout_in_training_only_and_residual_after_it",
    ),
    Mutant(
        "nn-ffn-residual-dropped-where-torch-runs",
        "fastgpt/nn/ffn.py",
        "y if residual is None else residual + y",
        "y",
        _FFN + "dropout_in_training_only_and_residual_after_it",
    ),
    Mutant(
        "nn-ffn-residual-dropped-by-the-kernel",
        "fastgpt/nn/ffn.py",
        'options: dict[str, Any] = {"residual": residual}',
        "options: dict[str, Any] = {}",
        _FFN + "dropout_in_training_only_and_residual_after_it",
    ),
    Mutant(
        "nn-ffn-gelu-kind-ignored",
        "fastgpt/nn/ffn.py",
        "gelu.approximate",
        "'none'",
        _FFN + "same_as_sequential",
    ),
    Mutant(
        "nn-ffn-never-recomputes",
        "fastgpt/nn/ffn.py",
        'function, options["recompute"] = gelu_ffn, self.recompute',
        "function = gelu_ffn",
        _EFFECTS + "an_ffn_that_recomputes_keeps_its_input_only",
    ),
    Mutant(
        "nn-ffn-dropout-of-everything-goes-to-the-kernel",
        "fastgpt/nn/ffn.py",
        "reason is None and len(children) == 4",
        "False",
        _EFFECTS + "dropout_of_everything_leaves_the_residual",
    ),
    Mutant(
        "nn-ffn-other-children-passed-over",
        "fastgpt/nn/ffn.py",
        "reason = _exact.why_children_run(children.values(), expected)",
        "reason = None",
        _EXACT + "what_is_done_to_a_linear_of_an_ffn_counts",
    ),
    # --- LayerNorm ----------------------------------------------------------------------------------------------------
    Mutant(
        "nn-norm-eps-ignored",
        "fastgpt/nn/layer_norm.py",
        "(input, self.normalized_shape, self.weight, self.bias, self.eps)",
        "(input, self.normalized_shape, self.weight, self.bias, 1e-5)",
        _NORM + "same_results",
    ),
    Mutant(
        "nn-norm-weight-ignored",
        "fastgpt/nn/layer_norm.py",
        "(input, self.normalized_shape, self.weight, self.bias, self.eps)",
        "(input, self.normalized_shape, None, self.bias, self.eps)",
        _NORM + "same_results",
    ),
    Mutant(
        "nn-norm-tangents-are-lost-in-the-kernel",
        "kernels/support.py",
        "forward_mode_is_on()",
        "False",
        _EFFECTS + "a_layer_norm_has_a_derivative_in_forward_mode_where_kernels_run",
        where="why_not",
    ),
    # --- the loss -----------------------------------------------------------------------------------------------------
    Mutant(
        "nn-loss-ignore-index-ignored",
        "fastgpt/nn/loss.py",
        "-100 if ignore_index is None else ignore_index",
        "-100",
        _LOSS + "every_setting_arrives",
    ),
    Mutant(
        "nn-loss-reduction-ignored",
        "fastgpt/nn/loss.py",
        "self.reduction = reduction",
        'self.reduction = "mean"',
        _EFFECTS + "losses_of_every_reduction",
    ),
    Mutant(
        "nn-loss-smoothing-and-z-loss-change-places",
        "fastgpt/nn/loss.py",
        "(self.ignore_index, self.reduction, self.label_smoothing, self.z_loss, self.softcap)",
        "(self.ignore_index, self.reduction, self.z_loss, self.label_smoothing, self.softcap)",
        _LOSS + "every_setting_arrives",
    ),
    Mutant(
        "nn-loss-softcap-of-a-changed-linear-ignored",
        "fastgpt/nn/loss.py",
        "dict(zip(_SETTINGS, settings))",
        "dict(zip(_SETTINGS[:4], settings))",
        _EXACT + "what_is_done_to_the_linear_of_a_loss_counts",
    ),
    Mutant(
        "nn-loss-chunks-ignored",
        "fastgpt/nn/loss.py",
        "num_chunks=self.num_chunks",
        "",
        _EFFECTS + "a_loss_passes_its_number_of_chunks_on",
    ),
    Mutant(
        "nn-loss-bias-dropped",
        "fastgpt/nn/loss.py",
        "weight, bias = self.linear.weight, self.linear.bias",
        "weight, bias = self.linear.weight, None",
        _LOSS + "equals_torch",
    ),
    Mutant(
        "nn-loss-changed-linear-passed-over",
        "fastgpt/nn/loss.py",
        "None if linear is None else _exact.why_children_run((linear,), _LINEAR)",
        "None",
        _EXACT + "what_is_done_to_the_linear_of_a_loss_counts",
    ),
    # --- whether a kernel may stand in for a child --------------------------------------------------------------------
    Mutant(
        "exact-hooks-not-seen",
        "fastgpt/nn/_exact.py",
        "child._forward_hooks or child._forward_pre_hooks or child._backward_hooks or child._backward_pre_hooks",
        "False",
        _EXACT + "what_is_done_to_a_linear_of_an_ffn_counts",
    ),
    Mutant(
        "exact-hooks-before-the-backward-not-seen",
        "fastgpt/nn/_exact.py",
        "child._forward_hooks or child._forward_pre_hooks or child._backward_hooks or child._backward_pre_hooks",
        "child._forward_hooks or child._forward_pre_hooks or child._backward_hooks",
        _EXACT + "what_is_done_to_a_linear_of_an_ffn_counts",
    ),
    Mutant(
        "exact-subclasses-taken-for-their-base",
        "fastgpt/nn/_exact.py",
        "type(child) is not kind",
        "not isinstance(child, kind)",
        _EXACT + "what_is_done_to_a_linear_of_an_ffn_counts",
    ),
    Mutant(
        "exact-a-forward-of-its-own-not-seen",
        "fastgpt/nn/_exact.py",
        '"forward" in own or "_call_impl" in own or getattr(child.forward, "__code__", None) is not code',
        "False",
        _EXACT + "what_is_done_to_a_linear_of_an_ffn_counts",
    ),
    Mutant(
        "exact-a-forward-replaced-in-the-class-not-seen",
        "fastgpt/nn/_exact.py",
        'getattr(child.forward, "__code__", None) is not code',
        "False",
        _EXACT + "a_forward_replaced_in_the_class_counts",
    ),
    Mutant(
        "exact-hooks-on-all-modules-not-seen",
        "fastgpt/nn/_exact.py",
        "_forward or _forward_pre or _backward or _backward_pre",
        "_forward",
        _EXACT + "hooks_on_all_modules_count",
    ),
    Mutant(
        "exact-a-call-replaced-for-all-modules-not-seen",
        "fastgpt/nn/_exact.py",
        "nn.Module.__call__ is not _CALL or nn.Module._call_impl is not _CALL_IMPL",
        "False",
        _EXACT + "a_call_replaced_for_all_modules_counts",
    ),
    Mutant(
        "exact-weights-that-multiply-their-own-way-are-read",
        "fastgpt/nn/_exact.py",
        'held not in _PLAIN and not held.__module__.startswith("torch._subclasses")',
        "False",
        _EXACT + "weights_that_multiply_their_own_way_count",
    ),
)
