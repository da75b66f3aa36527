"""Faults of attention and its weights."""

from __future__ import annotations

from ..places import (
    assignment,
    call,
    collection,
    comparison,
    iterated,
    literal,
    operand,
    operation,
    receiver,
    returned,
    statement,
    value,
)
from ..plant import Mutant

_ATTENTION = "tests/kernels/attention/test_flash_attention.py::test_"
_EDGES = "tests/kernels/attention/test_whole_edges.py::test_"
_GUARANTEES = "tests/kernels/attention/test_guarantees.py::test_"
_COMPILED = "tests/kernels/attention/test_compiled.py::test_"
_EXTREMES = "tests/kernels/attention/test_extremes.py::test_"
_HOPPER = "tests/kernels/attention/hopper/"
_PRECISION = "tests/kernels/test_precision.py::test_"

MUTANTS = (
    # --- attention: which keys a query sees ---------------------------------------------------------------------------
    Mutant(
        "attention-causal-mask-off-by-one",
        "attention.visible",
        comparison("j", "upper").operator("<"),
        _ATTENTION + "dtypes",
    ),
    Mutant(
        "attention-key-mask-off-by-one-at-a-ragged-T",
        "attention.visible",
        comparison("end_key").operator("<="),
        _ATTENTION + "lengths",
    ),
    Mutant(
        "attention-window-one-key-short",
        "attention.visible",
        comparison("j", "lower").operator(">"),
        _ATTENTION + "windows",
    ),
    Mutant(
        "attention-documents-see-each-other",
        "attention.visible",
        comparison("documents", "held").operator(">="),
        _ATTENTION + "document_ids",
    ),
    Mutant(
        "attention-diagonal-tile-taken-for-full",
        "attention.tile_runs",
        value("full_end", "upper").operand("row").becomes("last_row"),
        _ATTENTION + "lengths",
    ),
    Mutant(
        "attention-last-ragged-tile-skipped",
        "attention.tile_runs",
        call("cdiv", "end").becomes("(end - right) // EDGE"),
        _ATTENTION + "lengths",
    ),
    Mutant(
        "attention-causal-aligned-top-left",
        "attention.band",
        value("diagonal").becomes("0"),
        _ATTENTION + "lengths",
    ),
    # --- attention: Hopper's kernels ----------------------------------------------------------------------------------
    Mutant(
        "attention-hopper-last-key-hidden",
        "attention.visible_tile",
        comparison("c_row", "last").operator("<"),
        _HOPPER + "test_forward.py::test_tiles_of_every_kind",
    ),
    Mutant(
        "attention-hopper-nan-not-looked-for",
        "attention.nonfinite_in",
        comparison("found").operator("<"),
        _HOPPER + "test_forward.py::test_what_is_not_finite_reaches_the_rows_that_see_it",
    ),
    # --- attention: numbers at the ends of their types ----------------------------------------------------------------
    Mutant(
        "attention-no-column-of-a-document-is-int32-max",
        "attention.masks.document_ranges_kernel",
        value("first", "zeros").becomes("tl.full((CHUNK,), 2147483647, tl.int32)"),
        _EXTREMES + "keys_whose_documents_have_no_query",
    ),
    Mutant(
        "attention-key-starts-narrowed-before-they-are-compared",
        "attention.clamped",
        returned().becomes("tl.minimum(tl.maximum(x.to(tl.int32), 0), end)"),
        _EXTREMES + "starts_and_lengths_of_any_integer_type",
    ),
    Mutant(
        "attention-ranges-in-a-grid-of-two-dimensions",
        "attention.masks.document_ranges_kernel",
        collection("num_tiles").becomes("(tl.program_id(0), tl.program_id(1))"),
        _EXTREMES + "document_ranges",
    ),
    Mutant(
        "attention-more-heads-in-a-section-than-there-are",
        "attention._plan",
        call("min", "section").unwrapped(),
        _EXTREMES + "products_of_sizes_fit_the_programs",
    ),
    Mutant(
        "attention-window-as-large-as-it-was-given",
        "attention.window_bounds",
        returned("left").becomes("(left, right)"),
        _EXTREMES + "windows_of_any_size_pass_the_dispatcher",
    ),
    Mutant(
        "attention-bound-that-no-pair-reaches-kept",
        "attention.band",
        comparison("T_q").dropped(),
        _EXTREMES + "products_of_sizes_fit_the_programs",
    ),
    Mutant(
        "attention-weights-columns-times-a-wide-stride-in-int32",
        "attention_weights.product",
        value("d").becomes(receiver()),
        _EXTREMES + "columns_of_weights_a_whole_tensor_apart",
    ),
    # --- attention: what only machine code shows ----------------------------------------------------------------------
    Mutant(
        "attention-steps-of-a-group-divided-by-a-number-that-may-be-0",
        "attention.add_queries",
        (
            value("g").becomes("step // num_steps(runs, IS_MASKED)"),
            operation("//", "step").becomes("step - g * num_steps(runs, IS_MASKED)"),
        ),
        _COMPILED + "prefetches_ask_whether_there_is_a_step",
    ),
    Mutant(
        "attention-delta-of-one-product-a-lane-fused",
        "attention.attention_delta_kernel",
        value("delta", "out").becomes("tl.sum(out.to(tl.float32) * dout.to(tl.float32), 1)"),
        _COMPILED + "lanes_agree_about_delta",
    ),
    # --- attention: whole tiles at the edge of a mask ----------------------------------------------------------------
    Mutant(
        "attention-nan-of-a-whole-edge-taken-for-seen",
        "attention.all_finite",
        comparison("zero").becomes("True"),
        _EDGES + "nan_stays_where_it_is_seen",
    ),
    Mutant(
        "attention-careful-steps-leave-out-what-needs-no-mask",
        "attention.all_cut",
        value("num_tiles").operand("runs.num_full").dropped(),
        _EDGES + "nan_stays_where_it_is_seen",
    ),
    Mutant(
        "attention-whole-edge-not-masked-in-dq",
        "attention.dq_step",
        value("p", "tl.where").becomes("p"),
        _EDGES + "values",
    ),
    # --- attention: the online softmax --------------------------------------------------------------------------------
    Mutant(
        "attention-scale-dropped",
        "attention.launch.forward",
        operand("softmax_scale").dropped(),
        _ATTENTION + "softmax_scale",
    ),
    Mutant(
        "attention-sum-not-rescaled",
        "attention.forward_step",
        value("l").operand("alpha").dropped(),
        _ATTENTION + "lengths",
    ),
    Mutant(
        "attention-stale-accumulator",
        "attention.decay_and_add",
        value("low").operand("decay").dropped(),
        _ATTENTION + "lengths",
    ),
    Mutant(
        "attention-second-part-of-head-dim-not-rescaled",
        "attention.scaled",
        call("Pair").argument(2).operand("factor").dropped(),
        _ATTENTION + "head_dims",
    ),
    Mutant(
        "attention-lse-rounded-to-the-inputs-dtype",
        "attention._launch_forward",
        statement("return").becomes(
            "out, lse = launch.forward(q, k, v, *settings)\nreturn (out, lse.to(q.dtype).float())"
        ),
        _ATTENTION + "dtypes",
    ),
    Mutant(
        "attention-lse-in-base-2",
        "attention.attention_forward_kernel",
        literal(0.6931471805599453).dropped(),
        _ATTENTION + "dtypes",
    ),
    Mutant(
        "attention-dropout-not-rescaled",
        "attention.attention_forward_kernel",
        operand("dropout.scale").becomes("1.0"),
        _GUARANTEES + "dropout_is_exactly_philox",
    ),
    # --- attention: backward ------------------------------------------------------------------------------------------
    Mutant(
        "attention-delta-omitted",
        "attention.backward.dkdv_step",
        value("dsT", "delta").operand("delta").dropped(),
        _ATTENTION + "dtypes",
    ),
    Mutant(
        "attention-gradient-of-lse-ignored",
        "attention.attention_delta_kernel",
        value("delta", "load").becomes("0.0 * it"),
        _ATTENTION + "dtypes",
    ),
    Mutant(
        "attention-dropout-mask-differs-in-backward",
        "attention.backward.dkdv_step",
        value("keep").swapped(3, 4),
        _GUARANTEES + "dropout_is_exactly_philox",
    ),
    Mutant(
        "attention-dq-reads-another-heads-dropout",
        "attention.dq_step",
        call("keeps").argument(2).becomes("1"),
        _GUARANTEES + "dropout_is_exactly_philox",
    ),
    Mutant(
        "attention-dk-not-scaled",
        "attention.attention_dkdv_kernel",
        call("scaled").unwrapped(),
        _ATTENTION + "dtypes",
    ),
    Mutant(
        "attention-gradient-of-padding-left",
        "attention.attention_dkdv_kernel",
        call("where_pair", "grads.v").argument(1).becomes("j_ok[:, None]"),
        _ATTENTION + "padding",
    ),
    Mutant(
        "attention-only-one-query-head-of-a-group",
        "attention.add_queries",
        iterated("step").operand("GROUP").dropped(),
        _ATTENTION + "grouped_queries",
    ),
    # --- products in TF32 ---------------------------------------------------------------------------------------------
    Mutant(
        "attention-tf32-weights-truncated",
        "attention.forward_step",
        call("dot_operand", "p.to").unwrapped(),
        _PRECISION + "attention",
    ),
    Mutant(
        "attention-tf32-second-part-of-held-rows-truncated",
        "attention.load_part",
        call("dot_operand").becomes(
            "it if PART == 0 else load_tile(Start, rows, columns, stride[2], stride[3], row_ok, column_ok)"
        ),
        _PRECISION + "attention",
    ),
    Mutant(
        "attention-tf32-values-rounded-twice",
        "attention.pair_without_nonfinite",
        value("low").becomes("dot_operand(it, C.precision)"),
        _PRECISION + "attention_over_several_tiles",
    ),
    Mutant(
        "attention-dkdv-tf32-scores-truncated",
        "attention.backward.dkdv_step",
        call("dot_operand", "dsT").unwrapped(),
        _PRECISION + "attention",
    ),
    Mutant(
        "attention-tf32-second-part-of-streamed-rows-truncated",
        "attention.stream_part",
        call("dot_operand").becomes("it if PART == 0 else tile"),
        _PRECISION + "attention",
    ),
    Mutant(
        "attention-dq-tf32-scores-truncated",
        "attention.dq_step",
        call("dot_operand", "ds.to").unwrapped(),
        _PRECISION + "attention",
    ),
    Mutant(
        "attention-tf32-held-rows-truncated",
        "attention.load_part",
        call("dot_operand").unwrapped(),
        _PRECISION + "attention",
    ),
    Mutant(
        "attention-weights-tf32-keys-truncated",
        "attention_weights.product",
        assignment("k", "q").becomes("q = dot_operand(q, PRECISION)"),
        _PRECISION + "attention",
    ),
)
