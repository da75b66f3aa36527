#!/usr/bin/env python3
"""What a GPU session found, on one page: `scripts/gpu/summary.py OUT`. The last thing that the session prints."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[2]))
from benchmarks import report


def headline(found: list[dict]) -> list[str]:
    lines = []
    for row in found:
        match row.get("kind"):
            case "verify" if not row["ok"]:
                lines.append(f"verify: {row['kernel']} {row['label']} {row['dtype']}: {_share(row):.2f} of the budget"
                             f" {row['problem']}")  # fmt: skip
            case "verified":
                lines.append(f"verify: {'ok' if row['ok'] else 'FAILED'}, {row['where']}, {row['seconds']:.1f} s")
            case "ceilings":
                lines.append(f"ceilings: {report.ceilings_text(row)}")
            case "failed":
                lines.append(f"{row['section']}: FAILED: {row['error'].splitlines()[0][:200]}")
            case "skipped":
                lines.append(f"{row['op']} {row['impl']} {row['mode']}: {row['reason'][:120]}")
    figures = sorted((r for r in found if r.get("kind") == "figure"), key=lambda r: r["op"] != "attention")
    groups: dict[tuple, dict[str, dict]] = {}
    for row in figures:
        groups.setdefault((row["op"], row["mode"], *row["shape"].items()), {})[row["impl"]] = row
    for (op, mode, *shape), impls in groups.items():
        text = " ".join(f"{k}={v}" for k, v in shape)
        lines.append(f"{op} {mode} {text}: {'  '.join(map(figure, impls.values()))}")
        lines += [f"  ^ {impl}: {note}" for impl, row in impls.items() for note in report.notes(row)]
    return lines


def figure(row: dict) -> str:
    floor = report.floor_text(row)
    estimate = f"estimate {row['estimate'] * 1e3:.3f}, " if row.get("estimate") else ""
    return f"{row['impl']} {row['seconds'] * 1e3:.3f} ms ({estimate}{floor} of floor, spread {row['spread']:.0%})"


def tests(out: Path, name: str) -> list[str]:
    """How many tests passed, and which did not."""
    found = report.read_rows(out / f"{name}.jsonl")
    if not found:
        return []
    counts = Counter(r["outcome"] for r in found)
    slowest = sorted(found, key=lambda r: -r["seconds"])[:3]
    lines = [f"{name}: " + ", ".join(f"{count} {outcome}" for outcome, count in sorted(counts.items()))]
    lines += _first(f"{r['test']}: {r.get('message', '')}" for r in found if r["outcome"] == "failed")
    return [*lines, "  slowest: " + ", ".join(f"{r['test'].split('/')[-1]} {r['seconds']:.1f} s" for r in slowest)]


def errors(out: Path) -> list[str]:
    """How much of their budget the errors against float64 used, and which used more than all of it."""
    found = report.read_rows(out / "errors.jsonl")
    if not found:
        return []
    worst: dict[str, dict] = {}  # of each test that has one over its budget
    for row in sorted((r for r in found if not r["ok"]), key=_share):
        worst[row["test"]] = row
    count = sum(not r["ok"] for r in found)
    lines = [f"errors: {len(found)} judged, {count} over their budget, the largest {max(map(_share, found)):.2f} of it"]
    ordered = sorted(worst.values(), key=_share, reverse=True)
    return lines + _first(f"{r['test']} {r['name']} {r['dtype']} {r['norm']}: {_share(r):.2f} of it" for r in ordered)


def _share(row: dict) -> float:
    """Of its budget; null stands for what is not finite."""
    return math.inf if row["used"] is None else row["used"]


def _first(texts: Iterable[str], most: int = 30) -> list[str]:
    """The first texts, a line each; all are in the files."""
    lines = [f"  {text}".splitlines()[0][:220] for text in texts]
    return lines[:most] + ([f"  ... and {len(lines) - most} more"] if len(lines) > most else [])


def main() -> int:
    out = Path(sys.argv[1])
    rows = report.read_rows(out / "headline.jsonl")
    lines = tests(out, "paths") + headline(rows) + tests(out, "tests") + errors(out)
    lines += [f"{name}.jsonl: {len(report.read_rows(out / f'{name}.jsonl'))} lines" for name in ("benchmarks", "sweep")]
    print("\n".join(lines))
    return 0


if __name__ == "__main__":
    sys.exit(main())
