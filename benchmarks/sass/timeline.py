"""The rhythm of a compiled kernel's loops: cycles of an iteration, and the share of them in which each unit works.

    tensor_share(compiled, "sm_90")     of the hot loop: the part of the time in which the tensor cores work

The loops of all roles (roles.py) run side by side on one scheduler (scheduler.py) until they have found their rhythm.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from . import mbarriers
from .machines import MACHINES, Machine
from .parser import Instruction, Program, program_of
from .roles import WARPGROUP, Role, path, producer_loop, roles_of
from .scheduler import Bandwidth, Deadlock, Timeline, simulate
from .units import is_tensor, tensor_op, tensor_work

# Fitted to our own figures on an H200 (calibration.py), but for L2: our kernels leave it open from 0.86 on, and
# FlashAttention-3's causal forward at T = 16384, tiles of 128 rows, loads 0.9 of the rate in its published time.
L2 = 0.93  # of `Machine.l2`, when all SMs load tiles
COPY_LATENCY = 800  # cycles
COPY_RATE = 64  # bytes per cycle, of one SM

NOT_FITTING = "barriers taken as complete: they do not fit together as read"


@dataclass(frozen=True)
class Loops:
    """The steady state of a kernel in one of its loops."""

    timeline: Timeline
    flop: int  # of one iteration of all warps of the resident CTAs
    ctas: int
    note: str = ""

    def flop_rate(self, machine: Machine) -> float:
        """FLOP/s of the whole GPU in this loop."""
        return self.flop / self.timeline.cycles * machine.sustained_clock * machine.sms


def timeline_of(program: Program, warps: int, ctas: int, machine: Machine, loop: int = 0) -> Loops | None:
    """Steady state of the roles' hot loops; loop 1, 2, ...: of their others (masked). None if SASS does not tell.

    warps  of a CTA
    ctas   resident on a multiprocessor
    """
    roles = roles_of(program, warps)
    if not roles or not all(_is_known(role) for role in roles):
        return None
    paths = []
    for role in roles:
        one = path(program, role.loops[min(loop, len(role.loops) - 1)])
        paths += [one] * max(1, role.warps // WARPGROUP)
    consumers = set(range(len(paths)))
    if (producer := producer_loop(program, roles)) is not None:
        paths.append(path(program, producer))
    traces = [[program.instructions[i] for i in indices] for indices in paths]
    copies = [
        {at: mbarriers.announced(program, i) for at, i in enumerate(indices) if _announces(program.instructions[i])}
        for indices in paths
    ]
    flop = WARPGROUP * ctas * sum(_warp_flop(traces[c]) for c in consumers)
    bandwidth = Bandwidth(COPY_LATENCY, COPY_RATE, L2 * machine.l2 / machine.sms / machine.sustained_clock)
    protocol = mbarriers.protocol(traces, consumers, mbarriers.slots(program))
    try:
        timeline = simulate(traces, consumers, machine, ctas, protocol, copies, bandwidth)
        return Loops(timeline, flop, ctas)
    except Deadlock:
        timeline = simulate(traces[: len(consumers)], consumers, machine, ctas, mbarriers.Protocol(), copies, bandwidth)
        return Loops(timeline, flop, ctas, NOT_FITTING)


def tensor_share(compiled: Any, arch: str) -> float:
    """Of the hot loop's time, the part in which the tensor cores work, for a `Compiled` of the gate.

    ValueError where the machine code does not tell: no products, tensor memory (sm_100), or not NVIDIA's.
    """
    from benchmarks.gate.usage import usage

    kernel = getattr(compiled, "kernel", compiled)
    facts = usage(compiled, arch)
    program = program_of(kernel)
    loops = timeline_of(program, facts.warps, facts.ctas_per_sm, MACHINES[arch])
    if loops is None:
        raise ValueError(
            f"{kernel.metadata.name} on {arch}: its loop has no products whose shape is in the machine code"
        )
    return loops.timeline.tensor


def _is_known(role: Role) -> bool:
    products = [i for loop in role.loops for i in loop.instructions if is_tensor(i)]
    return bool(products) and all(tensor_op(i) is not None and i.control is not None for i in products)


def _announces(instruction: Instruction) -> bool:
    return mbarriers.use_of(instruction) == mbarriers.LOAD


def _warp_flop(instructions: Any) -> int:
    """FLOP of one warp: a quarter of what a warpgroup's instruction computes."""
    return sum(tensor_work(i) // tensor_op(i).warps for i in instructions if is_tensor(i))
