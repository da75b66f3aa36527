"""The faults: mistakes that are easy to make in such kernels and hard to see in a loss curve."""

from __future__ import annotations

from .plant import Mutant

_ATTENTION = "tests/kernels/attention/test_flash_attention.py::test_"
_GUARANTEES = "tests/kernels/attention/test_guarantees.py::test_"
_NORM = "tests/kernels/layer_norm/test_accuracy.py::test_"
_ADD_NORM = "tests/kernels/layer_norm/test_add_layer_norm.py::test_"
_FFN = "tests/kernels/ffn/test_values.py::test_"
_LOSS = "tests/kernels/linear_cross_entropy/test_values.py::test_"
_LOSS_EDGES = "tests/kernels/linear_cross_entropy/test_edges.py::test_"

MUTANTS = (
    # --- attention: which keys a query sees ---------------------------------------------------------------------------
    Mutant(
        "attention-causal-mask-off-by-one",
        "attention/masks.py",
        "sees & (j <= i + upper)",
        "sees & (j < i + upper)",
        _ATTENTION + "dtypes",
    ),
    Mutant(
        "attention-key-mask-off-by-one-at-a-ragged-T",
        "attention/masks.py",
        "(j >= first_key) & (j < end_key)\n    if HAS_UPPER",
        "(j >= first_key) & (j <= end_key)\n    if HAS_UPPER",
        _ATTENTION + "lengths",
    ),
    Mutant(
        "attention-window-one-key-short",
        "attention/masks.py",
        "sees & (j >= i + lower)",
        "sees & (j > i + lower)",
        _ATTENTION + "windows",
    ),
    Mutant(
        "attention-documents-see-each-other",
        "attention/masks.py",
        "sees & (document_i == document_j)",
        "sees & (document_i >= document_j)",
        _ATTENTION + "document_ids",
    ),
    Mutant(
        "attention-diagonal-tile-taken-for-full",
        "attention/masks.py",
        "full_end = tl.minimum(full_end, row + upper + 1)",
        "full_end = tl.minimum(full_end, last_row + upper + 1)",
        _ATTENTION + "lengths",
    ),
    Mutant(
        "attention-last-ragged-tile-skipped",
        "attention/masks.py",
        "num_right = tl.maximum(tl.cdiv(end - right, EDGE), 0)",
        "num_right = tl.maximum((end - right) // EDGE, 0)",
        _ATTENTION + "lengths",
    ),
    Mutant(
        "attention-causal-aligned-top-left",
        "attention/launch.py",
        "diagonal = T_k - T_q",
        "diagonal = 0",
        _ATTENTION + "lengths",
    ),
    # --- attention: the online softmax --------------------------------------------------------------------------------
    Mutant(
        "attention-scale-dropped",
        "attention/launch.py",
        "softmax_scale * LOG2_E,",
        "LOG2_E,",
        _ATTENTION + "softmax_scale",
    ),
    Mutant(
        "attention-sum-not-rescaled",
        "attention/forward.py",
        "l = l * alpha + tl.sum(p, 1)",
        "l = l + tl.sum(p, 1)",
        _ATTENTION + "lengths",
    ),
    Mutant(
        "attention-stale-accumulator",
        "attention/forward.py",
        "acc_a = tl.dot(p, v_a, acc_a * alpha[:, None],",
        "acc_a = tl.dot(p, v_a, acc_a,",
        _ATTENTION + "lengths",
    ),
    Mutant(
        "attention-second-part-of-head-dim-not-rescaled",
        "attention/forward.py",
        "acc_b = tl.dot(p, v_b, acc_b * alpha[:, None],",
        "acc_b = tl.dot(p, v_b, acc_b,",
        _ATTENTION + "head_dims",
    ),
    Mutant(
        "attention-lse-in-base-2",
        "attention/forward.py",
        "(m + tl.math.log2(l)) * 0.6931471805599453",
        "(m + tl.math.log2(l))",
        _ATTENTION + "dtypes",
    ),
    Mutant(
        "attention-dropout-not-rescaled",
        "attention/forward.py",
        "inverse = out_scale / l",
        "inverse = 1.0 / l",
        _GUARANTEES + "dropout_is_exactly_philox",
    ),
    # --- attention: backward ------------------------------------------------------------------------------------------
    Mutant(
        "attention-delta-omitted",
        "attention/backward.py",
        "dsT = pT * (dpT - delta[None, :])",
        "dsT = pT * dpT",
        _ATTENTION + "dtypes",
    ),
    Mutant(
        "attention-gradient-of-lse-ignored",
        "attention/backward.py",
        "delta -= tl.load(D_lse",
        "delta -= 0.0 * tl.load(D_lse",
        _ATTENTION + "dtypes",
    ),
    Mutant(
        "attention-dropout-mask-differs-in-backward",
        "attention/backward.py",
        "keep = keep_mask(seed, offset, head, i[None, :], j[:, None], threshold)",
        "keep = keep_mask(seed, offset, head, j[:, None], i[None, :], threshold)",
        _GUARANTEES + "dropout_is_exactly_philox",
    ),
    Mutant(
        "attention-dq-reads-another-heads-dropout",
        "attention/backward.py",
        "keep = keep_mask(seed, offset, head, i[:, None], j[None, :], threshold)",
        "keep = keep_mask(seed, offset, head + 1, i[:, None], j[None, :], threshold)",
        _GUARANTEES + "dropout_is_exactly_philox",
    ),
    Mutant(
        "attention-dk-not-scaled",
        "attention/backward.py",
        "dk_a = tl.where(key_ok[:, None], dk_a * softmax_scale, 0.0)",
        "dk_a = tl.where(key_ok[:, None], dk_a, 0.0)",
        _ATTENTION + "dtypes",
    ),
    Mutant(
        "attention-gradient-of-padding-left",
        "attention/backward.py",
        "dv_a = tl.where(key_ok[:, None], dv_a, 0.0)",
        "dv_a = tl.where(j_ok[:, None], dv_a, 0.0)",
        _ATTENTION + "padding",
    ),
    Mutant(
        "attention-only-one-query-head-of-a-group",
        "attention/backward.py",
        "tl.range(0, tiles * GROUP,",
        "tl.range(0, tiles,",
        _ATTENTION + "grouped_queries",
    ),
    # --- layer norm ---------------------------------------------------------------------------------------------------
    Mutant(
        "layer-norm-columns-past-the-end-in-the-variance",
        "layer_norm/forward.py",
        "centred = tl.where(mask, h - mean, 0.0)",
        "centred = h - mean",
        _NORM + "dtypes_and_widths",
    ),
    Mutant(
        "layer-norm-eps-dropped",
        "layer_norm/forward.py",
        "keep_dims=True) / N + eps)",
        "keep_dims=True) / N)",
        _NORM + "eps",
    ),
    Mutant(
        "layer-norm-bias-dropped",
        "layer_norm/forward.py",
        "y += tl.load(Bias + cols",
        "y += 0.0 * tl.load(Bias + cols",
        _NORM + "weight_and_bias_are_optional",
    ),
    Mutant(
        "layer-norm-projection-on-xhat-dropped",
        "layer_norm/backward.py",
        "dh = (g - mean_g - xhat * mean_gx) * rstd",
        "dh = (g - mean_g) * rstd",
        _NORM + "dtypes_and_widths",
    ),
    Mutant(
        "layer-norm-bias-gradient-dropped",
        "layer_norm/backward.py",
        "dbias += dy\n",
        "dbias += 0.0 * dy\n",
        _NORM + "weight_and_bias_are_optional",
    ),
    Mutant(
        "layer-norm-last-rows-left-out",
        "layer_norm/backward.py",
        "tl.range(program, tl.cdiv(M, block_m), programs",
        "tl.range(program, M // block_m, programs",
        _NORM + "dtypes_and_widths",
    ),
    Mutant(
        "layer-norm-long-rows-lanes-merged-without-their-spread",
        "layer_norm/long_rows.py",
        "m2_lane + count * spread * spread",
        "m2_lane",
        _NORM + "long_rows_at_mean_1000",
    ),
    Mutant(
        "add-layer-norm-gradient-of-the-residual-dropped",
        "layer_norm/backward.py",
        "dh += tl.load(DHout",
        "dh += 0.0 * tl.load(DHout",
        _ADD_NORM + "dtypes",
    ),
    Mutant(
        "add-layer-norm-dropout-mask-differs-in-backward",
        "layer_norm/backward.py",
        "dh *= dropout_factor(Seed, row, cols, threshold, scale)",
        "dh *= dropout_factor(Seed, row + 1, cols, threshold, scale)",
        _ADD_NORM + "dropout_is_exact",
    ),
    # --- FFN ----------------------------------------------------------------------------------------------------------
    Mutant(
        "ffn-tanh-for-erf",
        "ffn/gelu.py",
        "return x * normal_cdf(x)",
        "return x * logistic_of_cubic(x)[0]",
        _FFN + "linear_gelu",
    ),
    Mutant(
        "ffn-density-dropped-from-the-derivative",
        "ffn/gelu.py",
        "cdf + x * density",
        "cdf",
        _FFN + "linear_gelu",
    ),
    Mutant(
        "ffn-bias-dropped",
        "ffn/forward.py",
        "pre += bias.to(tl.float32)[None, :]",
        "pre += 0.0 * bias.to(tl.float32)[None, :]",
        _FFN + "linear_gelu",
    ),
    Mutant(
        "ffn-last-ragged-step-of-a-product-skipped",
        "ffn/gemm.py",
        "in_k = ks < k_end",
        "in_k = ks < k_end - k_end % block_k",
        _FFN + "any_size",
    ),
    Mutant(
        "ffn-dropout-mask-differs-in-backward",
        "ffn/elementwise.py",
        "dy = drop(dy, Seed, offs_m, offs_n, drop_threshold, keep_scale)",
        "dy = drop(dy, Seed, offs_m + 1, offs_n, drop_threshold, keep_scale)",
        _FFN + "dropout_and_residual",
    ),
    Mutant(
        "ffn-dropout-not-rescaled",
        "ffn/forward.py",
        "return tl.where(keep, tile * keep_scale, 0.0)",
        "return tl.where(keep, tile, 0.0)",
        _FFN + "dropout_and_residual",
    ),
    Mutant(
        "ffn-parts-of-a-sum-past-the-first-block-lost",
        "ffn/elementwise.py",
        "for p0 in tl.range(0, count, block_p):",
        "for p0 in tl.range(0, tl.minimum(count, block_p), block_p):",
        _FFN + "long_sums_and_chunks",
    ),
    # --- linear + cross-entropy ---------------------------------------------------------------------------------------
    Mutant(
        "loss-ignore-index-counted",
        "linear_cross_entropy/softmax.py",
        "tl.store(Loss + i, tl.where(valid, loss, 0.0))",
        "tl.store(Loss + i, loss)",
        _LOSS_EDGES + "ignored_rows_get_zero",
    ),
    Mutant(
        "loss-mean-over-ignored-rows-too",
        "linear_cross_entropy/scalars.py",
        "count += valid.to(tl.int64)",
        "count += (offs < N).to(tl.int64)",
        _LOSS + "loss_and_gradients",
    ),
    Mutant(
        "loss-ignored-rows-get-a-gradient",
        "linear_cross_entropy/softmax.py",
        "g_loss = tl.where(valid, 1.0, 0.0)",
        "g_loss = 1.0",
        _LOSS_EDGES + "ignored_rows_get_zero",
    ),
    Mutant(
        "loss-sum-not-rescaled",
        "linear_cross_entropy/softmax.py",
        "s = s * tl.exp2((m - base) * LOG2E) +",
        "s = s +",
        _LOSS + "any_vocabulary",
    ),
    Mutant(
        "loss-padding-columns-in-the-softmax",
        "linear_cross_entropy/softmax.py",
        'y = tl.where(offs < V, y, -float("inf"))',
        "y = y",
        _LOSS + "any_vocabulary",
    ),
    Mutant(
        "loss-target-column-not-subtracted",
        "linear_cross_entropy/softmax.py",
        "at_target * (1.0 - smoothing)",
        "0.0 * at_target",
        _LOSS + "loss_and_gradients",
    ),
    Mutant(
        "loss-smoothing-dropped-from-the-gradient",
        "linear_cross_entropy/softmax.py",
        "(smoothing / V + at_target",
        "(at_target",
        _LOSS + "options",
    ),
    Mutant(
        "loss-z-loss-dropped-from-the-gradient",
        "linear_cross_entropy/softmax.py",
        "(1.0 + 2.0 * z_loss * (m + log_sum))",
        "(1.0 + z_loss * (m + log_sum))",
        _LOSS + "options",
    ),
    Mutant(
        "loss-slope-of-the-softcap-dropped",
        "linear_cross_entropy/softmax.py",
        "slope = 1.0 - squashed * squashed",
        "slope = 1.0 - 0.0 * squashed",
        _LOSS + "options",
    ),
    Mutant(
        "loss-bias-gradient-of-the-last-chunk-only",
        "linear_cross_entropy/launch.py",
        "self.dbias.copy_(partial) if first else self.dbias.add_(partial)",
        "self.dbias.copy_(partial)",
        _LOSS + "any_number_of_chunks",
    ),
    # --- dropout ------------------------------------------------------------------------------------------------------
    Mutant(
        "dropout-keeps-what-it-should-drop",
        "_dropout.py",
        "return word >= threshold",
        "return word < threshold",
        "tests/kernels/test_dropout.py::test_mask_is_philox",
    ),
)
