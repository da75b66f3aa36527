"""The text of the loop report: one column for each variant."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from . import calibration
from .cost import Cost, announced_bytes, byte_rate, ceiling, cost_of
from .loops import Loop, find_loops, hot_loop
from .machines import MACHINES, Machine
from .parser import Program
from .roles import producer_loop, roles_of
from .timeline import Loops, timeline_of
from .units import UNITS, tensor_work

NOT_KNOWN = "not known: nothing was measured"


@dataclass(frozen=True)
class Variant:
    """A compiled kernel under the magnifying glass."""

    title: str  # its row in the gate: "attention/fwd-bf16-d128"
    kernel: str
    arch: str
    program: Program
    warps: int
    ctas: int  # resident on a multiprocessor
    facts: dict[str, object]  # registers, spills, ...: printed as they are
    ptx: str = ""

    @property
    def machine(self) -> Machine:
        return MACHINES[self.arch]

    def loops(self) -> list[Loop]:
        """The innermost loops, the hot one first; a kernel without a loop counts as one iteration of itself."""
        loops = find_loops(self.program)
        hot = hot_loop(loops, tensor_work)
        if hot is None:
            return [Loop(0, tuple(self.program.instructions), innermost=True)]
        others = [loop for loop in loops if loop.innermost and loop is not hot]
        return [hot, *sorted(others, key=lambda loop: -loop.count(tensor_work))]

    def cost(self, loop: Loop) -> Cost:
        """Of one iteration, by all warps of a CTA that go round such a loop."""
        warps = sum(role.warps for role in roles_of(self.program, self.warps)) or self.warps
        return cost_of(loop.instructions, warps, self.machine, bulk_bytes=announced_bytes(self.ptx))

    def roles(self) -> str:
        roles = roles_of(self.program, self.warps)
        names = [f"{role.warps} warps" for role in roles]
        names += ["a producer"] if producer_loop(self.program, roles) else []
        return " + ".join(names)

    def timeline(self, loop: int = 0) -> Loops | None:
        return timeline_of(self.program, self.warps, self.ctas, self.machine, loop)


def render(variants: list[Variant]) -> str:
    """The report on one variant, or on two side by side."""
    columns = [_column(v) for v in variants]
    names = list(dict.fromkeys(name for column in columns for name in column))
    cells = [[column.get(name, "") for column in columns] for name in names]
    width = max(28, *(len(cell) + 2 for row in cells for cell in row))
    left = max(map(len, names)) + 2
    lines = [
        "".join([name.ljust(left), *(cell.ljust(width) for cell in row)]).rstrip() for name, row in zip(names, cells)
    ]
    for variant in variants:
        lines += ["", *_instructions(variant)]
    return "\n".join(lines) + "\n"


def _column(variant: Variant) -> dict[str, str]:
    """The report's lines for one variant: name -> text."""
    hot, machine = variant.loops()[0], variant.machine
    cost = variant.cost(hot)
    out = {
        "row": variant.title,
        "kernel": f"{variant.kernel} on {variant.arch} ({machine.board})",
        **{name: str(value) for name, value in variant.facts.items()},
        "hot loop": f"{len(hot.instructions)} instructions" if find_loops(variant.program) else "none: whole kernel",
        "who multiplies": variant.roles(),
    }
    for unit in UNITS:
        out[f"  {unit} instructions"] = str(cost.mix[unit])
    for unit, cycles in cost.cycles.items():
        unknown = unit == "tensor" and not cost.exact
        mark = "  <- binds" if unit == cost.bound_by else ""
        out[f"  {unit} cycles"] = "not in the SASS" if unknown else f"{cycles:.0f}{mark}"
    loops = variant.timeline() if cost.flop else None
    if loops is not None:
        out |= _speed(variant, cost, loops)
    elif cost.exact and cost.bytes and not cost.flop:
        rate = byte_rate(cost, machine)
        out["estimate"] = f"{min(rate, machine.hbm) / machine.hbm:.0%} of {machine.hbm / 1e12:.2f} TB/s"
        out["error of the estimate"] = NOT_KNOWN
    return out


def _speed(variant: Variant, cost: Cost, loops: Loops) -> dict[str, str]:
    """The timeline of the hot loop, and of the others; what it makes of the peak, beside what is known of its error."""
    machine = variant.machine
    rate, most = loops.flop_rate(machine), ceiling(cost, machine)
    out = _rhythm("hot loop", loops)
    for number in range(1, max(len(role.loops) for role in roles_of(variant.program, variant.warps))):
        if (other := variant.timeline(number)) is not None:
            out |= _rhythm(f"loop {number + 1}", other)
    out |= {
        "estimate": f"{rate / machine.peak:.0%} of peak, {rate / 1e12:.0f} TFLOP/s executed in the hot loop",
        "error of the estimate": calibration.known_error() if variant.arch == "sm_90" else NOT_KNOWN,
        "ceiling": f"{most / machine.peak:.0%} of peak, if all units overlapped",
    }
    family, label = variant.title.split("/")
    ours = calibration.measured(family, label, variant.arch)
    out["measured"] = "not yet"
    if ours:
        best = ours[0]
        out["measured"] = f"{best.tflops:.0f} TFLOP/s counted, kernels of {best.commit} ({best.gpu}, {best.file})"
    return out


def _rhythm(name: str, loops: Loops) -> dict[str, str]:
    timeline = loops.timeline
    busy = {unit: share for unit, share in timeline.busy.items() if unit != "tensor"}
    waits = list(timeline.waits.items())[:4]
    return {
        f"{name}: cycles": f"{timeline.cycles:.0f} an iteration of {loops.ctas} CTA{'s' * (loops.ctas > 1)}",
        f"{name}: tensor share": f"{timeline.tensor:.2f}" + (f" ({loops.note})" if loops.note else ""),
        f"{name}: busy": ", ".join(f"{unit} {share:.2f}" for unit, share in busy.items()),
        f"{name}: a warp waits for": ", ".join(f"{why} {share:.2f}" for why, share in waits),
    }


def _instructions(variant: Variant) -> list[str]:
    """The most frequent opcodes of each innermost loop."""
    lines = [f"{variant.title} {variant.kernel}: innermost loops, the hot one first"]
    for loop in variant.loops():
        opcodes = Counter(i.base for i in loop.instructions).most_common(14)
        mix = "  ".join(f"{opcode} {count}" for opcode, count in opcodes)
        lines.append(f"  {len(loop.instructions):>5}: {mix}")
    return lines
