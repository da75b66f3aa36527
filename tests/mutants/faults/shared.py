"""Faults of what the families share."""

from __future__ import annotations

from ..places import argument, call, comparison, condition, iterated, literal, operation, returned
from ..plant import Mutant

_PARTIALS = "tests/kernels/test_partials.py::test_"
_PRECISION = "tests/kernels/test_precision.py::test_"
_SPECIAL = "tests/kernels/test_special_tensors.py::test_"
_TRANSFORMS = "tests/kernels/test_transforms.py::test_"

MUTANTS = (
    # --- arguments ----------------------------------------------------------------------------------------------------
    Mutant(
        "autocast-casts-what-the-kernels-do-not-take",
        "kernels.as_autocast_asks",
        comparison("KERNEL_DTYPES").becomes("tensor.dtype == torch.float64"),
        "tests/kernels/test_arguments.py::test_a_dtype_that_no_kernel_takes_is_named_alike",
    ),
    # --- dropout ------------------------------------------------------------------------------------------------------
    Mutant(
        "dropout-keeps-what-it-should-drop",
        "device.keep_mask",
        returned().operator("<"),
        "tests/kernels/test_dropout.py::test_mask_is_philox",
    ),
    Mutant(
        "dropout-scales-what-is-kept-by-too-much",
        "threshold_and_scale",
        operation("/").operand(1).becomes("1.004"),
        "tests/kernels/layer_norm/test_add_layer_norm.py::test_dropout_is_exact "
        "tests/kernels/ffn/test_values.py::test_dropout_and_residual",
    ),
    # --- partial sums -------------------------------------------------------------------------------------------------
    Mutant(
        "partials-of-the-second-sum-are-the-firsts",
        "device.sum_partials_kernel",
        operation("*", "which", "P").becomes("0"),
        _PARTIALS + "two_sums_in_one_launch_have_the_bits_of_two_launches",
    ),
    Mutant(
        "partials-last-ones-left-out",
        "device.sum_partials_kernel",
        iterated("P").argument(2).becomes("P - BLOCK_P + 1"),
        _PARTIALS + "values",
    ),
    Mutant(
        "partials-numbered-in-32-bits",
        "kernels.sum_partials",
        argument("IS_WIDE").never(),
        _PARTIALS + "indices_are_wide_where_32_bits_do_not_hold_them",
    ),
    # --- products in TF32 ---------------------------------------------------------------------------------------------
    Mutant("tf32-operands-truncated", "device.round_to_tf32", returned().becomes("x"), _PRECISION + "one_product"),
    Mutant(
        "tf32-rounds-a-quarter-of-a-unit",
        "device.round_to_tf32",
        returned().becomes("x + power * 0.000244140625"),
        _PRECISION + "rounding_of_every_kind_of_number",
    ),
    Mutant(
        "tf32-rounding-by-integers-loses-nan",
        "device.round_to_tf32",
        returned().becomes("(x.to(tl.uint32, bitcast=True) + 4096).to(tl.float32, bitcast=True)"),
        _PRECISION + "rounding_keeps_what_is_not_a_number",
    ),
    Mutant(
        "tf32-rounds-ieee-products-too",
        "device.dot_operand",
        condition().becomes("it or PRECISION == 'ieee'"),
        _PRECISION + "one_product",
    ),
    Mutant(
        "tf32-asked-by-the-getter-that-raises",
        "kernels.dot_precision",
        comparison("cuda").becomes("not torch.backends.cuda.matmul.allow_tf32"),
        _PRECISION + "every_way_to_set_torchs_switch",
    ),
    Mutant("tf32-on-turing", "kernels.dot_precision", literal(80).becomes("75"), _PRECISION + "gpus_without_tf32"),
    # --- between torch and the kernels --------------------------------------------------------------------------------
    Mutant(
        "operator-reads-the-storage-of-lazy-views",
        "kernels.takes_detour",
        comparison("arg").becomes("arg.is_meta"),
        _SPECIAL + "one_negated_argument",
    ),
    Mutant(
        "operator-loses-tangents",
        "kernels.refuse_tangents",
        condition("arg").becomes(
            "isinstance(arg, Tensor) and arg.requires_grad and (forward_ad.unpack_dual(arg).tangent is not None)"
        ),
        _TRANSFORMS + "forward_mode_is_refused",
    ),
    Mutant(
        "operator-not-told-of-forward-mode",
        "kernels.takes_detour",
        comparison("forward_ad").dropped(),
        _TRANSFORMS + "forward_mode_is_refused",
    ),
    Mutant(
        "operator-detours-though-switched-off",
        "kernels.takes_detour",
        operation("not").never(),
        "tests/kernels/test_library.py::test_the_switch_sends_every_call_through_torch",
    ),
    Mutant(
        "operator-batches-along-the-wrong-dimension",
        "kernels._sample.of",
        call("select").becomes("a.transpose(0, d).select(0, i)"),
        _TRANSFORMS + "vmap_is_a_loop",
    ),
)
