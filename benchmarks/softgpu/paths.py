"""The flow of control in PTX text: which branches lie on the paths around a line."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

_GUARD = re.compile(r"^@!?%?\w+\s+")
_MOVES = re.compile(r"(ldu?|st|atom|red|bar|barrier|bra|cp|fence|mbarrier|wgmma|ldmatrix|stmatrix|shfl|tcgen05)\b")
_TARGET = re.compile(r"^bra(?:\.uni)?\s+(\$L__BB\w+);")


def branches_around(text: str, line: int, bounds: str) -> set[int]:
    """Lines of the conditional branches that control may pass on its way to this line, or from it.

    Either way only as far as the first instruction that `bounds`, a regular expression, matches. Branches that make no
    difference to memory do not count: those that skip arithmetic alone, and loops that poll an mbarrier.
    """
    lines = [""] + [part.split("//")[0].strip() for part in text.split("\n")]  # the first line is 1
    labels = {
        part[:-1]: number for number, part in enumerate(lines) if part.startswith("$L__BB") and part.endswith(":")
    }
    following: dict[int, list[int]] = {}
    conditional = set()
    for number, part in enumerate(lines):
        instruction = _GUARD.sub("", part)
        target = _TARGET.match(instruction)
        falls_through = number + 1 < len(lines) and not (target or instruction.startswith(("ret;", "exit;", "trap;")))
        if target and instruction != part:
            skipped = lines[number + 1 : labels[target[1]]]  # none if it leads back
            if labels[target[1]] < number or any(_MOVES.match(_GUARD.sub("", other)) for other in skipped):
                conditional.add(number)
            falls_through = True
        following[number] = [*([labels[target[1]]] if target else []), *([number + 1] if falls_through else [])]
    preceding = defaultdict(list)
    for number, others in following.items():
        for other in others:
            preceding[other].append(number)
    bound = {number for number, part in enumerate(lines) if re.match(bounds, _GUARD.sub("", part))}
    passed = _reached(line, following, bound) | _reached(line, preceding, bound)
    return passed & conditional


def _reached(start: int, edges: Mapping[int, Iterable[int]], bound: set[int]) -> set[int]:
    """What can be reached from `start` without going on behind `bound`."""
    found: set[int] = set()
    ahead = list(edges.get(start, ()))
    while ahead:
        number = ahead.pop()
        if number not in found:
            found.add(number)
            if number not in bound:
                ahead += edges.get(number, ())
    return found
