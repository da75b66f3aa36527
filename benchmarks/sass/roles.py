"""Who executes which loop: the warps of a kernel that do matrix products, by the code that they run.

A plain kernel has one role, of all its warps. In a warp-specialised one every consumer has a copy of the code of its
own: warps go from a dispatch loop to their copy by an indexed branch (BRX), and come back to it. So two loops belong to
one role when one can be reached from the other without such a branch.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from .loops import Loop, blocks, find_loops, hot_loop
from .parser import Instruction, Program
from .units import tensor_work

WARPGROUP = 4
RARE_LENGTH = 32  # instructions
_BARRIER = re.compile(r"^(?:0x[0-9a-f]+|R\w+), 0x([0-9a-f]+)$")


@dataclass(frozen=True)
class Role:
    """Warps that execute the same loops, the hot one first."""

    warps: int
    loops: tuple[Loop, ...]


def roles_of(program: Program, warps: int) -> list[Role]:
    """The roles whose loops multiply matrices, in the order of their code; without such a loop, one of the hot loop.

    warps  of a CTA, those of producers too
    """
    inner = [loop for loop in find_loops(program) if loop.innermost]
    multiplying = [loop for loop in inner if loop.count(tensor_work)]
    if not multiplying:
        hot = hot_loop(inner, tensor_work)
        return [Role(warps, (hot,))] if hot else []
    groups = _connected(program, multiplying)
    specialised = any(i.base == "USETMAXREG" for i in program.instructions)
    return [Role(_warps(group) if specialised else warps, _hot_first(group)) for group in groups]


def producer_loop(program: Program, roles: list[Role]) -> Loop | None:
    """The loop of a warp that only issues bulk copies (TMA) for the others; None without one."""
    multiplying = {loop.header for role in roles for loop in role.loops}
    loading = [loop for loop in find_loops(program) if loop.innermost and loop.header not in multiplying]
    return max((loop for loop in loading if _copies(loop)), key=_copies, default=None)


def _copies(loop: Loop) -> int:
    return loop.count(lambda i: i.base == "UTMALDG")


def path(program: Program, loop: Loop) -> tuple[int, ...]:
    """Indices of the instructions of one iteration that waits nowhere and meets nothing rare, in order.

    Conditional branches fall through, which passes by the spins that ptxas moves out of line; but a long block without
    products that a branch skips is skipped: what it does (a mask, a NaN) is for few iterations.
    """
    members, order, i = set(loop.indices), [], loop.header
    while True:
        order.append(i)
        instruction = program.instructions[i]
        jumps = [j for t in instruction.targets if (j := program.labels.get(t)) in members]
        falls = [i + 1] if instruction.falls_through and i + 1 in members else []
        skipped = range(i + 1, jumps[0]) if falls and jumps else ()
        skips = members.issuperset(skipped) and _is_rare([program.instructions[j] for j in skipped])
        i = next(iter(jumps + falls if skips else falls + jumps), loop.header)
        if i == loop.header or i in order:
            return tuple(order)


def _is_rare(block: list[Instruction]) -> bool:
    return len(block) > RARE_LENGTH and not any(tensor_work(i) or i.base == "UTMALDG" for i in block)


def _hot_first(loops: list[Loop]) -> tuple[Loop, ...]:
    hot = hot_loop(loops, tensor_work)
    return hot, *(loop for loop in loops if loop is not hot)


def _warps(loops: list[Loop]) -> int:
    """Of a consumer: as many as its barriers wait for, in threads."""
    counts = [
        int(match[1], 16) // 32
        for loop in loops
        for i in loop.instructions
        if i.opcode.startswith("BAR.SYNC") and (match := _BARRIER.match(i.operands))
    ]
    return max(counts, default=WARPGROUP)


def _connected(program: Program, loops: list[Loop]) -> list[list[Loop]]:
    """The loops in groups of those that one warp may execute one after the other."""
    starts, ends, successors = blocks(program)
    number = {start: block for block, start in enumerate(starts)}

    def reached(loop: Loop) -> set[int]:
        seen, todo = set(), [number[loop.header]]
        while todo:
            block = todo.pop()
            if block not in seen:
                seen.add(block)
                if program.instructions[ends[block] - 1].base != "BRX":
                    todo.extend(successors[block])
        return seen

    reach = [reached(loop) for loop in loops]
    groups: list[list[int]] = []
    for i, loop in enumerate(loops):
        related = [
            group for group in groups
            if any(number[loop.header] in reach[j] or number[loops[j].header] in reach[i] for j in group)
        ]  # fmt: skip
        groups = [group for group in groups if group not in related] + [[j for group in related for j in group] + [i]]
    return [[loops[i] for i in group] for group in sorted(groups)]
