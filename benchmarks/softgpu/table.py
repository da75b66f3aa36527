"""benchmarks/results/softgpu.md: what the matrix ran, and what came out."""

from __future__ import annotations

import datetime
import itertools
import platform
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import torch
import triton

from benchmarks.measure import commit

from .accepted import REASONS
from .counting import KINDS, by_kernel
from .engine import Settings

if TYPE_CHECKING:
    from .matrix import Cell

ROOT = Path(__file__).parents[2]
RESULT = ROOT / "benchmarks" / "results" / "softgpu.md"


def write(cells: Sequence[Cell], configurations: Sequence[Settings], seconds: float) -> None:
    """Replace the file by the results of a whole matrix."""
    RESULT.write_text("\n".join(_lines(cells, configurations, seconds)) + "\n")


def described(settings: Settings) -> str:
    """In a few words, as the table has it."""
    seeded = f" {settings.seed}" if settings.seed else ""
    return f"{settings.schedule}{seeded}, copies {settings.landing}, approx {settings.approx:+d}"


def _lines(cells: Sequence[Cell], configurations: Sequence[Settings], seconds: float) -> Iterator[str]:
    runs = [run for cell in cells for run in cell.runs]
    yield "# Compiled kernels, executed on a CPU"
    yield ""
    yield (
        f"`make softgpu`, {datetime.date.today()}, commit {commit() or 'unknown'}, Triton "
        f"{triton.__version__}, torch {torch.__version__}, Python {platform.python_version()}; {seconds / 60:.0f} "
        "minutes. No GPU took part: the PTX that Triton emits is executed, with every access checked."
    )
    yield ""
    yield (
        f"{len(cells)} cases on a GPU, {len(runs)} runs, {sum(run.steps for run in runs) / 1e6:.0f} million "
        f"instructions of warps; {sum(not cell.ok for cell in cells)} cases wrong, "
        f"{sum(len(run.problems) for run in runs)} findings, {sum(run.races for run in runs)} of them races."
    )
    if accepted := sum(run.accepted for run in runs):
        yield ""
        yield f"{accepted} more findings are accepted. {' '.join(REASONS)}"
    yield ""
    yield "Each case ran under:"
    yield ""
    yield from (f"{number}. {described(settings)}" for number, settings in enumerate(configurations, 1))
    yield ""
    yield "## Cases"
    yield ""
    yield (
        "error: the largest of all results and runs, in units of what the error budget allows (1 is the limit). "
        "instructions: of warps, in the first run. read, written: KiB of the sectors of global memory that its kernels "
        "moved (torch's own products are not counted); tensors: KiB of inputs, upstream gradients and results, each "
        "once. ms: machine time per CTA, all checks on."
    )
    for family, group in itertools.groupby(cells, lambda cell: cell.family):
        yield from _family(family, list(group))
    yield from _kernels(cells)


def _family(family: str, cells: Sequence[Cell]) -> Iterator[str]:
    yield from ("", f"### {family}", "")
    yield "| case | GPU | error | findings | races | launches | instructions | read | written | tensors | ms |"
    yield "|---|---|" + "---:|" * 9
    for cell in cells:
        findings = sum(len(run.problems) for run in cell.runs) if not cell.error else cell.error.split("\n")[0]
        races = sum(run.races for run in cell.runs)
        steps, ctas = sum(k.steps for k in cell.kernels), sum(k.ctas for k in cell.kernels)
        time = sum(k.seconds for k in cell.kernels) * 1e3 / max(1, ctas)
        moved = (sum(k.read for k in cell.kernels), sum(k.written for k in cell.kernels), cell.nbytes)
        yield (
            f"| {cell.name} | sm_{cell.capability} | {cell.used:.2f} | {findings} | {races} | {len(cell.kernels)} "
            f"| {steps:,} | {' | '.join(f'{n / 1024:,.1f}' for n in moved)} | {time:.1f} |"
        )


def _kernels(cells: Sequence[Cell]) -> Iterator[str]:
    yield from ("", "## Kernels", "")
    yield (
        "What the launches of the first run of each case executed. texts: different PTX texts. reached: the part of "
        "their instructions that some warp executed. Then the instructions of warps, in percent. read, written: KiB of "
        "the sectors of 32 bytes of global memory that moved; a request: bytes that an instruction asks for there (512 "
        "are 16 a lane; a bulk copy asks for a whole box); sectors: over the least that would do (1 is coalesced). "
        "wavefronts: of shared memory, over the least (1 is without bank conflicts)."
    )
    kinds = [*KINDS, "other"]
    yield ""
    moves = "read | written | a request | sectors | wavefronts"
    yield f"| kernel | GPU | launches | CTAs | texts | reached | {' | '.join(kinds)} | {moves} | ms a CTA |"
    yield "|---|---|" + "---:|" * (len(kinds) + 10)
    for k in by_kernel(counts for cell in cells for counts in cell.kernels):
        total = max(1, sum(k.kinds.values()))
        mix = " | ".join(f"{100 * k.kinds[kind] / total:.1f}" for kind in kinds)
        yield (
            f"| {k.name} | {k.target} | {k.launches} | {k.ctas} | {len(k.texts)} | {100 * k.coverage:.0f} % | {mix} "
            f"| {k.read / 1024:,.0f} | {k.written / 1024:,.0f} | {k.request:.0f} | {k.overhead('read', 'written'):.2f} "
            f"| {k.overhead('shared'):.2f} | {1e3 * k.seconds / max(1, k.ctas):.1f} |"
        )
