"""One self-contained HTML page: text, tables, charts; no network, no script but what it carries.

report = Report("A training run")
report.heading("Loss")
report.add(line_chart({"training": [(1, 8.3), (2, 7.9)]}, x_label="step", y_label="nats/token"))
report.save("report.html")
"""

from __future__ import annotations

import html
import os
import platform
import sys
from collections.abc import Sequence
from pathlib import Path

from ..base import files

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: 13px } td, th { padding: 3px 10px; border-bottom: 1px solid #ddd }
th { text-align: left; background: #f4f4f4 } td { font-variant-numeric: tabular-nums }
pre { background: #f6f6f4; padding: 1rem; white-space: pre-wrap; overflow-wrap: anywhere }
svg { max-width: 100%; height: auto } .bad { color: #b00; font-weight: bold }
"""


class Report:
    """Collects pieces of a page; text that comes from outside is escaped."""

    def __init__(self, title: str) -> None:
        self.title = title
        self._parts: list[str] = []

    def add(self, markup: str) -> None:
        """Append HTML as it is."""
        self._parts.append(markup)

    def heading(self, text: str) -> None:
        self.add(f"<h2>{html.escape(text)}</h2>")

    def paragraph(self, text: str) -> None:
        self.add(f"<p>{html.escape(text)}</p>")

    def preformatted(self, text: str) -> None:
        self.add(f"<pre>{html.escape(text)}</pre>")

    def table(self, header: Sequence[object], rows: Sequence[Sequence[object]], bad: Sequence[int] = ()) -> None:
        """`bad`: numbers of the rows that are shown as failures."""

        def cells(tag: str, row: Sequence[object]) -> str:
            return "".join(f"<{tag}>{html.escape(str(cell))}</{tag}>" for cell in row)

        body = [f"<tr{' class=bad' if n in bad else ''}>{cells('td', row)}</tr>" for n, row in enumerate(rows)]
        self.add(f"<table><thead><tr>{cells('th', header)}</tr></thead><tbody>{''.join(body)}</tbody></table>")

    def html(self) -> str:
        title = html.escape(self.title)
        head = f'<!doctype html><html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
        return f"{head}<style>{_STYLE}</style></head><body><h1>{title}</h1>{''.join(self._parts)}</body></html>\n"

    def save(self, path: str | os.PathLike[str]) -> None:
        """Write the page, whole or not at all.

        Raises:
            OSError: the disk is full or cannot be written.
        """
        files.replace_file(Path(path), lambda new: new.write_text(self.html(), encoding="utf-8"))


def environment() -> list[tuple[str, str]]:
    """(what, version or name) of what the numbers of a report depend on."""
    import torch

    from .._version import __version__
    from ..kernels import support

    rows = [
        ("fastgpt", __version__),
        ("Python", platform.python_version()),
        ("torch", torch.__version__),
    ]
    if support.has_triton():
        import importlib.metadata

        rows.append(("triton", importlib.metadata.version("triton")))
    else:
        rows.append(("triton", "not installed"))
    if torch.cuda.is_available():
        rows.append(("GPU", torch.cuda.get_device_name()))
        rows.append(("CUDA", str(torch.version.cuda or torch.version.hip)))
    else:
        rows.append(("GPU", "none"))
    rows.append(("CPU", f"{_cpu_name()}, {os.cpu_count()} cores, {torch.get_num_threads()} threads used"))
    rows.append(("system", f"{platform.system()} {platform.release()}"))
    return rows


def _cpu_name() -> str:
    if sys.platform.startswith("linux"):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor() or platform.machine()
