"""Line charts as SVG, which browsers show and nothing need be installed for.

svg = line_chart({"training": [(1, 8.3), (2, 7.9)]}, x_label="step", y_label="nats/token")
two = in_a_row([svg, picture(png_bytes, 400, 320)], title="A training run")
"""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Collection, Mapping, Sequence

Points = Sequence[tuple[float, float]]

COLOURS = ("#1f6feb", "#d1470c", "#2da44e", "#8250df", "#9a6700", "#bf3989", "#57606a", "#0a7d91")
_XMLNS = "http://www.w3.org/2000/svg"


def line_chart(
    series: Mapping[str, Points], *, x_label: str, y_label: str, levels: Mapping[str, float] | None = None,
    log_x: bool = False, log_y: bool = False, bold: Collection[str] = (), size: tuple[int, int] = (720, 320),
) -> str:  # fmt: skip
    """An SVG with a line per series and a dashed horizontal line per level; `bold` names the series that stand out.

    On logarithmic axes each point has a dot, as few are measured.

    Raises:
        ValueError: no finite point in any series.
    """
    levels = levels or {}
    finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in series.items()}
    xs = [x for points in finite.values() for x, _ in points]
    ys = [y for points in finite.values() for _, y in points] + list(levels.values())
    if not xs:
        raise ValueError("line_chart: no finite point in any series; give at least one")
    (width, height), left, bottom, top, right = size, 60, 44, 12, 12
    x_of, y_of = (math.log10 if log else float for log in (log_x, log_y))
    x_low, x_high = x_of(min(xs)), x_of(max(xs))
    x_high = max(x_high, x_low + 1e-9)
    y_low, y_high = y_of(min(ys)), y_of(max(ys))
    pad = 0.05 * (y_high - y_low) or 0.5
    y_low, y_high = y_low - pad, y_high + pad

    def px(x: float) -> float:
        return left + (x_of(x) - x_low) / (x_high - x_low) * (width - left - right)

    def py(y: float) -> float:
        return top + (y_high - y_of(y)) / (y_high - y_low) * (height - top - bottom)

    out = [_opened(width, height)]
    for y in log_ticks(10**y_low, 10**y_high) if log_y else ticks(y_low, y_high):
        out.append(f'<path d="M{left} {py(y):.1f}H{width - right}" stroke="#e4e4e4"/>')
        out.append(f'<text x="{left - 6}" y="{py(y) + 4:.1f}" text-anchor="end">{_short(y)}</text>')
    for x in log_ticks(10**x_low, 10**x_high) if log_x else ticks(x_low, x_high):
        out.append(f'<text x="{px(x):.1f}" y="{height - bottom + 16}" text-anchor="middle">{_short(x)}</text>')
    labels = []
    for n, (name, y) in enumerate(levels.items()):
        colour = COLOURS[(len(series) + n) % len(COLOURS)]
        out.append(f'<path d="M{left} {py(y):.1f}H{width - right}" stroke="{colour}" stroke-dasharray="6 4"/>')
        labels.append((colour, f"{name} ({y:.3f})"))
    for n, (name, points) in enumerate(finite.items()):
        colour = COLOURS[n % len(COLOURS)]
        path = "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in points)
        if path:
            out.append(f'<path d="M{path}" fill="none" stroke="{colour}" stroke-width="{3 if name in bold else 1.6}"/>')
        for x, y in points if log_x or log_y else ():
            out.append(f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="3" fill="{colour}"/>')
        labels.append((colour, name))
    for n, (colour, label) in enumerate(labels):
        y = top + 14 + 17 * n
        place = f'x="{width - right - 8}" y="{y}" text-anchor="end" stroke="#fff" stroke-width="3" paint-order="stroke"'
        out.append(f'<text {place} fill="{colour}">{html.escape(label)}</text>')
    out.append(f'<text x="{(left + width) / 2}" y="{height - 8}" text-anchor="middle">{html.escape(x_label)}</text>')
    out.append(
        f'<text transform="translate(14 {(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle">'
        f"{html.escape(y_label)}</text></svg>"
    )
    return "".join(out)


def _short(number: float) -> str:
    """5e8 as 500M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= max(size, 1e5):
            return f"{number / size:g}{unit}"
    return f"{number:g}"


def _opened(width: int, height: int) -> str:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    return f'<svg xmlns="{_XMLNS}" {size} font-size="12" font-family="system-ui,sans-serif">'


def picture(png: bytes, width: int, height: int) -> str:
    """An SVG that shows a PNG, as large as fits into width x height."""
    image = f'<image href="data:image/png;base64,{base64.b64encode(png).decode()}" width="{width}" height="{height}"/>'
    return f"{_opened(width, height)}{image}</svg>"


def in_a_row(charts: Sequence[str], title: str) -> str:
    """One SVG, white, of several that this module made, in a row below a title."""
    sizes = [tuple(map(int, re.findall(r'width="(\d+)" height="(\d+)"', chart)[0])) for chart in charts]
    width, height = sum(w for w, _ in sizes), max(h for _, h in sizes) + 30
    out = [_opened(width, height), '<path fill="#fff" d="M0 0H9999V9999H0z"/>']
    out.append(f'<text x="{width / 2:g}" y="20" text-anchor="middle" font-size="14">{html.escape(title)}</text>')
    left = 0
    for chart, (chart_width, _) in zip(charts, sizes):
        out.append(f'<g transform="translate({left} 30)">{chart}</g>')
        left += chart_width
    return "".join([*out, "</svg>"])


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers between low and high: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(power * factor for factor in (1, 2, 5, 10) if power * factor >= raw)
    first = math.ceil(low / step)
    return [round(n * step, 12) for n in range(first, math.floor(high / step) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Powers of ten between low and high, or, where those are few, 1, 2 and 5 times them."""
    powers = range(math.floor(math.log10(low)), math.ceil(math.log10(high)) + 1)
    for factors in ((1,), (1, 2, 5)):
        found = [factor * 10.0**power for power in powers for factor in factors if low <= factor * 10.0**power <= high]
        if len(found) > 2:
            break
    return found
