"""Faults of LayerNorm."""

from __future__ import annotations

from ..places import assignment, call, operand, operation, value
from ..plant import Mutant

_NORM = "tests/kernels/layer_norm/test_accuracy.py::test_"
_ADD_NORM = "tests/kernels/layer_norm/test_add_layer_norm.py::test_"
_CONTRACTION = "tests/benchmarks/test_contraction.py::test_"
_HAZARDS = "tests/kernels/test_hazards.py::test_"

MUTANTS = (
    # --- layer norm ---------------------------------------------------------------------------------------------------
    Mutant(
        "layer-norm-columns-past-the-end-in-the-variance",
        "layer_norm.layer_norm_forward_kernel",
        value("centred").becomes("h - mean"),
        _NORM + "dtypes_and_widths",
    ),
    Mutant(
        "layer-norm-variance-contracted-into-its-sum-over-lanes",
        "layer_norm.layer_norm_forward_kernel",
        call("sum_of_products").becomes("tl.sum(centred * centred, axis=1, keep_dims=True)"),
        _CONTRACTION + "few_columns_of_layer_norm",
    ),
    Mutant(
        "layer-norm-mean-of-g-contracted-into-its-sum-over-lanes",
        "layer_norm.layer_norm_backward_kernel",
        value("g", "weight").becomes("dy * weight"),
        _CONTRACTION + "few_columns_of_layer_norm",
    ),
    Mutant("layer-norm-eps-dropped", "layer_norm.layer_norm_forward_kernel", operand("eps").dropped(), _NORM + "eps"),
    Mutant(
        "layer-norm-bias-dropped",
        "layer_norm.store_y",
        value("y", "Bias").becomes("0.0 * it"),
        _NORM + "weight_and_bias_are_optional",
    ),
    Mutant(
        "layer-norm-projection-on-xhat-dropped",
        "layer_norm.layer_norm_backward_kernel",
        operand(3, "xhat").dropped(),
        _NORM + "dtypes_and_widths",
    ),
    Mutant(
        "layer-norm-bias-gradient-dropped",
        "layer_norm.layer_norm_backward_kernel",
        value("dbias", "dy").becomes("0.0 * it"),
        _NORM + "weight_and_bias_are_optional",
    ),
    Mutant(
        "layer-norm-last-rows-left-out",
        "layer_norm.layer_norm_backward_kernel",
        value("tiles").becomes("M // BLOCK_M"),
        _NORM + "dtypes_and_widths",
    ),
    Mutant(
        "layer-norm-long-rows-lanes-merged-without-their-spread",
        "layer_norm.merge_lanes",
        operation("+", "spread").becomes(operand("m2")),
        _NORM + "long_rows_at_mean_1000",
    ),
    Mutant(
        "layer-norm-long-rows-rounding-of-the-mean-left",
        "layer_norm.merge_lanes",
        value("mean", nth=2).becomes("0.0 * it"),
        _NORM + "constant_rows_give_the_bias",
    ),
    Mutant(
        "layer-norm-long-rows-empty-lanes-counted",
        "layer_norm.add_to_lanes",
        value("m2").becomes(operation("+")),
        _NORM + "held_rows",
    ),
    Mutant(
        "layer-norm-held-rows-mean-weighs-tiles-alike",
        "layer_norm.layer_norm_forward_held_kernel",
        operation("/").becomes("0.5"),
        _NORM + "held_rows",
    ),
    Mutant(
        "layer-norm-held-rows-read-twice",
        "layer_norm.layer_norm_forward_held_kernel",
        operand("zero").becomes("load_rows(X, part_of_row(row, i * BLOCK_N, C)).to(tl.float32)"),
        "tests/kernels/layer_norm/test_traffic.py::test_forward_reads_x_once_up_to_65536_columns",
    ),
    Mutant(
        "layer-norm-held-rows-weight-gradients-of-the-last-row-only",
        "layer_norm.layer_norm_backward_held_kernel",
        operand("dweight_before").dropped(),
        _NORM + "held_rows",
    ),
    Mutant(
        "layer-norm-held-rows-mean-of-g-dropped",
        "layer_norm.layer_norm_backward_held_kernel",
        operand("mean_g").dropped(),
        _NORM + "held_rows",
    ),
    Mutant(
        "add-layer-norm-long-rows-second-walk-forgets-the-residual",
        "layer_norm.layer_norm_forward_long_kernel",
        assignment("X", "NewResidual").dropped(),
        _ADD_NORM + "long_rows",
    ),
    Mutant(
        "layer-norm-strides-not-in-units-of-the-alignment",
        "layer_norm.matrix_of",
        operand("aligned").dropped(),
        _NORM + "dtypes_and_widths",
    ),
    Mutant(
        "add-layer-norm-gradient-of-the-residual-dropped",
        "layer_norm.store_input_gradients",
        value("dh", "DHOut").becomes("0.0 * it"),
        _ADD_NORM + "dtypes",
    ),
    Mutant(
        "add-layer-norm-dropout-mask-differs-in-backward",
        "layer_norm.store_input_gradients",
        call("dropout_factor").argument(2).becomes("Place(it.rows + 1, it.cols, it.row_ok, it.col_ok)"),
        _ADD_NORM + "dropout_is_exact",
    ),
    Mutant(
        "add-layer-norm-long-rows-read-before-they-are-written",
        "layer_norm.layer_norm_forward_long_kernel",
        call("debug_barrier").dropped(),
        _HAZARDS + "layer_norm_and_the_residual_that_it_reads_again",
    ),
)
