"""Faults of the kernel ladder, of the counts of memory traffic, and of what `fastgpt show ladder` shows."""

from __future__ import annotations

from ..places import call, comparison, condition, operation, returned, statement, value
from ..plant import Mutant

_LADDER = "tests/kernels/attention/test_ladder.py::test_"
_STUDY = "tests/fastgpt/study/test_ladder.py::test_"
_COMMAND = "tests/fastgpt/commands/test_show_ladder.py::test_"

MUTANTS = (
    Mutant(
        "ladder-loops-without-the-last-key",
        "three_loops.one_head",
        operation("+", "i", nth=1).becomes("max(i, 1)"),
        _LADDER + "each_rung_is_the_one_before",
    ),
    Mutant(
        "ladder-naive-mask-hides-the-diagonal-too",
        "naive.attention",
        comparison("i").operator(">="),
        _LADDER + "each_rung_is_the_one_before",
    ),
    Mutant(
        "ladder-tiled-mask-fills-with-zeros",
        "tiled.attention",
        operation("-", "inf").becomes("0.0"),
        _LADDER + "each_rung_is_the_one_before",
    ),
    Mutant(
        "ladder-online-softmax-forgets-to-rescale-the-output",
        "online_softmax.attention",
        value("o", "alpha").operand(1).operand("alpha").dropped(),
        _LADDER + "large_scores_and_rows_that_grow",
    ),
    Mutant(
        "ladder-kernel-forgets-to-rescale-the-sum",
        "triton_forward.online_softmax_kernel",
        value("l", "alpha").operand(1).becomes("l"),
        _LADDER + "batches_heads_and_layouts",
    ),
    Mutant(
        "ladder-diagonal-tile-without-a-mask",
        "tile_skipping.one_tile",
        condition("IS_DIAGONAL", nth=2).never(),
        _LADDER + "each_rung_is_the_one_before",
    ),
    Mutant(
        "ladder-visits-tiles-behind-the-diagonal",
        "tile_skipping.causal_tiles_kernel",
        call("tl.range", nth=2).argument(2).becomes("T"),
        _LADDER + "traffic_of_kernels",
    ),
    Mutant(
        "traffic-views-taken-for-copies",
        "OperationTraffic.__torch_dispatch__",
        operation("or", "_MAKES_ONLY").operand(1).dropped(),
        _LADDER + "traffic_of_operations",
    ),
    Mutant(
        "traffic-masked-lanes-counted",
        "traffic.Traffic.__enter__",
        value("live", nth=1).becomes("pointers.data"),
        _LADDER + "traffic_of_kernels",
    ),
    Mutant(
        "show-ladder-traffic-of-one-head",
        "study.ladder.traffic",
        returned().item(1).operand("heads").dropped(),
        _STUDY + "traffic_and_memory_by_formula",
    ),
    Mutant(
        "show-ladder-mean-error",
        "study.ladder._measured",
        call("max").becomes("(out.double() - exact).abs().mean()"),
        _STUDY + "the_error_is_that_of_the_output",
    ),
    Mutant(
        "show-ladder-times-the-warm-up",
        "study.ladder._by_events",
        statement("for", "WARM_UP").dropped(),
        _STUDY + "time_on_a_gpu_is_the_median_after_warm_up",
    ),
    Mutant(
        "show-ladder-compares-the-interpreter",
        "ladder_page.relative",
        comparison("rung.clock").becomes("False"),
        _STUDY + "speed_is_compared_on_a_gpu_only",
    ),
    Mutant(
        "show-ladder-page-marks-lines-that-only-moved",
        "ladder_page.marked",
        call("line.strip").unwrapped(),
        _STUDY + "marked_lines_make_both_files",
    ),
)
