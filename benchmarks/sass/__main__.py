"""What binds a kernel's main loop, read from its machine code. No GPU is needed; speeds are estimates.

    python -m benchmarks.sass attention --arch sm_90 --label fwd-bf16-d128
    python -m benchmarks.sass layer_norm --arch sm_80 --label fwd --against bwd

The first argument is a family, or the name of a kernel in it; --label picks among the family's rows of the gate.
"""

from __future__ import annotations

import argparse
import re
import sys
from pathlib import Path

from benchmarks.gate import run
from benchmarks.gate.offline import offline
from benchmarks.gate.usage import usage

from . import calibration
from .cost import announced_bytes
from .machines import MACHINES
from .parser import program_of
from .report import Variant, render

KERNELS = Path(__file__).parents[2] / "kernels"


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser("python -m benchmarks.sass", description=__doc__.splitlines()[0])
    parser.add_argument("kernel", metavar="KERNEL", help="a family (attention, ...), or a kernel's function name")
    parser.add_argument("--arch", choices=tuple(MACHINES), default="sm_90")
    parser.add_argument("--label", default="", metavar="SUBSTR", help="the first row whose label contains this")
    parser.add_argument("--against", metavar="SUBSTR", help="a second row, side by side")
    args = parser.parse_args(argv)
    family, kernel = find_kernel(args.kernel)
    labels = [args.label] + ([args.against] if args.against is not None else [])
    try:
        columns = [variants(family, kernel, args.arch, label) for label in labels]
    except LookupError as error:
        parser.error(str(error))
    for group in zip(*columns):
        print(render(list(group)))
    print(calibration.table())
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


def variants(family: str, kernel: str, arch: str, label: str) -> list[Variant]:
    """The kernels of the first row of `family` that contains `label` and launches `kernel` on `arch`."""
    for name, row in sorted(run.rows_of(family).items()):
        if label not in name:
            continue
        with offline(arch) as compiled:
            row.call()
        found = {c.name: c for c in compiled if not kernel or c.name == kernel}
        if found:
            return [_variant(f"{family}/{name}", c.name, arch, c) for c in found.values()]
    raise LookupError(f"no row of {family} contains {label!r} and launches {kernel or 'a kernel'} on {arch}")


def _variant(title: str, name: str, arch: str, compiled: object) -> Variant:
    u = usage(compiled, arch)
    facts = {
        "registers": u.registers,
        "spilled bytes": u.spill_bytes,
        "shared bytes": u.shared_bytes,
        "warps": u.warps,
        "CTAs per SM": u.ctas_per_sm,
        "wgmma serialized": "YES " + ",".join(u.warnings) if u.wgmma_serialized else "no",
    }
    kernel = compiled.kernel
    return Variant(title, name, arch, program_of(kernel), u.warps, facts, announced_bytes(kernel.asm["ptx"]))


if __name__ == "__main__":
    sys.exit(main())
