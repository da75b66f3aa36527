"""How long an iteration of a loop takes each unit of one multiprocessor: sums, from which no overlap can be read.

The longest is the least that an iteration can take; what it does take is for timeline.py to say.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from .machines import Machine
from .parser import Instruction
from .units import UNITS, WARP, access_bytes, is_tensor, shared_cycles, tensor_op, unit_of

EFFICIENCY = 0.65  # of the issue slots of a loop without products, as dependencies leave them


@dataclass(frozen=True)
class Cost:
    """One iteration of a loop, for one CTA, in cycles of its SM by unit."""

    mix: dict[str, int]  # unit -> instructions of one warp
    cycles: dict[str, float]  # tensor, fma, alu, mufu, lsu, issue, memory
    flop: int  # of the tensor cores
    bytes: int  # from L2 for a loop with tensor-core work, else from HBM
    exact: bool  # False when the shape of the tensor-core work is not in the SASS

    @property
    def bound_by(self) -> str:
        return max(self.cycles, key=lambda unit: self.cycles[unit])

    @property
    def simt(self) -> float:
        """Cycles of the busiest unit among those that the warps' own instructions keep busy."""
        return max(self.cycles[unit] for unit in ("fma", "alu", "mufu", "lsu", "issue"))


def cost_of(
    instructions: Sequence[Instruction],
    warps: int,
    machine: Machine,
    *,
    bulk_bytes: int = 0,
) -> Cost:
    """Cost of one iteration that `warps` warps of a CTA execute in step.

    bulk_bytes  what each barrier of a bulk copy (TMA) waits for, which SASS keeps in a register: `announced_bytes`.
                Without it, every B operand of the tensor cores is taken to be loaded once.
    """
    mix = Counter(dict.fromkeys(UNITS, 0))
    mix.update(map(unit_of, instructions))
    opcodes = Counter(i.base for i in instructions)
    heavy = opcodes["IMAD"] - sum(i.opcode.startswith("IMAD.MOV") for i in instructions)  # at half the rate

    tensor_cycles, flop, operand_bytes, exact = 0.0, 0, 0, True
    for instruction in filter(is_tensor, instructions):
        op = tensor_op(instruction)
        if op is None:
            exact = False
            continue
        groups = warps / op.warps
        rate = machine.tensor_flop * 2 / op.element_bytes
        if op.warps == 1 and machine.tensor_flop == 4096:
            rate /= 2  # Hopper's mma.sync reaches half of its tensor cores' rate
        from_shared = (op.a_bytes + op.b_bytes) / machine.shared_bytes if op.warps == 4 else 0.0
        tensor_cycles += groups * max(op.flop / rate, from_shared)
        flop += round(groups * op.flop)
        operand_bytes += op.b_bytes if op.warps == 4 else 0

    def lanes(count: int, width: int) -> float:
        return count * warps * WARP / width

    shared = sum(shared_cycles(i, machine) for i in instructions)
    loaded = sum(access_bytes(i) * WARP * warps for i in instructions if i.base in ("LDG", "LDGSTS", "STG"))
    if any(i.base == "UTMALDG" for i in instructions):
        barriers = sum(i.opcode == "SYNCS.ARRIVE.TRANS64" for i in instructions)
        loaded += barriers * bulk_bytes or operand_bytes
    bandwidth = machine.l2 if flop or not exact else machine.hbm
    per_cycle = bandwidth / machine.sms / machine.sustained_clock
    return Cost(
        mix=dict(mix),
        cycles={
            "tensor": tensor_cycles,
            "fma": lanes(mix["fma"] - heavy, machine.fma_lanes) + lanes(heavy, 64),
            "alu": lanes(mix["alu"], machine.alu_lanes),
            "mufu": lanes(mix["mufu"], machine.mufu_lanes),
            "lsu": shared * warps,
            "issue": len(instructions) * warps / 4,
            "memory": loaded / per_cycle,
        },
        flop=flop,
        bytes=loaded,
        exact=exact,
    )


def announced_bytes(ptx: str) -> int:
    """Bytes that a barrier of the kernel's bulk copies is told to expect: their mean, 0 without such copies."""
    sizes = [int(n) for n in re.findall(r"mbarrier\.arrive\.expect_tx\S* [^;]*?(\d+);", ptx)]
    return round(sum(sizes) / len(sizes)) if sizes else 0


def byte_rate(cost: Cost, machine: Machine) -> float:
    """Estimated bytes per second that a loop without products asks of memory."""
    cycles = max(cost.simt / EFFICIENCY, cost.cycles["memory"])
    return cost.bytes / cycles * machine.sustained_clock * machine.sms


def ceiling(cost: Cost, machine: Machine) -> float:
    """FLOP/s if all units overlapped perfectly."""
    return cost.flop / max(cost.cycles.values()) * machine.sustained_clock * machine.sms
