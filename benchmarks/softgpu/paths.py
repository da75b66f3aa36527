"""The flow of control in PTX text: the ways that branches take on the paths around a line."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterable, Mapping

Way = tuple[int, bool]  # a conditional branch's line; whether it is taken

_GUARD = re.compile(r"^@!?%?\w+\s+")
_TARGET = re.compile(r"^bra(?:\.uni)?\s+(\$L__BB\w+);")
_MOVES = re.compile(r"(ldu?|st|atom|red|bar|barrier|cp|fence|mbarrier|wgmma|ldmatrix|stmatrix|shfl|tcgen05)\b")


class Paths:
    """Which line may follow which in a kernel's text. The first line is 1."""

    def __init__(self, text: str) -> None:
        lines = [""] + [part.split("//")[0].strip() for part in text.split("\n")]
        self.lines = lines
        self.instructions = [_GUARD.sub("", part) for part in lines]
        self.accesses = {number for number, instruction in enumerate(self.instructions) if _MOVES.match(instruction)}
        labels = {part[:-1]: number for number, part in enumerate(lines) if re.fullmatch(r"\$L__BB\w+:", part)}
        self.branches: dict[int, int] = {}  # conditional ones -> where they lead
        self.following: dict[int, list[int]] = {}
        self.preceding: dict[int, list[int]] = defaultdict(list)
        for number, instruction in enumerate(self.instructions):
            target = _TARGET.match(instruction)
            goes_on = [number + 1] if number + 1 < len(lines) else []
            if target:
                to = labels[target[1]]
                if instruction == lines[number]:
                    goes_on = []
                else:
                    self.branches[number] = to
                self.following[number] = [to, *goes_on]
            else:
                self.following[number] = [] if instruction.startswith(("ret;", "exit;", "trap;")) else goes_on
            for other in self.following[number]:
                self.preceding[other].append(number)

    def ways_around(self, line: int, bounds: str) -> set[Way]:
        """What conditional branches do on the paths to this line and from it.

        Paths end at the first instruction, either way, that `bounds`, a regular expression, matches. Branches that make
        no difference to memory do not count, nor do loops that poll an mbarrier.
        """
        bound = {number for number, instruction in enumerate(self.instructions) if re.match(bounds, instruction)}
        before, behind = _reached(line, self.preceding, bound), _reached(line, self.following, bound)
        ways: set[Way] = set()
        for branch in self.branches:
            if self._next_accesses(branch, True) == self._next_accesses(branch, False):
                continue
            for taken in (True, False):
                end = self.end(branch, taken)
                leads_here = branch in before and (end == line or end in before - bound)
                if leads_here or branch in behind - bound:
                    ways.add((branch, taken))
        return ways

    def skips_a_loop(self, way: Way) -> bool:
        """Whether the branch's other way leads straight into a loop, as its guard does."""
        branch, taken = way
        header, other = self._loop_ahead(self.end(branch, not taken)), self._loop_ahead(self.end(branch, taken))
        if header is None or header == other:
            return False
        return header > branch or branch not in _reached(header, self.following, set())

    def _loop_ahead(self, number: int) -> int | None:
        """The first line of the loop that control comes to from here without a choice."""
        while len(self.following[number]) == 1:
            ways_here = self.preceding[number]
            if len(ways_here) > 1 and set(ways_here) & _reached(number, self.following, set()):
                return number
            number = self.following[number][0]
        return None

    def needs_a_huge_number(self, way: Way) -> bool:
        """Whether it is taken when something is equal to a number of 2^24 or more, and only then."""
        branch, taken = way
        guard = re.match(r"@(!?)(%\w+)", self.lines[branch])
        if guard is None:
            return False
        made = next((i for i in reversed(self.instructions[:branch]) if re.match(rf"setp\S+\s+{guard[2]}\b", i)), "")
        equal = re.fullmatch(r"setp\.(eq|ne)\.b32\s+%\w+, %\w+, (\d+);", made)
        return equal is not None and int(equal[2]) >= 1 << 24 and taken == ((equal[1] == "eq") != bool(guard[1]))

    def end(self, branch: int, taken: bool) -> int:
        return self.branches[branch] if taken else branch + 1

    def _next_accesses(self, branch: int, taken: bool) -> set[int]:
        """The accesses to memory, or what orders them, that come first this way."""
        end = self.end(branch, taken)
        return {end} & self.accesses or _reached(end, self.following, self.accesses) & self.accesses


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
