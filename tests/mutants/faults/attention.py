"""Faults of attention and its weights."""

from __future__ import annotations

from ..plant import Mutant

_ATTENTION = "tests/kernels/attention/test_flash_attention.py::test_"
_GUARANTEES = "tests/kernels/attention/test_guarantees.py::test_"
_COMPILED = "tests/kernels/attention/test_compiled.py::test_"
_EXTREMES = "tests/kernels/attention/test_extremes.py::test_"
_PRECISION = "tests/kernels/test_precision.py::test_"

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
    # --- attention: numbers at the ends of their types ----------------------------------------------------------------
    Mutant(
        "attention-no-column-of-a-document-is-int32-max",
        "attention/masks.py",
        "first = tl.zeros((CHUNK,), tl.int32) + num_columns",
        "first = tl.full((CHUNK,), 2147483647, tl.int32)",
        _EXTREMES + "keys_whose_documents_have_no_query",
    ),
    Mutant(
        "attention-key-starts-narrowed-before-they-are-compared",
        "attention/masks.py",
        "return tl.minimum(tl.maximum(x, 0), end).to(tl.int32)",
        "return tl.minimum(tl.maximum(x.to(tl.int32), 0), end)",
        _EXTREMES + "starts_and_lengths_of_any_integer_type",
    ),
    Mutant(
        "attention-ranges-in-a-grid-of-two-dimensions",
        "attention/masks.py",
        "tile, b = tl.program_id(0) % num_tiles, tl.program_id(0) // num_tiles\n    Documents",
        "tile, b = tl.program_id(0), tl.program_id(1)\n    Documents",
        _EXTREMES + "document_ranges",
    ),
    Mutant(
        "attention-more-heads-in-a-section-than-there-are",
        "attention/launch.py",
        "min(tiles.heads_per_section(target, 2 * group * T_q * D * itemsize, 1), B * H_kv), softmax_scale",
        "tiles.heads_per_section(target, 2 * group * T_q * D * itemsize, 1), softmax_scale",
        _EXTREMES + "products_of_sizes_fit_the_programs",
    ),
    Mutant(
        "attention-window-as-large-as-it-was-given",
        "attention/op.py",
        "return min(left, FARTHEST), min(right, FARTHEST)",
        "return left, right",
        _EXTREMES + "windows_of_any_size_pass_the_dispatcher",
    ),
    Mutant(
        "attention-bound-that-no-pair-reaches-kept",
        "attention/launch.py",
        "lower = diagonal - left if left >= 0 and diagonal - left > -T_q else None",
        "lower = diagonal - left if left >= 0 else None",
        _EXTREMES + "products_of_sizes_fit_the_programs",
    ),
    Mutant(
        "attention-weights-columns-times-a-wide-stride-in-int32",
        "attention/weights_kernel.py",
        "d = (d0 + tl.arange(0, BLOCK_D)).to(tl.int64)",
        "d = d0 + tl.arange(0, BLOCK_D)",
        _EXTREMES + "columns_of_weights_a_whole_tensor_apart",
    ),
    # --- attention: what only machine code shows ----------------------------------------------------------------------
    Mutant(
        "attention-steps-of-a-group-divided-by-a-number-that-may-be-0",
        "attention/backward.py",
        "g = step % GROUP\n            m = tile_start(step // GROUP, left",
        "g = step // tiles\n            m = tile_start(step - g * tiles, left",
        _COMPILED + "prefetches_ask_whether_there_is_a_step",
    ),
    Mutant(
        "attention-delta-of-one-product-a-lane-fused",
        "attention/backward.py",
        "delta = sum_of_products(out.to(tl.float32), d_out.to(tl.float32), 1)",
        "delta = tl.sum(out.to(tl.float32) * d_out.to(tl.float32), 1)",
        _COMPILED + "lanes_agree_about_delta",
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
        "attention-lse-rounded-to-the-inputs-dtype",
        "attention/launch.py",
        "num_stages=tile.num_stages,\n        )  # fmt: skip\n    return out, lse\n",
        "num_stages=tile.num_stages,\n        )  # fmt: skip\n    return out, lse.to(q.dtype).float()\n",
        _ATTENTION + "dtypes",
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
    # --- products in TF32 ---------------------------------------------------------------------------------------------
    Mutant(
        "attention-tf32-weights-truncated",
        "attention/forward.py",
        "p = dot_operand(p.to(v_a.dtype), PRECISION)",
        "p = p.to(v_a.dtype)",
        _PRECISION + "attention",
    ),
    Mutant(
        "attention-tf32-second-part-of-queries-truncated",
        "attention/forward.py",
        "q_b = dot_operand(q_b, PRECISION)",
        "pass",
        _PRECISION + "attention",
    ),
    Mutant(
        "attention-tf32-values-rounded-twice",
        "attention/forward.py",
        "v_a = without_nonfinite(v_a)",
        "v_a = dot_operand(without_nonfinite(v_a), PRECISION)",
        _PRECISION + "attention_over_several_tiles",
    ),
    Mutant(
        "attention-dkdv-tf32-scores-truncated",
        "attention/backward.py",
        "dsT = dot_operand(dsT.to(q_a.dtype), PRECISION)",
        "dsT = dsT.to(q_a.dtype)",
        _PRECISION + "attention",
    ),
    Mutant(
        "attention-dkdv-tf32-second-part-of-keys-truncated",
        "attention/backward.py",
        "v_b = load_tile(V, rows_n, cols_b, stride_v[2], stride_v[3], j_ok, HEAD_DIM, True, MASK_B)\n"
        "        k_b, v_b = dot_operand(k_b, PRECISION), dot_operand(v_b, PRECISION)",
        "v_b = load_tile(V, rows_n, cols_b, stride_v[2], stride_v[3], j_ok, HEAD_DIM, True, MASK_B)",
        _PRECISION + "attention",
    ),
    Mutant(
        "attention-dq-tf32-scores-truncated",
        "attention/backward.py",
        "ds = dot_operand(ds.to(k_a.dtype), PRECISION)",
        "ds = ds.to(k_a.dtype)",
        _PRECISION + "attention",
    ),
    Mutant(
        "attention-dq-tf32-gradients-truncated",
        "attention/backward.py",
        "q_a, do_a = dot_operand(q_a, PRECISION), dot_operand(do_a, PRECISION)",
        "q_a = dot_operand(q_a, PRECISION)",
        _PRECISION + "attention",
    ),
    Mutant(
        "attention-weights-tf32-keys-truncated",
        "attention/weights_kernel.py",
        "q, k = dot_operand(q, PRECISION), dot_operand(k, PRECISION)",
        "q = dot_operand(q, PRECISION)",
        _PRECISION + "attention",
    ),
)
