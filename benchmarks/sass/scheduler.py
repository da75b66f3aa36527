"""One scheduler of a multiprocessor, cycle by cycle, and what its warps wait for.

A multiprocessor has four sub-partitions that do the same: warpgroups are spread over all four, so one of them is
simulated, with a warp of each warpgroup of each resident CTA. In every cycle it issues at most one instruction, of a
warp

- whose last instruction's stall count has passed and whose scoreboards are free (both are in the machine code), and
- whose unit takes another: a math unit of n lanes one every 32 / n cycles; MUFU and shared memory have queues.

Warpgroup MMAs stand in line for the tensor core, which serves them in the order of their issue. Their operands, loads
and stores, and the bulk copies that come in, share the shared memory's bytes per cycle. WARPGROUP.DEPBAR waits for
groups of MMAs, BAR.SYNC for warps, a try_wait for a phase of its mbarrier.
"""

from __future__ import annotations

import heapq
import itertools
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from . import mbarriers
from .machines import Machine
from .mbarriers import Protocol
from .parser import Control, Instruction
from .units import WARP, is_tensor, shared_cycles, tensor_op, unit_of

SUB_PARTITIONS = 4
SETTLING, MEASURED = 6, 12  # iterations
NEVER = float("inf")

# Cycles from the end of its unit's work to the result that a scoreboard waits for; fixed latencies are in stall counts.
LATENCY = {"MUFU": 18, "SHFL": 24, "LDS": 28, "LDSM": 30, "LDG": 300, "LDC": 30, "SYNCS": 20, "S2R": 20}
OTHER_LATENCY = 12
OPERANDS_READ = 4  # cycles until a scoreboard of operands is free
QUEUE = 4  # instructions that a queue holds
TENSOR_QUEUE = 2  # warpgroup MMAs of a warp that are issued before the first of them is done
TENSOR_LATENCY = 30  # from the end of a group of warpgroup MMAs to what waits for it
BARRIER_LATENCY = 16  # from the last arrival to the first instruction behind a BAR.SYNC
ARRIVAL_LATENCY = 20  # from an arrival to the try_wait that sees it
BRANCH = 8  # cycles of the jump back
PIECE = 1024  # bytes by which bulk copies come in


@dataclass(frozen=True)
class Bandwidth:
    """How bulk copies come in: cycles to the first byte, bytes per cycle at best, and what L2 has for every SM."""

    latency: float
    best: float
    fair: float
    burst: float = 2000  # cycles whose fair share may have been left over


class Deadlock(RuntimeError):
    """Every warp waits for another: the loops' barriers do not fit together as they were read."""


@dataclass(frozen=True)
class Timeline:
    """The steady state of one multiprocessor. Shares are of time."""

    cycles: float  # of one iteration of every warp
    busy: dict[str, float]  # tensor, issue, fma, alu, mufu, lsu (shared memory and shuffles), l2
    waits: dict[str, float]  # why an average warp did not issue

    @property
    def tensor(self) -> float:
        return self.busy["tensor"]


@dataclass
class _Op:
    """An instruction as the scheduler sees it."""

    instruction: Instruction
    control: Control
    unit: str
    latency: float
    occupies: float = 1.0  # cycles of its unit
    queued: bool = False
    kind: str = ""  # "mma", "products", "barrier", a use of an mbarrier; "" for what only takes its time
    name: str = ""  # of a barrier
    count: int = 0  # groups that may stay in flight; warps that a barrier waits for
    ends_group: bool = False
    operand_cycles: float = 0.0  # of shared memory
    bytes: int = 0  # of a bulk copy


@dataclass
class _Warp:
    cta: int
    index: int  # in its CTA
    code: list[_Op]
    ready: float = 0.0
    at: int = 0
    rounds: int = 0
    held: list[int] = field(default_factory=lambda: [0] * 6)  # by scoreboard, how many results are to come
    line: deque[tuple[float, _Op]] = field(default_factory=deque)  # MMAs that the tensor core has not begun
    unfinished: int = 0  # MMAs
    groups: int = 0  # of MMAs, in flight
    is_blocked: bool = False  # at a BAR.SYNC
    seen: Counter[str] = field(default_factory=Counter)  # phases of mbarriers
    waits: Counter[str] = field(default_factory=Counter)

    @property
    def progress(self) -> float:
        return self.rounds + self.at / len(self.code)


def simulate(
    traces: Sequence[Sequence[Instruction]], consumers: set[int], machine: Machine, ctas: int = 1,
    protocol: Protocol | None = None, copies: Sequence[dict[int, int]] = (), bandwidth: Bandwidth | None = None,
) -> Timeline:  # fmt: skip
    """The steady state of `ctas` CTAs, each with one warp per scheduler for every trace.

    consumers  the traces that multiply matrices: they are measured, and BAR.SYNC without a count waits for them
    copies     for every trace, where a bulk copy is announced -> its bytes
    """
    protocol = protocol or Protocol()
    codes = [[_op(i, machine, len(consumers)) for i in trace] for trace in traces]
    for warp, code in enumerate(codes):
        for op in code:
            if op.name and op.kind in (mbarriers.WAIT, mbarriers.ARRIVE, mbarriers.LOAD):
                loads_twice = op.kind == mbarriers.LOAD and protocol.loader.get(op.name) != warp
                if op.name not in protocol.arrivals or loads_twice:
                    op.kind = ""
    for code, sizes in zip(codes, copies):
        for at, size in sizes.items():
            code[at].bytes = size
    return _Scheduler(codes, consumers, machine, ctas, protocol, bandwidth or Bandwidth(0, NEVER, NEVER)).run()


def _op(i: Instruction, machine: Machine, consumers: int) -> _Op:
    unit = unit_of(i)
    op = _Op(i, i.control or Control(), unit, LATENCY.get(i.base, OTHER_LATENCY))
    lanes = {"fma": machine.fma_lanes, "alu": machine.alu_lanes, "mufu": machine.mufu_lanes}
    if unit in lanes:
        is_heavy = i.base == "IMAD" and not i.opcode.startswith("IMAD.MOV")
        op.occupies = WARP * SUB_PARTITIONS / (64 if is_heavy else lanes[unit])
        op.queued = unit == "mufu"
    elif unit == "lsu":
        op.occupies, op.queued = SUB_PARTITIONS * shared_cycles(i, machine), True
    elif unit == "global":
        op.unit, op.occupies, op.queued = "lsu", SUB_PARTITIONS, True
    if is_tensor(i):
        _describe_product(op, machine)
    elif i.opcode.startswith("WARPGROUP.DEPBAR"):
        op.kind, op.count = "products", int(i.operands.split(",")[-1], 16)
    elif i.base == "BAR":
        number, *threads = i.operands.replace(" ", "").split(",")
        op.kind, op.name = "barrier", number
        op.count = (
            int(threads[0], 16) // (WARP * SUB_PARTITIONS) if threads and threads[0].startswith("0x") else consumers
        )
    else:
        op.kind, op.name = mbarriers.use_of(i), mbarriers.name_of(i)
    return op


def _describe_product(op: _Op, machine: Machine) -> None:
    shape = tensor_op(op.instruction)
    if shape is None:
        return
    rate = machine.tensor_flop * 2 / shape.element_bytes
    if shape.warps == 1:  # mma.sync: its warp's scheduler has a quarter, on Hopper at half the rate
        op.occupies = shape.flop * SUB_PARTITIONS / rate * (2 if machine.tensor_flop == 4096 else 1)
        return
    op.kind, op.occupies = "mma", shape.flop / rate
    op.operand_cycles = (shape.a_bytes + shape.b_bytes) / machine.shared_bytes
    op.ends_group = "gsb0" in op.instruction.operands


class _Scheduler:
    def __init__(
        self, codes: list[list[_Op]], consumers: set[int], machine: Machine, ctas: int,
        protocol: Protocol, bandwidth: Bandwidth,
    ) -> None:  # fmt: skip
        self.machine, self.protocol, self.bandwidth = machine, protocol, bandwidth
        self.warps = [_Warp(cta, index, code) for cta in range(ctas) for index, code in enumerate(codes)]
        self.measured = [w for w in self.warps if w.index in consumers]
        for w in self.warps:  # CTAs do not begin together
            w.ready = w.cta / ctas * sum(op.occupies for op in w.code if op.kind == "mma")
        self.now = 0.0
        self.first = 0  # the warp that is asked first: each in turn
        self.events: list[tuple[float, int, Callable[[], None]]] = []
        self.serial = itertools.count()
        self.free: Counter[str] = Counter()  # unit -> the cycle from which it takes another instruction
        self.busy: Counter[str] = Counter()  # unit -> cycles
        self.arrived: dict[tuple[int, str], list[_Warp | None]] = {}  # at BAR.SYNC
        self.arrivals: Counter[tuple[int, str]] = Counter()  # at mbarriers
        self.phases: Counter[tuple[int, str]] = Counter()

    def run(self) -> Timeline:
        self._go_round(SETTLING)
        begin, busy, progress = self.now, self.busy.copy(), self._progress()
        for w in self.warps:
            w.waits.clear()
        self._go_round(SETTLING + MEASURED)
        span = self.now - begin
        waits: Counter[str] = sum((w.waits for w in self.measured), Counter())
        return Timeline(
            cycles=span * len(self.measured) / (self._progress() - progress),
            busy={unit: (self.busy[unit] - busy[unit]) / span for unit in UNITS},
            waits={why: cycles / span / len(self.measured) for why, cycles in waits.most_common()},
        )

    def _progress(self) -> float:
        return sum(w.progress for w in self.measured)

    def _go_round(self, rounds: int) -> None:
        """Until every measured warp has been round its loop so often."""
        while min(w.rounds for w in self.measured) < rounds:
            while self.events and self.events[0][0] <= self.now:
                heapq.heappop(self.events)[2]()
            issued, step, idle = None, NEVER, []
            for w in self.warps[self.first :] + self.warps[: self.first]:
                earliest, why = self._earliest(w)
                if earliest <= self.now and issued is None:
                    issued = w
                else:
                    step = min(step, earliest - self.now)
                    idle.append((w, why if earliest > self.now else "another warp issues"))
            if issued is not None:
                self._issue(issued)
                self.first = (self.warps.index(issued) + 1) % len(self.warps)
                step = 1.0
            elif self.events:
                step = min(step, self.events[0][0] - self.now)
            if step == NEVER:
                raise Deadlock(", ".join(f"{w.code[w.at].instruction.opcode} {why}" for w, why in idle))
            for w, why in idle:
                w.waits[why] += step
            self.now += step

    def _at(self, when: float, what: Callable[[], None]) -> None:
        heapq.heappush(self.events, (when, next(self.serial), what))

    # ---- a warp

    def _earliest(self, w: _Warp) -> tuple[float, str]:
        """The cycle from which the warp may issue, as far as is known now, and what it waits for."""
        op = w.code[w.at]
        if w.is_blocked:
            return NEVER, "barrier"
        if w.ready > self.now:
            return w.ready, "stall count"
        if any(w.held[scoreboard] for scoreboard in op.control.waits):
            return NEVER, "scoreboard"
        if op.kind == "mma":
            return (NEVER, "tensor core") if w.unfinished >= TENSOR_QUEUE else (self.now, "")
        if op.kind == "products" and w.groups > op.count:
            return NEVER, "products"
        if op.kind == mbarriers.WAIT and not self._is_complete(w, op.name):
            return NEVER, "copy" if op.name in self.protocol.loader else "turn"
        free = self.free[op.unit] - (QUEUE * op.occupies if op.queued else 0)
        return max(self.now, free), op.unit

    def _is_complete(self, w: _Warp, ring: str) -> bool:
        return self.phases[w.cta, ring] + self.protocol.credit[w.index, ring] > w.seen[ring]

    def _issue(self, w: _Warp) -> None:
        op, now = w.code[w.at], self.now
        self.busy["issue"] += 1
        w.ready = now + op.control.stall
        end = now + 1
        if op.unit in UNITS and op.kind != "mma":
            end = self._occupy(op.unit, op.occupies)
        for scoreboard, delay in ((op.control.write, op.latency), (op.control.read, OPERANDS_READ)):
            if scoreboard is not None:
                w.held[scoreboard] += 1
                self._at(end + delay, lambda scoreboard=scoreboard: self._release(w, scoreboard))
        if op.kind == "mma":
            w.line.append((now, op))
            w.unfinished += 1
            w.groups += op.ends_group
            self._feed()
        elif op.kind == "barrier":
            self._meet(w, op)
        elif op.kind == mbarriers.WAIT:
            w.seen[op.name] += 1
        elif op.kind == mbarriers.ARRIVE:
            self._at(now + ARRIVAL_LATENCY, lambda: self._arrive(w.cta, op.name))
        elif op.kind == mbarriers.LOAD:
            self._copy(w.cta, op.name, op.bytes)
        w.at += 1
        if w.at == len(w.code):
            w.at, w.rounds, w.ready = 0, w.rounds + 1, max(w.ready, now + BRANCH)

    def _release(self, w: _Warp, scoreboard: int) -> None:
        w.held[scoreboard] -= 1

    def _occupy(self, unit: str, cycles: float) -> float:
        """A unit works for so long, when it has done what it has; the cycle in which it ends."""
        self.free[unit] = max(self.now, self.free[unit]) + cycles
        self.busy[unit] += cycles
        return self.free[unit]

    # ---- barriers

    def _meet(self, w: _Warp, op: _Op) -> None:
        """BAR.SYNC, or BAR.ARV, which does not wait."""
        waits = not op.instruction.opcode.startswith("BAR.ARV")
        there = self.arrived.setdefault((w.cta, op.name), [])
        there.append(w if waits else None)
        w.is_blocked = waits
        if len(there) >= op.count:
            del self.arrived[w.cta, op.name]
            self._at(self.now + BARRIER_LATENCY, lambda: self._leave(there))

    def _leave(self, warps: list[_Warp | None]) -> None:
        for w in warps:
            if w is not None:
                w.is_blocked = False

    def _arrive(self, cta: int, ring: str) -> None:
        self.arrivals[cta, ring] += 1
        self.phases[cta, ring] = self.arrivals[cta, ring] // self.protocol.arrivals[ring]

    def _copy(self, cta: int, ring: str, size: int) -> None:
        """A bulk copy: as fast as this SM can, and not faster than its share of L2, which it may save up a little."""
        rate = self.bandwidth
        share = size / rate.fair
        self.free["l2"] = max(self.now - rate.burst, self.free["l2"]) + share
        self.busy["l2"] += share
        end = max(self.free["l2"], self.now + size / rate.best) + rate.latency
        for piece in range(size // PIECE):
            self._at(end - piece * PIECE / rate.best, lambda: self._occupy("lsu", PIECE / self.machine.shared_bytes))
        self._at(end, lambda: self._arrive(cta, ring))

    # ---- the tensor core

    def _feed(self) -> None:
        """Begin the MMA that has waited longest, if the tensor core is free."""
        waiting = [w for w in self.warps if w.line]
        if self.free["tensor"] > self.now or not waiting:
            return
        w = min(waiting, key=lambda w: w.line[0][0])
        _, op = w.line.popleft()
        end = self._occupy("tensor", op.occupies)
        if op.operand_cycles:
            end = self.free["tensor"] = max(end, self._occupy("lsu", op.operand_cycles))
        self._at(end, lambda: self._finish(w, op))

    def _finish(self, w: _Warp, op: _Op) -> None:
        w.unfinished -= 1
        if op.ends_group:
            self._at(self.now + TENSOR_LATENCY, lambda: self._end_group(w))
        self._feed()

    def _end_group(self, w: _Warp) -> None:
        w.groups -= 1


UNITS = ("tensor", "issue", "fma", "alu", "mufu", "lsu", "l2")
