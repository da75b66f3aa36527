#!/usr/bin/env python3
"""Put what `gpu_session.sh` brought home into the repository.

    scripts/fold_results.py OUT

Copies OUT/benchmarks.jsonl and OUT/sweep.jsonl to benchmarks/results/ under a name that says GPU, date and commit, and
prints, for each swept workload, the best tile beside the table's own. The tables in kernels/*/tiles.py give a reason
with each entry, so a person changes them: take what wins by more than its spread, recompile with `make gate`, and
commit results, tables and gate together. Then `make readme`.
"""

from __future__ import annotations

import argparse
import json
import re
import shutil
import sys
from collections import defaultdict
from pathlib import Path

RESULTS = Path(__file__).parents[1] / "benchmarks" / "results"
WORTH_IT = 1.02  # a smaller gain is within the spread of a short sweep


def read(path: Path) -> tuple[dict, list[dict]]:
    """(environment, rows) of a file of JSON lines; a last line that a cut left unfinished is dropped."""
    rows = []
    for number, line in enumerate(path.read_text().splitlines()):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            print(f"{path.name}: line {number + 1} is cut off, and dropped", file=sys.stderr)
    if not rows or "environment" not in rows[0]:
        raise ValueError(f"{path} does not begin with an environment line; was it written by gpu_session.sh?")
    return rows[0]["environment"], rows[1:]


def stem(environment: dict) -> str:
    gpu = re.sub(r"[^a-z0-9]+", "-", environment["gpu"].lower()).strip("-")
    return f"gpu-{gpu}-{environment['date']}-{environment['commit']}"


def best_tiles(rows: list[dict]) -> list[tuple[str, dict, dict, float]]:
    """(workload and shape, the table's tile, the best tile, gain) of each workload that has both figures."""
    groups = defaultdict(list)
    for row in rows:
        if row["error"] is None:
            groups[f"{row['workload']} {tuple(row['shape'])}"].append(row)
    found = []
    for name, members in groups.items():
        own = next((r for r in members if r["default"]), None)
        best = min(members, key=lambda r: r["seconds"])
        if own is not None:
            found.append((name, own["tile"], best["tile"], own["seconds"] / best["seconds"]))
    return found


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, help="the folder that gpu_session.sh wrote")
    out = parser.parse_args(argv).out
    found = [p for p in (out / "benchmarks.jsonl", out / "sweep.jsonl") if p.is_file()]
    if not found:
        print(f"error: {out} holds neither benchmarks.jsonl nor sweep.jsonl", file=sys.stderr)
        return 2
    for path in found:
        environment, rows = read(path)
        name = stem(environment) if path.stem == "benchmarks" else f"sweep-{stem(environment)}"
        shutil.copyfile(path, RESULTS / f"{name}.jsonl")
        print(f"{len(rows)} figures -> benchmarks/results/{name}.jsonl")
        if path.stem == "sweep":
            for workload, own, best, gain in best_tiles(rows):
                changes = {k: (own[k], v) for k, v in best.items() if own[k] != v}
                verdict = f"{gain:.2f}x with {changes}" if gain >= WORTH_IT else "the table's tile is best"
                print(f"  {workload}: {verdict}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
