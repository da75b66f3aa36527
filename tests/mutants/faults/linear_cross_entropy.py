"""Faults of the loss."""

from __future__ import annotations

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
        "kernels/linear_cross_entropy/forward.py",
        "tl.store(Loss + i, tl.where(valid, loss, 0.0))",
        "tl.store(Loss + i, loss)",
        _LOSS_EDGES + "ignored_rows_get_zero",
    ),
    Mutant(
        "loss-mean-over-ignored-rows-too",
        "kernels/linear_cross_entropy/forward.py",
        "count += valid.to(tl.int64)",
        "count += (offs < N).to(tl.int64)",
        _LOSS + "loss_and_gradients",
    ),
    Mutant(
        "loss-ignored-rows-get-a-gradient",
        "kernels/linear_cross_entropy/forward.py",
        "dloss = tl.where(valid, 1.0, 0.0)",
        "dloss = 1.0",
        _LOSS_EDGES + "ignored_rows_get_zero",
    ),
    Mutant(
        "loss-sum-not-rescaled",
        "kernels/linear_cross_entropy/device.py",
        "seen.s * tl.exp2((seen.m - base) * LOG2E)",
        "seen.s",
        _LOSS + "any_vocabulary",
    ),
    Mutant(
        "loss-padding-columns-in-the-softmax",
        "kernels/linear_cross_entropy/device.py",
        'y = tl.where(offs < row.V, y, -float("inf"))',
        "y = y",
        _LOSS + "any_vocabulary",
    ),
    Mutant(
        "loss-target-column-not-subtracted",
        "kernels/linear_cross_entropy/device.py",
        "at_target * (1.0 - smoothing)",
        "0.0 * at_target",
        _LOSS + "loss_and_gradients",
    ),
    Mutant(
        "loss-smoothing-dropped-from-the-gradient",
        "kernels/linear_cross_entropy/device.py",
        "smoothing / V + at_target * (1.0 - smoothing)",
        "at_target * (1.0 - smoothing)",
        _LOSS + "options",
    ),
    Mutant(
        "loss-z-loss-dropped-from-the-gradient",
        "kernels/linear_cross_entropy/device.py",
        "(1.0 + 2.0 * z_loss * (softmax.m + softmax.log_sum))",
        "(1.0 + z_loss * (softmax.m + softmax.log_sum))",
        _LOSS + "options",
    ),
    Mutant(
        "loss-slope-of-the-softcap-dropped",
        "kernels/linear_cross_entropy/device.py",
        "slope = 4.0 * e * inverse * inverse",
        "slope = 1.0",
        _LOSS + "options",
    ),
    Mutant(
        "loss-rows-overwritten-before-all-have-read-the-target",
        "kernels/linear_cross_entropy/forward.py",
        "tl.debug_barrier()\nd = row_gradient(y, slope, softmax, dloss, 0.0, share, formula.z_loss)",
        "d = row_gradient(y, slope, softmax, dloss, 0.0, share, formula.z_loss)",
        _HAZARDS + "losses_in_place",
        where="loss_and_gradient_kernel",
    ),
    Mutant(
        "loss-long-rows-overwritten-before-all-have-read-the-target",
        "kernels/linear_cross_entropy/forward.py",
        "tl.debug_barrier()\ninner = row.V // (LANES * WIDTH) * (LANES * WIDTH)",
        "inner = row.V // (LANES * WIDTH) * (LANES * WIDTH)",
        _HAZARDS + "losses_of_rows_that_are_read_twice",
        where="loss_and_gradient_kernel",
    ),
    Mutant(
        "loss-gradient-takes-the-targets-logit-from-memory",
        "kernels/linear_cross_entropy/backward.py",
        "share = tl.where(offs == t, at_target, elsewhere)",
        "share = tl.where(offs == t, at_target, elsewhere) + 0.0 * tl.load(rows.Logits + i * rows.stride_n + t)",
        _HAZARDS + "losses_in_place",
    ),
    Mutant(
        "loss-softcap-slope-as-1-minus-tanh-squared",
        "kernels/linear_cross_entropy/device.py",
        "slope = 4.0 * e * inverse * inverse",
        "slope = 1.0 - ((1.0 - e) * inverse) * ((1.0 - e) * inverse)",
        _LOSS_EXTREMES + "a_saturated_softcap_keeps_the_digits_of_its_slope",
    ),
    Mutant(
        "loss-ignore-index-counted-in-the-targets-dtype",
        "kernels/linear_cross_entropy/forward.py",
        "(t != ignore_index)",
        "(t != tl.cast(ignore_index, t.dtype))",
        _LOSS_EXTREMES + "ignore_index_outside_of_int32",
    ),
    Mutant(
        "loss-ignore-index-compared-in-the-targets-dtype",
        "kernels/linear_cross_entropy/device.py",
        "t != ignore_index",
        "t != tl.cast(ignore_index, t.dtype)",
        _LOSS_EXTREMES + "ignore_index_outside_of_int32",
    ),
    Mutant(
        "loss-lanes-past-the-last-target-counted",
        "kernels/linear_cross_entropy/forward.py",
        "(offs < N) & (t != ignore_index)",
        "(offs <= N) & (t != ignore_index)",
        _LOSS_EXTREMES + "ignore_index_outside_of_int32",
    ),
    Mutant(
        "loss-bias-gradient-of-the-last-chunk-only",
        "kernels/linear_cross_entropy/launch.py",
        "self.dbias.copy_(partial) if first else self.dbias.add_(partial)",
        "self.dbias.copy_(partial)",
        _LOSS + "any_number_of_chunks",
    ),
    # --- between torch and the kernels --------------------------------------------------------------------------------
    Mutant(
        "loss-gradients-without-a-history",
        "kernels/linear_cross_entropy/op.py",
        "ctx.mark_non_differentiable(stats, counts, *(() if ctx.settings.return_lse else (lse,)))",
        "ctx.mark_non_differentiable(*outputs[2:] if ctx.settings.return_lse else outputs[1:])",
        _TRANSFORMS + "a_second_derivative_is_refused",
    ),
    Mutant(
        "loss-overwrites-what-is-no-plain-storage",
        "kernels/linear_cross_entropy/logits_op.py",
        "plain = _library.plain((dlosses, dlse, logits, target, stats))",
        "plain = type(logits) is Tensor",
        _SPECIAL + "the_loss_that_overwrites_its_logits",
    ),
    Mutant(
        "loss-gradient-past-the-dispatcher",
        "kernels/linear_cross_entropy/logits_op.py",
        "_overwriting_op(dlosses, dlse, dlogits, target, stats, *ctx.settings.formula)",
        "_launch_backward_overwriting(dlosses, dlse, dlogits, target, stats, *ctx.settings.formula)",
        _INPLACE + "make_fx_records_the_gradient",
    ),
    Mutant(
        "loss-overwrites-its-upstream-gradient",
        "kernels/linear_cross_entropy/logits_op.py",
        "(dlosses, dlse)",
        "(dlosses,)",
        _INPLACE + "upstream_gradients_that_lie_in_the_logits",
        where="_may_be_overwritten",
    ),
)
