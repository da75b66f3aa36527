"""Two values in a register of 64 bits, lowered as two registers: an instruction on both (sm_100's f32x2) becomes two.

LLVM pairs a value with anything, be it never written, and drops that half later. In one register, what comes from what
nobody wrote could not be told from the other half.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import replace
from typing import Any

from .ptx import Instruction, Operand, Register, Sink, Vector

_PACKED = ".f32x2"
_MOVES = ("mov.b64", "mov.u64", "mov.s64", "mov.f64")


def separable(instructions: Iterable[Instruction]) -> set[int]:
    """Registers of 64 bits that serve for pairs alone: they are put together, computed with, moved, and taken apart."""
    put: set[int] = set()
    taken: set[int] = set()
    others: set[int] = set()
    moves: list[tuple[int, int]] = []
    for i in instructions:
        wide = [r.index for r in _registers(i.operands) if r.bytes == 8]
        if not wide:
            continue
        is_move = i.opcode in _MOVES and len(wide) == 2
        if is_move:
            moves.append((wide[0], wide[1]))
        if is_move or i.opcode.endswith(_PACKED) or (i.opcode in _MOVES and _has_halves(i.operands)):
            first = i.operands[0]
            results = {first.index} if isinstance(first, Register) else set()
            put |= results & set(wide)
            taken.update(wide[len(results) :])
        else:
            others.update(wide)
    found = (put & taken) - others
    while torn := [pair for pair in moves if (pair[0] in found) != (pair[1] in found)]:
        found -= {register for pair in torn for register in pair}
    return found


def separated(
    i: Instruction, halves: dict[int, tuple[Register, Register]], fresh: Callable[[], Register]
) -> list[Instruction]:
    """What stands in the place of `i`; `halves` of the separable registers, `fresh` makes a register of 32 bits."""
    if i.opcode.endswith(_PACKED):
        return _separated_arithmetic(i, halves, fresh)
    if i.opcode not in _MOVES:
        return [i]
    sides = []
    for operand in i.operands:
        if isinstance(operand, Vector) and len(operand.items) == 2:
            sides.append(operand.items)
        elif isinstance(operand, Register) and operand.index in halves:
            sides.append(halves[operand.index])
    if len(sides) < 2 or not any(isinstance(o, Register) and o.index in halves for o in i.operands):
        return [i]
    return [_one(i, "mov.b32", to, source) for to, source in zip(*sides) if not isinstance(to, Sink)]


def _separated_arithmetic(
    i: Instruction, halves: dict[int, tuple[Register, Register]], fresh: Callable[[], Register]
) -> list[Instruction]:
    before, after, columns = [], [], []
    for position, operand in enumerate(i.operands):
        if not isinstance(operand, Register):
            return [i]
        both = halves.get(operand.index)
        if both is None:
            both = (fresh(), fresh())
            if position:
                before.append(_one(i, "mov.b64", Vector(both), operand))
            else:
                after.append(_one(i, "mov.b64", operand, Vector(both)))
        columns.append(both)
    opcode = i.opcode.removesuffix("x2")
    return [*before, *(_one(i, opcode, *half) for half in zip(*columns)), *after]


def _one(i: Instruction, opcode: str, *operands: Operand) -> Instruction:
    return replace(i, opcode=opcode, operands=operands)


def _has_halves(operands: tuple[Operand, ...]) -> bool:
    return any(isinstance(o, Vector) and len(o.items) == 2 for o in operands)


def _registers(operands: tuple[Any, ...]) -> Iterator[Register]:
    """All that are named, in addresses and vectors too."""
    for operand in operands:
        if isinstance(operand, Register):
            yield operand
        elif isinstance(operand, tuple):
            yield from _registers(operand)
