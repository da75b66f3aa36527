"""Faults of LayerNorm."""

from __future__ import annotations

from ..plant import Mutant

_NORM = "tests/kernels/layer_norm/test_accuracy.py::test_"
_ADD_NORM = "tests/kernels/layer_norm/test_add_layer_norm.py::test_"
_CONTRACTION = "tests/benchmarks/test_contraction.py::test_"
_HAZARDS = "tests/kernels/test_hazards.py::test_"
_SPECIAL = "tests/kernels/test_special_tensors.py::test_"
_LAYOUTS = "tests/kernels/layer_norm/test_layouts.py::test_"
_TORCH = "tests/kernels/layer_norm/test_torch_integration.py::test_"

MUTANTS = (
    # --- layer norm ---------------------------------------------------------------------------------------------------
    Mutant(
        "layer-norm-columns-past-the-end-in-the-variance",
        "kernels/layer_norm/forward.py",
        "centred = tl.where(mask, h - mean, 0.0)",
        "centred = h - mean",
        _NORM + "dtypes_and_widths",
    ),
    Mutant(
        "layer-norm-variance-contracted-into-its-sum-over-lanes",
        "kernels/layer_norm/forward.py",
        "sum_of_products(centred, centred, axis=1, keep_dims=True)",
        "tl.sum(centred * centred, axis=1, keep_dims=True)",
        _CONTRACTION + "few_columns_of_layer_norm",
    ),
    Mutant(
        "layer-norm-mean-of-g-contracted-into-its-sum-over-lanes",
        "kernels/layer_norm/backward.py",
        "g = rounded_product(dy, weight)",
        "g = dy * weight",
        _CONTRACTION + "few_columns_of_layer_norm",
    ),
    Mutant(
        "layer-norm-eps-dropped",
        "kernels/layer_norm/forward.py",
        "sum_of_products(centred, centred, axis=1, keep_dims=True) / N + eps",
        "sum_of_products(centred, centred, axis=1, keep_dims=True) / N",
        _NORM + "eps",
    ),
    Mutant(
        "layer-norm-bias-dropped",
        "kernels/layer_norm/forward.py",
        "y += tl.load(Bias + cols, mask=cols < N, other=0.0).to(tl.float32)",
        "y += 0.0 * tl.load(Bias + cols, mask=cols < N, other=0.0).to(tl.float32)",
        _NORM + "weight_and_bias_are_optional",
        where="store_y",
    ),
    Mutant(
        "layer-norm-projection-on-xhat-dropped",
        "kernels/layer_norm/backward.py",
        "dh = (g - mean_g - xhat * mean_gx) * rstd",
        "dh = (g - mean_g) * rstd",
        _NORM + "dtypes_and_widths",
    ),
    Mutant(
        "layer-norm-bias-gradient-dropped",
        "kernels/layer_norm/backward.py",
        "dbias += dy\n",
        "dbias += 0.0 * dy\n",
        _NORM + "weight_and_bias_are_optional",
    ),
    Mutant(
        "layer-norm-last-rows-left-out",
        "kernels/layer_norm/backward.py",
        "tiles = (M - 1) // block_m + 1",
        "tiles = M // block_m",
        _NORM + "dtypes_and_widths",
    ),
    Mutant(
        "layer-norm-long-rows-lanes-merged-without-their-spread",
        "kernels/layer_norm/lanes.py",
        "m2_lane + count * spread * spread",
        "m2_lane",
        _NORM + "long_rows_at_mean_1000",
    ),
    Mutant(
        "layer-norm-long-rows-rounding-of-the-mean-left",
        "kernels/layer_norm/lanes.py",
        "mean += sum_of_products(count, mean_lane - mean, axis=1, keep_dims=True) / N",
        "mean += 0.0 * sum_of_products(count, mean_lane - mean, axis=1, keep_dims=True) / N",
        _NORM + "constant_rows_give_the_bias",
        where="merge_lanes",
    ),
    Mutant(
        "layer-norm-long-rows-empty-lanes-counted",
        "kernels/layer_norm/lanes.py",
        "m2_lane = tl.where(mask, m2_lane + d * (h - mean_lane), m2_lane)",
        "m2_lane = m2_lane + d * (h - mean_lane)",
        _NORM + "held_rows",
    ),
    Mutant(
        "layer-norm-held-rows-mean-weighs-tiles-alike",
        "kernels/layer_norm/held_rows.py",
        "1.0 / (i + 1)",
        "0.5",
        _NORM + "held_rows",
        where="layer_norm_forward_held",
    ),
    Mutant(
        "layer-norm-held-rows-read-twice",
        "kernels/layer_norm/held_rows.py",
        "xhat = (convert_again(held[i], zero) - mean) * rstd  #",
        "xhat = (tl.load(X + row * stride_xm + cols, mask=cols < N, other=0.0).to(tl.float32) - mean) * rstd  #",
        "tests/kernels/layer_norm/test_traffic.py::test_forward_reads_x_once_up_to_65536_columns",
    ),
    Mutant(
        "layer-norm-held-rows-weight-gradients-of-the-last-row-only",
        "kernels/layer_norm/held_rows.py",
        "dweight = dweight + (dweight_before[i] + g * xhat,)",
        "dweight = dweight + (g * xhat,)",
        _NORM + "held_rows",
    ),
    Mutant(
        "layer-norm-held-rows-mean-of-g-dropped",
        "kernels/layer_norm/held_rows.py",
        "dh = (g - mean_g - xhat * mean_gx) * rstd",
        "dh = (g - xhat * mean_gx) * rstd",
        _NORM + "held_rows",
    ),
    Mutant(
        "add-layer-norm-long-rows-second-walk-forgets-the-residual",
        "kernels/layer_norm/long_rows.py",
        "h = tl.load(NewResidual + row * N + cols, mask=cols < N, other=0.0).to(tl.float32)",
        "h = tl.load(X + row * stride_xm + cols, mask=cols < N, other=0.0).to(tl.float32)",
        _ADD_NORM + "long_rows",
    ),
    Mutant(
        "layer-norm-strides-not-in-units-of-the-alignment",
        "kernels/layer_norm/forward.py",
        "return tl.cast(stride, tl.int64) * aligned",
        "return tl.cast(stride, tl.int64)",
        _NORM + "dtypes_and_widths",
    ),
    Mutant(
        "add-layer-norm-gradient-of-the-residual-dropped",
        "kernels/layer_norm/backward.py",
        "dh += tl.load(DHout + row * stride_dhm + cols, mask=mask, other=0.0).to(tl.float32)",
        "dh += 0.0 * tl.load(DHout + row * stride_dhm + cols, mask=mask, other=0.0).to(tl.float32)",
        _ADD_NORM + "dtypes",
    ),
    Mutant(
        "add-layer-norm-keeps-too-much-by-dropout",
        "kernels/layer_norm/launch.py",
        "1.0 / (1.0 - dropout_p)",
        "1.004 / (1.0 - dropout_p)",
        _ADD_NORM + "dropout_is_exact",
        where="forward",
    ),
    Mutant(
        "add-layer-norm-dropout-mask-differs-in-backward",
        "kernels/layer_norm/backward.py",
        "dh *= dropout_factor(Seed, row, cols, threshold, scale)",
        "dh *= dropout_factor(Seed, row + 1, cols, threshold, scale)",
        _ADD_NORM + "dropout_is_exact",
    ),
    # --- linear + cross-entropy ---------------------------------------------------------------------------------------
    Mutant(
        "add-layer-norm-long-rows-read-before-they-are-written",
        "kernels/layer_norm/long_rows.py",
        "tl.debug_barrier()  # an element",
        "pass  # an element",
        _HAZARDS + "layer_norm_and_the_residual_that_it_reads_again",
    ),
    # --- between torch and the kernels --------------------------------------------------------------------------------
    Mutant(
        "layer-norm-rebuilt-from-the-storage-of-a-negated-view",
        "kernels/layer_norm/recompute.py",
        "_layer_norm_again",
        "_launch_layer_norm_again",
        _SPECIAL + "normed_rows_rebuilt_from_negated_views",
        where="Recipe.cook",
    ),
    Mutant(
        "layer-norm-rebuilt-from-another-weight-or-bias",
        "kernels/layer_norm/recompute.py",
        "zip(self.names, (self.h, self.weight, self.bias), self.versions)",
        "zip(self.names, (self.h,), self.versions)",
        _TORCH + "recompute_normed_notices_what_was_modified_in_place",
    ),
    Mutant(
        "layer-norm-rebuilds-the-first-tile-of-a-row-in-every-place",
        "kernels/layer_norm/forward.py",
        "(program % tiles) * block_n",
        "(program // tiles) * block_n",
        _LAYOUTS + "a_row_normalised_again_has_the_same_bits",
        where="normalise_rows_again",
    ),
    Mutant(
        "layer-norm-rebuilds-in-a-grid-of-two-dimensions",
        "kernels/layer_norm/launch.py",
        "(cdiv(M, tile.block_m) * cdiv(N, tile.block_n),)",
        "(cdiv(M, tile.block_m), cdiv(N, tile.block_n))",
        "tests/kernels/test_grids.py::test_layer_norm",
    ),
    Mutant(
        "layer-norm-rebuilds-a-negated-view-by-its-strides",
        "kernels/layer_norm/recompute.py",
        "tensor.layout != torch.strided or tensor.is_neg()",
        "tensor.layout != torch.strided",
        _SPECIAL + "normed_rows_rebuilt_from_negated_views",
        where="_Book.pack",
    ),
)
