"""How far the timeline is from what a GPU measured: our attention on an H200, at the tiles that the sweep tried.

    python -m benchmarks.sass --calibrate [--write]

compiles each measured kernel, estimates the whole launch (launches.py), and prints both; --write keeps the table in
benchmarks/results/timeline.json, from which the report takes the error that it states. Run it with the Triton of the
measurements: another one may need a register more, and lose a resident CTA by it.

The launches at the tables' own tiles fitted the numbers of `FITTED` (L2's rate in part: timeline.py); the other tiles
fitted none, though they were looked at while the model was made. All are causal, in bfloat16, at T = 4096 and 16384;
the sweep times a backward whole, one of its kernels with a tile of its own. A published figure stands beside them.

What these points cannot tell, because no kernel of theirs is bound by it: how much the operands of the products hinder
what comes into shared memory, and what the power limit leaves of the clock where the tensor cores work more than 0.7 of
the time.
"""

from __future__ import annotations

import functools
import json
import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import triton

from benchmarks.gate.offline import offline
from benchmarks.gate.usage import usage
from benchmarks.report import OURS, load

from . import launches, timeline
from .launches import Causal
from .machines import MACHINES, SUSTAINED
from .parser import program_of

RESULTS = Path(__file__).parents[1] / "results"
TABLE = RESULTS / "timeline.json"
MEASURED_ON = "gpu-nvidia-h200-2026-11-27-49acfdc.jsonl"  # and the files whose names end in this
ARCH = "sm_90"
FIT, HELD_OUT, PUBLISHED = "fitted", "not fitted", "published"
FITTED = {
    "sustained clock, of the boost clock": SUSTAINED,
    "L2, of its published rate": timeline.L2,
    "latency of a bulk copy, cycles": timeline.COPY_LATENCY,
    "a program outside its loops, cycles": launches.PROGRAM,
}


@dataclass(frozen=True)
class Point:
    """A measured launch, or a forward or backward's launches together."""

    name: str
    shape: tuple[int, int, int, int]  # B, H, T, head_dim
    kernels: tuple[tuple[str, tuple[int, ...] | None], ...]  # "forward", "dkdv", "dq"; its tile, None: the table's
    seconds: float
    kind: str


@dataclass(frozen=True)
class Row:
    """A point and its estimate, as kept."""

    name: str
    measured: float  # seconds
    estimate: float
    kind: str  # FIT, HELD_OUT or PUBLISHED
    spills: bool

    @property
    def error(self) -> float:
        """Relative: +0.1 when the estimate is 10 % longer than it took."""
        return self.estimate / self.measured - 1


def points() -> list[Point]:
    """The measured launches: whole forwards and backwards, then the sweep's tiles that are not the table's."""
    return [*_whole(), *_swept()]


def _whole() -> Iterator[Point]:
    seconds: dict[tuple[str, tuple[int, ...]], list[float]] = {}
    for prefix in ("", "peers-"):
        for row in load(RESULTS / (prefix + MEASURED_ON))[1]:
            shape = tuple(row["shape"].get(name, 0) for name in ("B", "H", "T", "head_dim"))
            ours = row["op"] == "attention" and row["impl"] == OURS and row["dtype"] == "bfloat16"
            if ours and shape[2] >= 4096:
                seconds.setdefault((row["mode"], shape), []).append(row["seconds"])
    for (mode, shape), found in sorted(seconds.items()):
        title = f"d{shape[3]}, T {shape[2]}"
        mean = sum(found) / len(found)
        if mode == "forward":
            yield Point(f"forward {title}", shape, (("forward", None),), mean, FIT)
        elif forward := seconds.get(("forward", shape)):
            passes = (("dkdv", None), ("dq", None))
            yield Point(f"backward {title}", shape, passes, mean - sum(forward) / len(forward), FIT)


def _swept() -> Iterator[Point]:
    lines = (RESULTS / f"sweep-{MEASURED_ON}").read_text().splitlines()[1:]
    for row in map(json.loads, lines):
        family, _, kernel = row["workload"].partition(".")
        if family != "attention" or row["default"] or row["seconds"] is None or row["shape"][2] < 4096:
            continue
        tile, shape = tuple(row["tile"].values()), tuple(row["shape"])
        other = {"dkdv": (("dq", None),), "dq": (("dkdv", None),)}.get(kernel, ())
        name = f"{kernel} d{shape[3]}, tile {' x '.join(map(str, tile[:3]))}, {tile[3]} warps, {tile[4]} stages"
        yield Point(name, shape, ((kernel, tile), *other), row["seconds"], HELD_OUT)


def estimate(point: Point) -> Row:
    """Compile the point's kernels and add up their launches."""
    total, spills = 0.0, False
    for kernel, tile in point.kernels:
        seconds, spilled = _launch(kernel, tile, point.shape)
        total, spills = total + seconds, spills or spilled
    if len(point.kernels) > 1:
        total += launches.row_statistics(point.shape, MACHINES[ARCH])
    return Row(point.name, point.seconds, total, point.kind, spills)


@functools.cache
def _launch(kernel: str, tile: tuple[int, ...] | None, shape: tuple[int, int, int, int]) -> tuple[float, bool]:
    """(seconds, whether it spills) of one kernel's launch."""
    from fastgpt.kernels.attention import tiles

    B, H, T, head_dim = shape
    table, used = getattr(tiles, kernel), []

    def answer(*args: object, **kwargs: object) -> tiles.Tile:
        used.append(table(*args, **kwargs) if tile is None else tiles.Tile(*tile))
        return used[-1]

    setattr(tiles, kernel, answer)
    try:
        found = _compiled(kernel, shape, "triton", causal=True)
    finally:
        setattr(tiles, kernel, table)
    full, masked = (_loops(found, loop) for loop in (0, 1))
    held, step = (used[-1].block_n, used[-1].block_m) if kernel == "dkdv" else used[-1][:2]
    work = Causal(T, B * H, held, step, used[-1].edge, launches.section(T, head_dim))
    return launches.seconds(work, full, masked, MACHINES[ARCH]), usage(found, ARCH).spill_bytes > 0


def _compiled(kernel: str, shape: tuple[int, int, int, int], setting: str, *, causal: bool) -> object:
    """The compiled kernel: "forward", "dkdv" or "dq"; setting: as FASTGPT_ATTENTION."""
    from fastgpt.kernels.attention import launch
    from fastgpt.kernels.attention.hopper import choice

    B, H, T, head_dim = shape
    q, k, v = (torch.empty(B, T, H, head_dim, dtype=torch.bfloat16, device="meta").transpose(1, 2) for _ in "qkv")
    lse = torch.empty(B, H, T, device="meta")
    no_masks, numbers = (None, None, None, None), (head_dim**-0.5, 0.0, causal, -1, -1)
    before, choice.setting = choice.setting, setting
    try:
        with offline(ARCH) as compiled:
            if kernel == "forward":
                launch.forward(q, k, v, *no_masks, *numbers)
            else:
                launch.backward(q, None, q, k, v, q, lse, *no_masks, *numbers, kernel == "dq", kernel == "dkdv")
    finally:
        choice.setting = before
    return next(c.kernel for c in compiled if kernel in c.name)


def _loops(kernel: object, loop: int = 0) -> timeline.Loops:
    facts = usage(kernel, ARCH)
    return timeline.timeline_of(program_of(kernel), facts.warps, facts.ctas_per_sm, MACHINES[ARCH], loop)


def published() -> Row:
    """Triton's tutorial 06, whose loop is that of our portable forward: 487 TFLOP/s on an H100 SXM.

    Without a mask at T = 16384, where the hot loop is all; head_dim 128, 16 bits.
    (github.com/facebookexperimental/triton pull requests 205, 206, 829.)
    """
    B, H, T, head_dim = shape = (1, 16, 16384, 128)
    flop = 4 * B * H * T * T * head_dim
    rate = _loops(_compiled("forward", shape, "triton", causal=False)).flop_rate(MACHINES[ARCH])
    return Row("tutorial 06 on an H100, full, d128, T 16384", flop / 487e12, flop / rate, PUBLISHED, spills=False)


def kept() -> list[Row]:
    """The rows of the kept table; none without it."""
    return [Row(**row) for row in json.loads(TABLE.read_text())["rows"]] if TABLE.exists() else []


def write(rows: list[Row]) -> None:
    about = {"triton": triton.__version__, "measured": MEASURED_ON, "fitted": FITTED, "rows": [asdict(r) for r in rows]}
    TABLE.write_text(json.dumps(about, indent=1) + "\n")


def table(rows: list[Row]) -> str:
    """Measured and estimated time and the error, a line each; then the error at what fitted nothing."""
    lines = [f"{'attention on an H200, causal, bfloat16':<58} {'µs':>6} {'estimate':>8} {'error':>6}"]
    for r in rows:
        note = r.kind + ", spills" * r.spills
        lines.append(f"{r.name:<58} {r.measured * 1e6:>6.0f} {r.estimate * 1e6:>8.0f} {r.error:>+6.1%}  {note}")
    return "\n".join([*lines, f"error of the estimate: {known_error(rows)}"])


def known_error(rows: list[Row] | None = None) -> str:
    """The root of the mean square and the largest error, of tiles that fitted nothing and spill nothing."""
    errors = [r.error for r in (kept() if rows is None else rows) if r.kind == HELD_OUT and not r.spills]
    if not errors:
        return "not known: nothing was measured"
    mean = (sum(e * e for e in errors) / len(errors)) ** 0.5
    return f"{mean:.0%}, at worst {max(errors, key=abs):+.0%} (time of {len(errors)} tiles of our attention on an H200)"


# Which architecture a board is, by a part of the name that it reports.
BOARDS = {"A100": "sm_80", "A40": "sm_86", "L40S": "sm_89", "H100": "sm_90", "H200": "sm_90", "B200": "sm_100"}
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True)
class Measured:
    """One of our own figures, from a GPU."""

    file: str
    gpu: str
    commit: str
    shape: dict[str, int]
    tflops: float


def measured(family: str, label: str, arch: str, folder: Path = RESULTS) -> list[Measured]:
    """Our forward figures in benchmarks/results that belong to a row of the gate: its dtype, and its head_dim if any.

    Only a label that says "fwd" is compared: the benchmarks time the backward together with the forward.
    """
    words, found = set(re.split(r"[^a-z0-9]+", label.lower())), []
    for path in sorted(folder.glob("*.json*")) if words & {"fwd", "forward"} else ():
        try:
            environment, rows = load(path)
        except ValueError:
            continue  # some other JSON file
        if not any(board in (environment.get("gpu") or "") and BOARDS[board] == arch for board in BOARDS):
            continue
        for row in rows:
            head_dim = row["shape"].get("head_dim")
            ours = row["op"] == family and row["impl"] == OURS and row["mode"] == "forward" and row.get("tflop_s")
            if ours and DTYPES.get(row["dtype"]) in words and (head_dim is None or f"d{head_dim}" in words):
                commit = environment.get("commit", "")
                found.append(Measured(path.name, environment["gpu"], commit, row["shape"], row["tflop_s"]))
    return sorted(found, key=lambda m: -m.tflops)
