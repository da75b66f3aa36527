"""Faults of the loss."""

from __future__ import annotations

from ..places import assignment, call, choice, iterated, literal, name, operand, operation, value
from ..plant import Mutant

_LOSS = "tests/kernels/linear_cross_entropy/test_values.py::test_"
_LOSS_EDGES = "tests/kernels/linear_cross_entropy/test_edges.py::test_"
_HAZARDS = "tests/kernels/test_hazards.py::test_"
_LOSS_EXTREMES = "tests/kernels/linear_cross_entropy/test_extremes.py::test_"
_SPECIAL = "tests/kernels/test_special_tensors.py::test_"
_TRANSFORMS = "tests/kernels/test_transforms.py::test_"
_INPLACE = "tests/kernels/linear_cross_entropy/test_gradients.py::TestInplace::test_"

MUTANTS = (
    # --- linear + cross-entropy ---------------------------------------------------------------------------------------
    Mutant(
        "loss-ignore-index-counted",
        "linear_cross_entropy.store_row",
        call("where", "loss").becomes("loss"),
        _LOSS_EDGES + "ignored_rows_get_zero",
    ),
    Mutant(
        "loss-mean-over-ignored-rows-too",
        "linear_cross_entropy.count_targets_kernel",
        name("valid.to").becomes("(offs < N).to"),
        _LOSS + "loss_and_gradients",
    ),
    Mutant(
        "loss-ignored-rows-get-a-gradient",
        "linear_cross_entropy.loss_and_gradient_kernel",
        value("dloss").becomes("1.0"),
        _LOSS_EDGES + "ignored_rows_get_zero",
    ),
    Mutant(
        "loss-sum-not-rescaled",
        "linear_cross_entropy.fold",
        call("exp2", "seen").dropped(),
        _LOSS + "any_vocabulary",
    ),
    Mutant(
        "loss-padding-columns-in-the-softmax",
        "linear_cross_entropy.load_logits",
        value("y", "row").becomes("y"),
        _LOSS + "any_vocabulary",
    ),
    Mutant(
        "loss-target-column-not-subtracted",
        "linear_cross_entropy.target_share",
        operation("+").becomes("smoothing / V + 0.0 * at_target"),
        _LOSS + "loss_and_gradients",
    ),
    Mutant(
        "loss-smoothing-dropped-from-the-gradient",
        "linear_cross_entropy.target_share",
        operation("/").dropped(),
        _LOSS + "options",
    ),
    Mutant(
        "loss-z-loss-dropped-from-the-gradient",
        "linear_cross_entropy.row_gradient",
        literal(2.0).dropped(),
        _LOSS + "options",
    ),
    Mutant(
        "loss-slope-of-the-softcap-dropped",
        "linear_cross_entropy.cap",
        value("slope", "inverse").becomes("1.0"),
        _LOSS + "options",
    ),
    Mutant(
        "loss-rows-overwritten-before-all-have-read-the-target",
        "linear_cross_entropy.loss_and_gradient_kernel",
        call("debug_barrier", nth=1).dropped(),
        _HAZARDS + "losses_in_place",
    ),
    Mutant(
        "loss-long-rows-overwritten-before-all-have-read-the-target",
        "linear_cross_entropy.loss_and_gradient_kernel",
        call("debug_barrier", nth=2).dropped(),
        _HAZARDS + "losses_of_rows_that_are_read_twice",
    ),
    Mutant(
        "loss-gradient-takes-the-targets-logit-from-memory",
        "linear_cross_entropy.gradient_kernel",
        value("share").becomes("it + 0.0 * tl.load(Logits + i * stride_n + t)"),
        _HAZARDS + "losses_in_place",
    ),
    Mutant(
        "loss-softcap-slope-as-1-minus-tanh-squared",
        "linear_cross_entropy.cap",
        value("slope", "inverse").becomes("1.0 - (1.0 - e) * inverse * ((1.0 - e) * inverse)"),
        _LOSS_EXTREMES + "a_saturated_softcap_keeps_the_digits_of_its_slope",
    ),
    Mutant(
        "loss-ignore-index-counted-in-the-targets-dtype",
        "linear_cross_entropy.count_targets_kernel",
        operand("ignore_index").becomes("tl.cast(it, t.dtype)"),
        _LOSS_EXTREMES + "ignore_index_outside_of_int32",
    ),
    Mutant(
        "loss-ignore-index-compared-in-the-targets-dtype",
        "linear_cross_entropy.load_target",
        operand("ignore_index").becomes("tl.cast(it, t.dtype)"),
        _LOSS_EXTREMES + "ignore_index_outside_of_int32",
    ),
    Mutant(
        "loss-lanes-past-the-last-target-counted",
        "linear_cross_entropy.count_targets_kernel",
        value("valid").comparison("N").operator("<="),
        _LOSS_EXTREMES + "ignore_index_outside_of_int32",
    ),
    Mutant(
        "loss-bias-gradient-of-the-last-chunk-only",
        "linear_cross_entropy._Gradients.add",
        choice().always(),
        _LOSS + "any_number_of_chunks",
    ),
    # --- between torch and the kernels --------------------------------------------------------------------------------
    Mutant(
        "loss-gradients-without-a-history",
        "linear_cross_entropy._LinearCrossEntropy.setup_context",
        call("mark_non_differentiable").becomes(
            "ctx.mark_non_differentiable(*(outputs[2:] if return_lse else outputs[1:]))"
        ),
        _TRANSFORMS + "a_second_derivative_is_refused",
    ),
    Mutant(
        "loss-overwrites-what-is-no-plain-storage",
        "linear_cross_entropy._may_be_overwritten",
        value("plain").becomes("type(logits) is Tensor"),
        _SPECIAL + "the_loss_that_overwrites_its_logits",
    ),
    Mutant(
        "loss-gradient-past-the-dispatcher",
        "linear_cross_entropy._CrossEntropy.backward",
        name("_overwriting_op").becomes("_launch_backward_overwriting"),
        _INPLACE + "make_fx_records_the_gradient",
    ),
    Mutant(
        "loss-overwrites-its-upstream-gradient",
        "linear_cross_entropy._may_be_overwritten",
        iterated().becomes("(dlosses,)"),
        _INPLACE + "upstream_gradients_that_lie_in_the_logits",
    ),
    Mutant(
        "loss-what-pads-the-weight-is-whatever-lay-there",
        "linear_cross_entropy._for_gemms",
        assignment("padded", nth=3).dropped(),
        "tests/kernels/linear_cross_entropy/test_gradients.py::test_what_pads_an_odd_vocabulary_adds_nothing",
    ),
)
