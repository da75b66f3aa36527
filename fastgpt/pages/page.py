"""One self-contained HTML page: text, tables that sort, charts; no network, no script but what it carries.

page = Page("A training run", lead="4,000 steps on Shakespeare.")
page.heading("Loss")
page.chart(Chart({"training": [(1, 8.3), (2, 7.9)]}, title="Loss", x_label="step", y_label="loss, nats per token"))
page.table(("layers", "perplexity"), [(2, 38.5), (4, 29.4)], caption="Each run")
page.provenance([("seed", 0)])
page.save("report.html")
"""

from __future__ import annotations

import html
import math
import os
import re
from collections.abc import Iterable, Mapping, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from ..base import files
from .provenance import environment, made_by

if TYPE_CHECKING:
    from .charts import Chart

WIDE, NARROW = (720, 340), (360, 300)  # pixels: each chart is drawn for a screen and for a phone

MOST_ROWS = 200  # of a chart's numbers, as a table

_MARK = '<meta name="generator" content="'


def asset(name: str, package: str = __package__) -> str:
    """A style or script that lies beside the modules of `package`."""
    return (resources.files(package) / name).read_text(encoding="utf-8")


def inside_a_script(json_text: str) -> str:
    """The same JSON for a <script type="application/json">: no text in it ends the script, or begins a comment."""
    return re.sub("<(?=[/!])", r"\\u003c", json_text)


def is_ours(path: str | os.PathLike[str], generator: str = "fastgpt") -> bool:
    """Whether a file is there that `Page` wrote, of a generator that begins so."""
    try:
        if not os.path.isfile(path):  # to open a pipe is to wait
            return False
        with open(path, "rb") as file:
            return f"{_MARK}{generator}".encode() in file.read(1024)
    except OSError:
        return False


class Page:
    """Collects pieces of a page; text that comes from outside is escaped."""

    def __init__(self, title: str, lead: str = "", generator: str = "fastgpt") -> None:
        """`generator`: the mark near the file's beginning by which a command knows what it wrote itself (`is_ours`)."""
        self.title, self.generator = title, generator
        self._parts: list[str] = []
        self._styles, self._scripts = [asset("page.css")], [asset("paper.js"), asset("tables.js")]
        if lead:
            self.paragraph(lead)

    def add(self, markup: str) -> None:
        """Append HTML as it is."""
        self._parts.append(markup)

    def style(self, css: str) -> None:
        """Append to the page's style; the same text counts once."""
        if css not in self._styles:
            self._styles.append(css)

    def script(self, javascript: str) -> None:
        """Append a script that runs when all of the page is there; the same text counts once."""
        if javascript not in self._scripts:
            self._scripts.append(javascript)

    def heading(self, text: str) -> None:
        self.add(f"<h2>{html.escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        self.add(f"<p>{html.escape(text)}</p>")

    def preformatted(self, text: str) -> None:
        self.add(f"<pre>{html.escape(text)}</pre>")

    def table(
        self, header: Sequence[object], rows: Iterable[Sequence[object]], bad: Sequence[int] = (), caption: str = "",
        *, strong: Sequence[int] = (),
    ) -> None:  # fmt: skip
        """A table that sorts by the heading that is pressed. `bad`: numbers of the rows that are shown as failures;
        `strong`: of those that stand out.

        A cell that is a number stands at the right and sorts by its value; (value, text) sorts by value and shows text;
        None is an empty cell, and comes last.
        """
        classes = dict.fromkeys(strong, " class=strong") | dict.fromkeys(bad, " class=bad")
        self.add(_table(header, list(rows), classes, caption))

    def chart(self, chart: Chart, caption: str = "") -> None:
        """A chart, twice: for a wide screen and for a phone, each with text of a size that can be read there.

        Below it, where they are few, its numbers, to be unfolded.
        """
        drawn = "".join(
            f"<div class={name}>{chart.svg(size)}</div>" for name, size in (("wide", WIDE), ("narrow", NARROW))
        )
        below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        numbers = _numbers(chart)
        self.add(f"<figure>{drawn}{below}{numbers}</figure>")

    def provenance(self, more: Iterable[tuple[str, object]] = ()) -> None:
        """Date, command, commit, machine, versions, and `more`: seed, model size, tokens seen, time taken."""
        self.provenance_of([*more, *made_by(), *environment()])

    def provenance_of(self, rows: Iterable[tuple[str, object]]) -> None:
        """The same for numbers that were found elsewhere, or earlier."""
        self.heading("Where this comes from")
        self.table(("what", "value"), rows)

    def html(self) -> str:
        title = html.escape(self.title)
        head = (
            '<!doctype html><html lang="en"><head><meta charset="utf-8">'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f'{_MARK}{html.escape(self.generator)}">'
            f"<title>{title}</title><style>{''.join(self._styles)}</style></head>"
        )
        scripts = "".join(f"<script>\n{script}</script>" for script in self._scripts)
        return f"{head}<body><h1>{title}</h1>{''.join(self._parts)}{scripts}</body></html>\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page, whole or not at all.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        files.replace_file(Path(path), lambda new: new.write_text(self.html(), encoding="utf-8"))


def _numbers(chart: Chart) -> str:
    """What is drawn, as a table: a row for each x, a column for each series; "" of more than `MOST_ROWS` rows."""
    found: dict[float, dict[str, float]] = {}
    for name, points in chart.series.items():
        for x, y in points:
            found.setdefault(x, {}).setdefault(name, y)
    if len(found) > MOST_ROWS:
        return ""
    rows = [(x, *(by_name.get(name) for name in chart.series)) for x, by_name in sorted(found.items())]
    cells = [[None if n is None or not math.isfinite(n) else (n, f"{n:.6g}") for n in row] for row in rows]
    table = _table((chart.x_label, *chart.series), cells, {}, chart.y_label)
    return f"<details class=numbers><summary>The numbers</summary>{table}</details>"


def _table(header: Sequence[object], rows: Sequence[Sequence[object]], classes: Mapping[int, str], caption: str) -> str:
    numbers = [_are_numbers([row[n] for row in rows]) for n in range(len(header))]
    marks = [" class=number" if number else "" for number in numbers]
    head = "".join(
        f"<th{mark} scope=col><button type=button>{html.escape(str(cell))}</button></th>"
        for mark, cell in zip(marks, header)
    )
    body = "".join(f"<tr{classes.get(n, '')}>{''.join(map(_cell, row, marks))}</tr>" for n, row in enumerate(rows))
    named = f"<caption>{html.escape(caption)}</caption>" if caption else ""
    return (
        f"<div class=scroll><table class=sortable>{named}<thead><tr>{head}</tr></thead>"
        f"<tbody>{body}</tbody></table></div>"
    )


def _are_numbers(cells: Sequence[object]) -> bool:
    """Whether a column's cells are numbers, or missing; all missing: it is none."""
    return all(cell is None or _value(cell) is not None for cell in cells) and any(cell is not None for cell in cells)


def _value(cell: object) -> float | None:
    if isinstance(cell, tuple):
        cell = cell[0]
    if not isinstance(cell, (int, float)) or isinstance(cell, bool):
        return None
    return float(cell) if math.isfinite(cell) else None


def _cell(cell: object, mark: str) -> str:
    value, shown = _value(cell), cell[1] if isinstance(cell, tuple) else cell
    if cell is None:
        return f"<td{mark}></td>"
    data = "" if value is None else f' data-value="{value!r}"'
    text = html.escape(str(shown))
    return f"<td{mark}{data}>{text}</td>"
