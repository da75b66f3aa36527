#!/usr/bin/env python3
"""What a GPU session found, on one page: `scripts/gpu/summary.py OUT`. The last thing that the session prints."""

from __future__ import annotations

import json
import sys
from collections import Counter
from pathlib import Path


def rows(path: Path) -> list[dict]:
    """The JSON lines of a file; [] where there is none. A line that a cut left unfinished is dropped."""
    found = []
    for line in path.read_text().splitlines() if path.is_file() else ():
        try:
            found.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return found


def headline(found: list[dict]) -> list[str]:
    lines = []
    for row in found:
        match row.get("kind"):
            case "verify" if not row["ok"]:
                lines.append(f"verify: {row['kernel']} {row['label']} {row['dtype']}: {row['used']:.2f} of the budget"
                             f" {row['problem']}")  # fmt: skip
            case "verified":
                lines.append(f"verify: {'ok' if row['ok'] else 'FAILED'}, {row['where']}, {row['seconds']:.1f} s")
            case "ceilings":
                lines.append(f"ceilings: {row['copy_bandwidth_gb_s']:.0f} GB/s, {row['gemm_tflop_s']} TFLOP/s")
            case "failed":
                lines.append(f"{row['section']}: FAILED: {row['error'].splitlines()[0][:200]}")
            case "skipped":
                lines.append(f"{row['op']} {row['impl']} {row['mode']}: {row['reason'][:120]}")
    figures = [r for r in found if r.get("kind") == "figure"]
    groups: dict[tuple, dict[str, dict]] = {}
    for row in figures:
        groups.setdefault((row["op"], row["mode"], *row["shape"].items()), {})[row["impl"]] = row
    for (op, mode, *shape), impls in groups.items():
        text = " ".join(f"{k}={v}" for k, v in shape)
        times = "  ".join(f"{impl} {r['seconds'] * 1e3:.3f} ms ({r['of_floor']:.0%})" for impl, r in impls.items())
        lines.append(f"{op} {mode} {text}: {times}")
    return lines


def tests(found: list[dict]) -> list[str]:
    if not found:
        return []
    counts = Counter(r["outcome"] for r in found)
    failed = [r for r in found if r["outcome"] == "failed"]
    slowest = sorted(found, key=lambda r: -r["seconds"])[:3]
    lines = ["tests: " + ", ".join(f"{n} {outcome}" for outcome, n in sorted(counts.items()))]
    lines += [f"  FAILED {r['test']}: {r.get('message', '').splitlines()[:1]}"[:220] for r in failed[:30]]
    if len(failed) > 30:
        lines.append(f"  ... and {len(failed) - 30} more in tests.jsonl")
    return [*lines, "  slowest: " + ", ".join(f"{r['test'].split('/')[-1]} {r['seconds']:.1f} s" for r in slowest)]


def main() -> int:
    out = Path(sys.argv[1])
    lines = headline(rows(out / "headline.jsonl")) + tests(rows(out / "tests.jsonl"))
    for name in ("errors", "benchmarks", "sweep"):
        lines.append(f"{name}.jsonl: {len(rows(out / f'{name}.jsonl'))} lines")
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
