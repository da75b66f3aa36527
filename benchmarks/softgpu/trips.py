"""How often the main loop goes round, from an execution: `python -m benchmarks.sass` prints it beside its estimate."""

from __future__ import annotations

from dataclasses import dataclass

from benchmarks.sass.loops import find_loops, hot_loop
from benchmarks.sass.parser import Instruction
from benchmarks.sass.parser import Program as Code

from .counting import EXECUTED
from .engine import Program, Result


@dataclass(frozen=True)
class Trips:
    """Of the main loop of a kernel, in one launch.

    line      of the PTX, where it begins
    a_warp    iterations, averaged over all warps of the grid
    share     of all executed instructions, those inside
    """

    line: int
    a_warp: float
    share: float


def trips_of(result: Result) -> Trips | None:
    """Of the loop with most of the tensor-core work, or the longest one; None for a kernel without loops."""
    code = _code(result.program)
    hot = hot_loop(find_loops(code), _is_tensor)
    if hot is None:
        return None
    executed = result.counts[:, EXECUTED]
    inside = {id(i) for i in hot.instructions}
    within = sum(int(n) for n, i in zip(executed, code.instructions) if id(i) in inside)
    warps = result.ctas * -(-result.program.num_threads // 32)
    line = result.program.lowered.records[hot.header].line
    return Trips(line, int(executed[hot.header]) / warps, within / max(1, int(executed.sum())))


def _code(program: Program) -> Code:
    records = program.lowered.records
    instructions = []
    for r in records:
        jumps = r.key.startswith(("bra", "brx"))
        leaves = jumps or r.key.startswith(("ret", "exit"))
        targets = tuple(map(str, r.imms)) if jumps else ()
        instructions.append(Instruction(r.key, r.text, targets, falls_through=not leaves or r.pred >= 0))
    return Code(instructions, {str(r.pc): r.pc for r in records})


def _is_tensor(instruction: Instruction) -> int:
    return int(instruction.opcode.startswith(("mma.", "wgmma.mma_async", "tcgen05.mma")))
