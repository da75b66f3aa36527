"""How far the estimate is from figures that others published, and from our own once a GPU has measured them.

The published points are TFLOP/s on H100 SXM, float16 or bfloat16, forward attention, at the longest sequence (16k),
where the main loop is nearly all of the time. Four of them fitted `cost.OVERLAP` and `cost.EFFICIENCY`; the others
did not. The cycles are those of Triton's loop over a 128 x 128 tile by 8 warps; FlashAttention-3 is taken to
issue the same.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from benchmarks.report import OURS, load

from .cost import Cost, flop_rate
from .machines import MACHINES

RESULTS = Path(__file__).parents[1] / "results"


@dataclass(frozen=True)
class Point:
    """A published speed, and the cycles of one CTA's iteration of the loop that reached it."""

    name: str
    head_dim: int
    schedule: str
    tensor: float
    mufu: float
    issue: float
    published: float  # TFLOP/s
    fitted: bool
    source: str

    @property
    def estimate(self) -> float:
        """TFLOP/s by the cost model."""
        cycles = dict.fromkeys(("fma", "alu", "lsu", "memory"), 0.0)
        cycles.update(tensor=self.tensor, mufu=self.mufu, issue=self.issue)
        flop = 2 * 2 * 128 * 128 * self.head_dim
        return flop_rate(Cost({}, cycles, flop, 0, self.schedule, True), MACHINES["sm_90"]) / 1e12

    @property
    def error(self) -> float:
        """Relative: +0.1 when the estimate is 10 % above the published figure."""
        return self.estimate / self.published - 1


_D128 = {"head_dim": 128, "tensor": 2048, "mufu": 1056, "issue": 994}
_D64 = {"head_dim": 64, "tensor": 1024, "mufu": 1056, "issue": 924}
_META = "github.com/facebookexperimental/triton pull requests 205, 206, 829"
_FA = "github.com/Dao-AILab/flash-attention assets/flash3_fp16_fwd.png"
POINTS = (
    Point("Triton tutorial 06", **_D128, schedule="plain", published=487, fitted=True, source=_META),
    Point("+ two consumer warpgroups", **_D128, schedule="specialised", published=526, fitted=True, source=_META),
    Point("+ softmax under the GEMM", **_D128, schedule="pipelined", published=611, fitted=True, source=_META),
    Point("FlashAttention-3", **_D128, schedule="fa3", published=639, fitted=True, source=_META),
    Point("Triton, causal", **_D64, schedule="plain", published=363, fitted=False, source=_FA),
    Point("FlashAttention-3, causal", **_D64, schedule="fa3", published=473, fitted=False, source=_FA),
)


def table() -> str:
    """The published points with the estimate and its error beside each."""
    lines = [f"{'published, H100 SXM':<28} {'head_dim':>8} {'TFLOP/s':>8} {'estimate':>8} {'error':>7}"]
    for p in POINTS:
        used = "fitted" if p.fitted else "not fitted"
        lines.append(f"{p.name:<28} {p.head_dim:>8} {p.published:>8.0f} {p.estimate:>8.0f} {p.error:>+7.1%}  {used}")
    return "\n".join(lines)


def worst_error(schedule: str) -> float | None:
    """The largest relative error among the points of a schedule, with its sign; None without a point."""
    return max((p.error for p in POINTS if p.schedule == schedule), key=abs, default=None)


# Which architecture a board is, by a part of the name that it reports.
BOARDS = {"A100": "sm_80", "A40": "sm_86", "L40S": "sm_89", "H100": "sm_90", "H200": "sm_90", "B200": "sm_100"}
DTYPES = {"bfloat16": "bf16", "float16": "fp16", "float32": "fp32"}


@dataclass(frozen=True)
class Measured:
    """One of our own figures, from a GPU."""

    file: str
    gpu: str
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
                found.append(Measured(path.name, environment["gpu"], row["shape"], row["tflop_s"]))
    return sorted(found, key=lambda m: -m.tflops)
