"""The flow of control in PTX text: the ways that branches take on the paths around a line."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

Way = tuple[int, bool]  # a conditional branch's line; whether it is taken

_GUARD = re.compile(r"^@!?%?\w+\s+")
_TARGET = re.compile(r"^bra(?:\.uni)?\s+(\$L__BB\w+);")
_MOVES = re.compile(r"(ldu?|st|atom|red|bar|barrier|bra|cp|fence|mbarrier|wgmma|ldmatrix|stmatrix|shfl|tcgen05)\b")


def ways_around(text: str, line: int, bounds: str) -> set[Way]:
    """What conditional branches do on the paths to this line and from it.

    Paths end at the first instruction, either way, that `bounds`, a regular expression, matches. Branches that make no
    difference to memory do not count: those that skip arithmetic alone, and loops that poll an mbarrier.
    """
    lines = [""] + [part.split("//")[0].strip() for part in text.split("\n")]  # the first line is 1
    labels = {part[:-1]: number for number, part in enumerate(lines) if re.fullmatch(r"\$L__BB\w+:", part)}
    following: dict[int, list[int]] = {}
    conditional: dict[int, int] = {}  # branch -> where it leads
    for number, part in enumerate(lines):
        instruction = _GUARD.sub("", part)
        target = _TARGET.match(instruction)
        goes_on = [number + 1] if number + 1 < len(lines) else []
        if target:
            to = labels[target[1]]
            is_conditional = instruction != part
            skipped = lines[number + 1 : to]  # nothing if it leads back
            if is_conditional and (to < number or any(_MOVES.match(_GUARD.sub("", other)) for other in skipped)):
                conditional[number] = to
            following[number] = [to, *(goes_on if is_conditional else [])]
        else:
            following[number] = [] if instruction.startswith(("ret;", "exit;", "trap;")) else goes_on
    preceding = defaultdict(list)
    for number, others in following.items():
        for other in others:
            preceding[other].append(number)
    bound = {number for number, part in enumerate(lines) if re.match(bounds, _GUARD.sub("", part))}
    before, behind = _reached(line, preceding, bound), _reached(line, following, bound)
    ways: set[Way] = set()
    for branch, to in conditional.items():
        for taken, end in ((True, to), (False, branch + 1)):
            leads_here = branch in before and (end == line or end in before - bound)
            if leads_here or branch in behind - bound | {line}:
                ways.add((branch, taken))
    return ways


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
