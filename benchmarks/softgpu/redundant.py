"""Faults that change nothing, and why: the arguments that `planting.py` asks for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from .asked import (
    all_wait_for_bulk_copies,
    copies_a_lower_half,
    copies_the_same_again,
    is_of_an_upper_half,
    is_of_the_first_sum,
    is_reduced,
    is_shuffled_for_nothing,
    is_stored_by_any,
    is_summed_by_the_first_lanes,
    is_uniform,
    is_unused,
    reads_all_of_it,
    turns_by_one,
)
from .faults import Fault
from .paths import Paths, Way


class Argument(NamedTuple):
    """Of all faults of this kind; `kernel` and `text` are regular expressions of the kernel and the instruction.

    holds  whether what `why` says is so of this fault in this PTX text
    """

    kind: str
    kernel: str
    text: str
    why: str
    holds: Callable[[str, Fault], bool] = lambda text, fault: True


def argument(kernel: str, fault: Fault, text: str, taken: frozenset[Way]) -> str:
    """Why this fault changes nothing; "" if nobody has said so. `taken`: the ways that branches were seen to go."""
    bounds = BOUNDS.get(fault.kind)
    if bounds is not None:
        paths = Paths(text)
        missing = {way for way in paths.ways_around(fault.line, bounds) - taken if not paths.needs_a_huge_number(way)}
        if all(paths.skips_a_loop(way) for way in missing) and (not missing or kernel in NEVER_EMPTY):
            return ORDERED + (f" Its loop is never skipped: {NEVER_EMPTY[kernel]}." if missing else "")
    for one in ARGUMENTS:
        named = one.kind == fault.kind and re.search(one.kernel, kernel) and re.search(one.text, fault.before)
        if named and one.holds(text, fault):
            return one.why
    return ""


# Whether accesses are ordered, and whether a copy or a product has been waited for, the machine judges on the path that
# is taken, whatever the values and whoever runs first. So what it does not miss on any path is not needed. The kinds of
# which that is true, and how far a path goes: up to what does the same.
ORDERED = (
    "On every path around it the accesses that it orders are ordered without it: the machine, which judges order and "
    "not values, misses nothing, and all of these paths were taken."
)
NEVER_EMPTY = {
    "document_ranges_kernel": "it goes over all columns, and without any there is no launch",
    "online_softmax_kernel": "it goes over all columns, and without any there is no launch",
    "attention_weights_kernel": "it goes over head_dim, which is 1 or more",
    "layer_norm_backward_kernel": "there are no more programs than tiles of rows",
    "layer_norm_backward_held_kernel": "there are no more programs than rows",
    "layer_norm_dweight_long_kernel": "each program has rows, of which there are one or more",
    "sum_partials_kernel": "there is a partial sum of each program",
    "up_kernel": "there are no more programs than tiles, and d is 1 or more",
    "dgelu_kernel": "there are no more programs than tiles, and d is 1 or more",
    "prepare_grad_kernel": "each program has rows",
    "dgelu_pass_kernel": "each program has rows",
    "count_targets_kernel": "without a target there is no launch",
}
_CP_ASYNC, _WGMMA = r"cp\.async\.wait_(group\s+0|all)", r"wgmma\.wait_group\S*\s+0"
BOUNDS = {
    "barrier removed": r"(bar|barrier)\.(cta\.)?(sync|red)",
    "commit of cp.async removed": _CP_ASYNC,
    "wait for cp.async one group short": _CP_ASYNC,
    "wait for cp.async removed": _CP_ASYNC,
    "commit of wgmma removed": _WGMMA,
    "wait for wgmma one group short": _WGMMA,
    "wait for wgmma removed": _WGMMA,
    "wgmma's fence removed": r"wgmma\.fence",
    "proxy fence removed": r"fence\.proxy",
}


# ---- of values -----------------------------------------------------------------------------------------------------

_REDUCED = (
    "Every lane holds the sum that the chosen lanes store: others store the same bits to the same place, or to the one "
    "that their own copy belongs to."
)
ARGUMENTS: tuple[Argument, ...] = (
    Argument("predicate removed", "", r"st\.shared", _REDUCED, is_reduced),
    Argument("predicate negated", "", r"st\.shared", _REDUCED, is_reduced),
    Argument(
        "copy's size changed", "", r"cp\.async",
        "The steps before the loop are there in every program, so that their copies are always whole: in this case the "
        "rows of the first tiles all exist.",
        reads_all_of_it,
    ),
    Argument(
        "copy's size changed", "", r"cp\.async\.ca.* 0x8,",
        "Of a 64-bit seed or offset, which `new_seed` draws below 2^31: its upper half is 0, as is what a copy adds.",
        copies_a_lower_half,
    ),
    Argument(
        "copy not begun", "^layer_norm_(forward_long|backward_held)", "",
        "What every step copies anew, the weight or dropout's seed, lies there since the copies before the loop.",
        copies_the_same_again,
    ),
    Argument(
        "shuffle's lane changed", "", r"shfl\.sync\.idx",
        "It broadcasts the number of the warp, which every lane has computed.",
        is_uniform,
    ),
    Argument(
        "shuffle's lane changed", "", "bfly",
        "All lanes hold the same: the source sums something that this call has not.",
        is_shuffled_for_nothing,
    ),
    Argument(
        "shuffle's lane changed", "count_targets", "bfly",
        "The upper half of a count is 0 in all lanes.",
        is_of_an_upper_half,
    ),
    Argument(
        "shuffle's lane changed", "^layer_norm_forward_(long|held)", "bfly",
        "The mean's first sum: the second look at it takes back what the first one missed.",
        is_of_the_first_sum,
    ),
    *(
        Argument(
            kind, "^layer_norm_forward", r"st\.global\.b32",
            "Mean and rstd: all lanes of a row hold the same bits and the same address.",
        )
        for kind in ("predicate removed", "predicate negated")
    ),
    *(
        Argument(
            kind, "", r"st\.global",
            "A number for each program: all threads have read it back from one place, and hold the same address.",
            is_stored_by_any,
        )
        for kind in ("predicate removed", "predicate negated")
    ),
    *(
        Argument(
            kind, "^(up|dgelu)_kernel$", r"bulk\.tensor\S*global\.shared",
            "Other threads copy the same tile to the same place; each waits for its own group.",
            all_wait_for_bulk_copies,
        )
        for kind in ("predicate removed", "predicate negated")
    ),
    *(
        Argument(
            kind, "", r"ld\.global",
            "One of several loads of the same number, for the lanes of a vector; nobody reads this one.",
            is_unused,
        )
        for kind in ("global address 16 bytes off", "predicate removed", "predicate negated")
    ),
    Argument(
        "predicate removed", "", r"ld\.shared",
        "Lanes beyond the partial results read something that nobody uses: the shuffles behind it go round among the "
        "first lanes.",
        is_summed_by_the_first_lanes,
    ),
    Argument(
        "predicate negated", "^hopper_", r"mbarrier\.arrive\.shared",
        "127 threads arrive in place of one, where each arrival turns the mbarrier: an odd number of times, so that "
        "its parity is the same as after one, and all of them have passed the barrier before it.",
        turns_by_one,
    ),
)  # fmt: skip
