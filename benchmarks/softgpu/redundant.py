"""Faults that change nothing, and why: the arguments that `planting.py` asks for."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import NamedTuple

from .faults import Fault


class Argument(NamedTuple):
    """Of all faults of this kind; `kernel` and `text` are regular expressions of the kernel and the instruction.

    holds  whether what `why` says is so of this fault in this PTX text
    """

    kind: str
    kernel: str
    text: str
    why: str
    holds: Callable[[str, Fault], bool] = lambda text, fault: True


def argument(kernel: str, capability: int, fault: Fault, text: str) -> str:
    """Why this fault changes nothing; "" if nobody has said so."""
    for one in ARGUMENTS:
        named = one.kind == fault.kind and re.search(one.kernel, kernel) and re.search(one.text, fault.before)
        if named and one.holds(text, fault):
            return one.why
    return ""


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
    """Whether the stored value is the last step of a butterfly: each lane of it holds the same."""
    made = _definition(text, fault.line, _stored(fault))
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
    waits = [line for line, _ in _lines(text, "cp.async.wait_group")]
    return bool(waits) and fault.line < waits[0]


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
)  # fmt: skip
