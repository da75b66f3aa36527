"""Where a kernel's registers lie in a warp's register file: those that never live at once share a place.

A kernel names thousands of registers, of which some hundred live at a time: a small file stays in the CPU's cache.

Liveness is exact over the control-flow graph; it holds for each lane, whose path is its own, and whose part of a place
nobody else writes. A register's range is then the least stretch of the text that holds all points where it lives. A
guarded write does not end the earlier value's life. So a register that some path reads before it is written lives from
the kernel's first instruction on, and gets a place that nothing used before: its bit "undefined" is the initial one.
"""

from __future__ import annotations

import heapq
from collections.abc import Collection, Sequence
from typing import NamedTuple


class Step(NamedTuple):
    """What an instruction does to registers."""

    reads: tuple[int, ...]
    writes: tuple[int, ...]
    is_guarded: bool  # some lanes may not write
    successors: tuple[int, ...] | None  # indices; None: the next instruction


def allocate(steps: Sequence[Step], units: Sequence[int], alone: Sequence[int]) -> tuple[dict[int, int], int]:
    """Register -> its first unit, and the number of units of the file.

    units   how many each register takes
    alone   registers that share their place with no other; they come first
    """
    ranges = live_ranges(steps)
    place: dict[int, int] = {}
    first = 0
    for register in alone:
        place[register] = first
        first += units[register]
        ranges.pop(register, None)
    free: dict[int, list[int]] = {}
    active: list[tuple[int, int, int]] = []  # end of the range, first unit, units
    for register, (start, end) in sorted(ranges.items(), key=lambda item: item[1]):
        while active and active[0][0] < start:
            _, unit, size = heapq.heappop(active)
            free.setdefault(size, []).append(unit)
        size = units[register]
        if free.get(size):
            unit = free[size].pop()
        else:
            unit, first = first, first + size
        place[register] = unit
        heapq.heappush(active, (end, unit, size))
    return place, first


def live_ranges(steps: Sequence[Step]) -> dict[int, tuple[int, int]]:
    """Register -> first and last instruction between which it is written, read or alive."""
    ranges: dict[int, list[int]] = {}
    for index, step in enumerate(steps):
        for register in step.reads + step.writes:
            if register in ranges:
                ranges[register][1] = index
            else:
                ranges[register] = [index, index]
    blocks = _blocks(steps)
    alive_at = _alive_at_start(steps, blocks)
    seen = 0
    for (start, _), alive in zip(blocks, alive_at):
        for register in _members(alive & ~seen):
            ranges[register][0] = min(ranges[register][0], start)
        seen |= alive
    seen = 0
    starts = {start: n for n, (start, _) in enumerate(blocks)}
    for _, stop in reversed(blocks):
        alive = 0
        for successor in _successors(steps, stop - 1):
            alive |= alive_at[starts[successor]]
        for register in _members(alive & ~seen):
            ranges[register][1] = max(ranges[register][1], stop - 1)
        seen |= alive
    return {register: (start, end) for register, (start, end) in ranges.items()}


def _successors(steps: Sequence[Step], index: int) -> tuple[int, ...]:
    successors = steps[index].successors
    if successors is None:
        return (index + 1,) if index + 1 < len(steps) else ()
    return successors


def _blocks(steps: Sequence[Step]) -> list[tuple[int, int]]:
    """Straight stretches [start, stop) of instructions."""
    starts = {0}
    for index, step in enumerate(steps):
        if step.successors is not None:
            starts.update(step.successors)
            starts.add(index + 1)
    order = sorted(start for start in starts if start < len(steps))
    return list(zip(order, [*order[1:], len(steps)]))


def _alive_at_start(steps: Sequence[Step], blocks: list[tuple[int, int]]) -> list[int]:
    """Sets of registers, as the bits of an integer, that live where each block starts."""
    uses, kills = [], []
    for start, stop in blocks:
        use: set[int] = set()
        kill: set[int] = set()
        for step in steps[start:stop]:
            use.update(register for register in step.reads if register not in kill)
            if not step.is_guarded:
                kill.update(step.writes)
        uses.append(_bits(use))
        kills.append(~_bits(kill))
    starts = {start: n for n, (start, _) in enumerate(blocks)}
    after = [[starts[successor] for successor in _successors(steps, stop - 1)] for _, stop in blocks]
    alive = uses[:]
    changed = True
    while changed:
        changed = False
        for n in range(len(blocks) - 1, -1, -1):
            now = 0
            for successor in after[n]:
                now |= alive[successor]
            now = uses[n] | (now & kills[n])
            if now != alive[n]:
                alive[n], changed = now, True
    return alive


def _bits(registers: Collection[int]) -> int:
    if not registers:
        return 0
    bits = bytearray(max(registers) // 8 + 1)
    for register in registers:
        bits[register >> 3] |= 1 << (register & 7)
    return int.from_bytes(bits, "little")


def _members(bits: int) -> list[int]:
    digits = bin(bits)[:1:-1]
    members, at = [], digits.find("1")
    while at >= 0:
        members.append(at)
        at = digits.find("1", at + 1)
    return members
