"""The committed table: one line for each kernel of each row on each architecture, and what counts as worse."""

from __future__ import annotations

import functools
import re
import subprocess
from collections.abc import Container, Iterable
from dataclasses import dataclass, fields
from pathlib import Path

import triton

from .limits import LIMITS
from .run import Result
from .usage import Usage

KERNELS = Path(__file__).parents[2] / "kernels"


@dataclass(frozen=True)
class Line:
    """One line of the table; its first three columns name it, and the rest are taken from `Usage`."""

    label: str
    kernel: str
    arch: str
    regs: int
    spill: int
    shared: int
    ctas: int
    tensor: str  # "wgmma:16", the kind and count of tensor-core instructions, or "-"
    wide: int
    narrow: int
    tma: int
    hot: int
    serial: str  # "C7510,..." or "yes" when wgmma are serialized, else "-"

    @property
    def key(self) -> tuple[str, str, str]:
        return self.label, self.kernel, self.arch

    @property
    def tensor_kind(self) -> str:
        return self.tensor.split(":")[0]


_WIDTHS = {"label": 44, "kernel": 31, "arch": 6, "shared": 7, "tensor": 12, "serial": 6}
_ORDER = {arch: i for i, arch in enumerate(LIMITS)}


def line_of(label: str, kernel: str, arch: str, usage: Usage) -> Line:
    return Line(
        label=label,
        kernel=kernel,
        arch=arch,
        regs=usage.registers,
        spill=usage.spill_bytes,
        shared=usage.shared_bytes,
        ctas=usage.ctas_per_sm,
        tensor=f"{usage.tensor_core}:{usage.tensor_core_count}" if usage.tensor_core_count else "-",
        wide=usage.wide_loads,
        narrow=usage.narrow_loads,
        tma=usage.tma,
        hot=usage.hot_loop,
        serial=(",".join(usage.warnings) or "yes") if usage.wgmma_serialized else "-",
    )


def lines_of(results: Iterable[Result]) -> list[Line]:
    """The table's lines, sorted by label, kernel and architecture."""
    lines = [line_of(r.task.label, name, r.task.arch, usage) for r in results for name, usage in r.kernels.items()]
    return _sorted(lines)


def _sorted(lines: Iterable[Line]) -> list[Line]:
    return sorted(lines, key=lambda line: (line.label, line.kernel, _ORDER[line.arch]))


@functools.cache
def versions() -> str:
    """The compilers that a table holds for: "triton 3.7.1, ptxas 12.8.93 (sm_80 to sm_90) and 13.1.80 (...)"."""
    from triton.backends.nvidia.compiler import get_ptxas

    found = []
    for arch in (90, 100):
        text = subprocess.run([get_ptxas(arch).path, "--version"], check=True, capture_output=True, text=True).stdout
        found.append(re.search(r"V([\d.]+)", text)[1])
    return f"triton {triton.__version__}, ptxas {found[0]} (sm_90) and {found[1]} (sm_100)"


def render(lines: Iterable[Line]) -> str:
    """The lines under a heading of column names."""

    def row(cells: Iterable[object]) -> str:
        out = [
            str(cell).ljust(width)
            if name in ("label", "kernel", "arch", "tensor", "serial")
            else str(cell).rjust(width)
            for (name, width), cell in zip(columns, cells)
        ]
        return " ".join(out).rstrip()

    columns = [(f.name, _WIDTHS.get(f.name, 6)) for f in fields(Line)]
    return (
        "\n".join([row(name for name, _ in columns), *(row(getattr(x, n) for n, _ in columns) for x in lines)]) + "\n"
    )


HEADING = """\
# What each kernel takes on each GPU, compiled without one. `make gate` writes this file; CI compares with it.
# {versions}
# regs: per thread; spill: bytes per thread; shared: bytes per CTA; ctas: per SM; tensor: kind and number of tensor-core
# instructions; wide, narrow: 16-byte and 16-bit global loads; tma: bulk copies; hot: instructions in the main loop;
# serial: ptxas had to serialize wgmma.
"""


def table_path(family: str) -> Path:
    return KERNELS / family / "gate.txt"


def write(family: str, lines: list[Line]) -> None:
    table_path(family).write_text(HEADING.format(versions=versions()) + render(lines))


def check_writable(family: str) -> None:
    """Raise ValueError unless some rows of the family's table can be written while the others stay as they are."""
    path = table_path(family)
    if not path.exists():
        raise ValueError(f"{path} is missing: write the whole table first, without --label and --arch")
    found = read(path.read_text())[0]
    if found != versions():
        raise ValueError(
            f"{path} was written with {found}, and this is {versions()}: one table cannot hold both; write all of it, "
            "without --label and --arch"
        )


def merged(
    family: str, lines: Iterable[Line], compiled: Container[tuple[str, str]], listed: Container[str]
) -> list[Line]:
    """The committed table with `lines` in the place of all lines of the (label, arch) in `compiled`.

    Lines of labels that are not `listed` by the family go too: no run could ever write them again.
    """
    check_writable(family)
    _, committed = read(table_path(family).read_text())
    kept = [x for x in committed if (x.label, x.arch) not in compiled and x.label in listed]
    return _sorted([*kept, *lines])


def read(text: str) -> tuple[str, list[Line]]:
    """(compiler versions, lines) of a committed table."""
    comments = [line for line in text.splitlines() if line.startswith("#")]
    rows = [line.split() for line in text.splitlines() if line and not line.startswith("#")]
    names, kinds = rows[0], {f.name: int if f.type == "int" else str for f in fields(Line)}
    if names != list(kinds):
        raise ValueError(f"gate table has the columns {names}, expected {list(kinds)}: write it again with `make gate`")
    return comments[1].removeprefix("# "), [Line(**{n: kinds[n](c) for n, c in zip(names, row)}) for row in rows[1:]]


FEW_BYTES = 32  # what another version's assembler may spill, a thread, of a kernel that just fits into the registers


def problems(result: Result, *, spill: int = 0) -> list[str]:
    """What is wrong with a result whatever the committed table says: empty if nothing.

    spill  bytes a thread that a kernel may spill of which none are expected
    """
    where = f"{result.task.family} {result.task.label} {result.task.arch}"
    if result.error:
        return [f"{where}: does not compile: {result.error}"]
    found, limits = [], LIMITS[result.task.arch]
    for name, u in result.kernels.items():
        at = f"{where} {name}"
        if u.shared_bytes > limits.shared_per_cta:
            found.append(f"{at}: {u.shared_bytes} bytes of shared memory, {limits.shared_per_cta} is the most")
        elif u.ctas_per_sm == 0:
            found.append(f"{at}: not one CTA of {u.warps} warps x {u.registers} registers fits on an SM")
        if u.tensor_memory > limits.tensor_memory:
            found.append(f"{at}: {u.tensor_memory} columns of tensor memory, {limits.tensor_memory} is the most")
        if u.wgmma_serialized:
            found.append(f"{at}: wgmma are serialized ({', '.join(u.warnings) or 'a wait after each one'})")
        if u.contracted_sums:
            found.append(
                f"{at}: {u.contracted_sums} sums over lanes differ between the lanes: a product is contracted into "
                "their first step; use kernels/device/sums.py"
            )
        if u.unconditional_copies:
            found.append(
                f"{at}: {', '.join(u.unconditional_copies)}: the copies of a loop's first steps are issued whether or "
                "not it has one; what they depend on is undefined where it has none (a division by 0?)"
            )
        if "no_spills" in result.expect and u.spill_bytes > spill:
            found.append(f"{at}: spills {u.spill_bytes} bytes")
        if "no_spills_in_hot_loops" in result.expect and u.hot_spills:
            found.append(f"{at}: {u.hot_spills} accesses to spilled values in the hot loops of its roles")
        if "tensor_core" in result.expect and u.has_dot and u.tensor_core == "none":
            found.append(f"{at}: no tensor-core instruction")
        if "wide_loads" in result.expect and u.narrow_loads > u.wide_loads + u.tma:
            found.append(f"{at}: {u.narrow_loads} 16-bit loads outnumber the {u.wide_loads} of 16 bytes")
    used = result.kernels.values()
    if used and "tensor_core" in result.expect and not any(u.tensor_core_count for u in used):
        found.append(f"{where}: no kernel uses tensor cores")
    if used and "wide_loads" in result.expect and not any(u.wide_loads + u.tma for u in used):
        found.append(f"{where}: no kernel reads 16 bytes at a time")
    return found


def worse(now: Line, committed: Line) -> list[str]:
    """In which columns `now` is worse than `committed`."""
    changes = []
    for name in ("regs", "spill", "shared", "narrow", "hot"):
        if getattr(now, name) > getattr(committed, name):
            changes.append(f"{name} {getattr(committed, name)} -> {getattr(now, name)}")
    if now.ctas < committed.ctas:
        changes.append(f"ctas {committed.ctas} -> {now.ctas}")
    if now.tensor_kind != committed.tensor_kind:
        changes.append(f"tensor {committed.tensor} -> {now.tensor}")
    for name in ("wide", "tma"):
        if getattr(committed, name) and not getattr(now, name):
            changes.append(f"{name} {getattr(committed, name)} -> 0")
    if now.serial != "-" and committed.serial == "-":
        changes.append(f"wgmma serialized: {now.serial}")
    return changes


@dataclass(frozen=True)
class Comparison:
    """Differences from the committed table: only `failures` make the gate fail."""

    failures: list[str]
    better: list[str]


def compare(now: list[Line], committed: list[Line], *, whole: bool) -> Comparison:
    """Compare lines by name; with `whole`, a committed line that is no longer compiled is a failure too."""
    known = {line.key: line for line in committed}
    failures, better = [], []
    for line in now:
        name, old = " ".join(line.key), known.pop(line.key, None)
        if old is None:
            failures.append(f"{name}: not in the committed table; `make gate` writes it")
        elif changes := worse(line, old):
            failures.append(f"{name}: worse than committed: {'; '.join(changes)}")
        elif line != old:
            better.append(f"{name}: differs, and not for the worse; `make gate` records it")
    if whole:
        failures += [f"{' '.join(key)}: in the committed table, but compiled no more" for key in known]
    return Comparison(failures, better)
