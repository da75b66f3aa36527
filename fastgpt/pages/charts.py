"""Line charts as SVG, which browsers show and nothing need be installed for.

chart = Chart({"training": [(1, 8.3), (2, 7.9)]}, title="Loss", x_label="step", y_label="loss, nats per token")
svg = chart.svg((720, 340))                      # for a page, in its colours
svg = line_chart({"training": [(1, 8.3), (2, 7.9)]}, x_label="step", y_label="nats/token")
two = in_a_row([svg, picture(png_bytes, 400, 320)], title="A training run")
"""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field

Points = Sequence[tuple[float, float]]

COLOURS = ("#1f6feb", "#d1470c", "#2da44e", "#8250df", "#9a6700", "#bf3989", "#57606a", "#0a7d91")
_XMLNS = "http://www.w3.org/2000/svg"


@dataclass(frozen=True)
class Chart:
    """Lines or points over two axes; `svg` draws it in any size.

    series   name -> points (x, y), a line each; points that are not finite are left out
    title    what it shows, read out by screen readers too
    levels   name -> y: dashed horizontal lines
    bold     names of the series that stand out
    dashed   names of the series that are fits or claims, not measured points: broken lines without dots
    spans    name -> (x, low, high): a vertical bar at a point, such as an interval or the range over seeds
    dots     a dot at each point; None: where an axis is logarithmic, as few are measured

    Raises:
        ValueError: no finite point in any series.
    """

    series: Mapping[str, Points]
    title: str
    x_label: str
    y_label: str
    levels: Mapping[str, float] = field(default_factory=dict)
    log_x: bool = False
    log_y: bool = False
    bold: Collection[str] = ()
    dashed: Collection[str] = ()
    spans: Mapping[str, Sequence[tuple[float, float, float]]] = field(default_factory=dict)
    dots: bool | None = None

    def __post_init__(self) -> None:
        if not any(math.isfinite(y) for points in self.series.values() for _, y in points):
            raise ValueError("Chart: no finite point in any series; give at least one")

    def svg(self, size: tuple[int, int] = (720, 320), *, standalone: bool = False) -> str:
        """An SVG of `size` pixels. standalone: with colours of its own, for light paper; else it takes a page's."""
        finite = {name: [(x, y) for x, y in points if math.isfinite(y)] for name, points in self.series.items()}
        spans = [span for some in self.spans.values() for span in some]
        xs = [x for points in finite.values() for x, _ in points]
        ys = [y for points in finite.values() for _, y in points] + list(self.levels.values())
        ys += [y for _, low, high in spans for y in (low, high)]
        (width, height), left, bottom, top, right = size, 60, 44, 12, 12
        x_of, y_of = (math.log10 if log else float for log in (self.log_x, self.log_y))
        x_low, x_high = x_of(min(xs)), x_of(max(xs))
        x_high = max(x_high, x_low + 1e-9)
        y_low, y_high = y_of(min(ys)), y_of(max(ys))
        pad = 0.05 * (y_high - y_low) or 0.5
        y_low, y_high = y_low - pad, y_high + pad
        colours = COLOURS if standalone else [f"var(--s{n})" for n in range(len(COLOURS))]
        line, paper = ("#e4e4e4", "#fff") if standalone else ("var(--line)", "var(--paper)")
        ink = "" if standalone else ' fill="var(--ink)"'

        def px(x: float) -> float:
            return left + (x_of(x) - x_low) / (x_high - x_low) * (width - left - right)

        def py(y: float) -> float:
            return top + (y_high - y_of(y)) / (y_high - y_low) * (height - top - bottom)

        out = [_opened(width, height, self.title, ink)]
        for y in log_ticks(10**y_low, 10**y_high) if self.log_y else ticks(y_low, y_high):
            out.append(f'<path d="M{left} {py(y):.1f}H{width - right}" stroke="{line}"/>')
            out.append(f'<text x="{left - 6}" y="{py(y) + 4:.1f}" text-anchor="end">{_short(y)}</text>')
        for x in log_ticks(10**x_low, 10**x_high) if self.log_x else ticks(x_low, x_high):
            out.append(f'<text x="{px(x):.1f}" y="{height - bottom + 16}" text-anchor="middle">{_short(x)}</text>')
        labels = []
        for n, (name, y) in enumerate(self.levels.items()):
            colour = colours[(len(self.series) + n) % len(colours)]
            out.append(f'<path d="M{left} {py(y):.1f}H{width - right}" stroke="{colour}" stroke-dasharray="6 4"/>')
            labels.append((colour, f"{name} ({y:.3f})"))
        dots = (self.log_x or self.log_y) if self.dots is None else self.dots
        for n, (name, points) in enumerate(finite.items()):
            colour = colours[n % len(colours)]
            path = "L".join(f"{px(x):.1f} {py(y):.1f}" for x, y in points)
            if path:
                stroke = f'stroke="{colour}" stroke-width="{3 if name in self.bold else 1.6}"'
                broken = ' stroke-dasharray="3 3"' if name in self.dashed else ""
                out.append(f'<path d="M{path}" fill="none" {stroke}{broken}/>')
            for x, y in points if dots and name not in self.dashed else ():
                out.append(f'<circle cx="{px(x):.1f}" cy="{py(y):.1f}" r="3" fill="{colour}"/>')
            for x, low, high in self.spans.get(name, ()):
                out.append(f'<path d="M{px(x):.1f} {py(low):.1f}V{py(high):.1f}" stroke="{colour}" stroke-width="2"/>')
            labels.append((colour, name))
        for n, (colour, label) in enumerate(labels):
            y = top + 14 + 17 * n
            place = f'x="{width - right - 8}" y="{y}" text-anchor="end"'
            halo = f'stroke="{paper}" stroke-width="3" paint-order="stroke"'
            out.append(f'<text {place} {halo} fill="{colour}">{html.escape(label)}</text>')
        middle = (left + width) / 2
        out.append(f'<text x="{middle}" y="{height - 8}" text-anchor="middle">{html.escape(self.x_label)}</text>')
        out.append(
            f'<text transform="translate(14 {(top + height - bottom) / 2}) rotate(-90)" text-anchor="middle">'
            f"{html.escape(self.y_label)}</text></svg>"
        )
        return "".join(out)


def line_chart(
    series: Mapping[str, Points], *, x_label: str, y_label: str, levels: Mapping[str, float] | None = None,
    log_x: bool = False, log_y: bool = False, bold: Collection[str] = (), size: tuple[int, int] = (720, 320),
) -> str:  # fmt: skip
    """A `Chart` for light paper, as SVG.

    Raises:
        ValueError: no finite point in any series.
    """
    chart = Chart(series, "", x_label, y_label, levels or {}, log_x=log_x, log_y=log_y, bold=bold)
    return chart.svg(size, standalone=True)


def _short(number: float) -> str:
    """5e8 as 500M."""
    for unit, size in (("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if abs(number) >= max(size, 1e5):
            return f"{number / size:g}{unit}"
    return f"{number:g}"


def _opened(width: int, height: int, title: str = "", more: str = "") -> str:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    named = f' role="img"><title>{html.escape(title)}</title>' if title else ">"
    return f'<svg xmlns="{_XMLNS}" {size} font-size="12" font-family="system-ui,sans-serif"{more}{named}'


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
