"""One self-contained HTML page: text, tables, line charts; no network, no script but what it carries.

report = Report("A training run")
report.heading("Loss")
report.add(line_chart({"training": [(1, 8.3), (2, 7.9)]}, x_label="step", y_label="nats/token"))
report.save("report.html")
"""

from __future__ import annotations

import html
import math
import os
import platform
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

Points = Sequence[tuple[float, float]]

_STYLE = """
body { font: 15px/1.5 system-ui, sans-serif; max-width: 64rem; margin: 2rem auto; padding: 0 1rem; color: #222 }
table { border-collapse: collapse; font-size: 13px } td, th { padding: 3px 10px; border-bottom: 1px solid #ddd }
th { text-align: left; background: #f4f4f4 } td { font-variant-numeric: tabular-nums }
pre { background: #f6f6f4; padding: 1rem; white-space: pre-wrap; overflow-wrap: anywhere }
svg { max-width: 100%; height: auto } .bad { color: #b00; font-weight: bold }
"""

_COLOURS = ("#1f6feb", "#d1470c", "#2da44e", "#8250df", "#9a6700")


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
        """Write the page under a temporary name, then rename it."""
        path = Path(path)
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(path.name + ".tmp")
        temporary.write_text(self.html(), encoding="utf-8")
        os.replace(temporary, path)


def line_chart(
    series: Mapping[str, Points], *, x_label: str, y_label: str, levels: Mapping[str, float] | None = None
) -> str:
    """An SVG with a line per series and a dashed horizontal line per level.

    Raises:
        ValueError: no finite point in any series.
    """
    levels = levels or {}
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points] + list(levels.values())
    if not xs:
        raise ValueError("line_chart: no finite point in any series; give at least one")
    width, height, left, bottom, top, right = 720, 320, 60, 44, 12, 12
    x_low, x_high = min(xs), max(max(xs), min(xs) + 1e-9)
    y_low, y_high = min(ys), max(ys)
    pad = 0.05 * (y_high - y_low) or 0.5
    y_low, y_high = y_low - pad, y_high + pad

    def px(x: float) -> float:
        return left + (x - x_low) / (x_high - x_low) * (width - left - right)

    def py(y: float) -> float:
        return top + (y_high - y) / (y_high - y_low) * (height - top - bottom)

    out = [f'<svg viewBox="0 0 {width} {height}" width="{width}" font-size="12" font-family="system-ui,sans-serif">']
    for y in ticks(y_low, y_high):
        out.append(f'<path d="M{left} {py(y):.1f}H{width - right}" stroke="#e4e4e4"/>')
        out.append(f'<text x="{left - 6}" y="{py(y) + 4:.1f}" text-anchor="end">{y:g}</text>')
    for x in ticks(x_low, x_high):
        out.append(f'<text x="{px(x):.1f}" y="{height - bottom + 16}" text-anchor="middle">{x:g}</text>')
    labels = []
    for n, (name, y) in enumerate(levels.items()):
        colour = _COLOURS[(len(series) + n) % len(_COLOURS)]
        out.append(f'<path d="M{left} {py(y):.1f}H{width - right}" stroke="{colour}" stroke-dasharray="6 4"/>')
        labels.append((colour, f"{name} ({y:.3f})"))
    for n, (name, points) in enumerate(finite.items()):
        colour = _COLOURS[n % len(_COLOURS)]
        path = "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in points)
        if path:
            out.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="1.6"/>')
        labels.append((colour, name))
    for n, (colour, label) in enumerate(labels):
        y = top + 14 + 17 * n
        out.append(
            f'<text x="{width - right - 8}" y="{y}" text-anchor="end" fill="{colour}">{html.escape(label)}</text>'
        )
    out.append(f'<text x="{(left + width) / 2}" y="{height - 8}" text-anchor="middle">{html.escape(x_label)}</text>')
    out.append(
        f'<text transform="translate(14 {(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y_label)}</text></svg>"
    )
    return "".join(out)


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers between low and high: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step)
    return [round(n * step, 12) for n in range(first, math.floor(high / step) + 1)]


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
