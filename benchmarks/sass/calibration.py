"""How far the estimate is from figures that others published, and from our own once a GPU has measured them.

The published points are TFLOP/s on H100 SXM, float16 or bfloat16, forward attention, at the longest sequence (16k),
where the main loop is nearly all of the time. Four of them fitted `cost.OVERLAP` and `cost.EFFICIENCY`; the others did
not. The cycles are those of Triton's loop over a 128 x 128 tile by 8 warps; FlashAttention-3 is taken to issue the same.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

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


@dataclass(frozen=True)
class Measured:
    """One of our own figures, from a GPU."""

    file: str
    name: str
    tflops: float


def measured(row: str, arch: str, folder: Path = RESULTS) -> Iterator[Measured]:
    """Figures in `folder`/*.json whose benchmark names this row of the gate.

    A benchmark that wants to be compared has, in pytest-benchmark's `extra_info`: "gate_row" ("attention/fwd-..."),
    "arch" ("sm_90") and "tflops".
    """
    for path in sorted(folder.glob("*.json")):
        content = json.loads(path.read_text())
        for benchmark in content.get("benchmarks", ()) if isinstance(content, dict) else ():
            info = benchmark.get("extra_info", {})
            if info.get("gate_row") == row and info.get("arch") == arch and "tflops" in info:
                yield Measured(path.name, benchmark.get("name", ""), float(info["tflops"]))
