#!/usr/bin/env python3
"""Put what `gpu_session.sh` brought home into the repository.

    scripts/fold_results.py OUT [--apply]

Puts the figures of headline.jsonl (which the README's table shows), benchmarks.jsonl, full.jsonl and sweep.jsonl of OUT
into benchmarks/results/ under names that say GPU, date and commit. Prints what tests.jsonl and errors.jsonl found, and
for each swept workload the best tile beside the table's own. With --apply it also rewrites the entries of the tables in
kernels/attention/tiles.py and kernels/ffn/tiles.py that lost; the other families have rules with reasons, not tables,
and a person changes those. study.json, of the depth study, goes to the results as it is. Then: `make gate`, `make
readme`, and one commit with results, tables and gate.
"""

from __future__ import annotations

import argparse
import ast
import json
import re
import sys
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))
from benchmarks import report  # noqa: E402
from scripts.gpu import summary  # noqa: E402

RESULTS = ROOT / "benchmarks" / "results"
FIGURES = {
    "headline": "",
    "benchmarks": "peers-",
    "full": "full-",
    "sweep": "sweep-",
}  # file of OUT -> prefix in RESULTS
WORTH_IT = 1.02  # a smaller gain is within the spread of a short sweep


class Finding(NamedTuple):
    """The best tile of one workload; gain is the table's own tile's time over its time."""

    workload: str
    shape: tuple[int, ...]
    arch: str
    own: dict
    best: dict
    gain: float


def read(path: Path) -> tuple[dict, list[dict]]:
    """(environment, rows) of a file of JSON lines; of the headline's, which also tells how the session went, figures.

    The headline's ceilings are a row: the process that began the file measured none of its figures.
    """
    first, *rows = report.json_lines(path)
    environment = first["environment"]
    if path.stem == "headline":
        for row in rows:
            if row.get("kind") == "ceilings":
                environment |= {k: row[k] for k in ("copy_bandwidth_gb_s", "gemm_tflop_s", "gpu_state")}
        figures = [row for row in rows if row.get("kind") == "figure"]
        rows = [{k: v for k, v in row.items() if k not in ("section", "kind")} for row in figures]
    return environment, rows


def stem(environment: dict) -> str:
    gpu = re.sub(r"[^a-z0-9]+", "-", environment["gpu"].lower()).strip("-")
    return f"gpu-{gpu}-{environment['date']}-{environment['commit'] or 'unknown'}"


def best_tiles(rows: list[dict]) -> list[Finding]:
    """The winner of each workload and shape whose own tile was measured too, in the order of the sweep.

    A tile that was not compared with the table's own is none, however fast: nobody knows that it computes the same.
    """
    groups = defaultdict(list)
    for row in rows:
        if row["error"] is None and (row["default"] or row.get("compared")):
            groups[row["workload"], tuple(row["shape"]), row["arch"]].append(row)
    found = []
    for (workload, shape, arch), members in groups.items():
        own = next((r for r in members if r["default"]), None)
        best = min(members, key=lambda r: r["seconds"])
        if own is not None:
            found.append(Finding(workload, shape, arch, own["tile"], best["tile"], own["seconds"] / best["seconds"]))
    return found


def entry(finding: Finding, source: str) -> ast.Call | None:
    """The `Tile(...)` in the source of a tiles.py that answered this workload; None where a rule did."""
    family, function, *role = finding.workload.split(".")
    tables = {
        target.id: node.value
        for node in ast.parse(source).body
        if isinstance(node, ast.Assign | ast.AnnAssign)
        for target in (node.targets if isinstance(node, ast.Assign) else [node.target])
        if isinstance(target, ast.Name) and isinstance(node.value, ast.Dict)
    }
    if family == "attention":
        kind = {"sm_90": "wgmma", "sm_100": "tcgen05"}.get(finding.arch, "mma")
        rows = _at(_at(tables["TABLE"], kind), 2)
        head_dims = [ast.literal_eval(key) for key in rows.keys]
        tiles = _at(rows, min(d for d in head_dims if d >= finding.shape[-1]))
        return tiles.args[("forward", "dkdv", "dq").index(function)]
    if family == "ffn":
        for key in ((finding.arch, "half-tma", *role), (finding.arch, "half-tma"), (finding.arch, "half")):
            if any(ast.literal_eval(k) == key for k in tables["_TILES"].keys):
                return _at(tables["_TILES"], key)
    return None


def _at(table: ast.Dict, wanted: object) -> ast.expr:
    return next(value for key, value in zip(table.keys, table.values) if ast.literal_eval(key) == wanted)


def replaced(source: str, call: ast.Call, own: dict, best: dict) -> str:
    """`source` with this Tile's numbers changed to `best`, in the style in which it is written."""
    names = list(best)
    positional, keywords = names[: len(call.args)], {k.arg for k in call.keywords}
    named = [n for n in names[len(call.args) :] if n in keywords or own[n] != best[n]]
    text = f"Tile({', '.join([*(str(best[n]) for n in positional), *(f'{n}={best[n]}' for n in named)])})"
    start = _offset(source, call)
    return source[:start] + text + source[start + len(ast.get_source_segment(source, call)) :]


def _offset(source: str, call: ast.Call) -> int:
    """Where the call begins, in characters."""
    lines = source.splitlines(keepends=True)
    return sum(map(len, lines[: call.lineno - 1])) + len(lines[call.lineno - 1].encode()[: call.col_offset].decode())


def apply(findings: list[Finding]) -> None:
    """Rewrite the table entries that lost. Of shapes that share an entry, the first swept decides."""
    decided = set()
    for finding in findings:
        path = ROOT / "kernels" / finding.workload.split(".")[0] / "tiles.py"
        source = path.read_text()
        call = entry(finding, source)
        # Columns move as entries change; how many tiles stand before this one does not.
        name = call and (path, source[: _offset(source, call)].count("Tile("))
        if call is None or name in decided:
            continue
        decided.add(name)
        if finding.gain >= WORTH_IT:
            path.write_text(replaced(source, call, finding.own, finding.best))
            print(f"  {path.relative_to(ROOT)}:{call.lineno} changed for {finding.workload}")


def fold_study(path: Path) -> bool:
    """study.json of a GPU session goes to RESULTS as study_gpu.json. Returns whether there is one."""
    if not path.is_file():
        return False
    study = json.loads(path.read_text())
    gpu = dict(study["environment"]).get("GPU", "none")
    if gpu == "none" or "fake" in gpu:
        print(f"error: {path} was measured on {gpu}: that says nothing", file=sys.stderr)
        return False
    (RESULTS / "study_gpu.json").write_text(path.read_text())
    print(f"{len(study['rows'])} runs of the depth study -> benchmarks/results/study_gpu.json")
    return True


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__.split("\n\n")[0])
    parser.add_argument("out", type=Path, help="the folder that gpu_session.sh wrote")
    parser.add_argument("--apply", action="store_true", help="rewrite the table entries that lost")
    args = parser.parse_args(argv)
    paths = [p for p in (args.out / f"{name}.jsonl" for name in FIGURES) if p.is_file()]
    found = [*summary.tests(args.out, "paths"), *summary.tests(args.out, "tests"), *summary.errors(args.out)]
    has_study = fold_study(args.out / "study.json")
    if not paths and has_study:
        return 0
    if not paths:
        print(f"error: {args.out} holds none of {', '.join(f'{name}.jsonl' for name in FIGURES)}", file=sys.stderr)
        print(*found, sep="\n")
        return 2
    unreadable = 0
    for path in paths:
        try:
            environment, rows = read(path)
        except ValueError as error:  # of a session that was cut; the other files are good
            print(f"error: {error}", file=sys.stderr)
            unreadable += 1
            continue
        if not environment["gpu"] or "fake" in environment["gpu"]:
            print(f"error: {path} was measured on {environment['gpu']}: that says nothing", file=sys.stderr)
            return 2
        if not rows:
            print(f"{path.name}: cut before its first figure")
            continue
        name = FIGURES[path.stem] + stem(environment)
        text = "".join(json.dumps(row) + "\n" for row in [{"environment": environment}, *rows])
        (RESULTS / f"{name}.jsonl").write_text(text)
        print(f"{len(rows)} figures -> benchmarks/results/{name}.jsonl")
        if path.stem == "sweep":
            findings = best_tiles(rows)
            for f in findings:
                changes = {k: (f.own[k], v) for k, v in f.best.items() if f.own[k] != v}
                verdict = f"{f.gain:.2f}x with {changes}" if f.gain >= WORTH_IT else "the table's tile is best"
                print(f"  {f.workload} {f.shape}: {verdict}")
            if args.apply:
                apply(findings)
    print(*found, sep="\n")
    return 1 if unreadable else 0


if __name__ == "__main__":
    sys.exit(main())
