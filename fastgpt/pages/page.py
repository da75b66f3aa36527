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
import os
from collections.abc import Iterable, Sequence
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from ..base import files
from .provenance import environment, made_by

if TYPE_CHECKING:
    from .charts import Chart

WIDE, NARROW = (720, 340), (360, 300)  # pixels: each chart is drawn for a screen and for a phone


def asset(name: str, package: str = __package__) -> str:
    """A style or script that lies beside the modules of `package`."""
    return (resources.files(package) / name).read_text(encoding="utf-8")


class Page:
    """Collects pieces of a page; text that comes from outside is escaped."""

    def __init__(self, title: str, lead: str = "") -> None:
        self.title = title
        self._parts: list[str] = []
        self._styles, self._scripts = [asset("page.css")], [asset("tables.js")]
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
        self, header: Sequence[object], rows: Iterable[Sequence[object]], bad: Sequence[int] = (), caption: str = ""
    ) -> None:
        """A table that sorts by the heading that is pressed. `bad`: numbers of the rows that are shown as failures.

        A cell that is a number stands at the right and sorts by its value; (value, text) sorts by value and shows text.
        """
        rows = list(rows)
        numbers = [all(_value(row[n]) is not None for row in rows) for n in range(len(header))] if rows else []
        marks = [" class=number" if number else "" for number in numbers] or [""] * len(header)
        head = "".join(
            f"<th{mark} scope=col><button type=button>{html.escape(str(cell))}</button></th>"
            for mark, cell in zip(marks, header)
        )
        body = "".join(
            f"<tr{' class=bad' if n in bad else ''}>{''.join(map(_cell, row, marks))}</tr>"
            for n, row in enumerate(rows)
        )
        named = f"<caption>{html.escape(caption)}</caption>" if caption else ""
        self.add(
            f"<div class=scroll><table class=sortable>{named}<thead><tr>{head}</tr></thead>"
            f"<tbody>{body}</tbody></table></div>"
        )

    def chart(self, chart: Chart, caption: str = "") -> None:
        """A chart, twice: for a wide screen and for a phone, each with text of a size that can be read there."""
        drawn = "".join(
            f"<div class={name}>{chart.svg(size)}</div>" for name, size in (("wide", WIDE), ("narrow", NARROW))
        )
        below = f"<figcaption>{html.escape(caption)}</figcaption>" if caption else ""
        self.add(f"<figure>{drawn}{below}</figure>")

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


def _value(cell: object) -> float | None:
    if isinstance(cell, tuple):
        cell = cell[0]
    return float(cell) if isinstance(cell, (int, float)) and not isinstance(cell, bool) else None


def _cell(cell: object, mark: str) -> str:
    value, shown = _value(cell), cell[1] if isinstance(cell, tuple) else cell
    data = "" if value is None else f' data-value="{value!r}"'
    text = html.escape(str(shown))
    return f"<td{mark}{data}>{text}</td>"
