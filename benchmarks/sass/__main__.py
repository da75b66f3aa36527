"""What binds a kernel's main loop, read from its machine code. No GPU is needed; speeds are estimates.

    python -m benchmarks.sass attention --arch sm_90 --label fwd-bf16-d128
    python -m benchmarks.sass layer_norm --arch sm_80 --label fwd --against bwd
    python -m benchmarks.sass --calibrate

The first argument is a family, or the name of a kernel in it; --label picks among the family's rows of the gate.
"""

from __future__ import annotations

import argparse
import functools
import re
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from benchmarks.gate import run
from benchmarks.gate.offline import offline
from benchmarks.gate.usage import usage

from . import calibration
from .machines import MACHINES
from .parser import program_of
from .report import Variant, render

if TYPE_CHECKING:
    from benchmarks.softgpu.trips import Trips

KERNELS = Path(__file__).parents[2] / "kernels"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.sass", description=__doc__.splitlines()[0])
    parser.add_argument(
        "kernel", nargs="?", metavar="KERNEL", help="a family (attention, ...), or a kernel's function name"
    )
    parser.add_argument("--arch", choices=tuple(MACHINES), default="sm_90")
    parser.add_argument("--label", default="", metavar="SUBSTR", help="the first row whose label contains this")
    parser.add_argument("--against", metavar="SUBSTR", help="a second row, side by side")
    parser.add_argument(
        "--case", default="", metavar="SUBSTR",
        help="iterations are counted in a case of benchmarks/softgpu that has this in its name (sm_80, sm_90)",
    )  # fmt: skip
    parser.add_argument("--calibrate", action="store_true", help="estimate what was measured on a GPU, and print both")
    parser.add_argument("--write", action="store_true", help="with --calibrate: keep the table")
    args = parser.parse_args(argv)
    if args.calibrate:
        return calibrate(write=args.write)
    if not args.kernel:
        parser.error("give a family or a kernel")
    family, kernel = find_kernel(args.kernel)
    labels = [args.label] + ([args.against] if args.against is not None else [])
    try:
        columns = [variants(family, kernel, args.arch, label, args.case) for label in labels]
    except LookupError as error:
        parser.error(str(error))
    for group in zip(*columns):
        print(render(list(group)))
    if rows := calibration.kept():
        print(calibration.table(rows))
    return 0


def calibrate(*, write: bool) -> int:
    rows = [*map(calibration.estimate, calibration.points()), calibration.published()]
    if write:
        calibration.write(rows)
    print(calibration.table(rows))
    return 0


def find_kernel(name: str) -> tuple[str, str]:
    """(family, kernel function name or "" for all) of the first argument."""
    if name in run.FAMILIES:
        return name, ""
    definition = re.compile(rf"^def {re.escape(name)}\(", re.M)
    for family in run.FAMILIES:
        if any(definition.search(path.read_text()) for path in sorted((KERNELS / family).glob("*.py"))):
            return family, name
    sys.exit(f"no kernel is named {name!r}; give a family ({', '.join(run.FAMILIES)}) or a function of kernels/")


def variants(family: str, kernel: str, arch: str, label: str, case: str = "") -> list[Variant]:
    """The kernels of the first row of `family` that contains `label` and launches `kernel` on `arch`."""
    for name, row in sorted(run.rows_of(family).items()):
        if label not in name:
            continue
        with offline(arch) as compiled:
            row.call()
        found = {c.name: c for c in compiled if not kernel or c.name == kernel}
        if found:
            trips = executed(family, arch, case, frozenset(found))
            return [
                _variant(f"{family}/{name}", c.name, arch, c, trips.get(c.name, NOT_EXECUTED)) for c in found.values()
            ]
    raise LookupError(f"no row of {family} contains {label!r} and launches {kernel or 'a kernel'} on {arch}")


NOT_EXECUTED = "not counted"


@functools.cache
def executed(family: str, arch: str, case: str, kernels: frozenset[str]) -> dict[str, str]:
    """What the simulated GPU counted in the first case of `family` that launches all of `kernels`: name -> text."""
    from benchmarks.softgpu.cases import trials
    from benchmarks.softgpu.engine import Settings
    from benchmarks.softgpu.trials import CAPABILITIES, execute, expect
    from benchmarks.softgpu.trips import trips_of

    capability = int(arch.removeprefix("sm_")) if arch.startswith("sm_") else 0
    if capability not in CAPABILITIES:
        return {}
    for trial in sorted(trials(), key=lambda trial: not trial.sample):  # those are long enough to go round
        if trial.family != family or case not in trial.name or capability not in trial.capabilities:
            continue
        launches = execute(trial, expect(trial), capability, Settings()).launches
        launched = {launch.kernel: launch.result for launch in launches}
        if kernels <= launched.keys():
            return {name: f"{_trips(trips_of(launched[name]))} in {trial.name!r}" for name in kernels}
    if case:
        raise LookupError(f"no case of {family} contains {case!r} and launches {', '.join(sorted(kernels))} on {arch}")
    return {}


def _trips(trips: Trips | None) -> str:
    return "no loop" if trips is None else f"{trips.a_warp:.1f} a warp, {trips.share:.0%} of what it executes"


def _variant(title: str, name: str, arch: str, compiled: object, iterations: str) -> Variant:
    u = usage(compiled, arch)
    facts = {
        "registers": u.registers,
        "spilled bytes": u.spill_bytes,
        "shared bytes": u.shared_bytes,
        "warps": u.warps,
        "CTAs per SM": u.ctas_per_sm,
        "wgmma serialized": "YES " + ",".join(u.warnings) if u.wgmma_serialized else "no",
        "iterations, counted": iterations,
    }
    kernel = compiled.kernel
    return Variant(title, name, arch, program_of(kernel), u.warps, u.ctas_per_sm, facts, kernel.asm["ptx"])


if __name__ == "__main__":
    sys.exit(main())
