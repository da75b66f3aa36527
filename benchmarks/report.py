"""Turn benchmark results into something to read.

    python -m benchmarks.report results.json [--out FOLDER]

`results.json` is what `pytest benchmarks/ --benchmark --benchmark-json=results.json` writes; a .jsonl file of
--benchmark-rows does as well. Makes FOLDER/report.md, SVG plots and FOLDER/report.html, one file with everything in it.
Ratios are taken within one run only.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import math
import sys
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from statistics import correlation, linear_regression
from typing import Any

from fastgpt.pages.charts import Chart, in_a_row
from fastgpt.pages.page import Page

OURS = "fastgpt"

# operation -> (what the x axis shows, which figure the y axis shows, its label)
PLOTS = {
    "attention": ("T", "tflop_s", "TFLOP/s"),
    "layer_norm": ("N", "gb_s", "GB/s"),
    "add_layer_norm": ("N", "gb_s", "GB/s"),
    "ffn": ("d", "tflop_s", "TFLOP/s"),
    "linear_cross_entropy": ("d", "tflop_s", "TFLOP/s"),
}


def read_rows(path: Path) -> list[dict]:
    """The rows of a file of JSON lines; [] where there is none. A line that a cut left unfinished is dropped."""
    return _decoded(path.read_text()) if path.is_file() else []


def _decoded(text: str, told_of: str | None = None) -> list[dict]:
    """The lines that are JSON; of each other one, perhaps with the next row behind it, stderr is told, if of a file."""
    rows = []
    for number, line in enumerate(text.splitlines(), 1):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            if told_of is not None:
                print(f"{told_of}: line {number} is cut off, and dropped", file=sys.stderr)
    return rows


def json_lines(path: Path) -> list[dict]:
    """The rows of a file of JSON lines, the environment first; a line that a cut left unfinished is dropped, and said.

    Raises ValueError where the first line is no environment.
    """
    rows = _decoded(path.read_text(), told_of=path.name)
    if not rows or not isinstance(rows[0], dict) or "environment" not in rows[0]:
        raise ValueError(f"{path} does not begin with an environment line; was it written by gpu_session.sh?")
    return rows


def load(path: Path) -> tuple[dict, list[dict]]:
    """(environment, rows) of a results file. Raises ValueError when it is not one of ours."""
    try:
        if path.suffix == ".jsonl":
            first, *rows = json_lines(path)
            return first["environment"], rows
        data = json.loads(path.read_text())
        rows = [b["extra_info"] for b in data["benchmarks"] if "op" in b["extra_info"]]
        return data["machine_info"]["fastgpt"], rows
    except (json.JSONDecodeError, KeyError, TypeError, ValueError) as error:
        raise ValueError(
            f"{path} is not a results file ({error!r}); make one with `pytest benchmarks/ --benchmark "
            f"--benchmark-json={path}`"
        ) from error


def group_key(row: dict) -> tuple:
    """Rows with the same key did the same work and may be compared."""
    return row["op"], row["mode"], row["dtype"], tuple(row["shape"].items())


def with_ratios(rows: Iterable[dict]) -> list[dict]:
    """Each row with how many times faster it is than others of its group, or None where there is none of them:

    ratio    than the best other implementation (an implementation compiled and not compiled is one, as are our paths)
    vs_ours  than ours
    """
    groups = defaultdict(list)
    for row in rows:
        groups[group_key(row)].append(row)
    result = []
    for members in groups.values():
        ours = [r["seconds"] for r in members if r["impl"] == OURS]
        for row in members:
            others = [r["seconds"] for r in members if _base(r) != _base(row)]
            mine = row["seconds"]
            vs_ours = ours[0] / mine if ours and row["impl"] != OURS else None
            result.append({**row, "ratio": min(others) / mine if others else None, "vs_ours": vs_ours})
    return sorted(result, key=lambda r: (*map(str, group_key(r)[:3]), list(r["shape"].values()), r["seconds"]))


def _base(row: dict) -> str:
    return row["impl"].removesuffix("-compile").removesuffix("-portable")


def is_noise(row: dict) -> bool:
    """Half of the rounds lie further apart than the median is long: such a figure says nothing."""
    return row["spread"] > 1


def is_python(row: dict) -> bool:
    """In half of the rounds the GPU reached the work before Python had queued it all (see `measure.watched`)."""
    return (row.get("late") or 0) >= 0.5


def notes(row: dict) -> list[str]:
    """What must be known of a figure besides its numbers."""
    found = ["spread larger than the median: this figure says nothing, measure it again"] if is_noise(row) else []
    if is_python(row):
        found.append("Python queued longer than the GPU waited: this figure may be Python's time")
    if row.get("mfu"):
        found.append(f"MFU {row['mfu']:.1%}, by the convention that counts all of the T x T square")
    return found


def floor_text(row: dict) -> str:
    """ "-" where there is no floor: on a CPU, or where a ceiling could not be measured (the environment says so)."""
    return f"{row['of_floor']:.0%}" if row["of_floor"] else "-"


def ceilings_text(environment: dict) -> str:
    """The rates behind "of floor"; what could not be measured is named, for its figures have no floor."""
    copy, rates = environment.get("copy_bandwidth_gb_s"), environment.get("gemm_tflop_s", {})
    products = ", ".join(f"{k} {v:.3g} TFLOP/s" if v else f"{k} not measured" for k, v in rates.items())
    return f"copy {f'{copy:.0f} GB/s' if copy else 'not measured'}, matrix product {products or 'not measured'}"


def environment_line(environment: dict) -> str:
    machine = environment["gpu"] or f"CPU, no GPU, threads: {environment.get('cpu_threads', '?')}"
    commit = environment["commit"] or "unknown"
    return (
        f"{machine}; torch {environment['torch']}, triton {environment['triton']}, Python {environment['python']}; "
        f"commit {commit}; {environment['date']}; {ceilings_text(environment)}, measured in this run."
    )


COLUMNS = (
    "shape",
    "implementation",
    "median",
    "spread",
    "TFLOP/s",
    "GB/s",
    "tokens/s",
    "of floor",
    "peak memory",
    "vs best other",
    f"vs {OURS}",
)


def cells(row: dict) -> list[str]:
    """A row as text, in the order of COLUMNS."""
    number = lambda v, form: format(v, form) if v else "-"  # noqa: E731
    return [
        " ".join(f"{k}={v}" for k, v in row["shape"].items()),
        row["impl"] + (f" ({row['version']})" if row["version"] else ""),
        f"{row['seconds'] * 1e3:.4g} ms" + (" (may be Python's)" if is_python(row) else ""),
        f"{row['spread']:.1%}" + (" (larger than the median)" if is_noise(row) else ""),
        number(row["tflop_s"], ".4g"),
        number(row["gb_s"], ".4g"),
        number(row["tokens_s"], ",.0f"),
        floor_text(row) + (f" (MFU {row['mfu']:.0%})" if row.get("mfu") else ""),
        f"{row['peak_bytes'] / 2**20:.1f} MiB" if row["peak_bytes"] is not None else "-",
        f"{row['ratio']:.2f}x" if row["ratio"] else "-",
        f"{row['vs_ours']:.2f}x" if row["vs_ours"] else "-",
    ]


def _grouped(rows: list[dict]) -> dict[str, list[dict]]:
    """Title -> rows with their ratios, one table for each operation, mode and dtype."""
    result = defaultdict(list)
    for row in with_ratios(rows):
        result[f"{row['op']}, {row['mode']}, {row['dtype']}"].append(row)
    return dict(result)


def tables(rows: list[dict]) -> dict[str, list[list[str]]]:
    """Title -> body rows, as text."""
    return {title: list(map(cells, members)) for title, members in _grouped(rows).items()}


def depth_fits(rows: list[dict]) -> list[str]:
    """One line an implementation: training-step time as a + b · layers over the depth study's sizes, with R²."""
    groups = defaultdict(list)
    for row in rows:
        if row["op"] == "train_step" and row["mode"] in ("depth", "cpu"):
            groups[row["impl"], row["shape"]["d"], row["shape"]["T"]].append((row["shape"]["layers"], row["seconds"]))
    lines = []
    for (impl, d, T), points in sorted(groups.items()):
        if len({layers for layers, _ in points}) < 3:  # two points fit any line
            continue
        layers, seconds = zip(*points)
        (b, a), r = linear_regression(layers, seconds), correlation(layers, seconds)
        lines.append(
            f"{impl}, d={d}, T={T}: step time = {a * 1e3:.3g} ms + {b * 1e3:.3g} ms · layers, R² = {r * r:.4f} "
            f"({len(points)} sizes)"
        )
    return lines


def markdown(environment: dict, rows: list[dict]) -> str:
    parts = ["# Benchmarks", "", environment_line(environment)]
    for title, body in tables(rows).items():
        parts += ["", f"## {title}", "", "| " + " | ".join(COLUMNS) + " |", "|" + "---|" * len(COLUMNS)]
        parts += ["| " + " | ".join(line) + " |" for line in body]
    if fits := depth_fits(rows):
        parts += ["", "## Depth", "", *(f"- {line}" for line in fits)]
    return "\n".join(parts) + "\n"


def charts(rows: list[dict]) -> dict[str, list[Chart]]:
    """Name -> charts of one operation: speed, ratio to the best other, peak memory (log-log) against the main size."""
    result = {}
    groups = defaultdict(list)
    for row in with_ratios(rows):
        if row["op"] in PLOTS:
            axis = PLOTS[row["op"]][0]
            rest = " ".join(f"{k}={v}" for k, v in row["shape"].items() if k in ("head_dim", "M", "V", "dropout_p"))
            groups[row["op"], row["mode"], row["dtype"], axis, rest].append(row)
    for (op, mode, dtype, axis, rest), members in groups.items():
        if len({r["shape"][axis] for r in members}) < 2:
            continue
        _, value, label = PLOTS[op]
        name = " ".join((op, mode, dtype, rest)).strip()
        panels = [_panel(name, members, axis, value, label)]
        panels.append(_panel(name, members, axis, "ratio", "best other's time / own", levels={"as fast": 1.0}))
        if all(r["peak_bytes"] for r in members):  # not on a CPU
            panels.append(_panel(name, members, axis, "peak_bytes", "peak bytes", log_y=True))
        result[name] = list(filter(None, panels))
    return result


def plots(found: dict[str, list[Chart]]) -> dict[str, str]:
    """File name -> SVG of what `charts` found: those of an operation in a row."""
    result = {}
    for name, panels in found.items():
        file = name.replace(" ", "-").replace("=", "").replace("+", "-")
        drawn = [dataclasses.replace(panel, title="").svg((470, 370), standalone=True) for panel in panels]
        result[f"{file}.svg"] = in_a_row(drawn, title=name)
    return result


def _panel(name: str, rows: list[dict], axis: str, figure: str, label: str, **options: Any) -> Chart | None:
    """One figure of the rows against their size, ours first and bold; None where no row has it."""
    if not any(row[figure] for row in rows):
        return None
    lines = defaultdict(list)
    for row in sorted(rows, key=lambda r: (r["impl"] != OURS, r["impl"], r["shape"][axis])):
        lines[row["impl"]].append((row["shape"][axis], row[figure] or math.nan))
    return Chart(lines, f"{name}: {label}", axis, label, log_x=True, bold=(OURS,), dots=True, **options)


def page(environment: dict, rows: list[dict], found: dict[str, list[Chart]]) -> Page:
    """The whole report: charts, tables, the depth study's fits, and where it was measured."""
    report = Page("Benchmarks", lead=environment_line(environment))
    for name, panels in found.items():
        report.heading(name)
        for panel in panels:
            report.chart(panel)
    for title, members in _grouped(rows).items():
        report.heading(title)
        strong = [n for n, row in enumerate(members) if row["impl"].startswith(OURS)]
        report.table(COLUMNS, [_sortable(row) for row in members], strong=strong)
    if fits := depth_fits(rows):
        report.heading("Depth")
        for line in fits:
            report.paragraph(line)
    report.provenance_of([(name, value) for name, value in environment.items() if not isinstance(value, dict)])
    return report


def _sortable(row: dict) -> list[object]:
    """`cells`, those that are numbers with their values: tables sort by them."""
    shape, name, *texts = cells(row)
    names = ("seconds", "spread", "tflop_s", "gb_s", "tokens_s", "of_floor", "peak_bytes", "ratio", "vs_ours")
    values = [row[key] for key in names]
    return [shape, name, *(None if value is None else (value, text) for value, text in zip(values, texts))]


def main(argv: list[str] | None = None) -> int:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.report", description=__doc__.split("\n\n")[0])
    parser.add_argument("results", type=Path, help="file written by --benchmark-json or --benchmark-rows")
    parser.add_argument("--out", type=Path, help="folder to write to (default: beside the results, same name)")
    args = parser.parse_args(argv)
    try:
        environment, rows = load(args.results)
    except (OSError, ValueError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    out = args.out or args.results.with_suffix("")
    out.mkdir(parents=True, exist_ok=True)
    found = charts(rows)
    images = plots(found)
    (out / "report.md").write_text(markdown(environment, rows))
    page(environment, rows, found).save(out / "report.html")
    for name, data in images.items():
        (out / name).write_text(data)
    print(f"{len(rows)} figures -> {out}/report.md, {out}/report.html, {len(images)} plots")
    return 0


if __name__ == "__main__":
    sys.exit(main())
