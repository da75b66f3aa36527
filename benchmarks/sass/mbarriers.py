"""Which mbarriers the warps of a kernel wait for in their loops, and who completes their phases.

An mbarrier is known by its offset in shared memory, which SASS shows: `[UR26+0x28130]`. A ring of them has one name,
that of its first, as the stage is added to the register. Four kinds of use are told apart:

    full     bulk copies (TMA) complete it, by a producer warp or by a thread of the warps that wait
    empty    consumers arrive, the producer waits: the first round of the ring passes at once
    turn     one consumer arrives, another waits: one of them may begin
    other    nobody in these loops completes it (it was, before): a wait passes at once
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field

from .parser import Instruction, Program

_ADDRESS = re.compile(r"\[[^\]]*\+(0x[0-9a-f]+)\]")
_CONSTANT = re.compile(r"^(R\d+), (?:RZ, RZ, )?(0x[0-9a-f]+)$")
WAIT, ARRIVE, LOAD = "wait", "arrive", "load"
MBARRIER_BYTES = 8


def name_of(instruction: Instruction) -> str:
    """The offset of the mbarrier that an instruction is about; "" without one."""
    match = _ADDRESS.search(instruction.operands)
    return match[1] if match and instruction.base == "SYNCS" else ""


def use_of(instruction: Instruction) -> str:
    """WAIT, ARRIVE, LOAD (the arrival that announces a bulk copy), or "" for anything else."""
    if not name_of(instruction):
        return ""
    if instruction.opcode.startswith("SYNCS.PHASECHK"):
        return WAIT
    if instruction.opcode.startswith("SYNCS.ARRIVE"):
        return ARRIVE if "A1T0" in instruction.opcode else LOAD
    return ""


def slots(program: Program) -> dict[str, int]:
    """Name of a ring -> how many mbarriers are initialised side by side from there on."""
    inits = {int(name_of(i), 16) for i in program.instructions if i.opcode.startswith("SYNCS.EXCH") and name_of(i)}
    rings = {}
    for first in inits:
        length = 1
        while first + length * MBARRIER_BYTES in inits:
            length += 1
        rings[hex(first)] = length
    return rings


def announced(program: Program, index: int) -> int:
    """Bytes that the LOAD at `index` announces: the constant that was last moved into its register; 0 if none was."""
    register = program.instructions[index].operands.rsplit(",", 1)[-1].strip()
    for i in reversed(program.instructions[:index]):
        constant = _CONSTANT.match(i.operands) if i.base in ("MOV", "IMAD") else None
        if constant and constant[1] == register:
            return int(constant[2], 16)
    return 0


@dataclass
class Protocol:
    """How the phases of the mbarriers advance while each warp of a CTA goes round its loop.

    arrivals  ring -> how many complete a phase
    credit    (warp, ring) -> phases that are complete before the loops begin
    loader    ring -> the warp whose thread issues the copies, where several have the code
    """

    arrivals: dict[str, int] = field(default_factory=dict)
    credit: Counter[tuple[int, str]] = field(default_factory=Counter)
    loader: dict[str, int] = field(default_factory=dict)


def protocol(traces: Sequence[Sequence[Instruction]], consumers: set[int], rings: dict[str, int]) -> Protocol:
    """The protocol of the warps that execute `traces`, of which `consumers` multiply matrices."""
    uses: dict[str, dict[str, Counter[int]]] = {}  # ring -> use -> warp -> how often in an iteration
    for warp, trace in enumerate(traces):
        for instruction in trace:
            if use := use_of(instruction):
                ring = uses.setdefault(name_of(instruction), {WAIT: Counter(), ARRIVE: Counter(), LOAD: Counter()})
                ring[use][warp] += 1
    out, has_begun = Protocol(), False
    for name, use in uses.items():
        if not use[WAIT] or not (use[ARRIVE] or use[LOAD]):
            continue
        if use[LOAD]:
            out.loader[name] = min(use[LOAD])
            given = use[LOAD][out.loader[name]]
        else:
            given = use[ARRIVE].total()
        out.arrivals[name] = max(1, given // max(use[WAIT].values()))
        for warp in use[WAIT]:
            if warp not in consumers:
                out.credit[warp, name] = rings.get(name, 1)  # the ring is empty
            elif use[LOAD]:
                loads_for_itself = traces[warp] == traces[out.loader[name]]
                out.credit[warp, name] = rings.get(name, 1) - 1 if loads_for_itself else 0  # the prologue's copies
            elif use[ARRIVE].keys() & consumers and not has_begun:
                out.credit[warp, name] = 1  # the first turn
                has_begun = True
    return out
