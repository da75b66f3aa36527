"""Attention on sm_90 by both paths: what their loops are made of, and the time that launches should take.

    python -m benchmarks.hopper [--head-dim 64 128] [--write]

No GPU is needed. The portable kernels (FASTGPT_ATTENTION=triton) stand beside those in Gluon (gluon), as they are
launched for 16384 tokens of bfloat16, causal. Loops are read from the machine code (benchmarks/sass); times are
estimates, whose error is known for the portable kernels alone. --write keeps the tables in results/hopper.md, and
hopper.json, from which the GPU's session takes the estimates that it shows beside what it measures: run it with the
Triton of GPU machines.
"""

from __future__ import annotations

import argparse
import functools
import json
import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from benchmarks import headline, peers
from benchmarks.gate.offline import Compiled, offline
from benchmarks.gate.rows import attending_by
from benchmarks.gate.table import versions
from benchmarks.gate.usage import is_local, usage
from benchmarks.headline import TOKENS, WIDTH
from benchmarks.sass import calibration, launches
from benchmarks.sass.machines import MACHINES
from benchmarks.sass.parser import Instruction, program_of
from benchmarks.sass.roles import roles_of
from benchmarks.sass.timeline import Loops, timeline_of
from benchmarks.sass.units import is_tensor
from fastgpt.kernels import _runtime
from fastgpt.kernels.attention import launch, tiles
from fastgpt.kernels.attention.hopper.launch import plan_of
from fastgpt.kernels.attention.hopper.tiles import ROWS

ARCH = "sm_90"
MACHINE = MACHINES[ARCH]
RESULTS = Path(__file__).parent / "results"
PAGE, TABLE = RESULTS / "hopper.md", headline.ESTIMATES
PATHS = {"triton": "attention_{}_kernel", "gluon": "hopper_{}_kernel"}
IMPLEMENTATIONS = {"triton": peers.PORTABLE, "gluon": peers.OURS}
PARTS = ("forward", "dkdv", "dq")
HEAD_DIMS = (64, 96, 128, 192, 256)
TYPICAL = 4096
Shape = tuple[int, int, int, int]  # B, H, T, head_dim


@dataclass(frozen=True)
class Kernel:
    """One kernel of one path; of a loop, the longest one in which the warps of a role spend their time."""

    part: str
    head_dim: int
    path: str
    tile: str
    loop: int  # instructions
    products: int
    barriers: int
    waits: int
    registers: int
    spilled: int  # bytes a thread
    hot_spills: int
    tensor_share: float | None  # None: the kernel's barriers could not be read together
    tflops: float | None  # of the GPU, in the loop


@dataclass(frozen=True)
class Estimate:
    """Of a call: the forward, or the forward and the backward."""

    impl: str  # as benchmarks call it
    mode: str
    shape: dict[str, int]
    seconds: float


def shapes(head_dim: int) -> list[Shape]:
    """What the session measures at this head_dim."""
    return [tuple(shape.values()) for shape in headline.attention_shapes(head_dim)]


@functools.cache
def compiled(path: str, shape: Shape) -> dict[str, Compiled]:
    """Part -> its kernel, as a causal call of this shape launches it."""
    B, H, T, head_dim = shape
    q, k, v = (torch.empty(B, T, H, head_dim, dtype=torch.bfloat16, device="meta").transpose(1, 2) for _ in "qkv")
    masks, numbers = (None, None, None, None), (head_dim**-0.5, 0.0, True, -1, -1)
    with attending_by(path), offline(ARCH) as found:
        out, lse = launch.forward(q, k, v, *masks, *numbers)
        launch.backward(torch.empty_like(out), None, q, k, v, out, lse, *masks, *numbers, True, True)
    names = {PATHS[path].format(part): part for part in PARTS}
    return {names[one.name]: one for one in found if one.name in names}


def tile_of(path: str, part: str, shape: Shape) -> tuple[int, int, int, str]:
    """(rows held by a CTA, rows of a step, rows of a step that a mask cuts, the tile in words)."""
    B, H, T, head_dim = shape
    target = _runtime.KNOWN_TARGETS[ARCH]
    if path == "gluon":
        tile = plan_of(part, target, shape, shape, True, -1, -1, False, False).tile
        words = f"{tile.consumers} x {ROWS} by {tile.block}, {tile.stages} stages"
        return tile.rows, tile.block, tile.block, words
    length = {"T_k": T} if part == "dkdv" else {"T_q": T}
    tile = getattr(tiles, part)(target, 2, head_dim, roomy=False, heads=B * H, **length)
    held, step = (tile.block_n, tile.block_m) if part == "dkdv" else (tile.block_m, tile.block_n)
    return held, step, tile.edge, f"{held} by {step}, {tile.num_warps} warps, {tile.num_stages} stages"


_rhythms: dict[tuple[str, int], Loops | None] = {}


def loops_of(kernel: Compiled, number: int) -> Loops | None:
    """The rhythm of its loops without a mask (0) or with one (1); shapes share kernels, and it takes seconds."""
    key = kernel.kernel.hash, number
    if key not in _rhythms:
        facts = usage(kernel, ARCH)
        _rhythms[key] = timeline_of(program_of(kernel.kernel), facts.warps, facts.ctas_per_sm, MACHINE, number)
    return _rhythms[key]


def kernels(head_dims: Iterable[int]) -> Iterator[Kernel]:
    """Each part by both paths."""
    for head_dim in head_dims:
        shape = (TOKENS // TYPICAL, WIDTH // head_dim, TYPICAL, head_dim)
        for part in PARTS:
            for path in PATHS:
                yield _kernel(path, part, shape, compiled(path, shape)[part])


def _kernel(path: str, part: str, shape: Shape, one: Compiled) -> Kernel:
    facts, program = usage(one, ARCH), program_of(one.kernel)
    hot = max((role.loops[0].instructions for role in roles_of(program, facts.warps)), key=len)
    rhythm = loops_of(one, 0)
    known = rhythm is not None and not rhythm.note
    return Kernel(
        part, shape[3], path, tile_of(path, part, shape)[3], len(hot), sum(map(is_tensor, hot)),
        sum(i.base == "BAR" for i in hot), sum(map(_waits, hot)), facts.registers, facts.spill_bytes,
        sum(map(is_local, hot)), rhythm.timeline.tensor if known else None,
        rhythm.flop_rate(MACHINE) / 1e12 if known else None,
    )  # fmt: skip


def _waits(instruction: Instruction) -> bool:
    """For products, or for an mbarrier."""
    return instruction.opcode.startswith(("WARPGROUP.DEPBAR", "SYNCS.PHASECHK"))


def seconds(path: str, part: str, shape: Shape) -> float:
    """Estimated time of one launch."""
    B, H, T, head_dim = shape
    one = compiled(path, shape)[part]
    held, step, edge, _ = tile_of(path, part, shape)
    work = launches.Causal(T, B * H, held, step, edge, launches.section(T, head_dim))
    return launches.seconds(work, loops_of(one, 0), loops_of(one, 1), MACHINE)


def estimates(head_dims: Iterable[int]) -> Iterator[Estimate]:
    """Of all that the session measures."""
    for head_dim in head_dims:
        for shape in shapes(head_dim):
            for path, impl in IMPLEMENTATIONS.items():
                forward, *backward = (seconds(path, part, shape) for part in PARTS)
                both = forward + sum(backward) + launches.row_statistics(shape, MACHINE)
                named = dict(zip(("B", "H", "T", "head_dim"), shape))
                yield Estimate(impl, "forward", named, forward)
                yield Estimate(impl, "forward+backward", named, both)


def kernel_table(found: Iterable[Kernel]) -> Iterator[str]:
    yield (
        "| kernel | head_dim | path | tile | loop | products | barriers | waits | registers | spilled | tensor share "
        "| TFLOP/s |"
    )
    yield "|---|---:|---|---|" + "---:|" * 8
    for k in found:
        spilled = f"{k.spilled}" + (f" ({k.hot_spills} in the loop)" if k.hot_spills else "")
        share = "-" if k.tensor_share is None else f"{k.tensor_share:.2f}"
        rate = "-" if k.tflops is None else f"{k.tflops:.0f}"
        yield (
            f"| {k.part} | {k.head_dim} | {k.path} | {k.tile} | {k.loop} | {k.products} | {k.barriers} | {k.waits} "
            f"| {k.registers} | {spilled} | {share} | {rate} |"
        )


def launch_table(found: Sequence[Estimate]) -> Iterator[str]:
    yield "| head_dim | B | H | T | forward: triton, µs | gluon | ratio | both passes: triton, µs | gluon | ratio |"
    yield "|" + "---:|" * 10
    times = {(tuple(e.shape.values()), e.mode, e.impl): e.seconds * 1e6 for e in found}
    for shape in dict.fromkeys(tuple(e.shape.values()) for e in found):
        cells = []
        for mode in ("forward", "forward+backward"):
            triton, gluon = (times[shape, mode, impl] for impl in IMPLEMENTATIONS.values())
            cells += [f"{triton:.0f}", f"{gluon:.0f}", f"{triton / gluon:.2f}"]
        B, H, T, head_dim = shape
        yield f"| {head_dim} | {B} | {H} | {T} | {' | '.join(cells)} |"


def page(found: Sequence[Kernel], times: Sequence[Estimate]) -> Iterator[str]:
    """benchmarks/results/hopper.md."""
    yield from ("# Attention on Hopper by both paths", "")
    yield (
        "`python -m benchmarks.hopper --write`. **No figure here was measured**: kernels were compiled for sm_90, "
        "their machine code was read, and a model of a multiprocessor made speeds of it. Error of the model: "
        f"{calibration.known_error()}; of the kernels in Gluon it is not known yet. Compiled by {versions()}; another "
        "one may need a register more, and lose a resident CTA by it."
    )
    yield from ("", "## Kernels", "")
    yield (
        f"Causal, bfloat16, {TOKENS} tokens of T = {TYPICAL}, H x head_dim = {WIDTH}. loop: instructions of an "
        "iteration over a full tile, of the role that has most; products: tensor-core instructions in it; barriers: of "
        "a warpgroup or a CTA; waits: for products or an mbarrier; registers: the most that a thread holds; spilled: "
        "bytes a thread, in all of the kernel; tensor share: of the loop's time, in which the tensor cores work; "
        "TFLOP/s: in the loop."
    )
    yield ""
    yield from kernel_table(found)
    yield from ("", "## Launches", "")
    yield (
        "Estimated, of causal calls in bfloat16, as `scripts/gpu_session.sh` measures them. An item of a persistent "
        "CTA is taken to begin and end as slowly as a CTA of a portable kernel."
    )
    yield ""
    yield from launch_table(times)


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.hopper", description=__doc__.split("\n\n")[0])
    parser.add_argument("--head-dim", type=int, nargs="+", choices=HEAD_DIMS, default=HEAD_DIMS, metavar="D")
    parser.add_argument("--write", action="store_true", help=f"write {PAGE.name} and {TABLE.name}")
    arguments = parser.parse_args(argv)
    if arguments.write and set(arguments.head_dim) != set(HEAD_DIMS):
        parser.error("--write keeps the whole table: leave --head-dim out")
    found = list(kernels(arguments.head_dim))
    times = list(estimates(sorted({64, 128} & set(arguments.head_dim))))
    print("\n".join([*kernel_table(found), "", *launch_table(times)]))
    if arguments.write:
        PAGE.write_text("\n".join(page(found, times)) + "\n")
        TABLE.write_text(json.dumps([asdict(e) for e in times], indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
