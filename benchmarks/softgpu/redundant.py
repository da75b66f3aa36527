"""Faults that change nothing, and why: the arguments that `planting.py` asks for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from .faults import Fault
from .paths import Way, ways_around


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
    if bounds is not None and ways_around(text, fault.line, bounds) <= taken:
        return ORDERED
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


# ---- what the arguments ask of the text ------------------------------------------------------------------------------


def _lines(text: str, opcode: str) -> list[tuple[int, str]]:
    """(line, instruction) of those whose opcode starts so."""
    return [
        (number, line.strip()) for number, line in enumerate(text.split("\n"), 1) if line.strip().startswith(opcode)
    ]


def joins_its_stage(text: str, fault: Fault) -> bool:
    """Whether copies without this commit join the next group of the same stage of the pipeline.

    The loop's own commits, between its wait and the next one, are those of one stage; the prologue has as many of each.
    """
    commits = [line for line, _ in _lines(text, "cp.async.commit_group")]
    waits = [line for line, _ in _lines(text, "cp.async.wait_group")]
    region = max((line for line in waits if line < fault.line), default=0)
    before = sum(region < line < fault.line for line in commits)
    bounds = zip([0, *waits], [*waits, text.count("\n") + 1])
    of_loops = [n for n in (sum(a < line < b for line in commits) for a, b in bounds if a) if n]
    stage = of_loops[0] if of_loops else 0
    return stage > 1 and (before + 1) % stage != 0


def _definition(text: str, line: int, register: str) -> str:
    """The last instruction before this line whose first operand is this register."""
    pattern = re.compile(rf"(?:@!?%\w+\s+)?[a-z][\w.:]*\s+{re.escape(register)}\b")
    return next((i.strip() for i in reversed(text.split("\n")[: line - 1]) if pattern.match(i.strip())), "")


def _stored(fault: Fault) -> str:
    return re.findall(r"%\w+", fault.before)[-1]


def is_reduced(text: str, fault: Fault) -> bool:
    """Whether the stored value is the last step of a butterfly, or redux': each lane of it holds the same."""
    made = _definition(text, fault.line, _stored(fault))
    if made.startswith("redux.sync"):
        return True
    operands = re.findall(r"%\w+", made)[1:]
    return any(_definition(text, fault.line, register).startswith("shfl.sync.bfly") for register in operands)


def is_a_maximum(text: str, fault: Fault) -> bool:
    """Whether what is stored, or shuffled, is a maximum, or is compared next."""
    result = re.findall(r"%\w+", fault.before)
    made = _definition(text, fault.line, result[-1])
    following = text.split("\n")[fault.line : fault.line + 8]
    used = any(re.match(rf"\s*(max|min)\.\S+.*{re.escape(result[0])}\b", line) for line in following)
    return made.startswith(("max.", "min.")) or (fault.before.startswith("shfl") and used)


def reads_all_of_it(text: str, fault: Fault) -> bool:
    """Whether the copy loses its count of bytes to read, before the first wait of the pipeline."""
    waits = [line for line, _ in _lines(text, "cp.async.wait_group")]
    return fault.after.count(",") < fault.before.count(",") and fault.line < min(waits, default=0)


def before_the_first_wait(text: str, fault: Fault) -> bool:
    """Of a pipeline by cp.async, or by mbarriers."""
    waits = [line for opcode in ("cp.async.wait_group", "mbarrier.try_wait") for line, _ in _lines(text, opcode)]
    return bool(waits) and fault.line < min(waits)


def behind_a_loop(text: str, fault: Fault) -> bool:
    """Whether a wait for cp.async comes before it."""
    return any(line < fault.line for line, _ in _lines(text, "cp.async.wait_group"))


_SHARED = (
    "ld.shared",
    "st.shared",
    "ldmatrix",
    "stmatrix",
    "cp.async",
    "wgmma.mma_async",
    "mbarrier.",
    "atom.",
    "red.",
)


def beside_another(text: str, fault: Fault) -> bool:
    """Whether no access to shared memory lies between this barrier and the next one or the last.

    Since the last one, copies may have been begun: they are ordered by it, and waited for by themselves.
    """
    lines = [re.sub(r"^@!?%\w+\s+", "", line.strip()) for line in text.split("\n")]
    barriers = [0, *(number for number, line in enumerate(lines, 1) if line.startswith("bar.sync"))]
    last = max(n for n in barriers if n < fault.line)
    following = min((n for n in barriers if n > fault.line), default=0)
    begun = ("cp.async.bulk.tensor", "mbarrier.arrive.expect_tx", "cp.async.c")
    for begin, end, allowed in ((last, fault.line, begun), (fault.line, following, ())):
        between = [line for line in lines[begin : max(begin, end - 1)] if line.startswith(_SHARED)]
        alone = all(allowed and line.startswith(allowed) for line in between)
        if begin and end and alone and _stays(lines, begin, end) and not _entered(lines, begin, end):
            return True
    return False


def _entered(lines: list[str], begin: int, end: int) -> bool:
    """Whether a branch from elsewhere leads to between these lines."""
    labels = {line.split(":")[0] for line in lines[begin:end] if line.startswith("$L__BB")}
    outside = [*lines[:begin], *lines[end:]]
    return any(re.search(rf"bra(\.uni)?\s+{re.escape(label)};", line) for label in labels for line in outside)


def is_unused(text: str, fault: Fault) -> bool:
    """Whether nobody reads the register that is loaded."""
    register = re.escape(re.findall(r"%\w+", fault.before.split("[")[0])[-1])
    pattern = re.compile(rf"[a-z][\w.:]*\s+\{{?\s*{register}\b")
    return all(
        pattern.search(re.sub(r"^@!?%\w+\s+", "", line.strip())) for line in text.split("\n")
        if re.search(rf"{register}\b", line) and not line.strip().startswith(("//", ".reg"))
    )  # fmt: skip


def is_of_an_upper_half(text: str, fault: Fault) -> bool:
    """Whether what is shuffled is the upper half of a 64-bit number."""
    register = re.escape(re.findall(r"%\w+", fault.before)[1])
    return re.search(rf"mov\.b64\s+\{{(%\w+|_), {register}\}},", text) is not None


def orders_reads_only(text: str, fault: Fault) -> bool:
    """Whether nothing is written to shared memory between the last barrier and the next one, with no branch between."""
    lines = [re.sub(r"^@!?%\w+\s+", "", line.strip()) for line in text.split("\n")]
    barriers = [number for number, line in enumerate(lines, 1) if line.startswith("bar.sync")]
    last = max((n for n in barriers if n < fault.line), default=0)
    following = min((n for n in barriers if n > fault.line), default=0)
    writes = ("st.shared", "stmatrix", "cp.async.", "mbarrier.in", "atom.shared", "red.shared", "$L__BB", "bra $L__BB")
    return bool(last and following) and not any(line.startswith(writes) for line in lines[last : following - 1])


def between_products(text: str, fault: Fault) -> bool:
    """Whether the accesses to shared memory before and behind it are those of wgmmas, which read."""
    lines = [re.sub(r"^@!?%\w+\s+", "", line.strip()) for line in text.split("\n")]

    def nearest(way: list[str]) -> str:
        return next((line for line in way if line.startswith((*_SHARED, "bar.sync", "$L__BB"))), "")

    both = nearest(lines[fault.line :]), nearest(lines[fault.line - 2 :: -1])
    return all(line.startswith("wgmma.mma_async") for line in both)


def moves_zeros(text: str, fault: Fault) -> bool:
    """Whether what is read behind this barrier is multiplied by 0 next."""
    following = [
        line for line in text.split("\n")[fault.line : fault.line + 40] if not line.startswith(("\t.loc", "$"))
    ]
    return any(line.strip().startswith("ld.shared") for line in following[:2]) and any(
        line.strip().endswith(", 0f00000000;") for line in following
    )


def is_zero(text: str, fault: Fault) -> bool:
    """Whether what is shuffled is 0 in every lane: made of zeros, or loaded from where zeros were stored last."""
    return _is_zero(text, fault.line, re.findall(r"%\w+", fault.before)[1])


_MADE = re.compile(
    r"(mov\.b32|shfl\.sync\.bfly\.b32|add\.f32|ld\.shared\.b32)\s+\{?\s*%\w+\s*\}?, ([^,;]+)(?:, ([^,;]+))?.*;"
)


def _is_zero(text: str, line: int, value: str) -> bool:
    if value in ("0", "0x0", "0f00000000"):
        return True
    made = _MADE.fullmatch(re.sub(r"^@!?%\w+\s+", "", _definition(text, line, value)))
    if made is None:
        return False
    if made[1] == "ld.shared.b32":
        stored = [i for number, i in _lines(re.sub(r"(?m)^\s*@!?%\w+\s+", "", text), "st.shared") if number < line]
        return bool(stored) and _is_zero(text, line, re.findall(r"%\w+", stored[-1])[-1])
    return all(_is_zero(text, line, operand) for operand in (made.groups()[1:] if made[1] == "add.f32" else (made[2],)))


def copies_half_a_key(text: str, fault: Fault) -> bool:
    """Whether 4 of 8 bytes are copied: of dropout's seed, or its offset."""
    return fault.after.rstrip(";").endswith("0x8, 4")


def is_uniform(text: str, fault: Fault) -> bool:
    """Whether what is shuffled is the number of the warp."""
    made = _definition(text, fault.line, re.findall(r"%\w+", fault.before)[1])
    return re.fullmatch(r"(shr|bfe)\.u32\s+%\w+, %\w+, 5(, \d+)?;", made) is not None


def _next(text: str, opcode: str, line: int) -> int:
    return next((number for number, _ in _lines(text, opcode) if number > line), 0)


def an_earlier_fence_does(text: str, fault: Fault) -> bool:
    """Whether the registers of the next wgmma were written before an earlier wgmma.fence, with no branch between."""
    earlier = max((line for line, _ in _lines(text, "wgmma.fence") if line < fault.line), default=0)
    lines = text.split("\n")
    product = _next(text, "wgmma.mma_async", fault.line)
    if not earlier or not product or any("$L__BB" in line for line in lines[earlier : product - 1]):
        return False
    registers = re.findall(r"%r\d+\b", lines[product - 1])
    between = [line.strip() for line in lines[earlier : product - 1]]
    written = {match[1] for line in between if (match := re.match(r"[a-z][\w.:]*\s+(%r\d+)\b", line))}
    return not written.intersection(registers)


def the_next_wait_covers_it(text: str, fault: Fault) -> bool:
    """Whether another wait for all groups follows before anything touches the accumulators of the last products.

    Without a commit it is the wait behind the next commit.
    """
    lines = text.split("\n")
    start = _next(text, "wgmma.commit_group", fault.line) if fault.kind.startswith("commit") else fault.line
    following = next((line for line, i in _lines(text, "wgmma.wait_group") if line > start and "aligned 0" in i), 0)
    if not start or not following or not _stays(lines, fault.line, following):
        return False
    begun = max((line for line, _ in _lines(text, "wgmma.wait_group") if line < fault.line), default=0)
    products = [i for line, i in _lines(text, "wgmma.mma_async") if begun < line < fault.line]
    registers = {r for i in products for r in re.findall(r"%r\d+\b", i.split("}")[0])}
    between = [line for line in lines[fault.line : following] if not line.strip().startswith(("wgmma.", "//"))]
    return bool(registers) and not any(registers.intersection(re.findall(r"%r\d+\b", line)) for line in between)


def _stays(lines: list[str], begin: int, end: int) -> bool:
    """Whether every branch between these lines leads forward, to another line between them."""
    inside = lines[begin:end]
    for place, line in enumerate(inside):
        target = re.search(r"\bbra(?:\.uni)?\s+(\$L__BB\w+);", line)
        if target and not any(other.startswith(f"{target[1]}:") for other in inside[place:]):
            return False
    return True


def nothing_is_under_way(text: str, fault: Fault) -> bool:
    """Whether no product comes between the last wait for all groups and this one, in the text."""
    waits = [line for line, i in _lines(text, "wgmma.wait_group") if line < fault.line and "aligned 0" in i]
    return bool(waits) and not any(waits[-1] < line < fault.line for line, _ in _lines(text, "wgmma.mma_async"))


def nothing_was_stored(text: str, fault: Fault) -> bool:
    """Whether no thread has stored to shared memory since the last fence of this kind, in the same stretch of text."""
    earlier = max((line for line, _ in _lines(text, "fence.proxy.async") if line < fault.line), default=0)
    between = [re.sub(r"^@!?%\w+\s+", "", line.strip()) for line in text.split("\n")[earlier : fault.line - 1]]
    stores = ("st.shared", "stmatrix", "cp.async.c", "$L__BB", "bra")
    return bool(earlier) and not any(line.startswith(stores) for line in between)


def another_fence_follows(text: str, fault: Fault) -> bool:
    """Whether the next fence of this kind comes before the next product, and before the next bulk copy out."""
    fence = _next(text, "fence.proxy.async", fault.line)
    readers = [line for line, i in _lines(text, "") if re.search(r"wgmma\.mma_async|bulk\S*global\.shared", i)]
    return bool(fence) and not any(fault.line < line < fence for line in readers)


# ---- the arguments ---------------------------------------------------------------------------------------------------

_REDUCED = (
    "Every lane holds the sum that the chosen lanes store: others store the same bits to the same place, or to the one "
    "that their own copy belongs to."
)
ARGUMENTS: tuple[Argument, ...] = (
    Argument(
        "commit of cp.async removed", "", "",
        "Its copies join the next group, which belongs to the same stage of the pipeline and is waited for with it.",
        joins_its_stage,
    ),
    Argument(
        "wait for cp.async one group short", "", r"wait_group\s+0",
        "It empties the pipeline behind the loop. The newest group was made by the loop's last step for one behind the "
        "end: its copies read no bytes, and nobody touches their place any more, or the machine would say so.",
    ),
    Argument("predicate removed", "", r"st\.shared", _REDUCED, is_reduced),
    Argument("predicate negated", "", r"st\.shared", _REDUCED, is_reduced),
    Argument(
        "copy's size changed", "", r"cp\.async",
        "The steps before the loop are there in every program, so that their copies are always whole: in this case the "
        "rows of the first tiles all exist.",
        reads_all_of_it,
    ),
    Argument(
        "barrier removed", "", "",
        "Between the stages that a pipeline fetches before its loop: they lie in different places, and the loop begins "
        "with a wait and a barrier.",
        before_the_first_wait,
    ),
    Argument(
        "barrier removed", "", "",
        "Nobody touches shared memory between this barrier and the one beside it.",
        beside_another,
    ),
    Argument(
        "barrier removed", "", "",
        "Between the last barrier and the next one shared memory is read, and nobody writes to it.",
        orders_reads_only,
    ),
    Argument(
        "wait for cp.async removed", "", r"wait_group\s+0",
        "It empties the pipeline behind the loop, whose own wait left only copies for steps behind the end.",
        behind_a_loop,
    ),
    Argument(
        "shuffle's lane changed", "", r"shfl\.sync\.idx",
        "It broadcasts the number of the warp, which every lane has computed.",
        is_uniform,
    ),
    Argument("shuffle's lane changed", "", "", "A sum of zeros: there is no label smoothing.", is_zero),
    Argument(
        "copy's size changed", "^layer_norm_forward_long", r"cp\.async\.ca",
        "The upper half of dropout's seed and of its offset is 0: `new_seed` draws them below 2^31. Zeros fill what is "
        "not read.",
        copies_half_a_key,
    ),
    Argument(
        "wgmma's fence removed", "", "",
        "The registers of the products behind it were written before the last fence.",
        an_earlier_fence_does,
    ),
    *(
        Argument(
            kind, "", "",
            "Nobody touches the results before the next wait, which is for all groups.",
            the_next_wait_covers_it,
        )
        for kind in ("commit of wgmma removed", "wait for wgmma removed", "wait for wgmma one group short")
    ),
    *(
        Argument(
            kind, "", "",
            "No product is under way: the loop before it ends with a wait of its own.",
            nothing_is_under_way,
        )
        for kind in ("wait for wgmma removed", "wait for wgmma one group short")
    ),
    Argument(
        "barrier removed", "", "",
        "Both the products before it and those behind it read; what writes comes behind the next barrier.",
        between_products,
    ),
    *(
        Argument(
            kind, "causal_tiles", "",
            "It covers the last step before the diagonal. Every program has a step on the diagonal, and waits there "
            "for its scores, and so for all groups, before it scales the sums.",
        )
        for kind in ("wait for wgmma removed", "wait for wgmma one group short")
    ),
    *(
        Argument(
            kind, "^layer_norm_forward", r"st\.global\.b32",
            "Mean and rstd: all lanes of a row hold the same bits and the same address.",
        )
        for kind in ("predicate removed", "predicate negated")
    ),
    Argument(
        "shuffle's lane changed", "^layer_norm_forward_(long|held)", "bfly",
        "The mean's first sum: the second look at it takes back what the first one missed.",
    ),
    *(
        Argument(
            kind, "^(up|dgelu)_kernel$", r"bulk\.tensor\S*global\.shared",
            "Other threads copy the same tile to the same place; each waits for its own group.",
        )
        for kind in ("predicate removed", "predicate negated")
    ),
    *(
        Argument(
            kind, "count_targets", "shared|shfl",
            "The maximum of what says that a target is out of range: here all are in range, and every part of it is 0.",
            is_a_maximum,
        )
        for kind in (
            "store removed", "shared address 16 bytes off", "shuffle's lane changed", "predicate removed",
            "predicate negated",
        )
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
        "shuffle's lane changed", "count_targets", "bfly",
        "The upper half of a count is 0 in all lanes.",
        is_of_an_upper_half,
    ),
    Argument(
        "barrier removed", "^(layer_norm_dweight_long|dgelu)_kernel$", "",
        "A change of layout of sums that every warp holds: each has stored all that it reads, the same bits as others.",
    ),
    Argument(
        "barrier removed", "count_targets", "",
        "What says that a target is out of range is 0 in all parts here, and 0 is what stands there already.",
    ),
    Argument(
        "commit of wgmma removed", "causal_tiles", "",
        "The products of a step join the group of the next step's scores, which is waited for before they are scaled.",
    ),
    Argument(
        "predicate removed", "", r"ld\.shared",
        "Lanes beyond the partial results read something that nobody uses: the shuffles behind it go round among the "
        "first lanes.",
    ),
    *(
        Argument(
            kind, "document_ranges", "",
            "A range that is too wide only lets fewer tiles be skipped; the mask decides what is seen.",
        )
        for kind in (
            "store removed", "shuffle's lane changed", "global address 16 bytes off", "shared address 16 bytes off",
        )
    ),
    Argument(
        "barrier removed", "attention_forward", "",
        "The sums of 0 · v, which carry the NaNs of rows that nobody sees: here zeros are stored over zeros.",
        moves_zeros,
    ),
    Argument(
        "proxy fence removed", "", "",
        "No thread has stored to shared memory since the last one.",
        nothing_was_stored,
    ),
    Argument(
        "proxy fence removed", "", "",
        "The next one comes before anything that reads by the asynchronous proxy.",
        another_fence_follows,
    ),
    *(
        Argument(
            kind, "^(loss_kernel|loss_and_gradient_kernel)$", "shared|shfl",
            "The maximum of a row only keeps exp in range: its sum is taken relative to whatever stands there, by all "
            "threads alike.",
            is_a_maximum,
        )
        for kind in (
            "store removed", "shared address 16 bytes off", "shuffle's lane changed", "predicate removed",
            "predicate negated",
        )
    ),
)  # fmt: skip
