"""The text of the loop report: one column for each variant."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

from . import calibration
from .cost import Cost, byte_rate, ceiling, cost_of, flop_rate
from .loops import Loop, find_loops, hot_loop
from .machines import MACHINES, Machine
from .parser import Program
from .units import UNITS, tensor_work

NOT_KNOWN = "not known: no published point"
PRODUCER_WARPS = 4  # a warpgroup that only issues loads, in a warp-specialised kernel


@dataclass(frozen=True)
class Variant:
    """A compiled kernel under the magnifying glass."""

    title: str  # its row in the gate: "attention/fwd-bf16-d128"
    kernel: str
    arch: str
    program: Program
    warps: int
    facts: dict[str, object]  # registers, spills, ...: printed as they are
    bulk_bytes: int = 0  # `cost.announced_bytes` of its PTX

    @property
    def machine(self) -> Machine:
        return MACHINES[self.arch]

    @property
    def specialised(self) -> bool:
        return any(i.base == "USETMAXREG" for i in self.program.instructions)

    def loops(self) -> list[Loop]:
        """The innermost loops, the hot one first; a kernel without a loop counts as one iteration of itself."""
        loops = find_loops(self.program)
        hot = hot_loop(loops, tensor_work)
        if hot is None:
            return [Loop(0, tuple(self.program.instructions), innermost=True)]
        others = [loop for loop in loops if loop.innermost and loop is not hot]
        return [hot, *sorted(others, key=lambda loop: -loop.count(tensor_work))]

    def cost(self, loop: Loop) -> Cost:
        warps = self.warps - PRODUCER_WARPS if self.specialised else self.warps
        return cost_of(loop.instructions, warps, self.machine, specialised=self.specialised, bulk_bytes=self.bulk_bytes)


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
        "schedule": cost.schedule,
    }
    for unit in UNITS:
        out[f"  {unit} instructions"] = str(cost.mix[unit])
    for unit, cycles in cost.cycles.items():
        unknown = unit == "tensor" and not cost.exact
        mark = "  <- binds" if unit == cost.bound_by else ""
        out[f"  {unit} cycles"] = "not in the SASS" if unknown else f"{cycles:.0f}{mark}"
    if cost.flop:
        out |= _speed(variant, cost)
    elif cost.exact and cost.bytes:
        rate = byte_rate(cost, machine)
        out["estimate"] = f"{min(rate, machine.hbm) / machine.hbm:.0%} of {machine.hbm / 1e12:.2f} TB/s"
        out["error of the estimate"] = NOT_KNOWN
    return out


def _speed(variant: Variant, cost: Cost) -> dict[str, str]:
    """Estimated fraction of peak, beside what is known of the estimate's error."""
    machine = variant.machine
    rate, most = flop_rate(cost, machine), ceiling(cost, machine)
    error = calibration.worst_error(cost.schedule) if variant.arch == "sm_90" else None
    out = {
        "estimate": f"{rate / machine.peak:.0%} of peak, {rate / 1e12:.0f} TFLOP/s executed",
        "error of the estimate": NOT_KNOWN if error is None else f"up to {error:+.0%} (published attention)",
        "ceiling": f"{most / machine.peak:.0%} of peak, if all units overlapped",
    }
    family, label = variant.title.split("/")
    ours = calibration.measured(family, label, variant.arch)
    out["measured"] = "not yet"
    if ours:
        best = ours[0]
        out["measured"] = (
            f"{best.tflops:.0f} TFLOP/s ({best.gpu}, {best.file}); estimate {rate / 1e12 / best.tflops - 1:+.0%}"
        )
    return out


def _instructions(variant: Variant) -> list[str]:
    """The most frequent opcodes of each innermost loop."""
    lines = [f"{variant.title} {variant.kernel}: innermost loops, the hot one first"]
    for loop in variant.loops():
        opcodes = Counter(i.base for i in loop.instructions).most_common(14)
        mix = "  ".join(f"{opcode} {count}" for opcode, count in opcodes)
        lines.append(f"  {len(loop.instructions):>5}: {mix}")
    return lines
