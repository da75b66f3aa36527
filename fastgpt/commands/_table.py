"""Figures side by side, as plain text that no width of terminal cuts."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Mapping, Sequence


def side_by_side(columns: Sequence[str], rows: Mapping[str, Sequence[str]], *, title: str = "") -> str:
    """A line for each row: what it is, then a cell for each of `columns`. title: of what rows are."""
    what = max(map(len, [title, *rows]))
    widths = [max(len(name), *(len(cells[n]) for cells in rows.values())) for n, name in enumerate(columns)]
    lines = [(title, columns), *rows.items()]
    return "\n".join(
        "  ".join([f"{name:{what}}", *(f"{cell:>{width}}" for cell, width in zip(cells, widths))]).rstrip()
        for name, cells in lines
    )


def note(text: str) -> str:
    """A paragraph, as wide as the terminal, at most 80 columns."""
    return textwrap.fill(text, max(20, min(80, shutil.get_terminal_size().columns)))
