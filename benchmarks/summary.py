"""What a benchmark run prints at its end: figures by workload, ours beside its peers, and what was left out and why."""

from __future__ import annotations

import textwrap
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable

from benchmarks.report import OURS, environment_line, floor_text, notes, with_ratios

WIDTH = 110


def figures(environment: dict, rows: Iterable[dict]) -> list[str]:
    """The lines of one table, at most WIDTH wide: a title for each workload, ours first below it, then by time.

    A column in which no row has a value is left out (peak memory and ours, on a CPU).
    """
    groups = defaultdict(list)
    for row in with_ratios(rows):
        title = " ".join([row["op"], row["mode"], row["dtype"], *(f"{k}={v}" for k, v in row["shape"].items())])
        groups[title].append(row)
    members = {title: sorted(found, key=lambda r: r["impl"] != OURS) for title, found in groups.items()}
    cells = {title: [[text(r) for _, text in COLUMNS] for r in found] for title, found in members.items()}
    shown = [i for i in range(len(COLUMNS)) if any(line[i] != "-" for body in cells.values() for line in body)]
    head = [COLUMNS[i][0] for i in shown]
    widths = [
        max(len(name), *(len(line[i]) for body in cells.values() for line in body)) for i, name in zip(shown, head)
    ]
    versions = {r["version"] for found in members.values() for r in found if r["version"] and r["impl"] != OURS}
    peers = sorted(v for v in versions if not v.startswith("torch "))  # torch's the environment names
    about = " ".join([environment_line(environment), *(["Peers: " + ", ".join(peers) + "."] if peers else [])])
    lines = [*textwrap.wrap(about, WIDTH), "", aligned(head, widths)]
    for title, body in cells.items():
        lines += ["", title]
        for row, line in zip(members[title], body):
            lines.append(aligned([line[i] for i in shown], widths))
            lines += [f"      ^ {note}" for note in notes(row)]
    legend = " ".join(text for name, text in LEGEND if name in head)
    return [*lines, "", *textwrap.wrap(legend, WIDTH)]


def aligned(cells: list[str], widths: list[int]) -> str:
    first, *rest = (c.rjust(w) if i else c.ljust(w) for i, (c, w) in enumerate(zip(cells, widths)))
    return "  " + "  ".join([first, *rest])


def time_text(seconds: float) -> str:
    """Four digits with a unit: 12.34 µs, 1.234 ms, 1.234 s."""
    for unit, scale in (("µs", 1e6), ("ms", 1e3)):
        if seconds * scale < 1000:
            return f"{seconds * scale:.4g} {unit}"
    return f"{seconds:.4g} s"


def rate_text(row: dict) -> str:
    """FLOPs per second where the work has FLOPs, else bytes per second."""
    if row["tflop_s"]:
        return f"{row['tflop_s']:.3g} TFLOP/s"
    return f"{row['gb_s']:.4g} GB/s" if row["gb_s"] else "-"


def times_text(ratio: float | None) -> str:
    return f"{ratio:.2f}x" if ratio else "-"


COLUMNS: list[tuple[str, Callable[[dict], str]]] = [
    ("implementation", lambda r: r["impl"]),
    ("median", lambda r: time_text(r["seconds"])),
    ("spread", lambda r: f"{r['spread']:.1%}"),
    ("rate", rate_text),
    ("of floor", floor_text),
    ("tokens/s", lambda r: f"{r['tokens_s']:,.0f}" if r["tokens_s"] else "-"),
    ("peak memory", lambda r: "-" if r["peak_bytes"] is None else f"{r['peak_bytes'] / 2**20:,.1f} MiB"),
    ("vs best other", lambda r: times_text(r["ratio"])),
    (f"vs {OURS}", lambda r: times_text(r["vs_ours"])),
]


LEGEND = (
    ("spread", "spread: the middle half of the rounds, over the median."),
    ("of floor", "of floor: least time (FLOPs at the matrix product's rate, bytes at the copy's), over the median."),
    ("vs best other", "vs: how many times faster than; below 1 is slower."),
)


def left_out(reasons: Iterable[str]) -> list[str]:
    """One entry for each reason: how many benchmarks it left out, and whose, each named once.

    reasons  of the benchmarks that were skipped, "reason" or "reason: implementation"
    """
    counts, names = Counter(), defaultdict(set)
    for text in reasons:
        reason, _, who = text.rpartition(": ")
        counts[reason or who] += 1
        if reason:
            names[reason].add(who)
    lines = []
    for reason, count in counts.most_common():
        entry = ": ".join(filter(None, [reason, ", ".join(sorted(names[reason]))]))
        lines += textwrap.wrap(entry, WIDTH, initial_indent=f"{count:6d}  ", subsequent_indent=" " * 8)
    return lines
