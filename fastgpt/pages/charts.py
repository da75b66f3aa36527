"""Line charts as SVG, which browsers show and nothing need be installed for.

chart = Chart({"training": [(1, 8.3), (2, 7.9)]}, title="Loss", x_label="step", y_label="loss, nats per token")
svg = chart.svg((720, 340))                      # for a page, in its colours
two = in_a_row([chart.svg(standalone=True), picture(png_bytes, 400, 320)], title="A training run")
"""

from __future__ import annotations

import base64
import html
import math
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from .axes import Axis, inside, short, text_width, wrapped
from .legend import Look, colour, legend

Points = Sequence[tuple[float, float]]

_XMLNS = "http://www.w3.org/2000/svg"

_TITLE = 14  # pixels

_FEW = 40  # points of a line, of which each is drawn as a dot

_MARKS = 5  # dots on a line of more points: by their shape it is known without its colour


@dataclass(frozen=True)
class Chart:
    """Lines or points over two axes; `svg` draws it in any size.

    series   name -> points (x, y), a line each; points that are not finite (on a logarithmic axis: not above 0) are
             left out
    title    what it shows, read out by screen readers too
    levels   name -> y: dashed horizontal lines
    bold     names of the series that stand out
    dashed   names of the series that are fits or claims, not measured points: broken lines without dots
    like     name -> the series whose colour it has, as a fit has that of its points
    spans    name -> (x, low, high): a vertical bar at a point, such as an interval or the range over seeds
    dots     a dot at each point, which says its numbers below the mouse; None: where a line has few

    Raises:
        ValueError: no point in any series that can be drawn.
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
    like: Mapping[str, str] = field(default_factory=dict)
    spans: Mapping[str, Sequence[tuple[float, float, float]]] = field(default_factory=dict)
    dots: bool | None = None

    def __post_init__(self) -> None:
        if not any(self._drawn(points) for points in self.series.values()):
            above = ", and above 0 on a logarithmic axis" if self.log_x or self.log_y else ""
            raise ValueError(f"Chart: no finite point in any series; give at least one{above}")

    def _drawn(self, points: Points) -> list[tuple[float, float]]:
        return [(x, y) for x, y in points if _is_on(x, self.log_x) and _is_on(y, self.log_y)]

    def svg(self, size: tuple[int, int] = (720, 320), *, standalone: bool = False) -> str:
        """An SVG, `size` pixels wide and high, and as much higher as the legend below takes.

        standalone: with colours of its own, on light paper; else it takes a page's.
        """
        (width, height), right = size, 14
        series = {name: self._drawn(points) for name, points in self.series.items()}
        spans = {name: [s for s in some if len(self._drawn([s[:2], s[::2]])) == 2] for name, some in self.spans.items()}
        levels = {name: y for name, y in self.levels.items() if _is_on(y, self.log_y)}
        xs = [x for points in series.values() for x, _ in points]
        xs += [x for name, some in spans.items() if name in series for x, _, _ in some]
        ys = [y for points in series.values() for _, y in points] + list(levels.values())
        ys += [y for name, some in spans.items() if name in series for _, *ends in some for y in ends]

        heading, y_label = wrapped(self.title, width - 16, 1.1 * _TITLE), wrapped(self.y_label, width - 16)
        x_label = wrapped(self.x_label, width - 16)
        top = 10 + 19 * len(heading) + 16 * len(y_label) + 6
        bottom = height - 26 - 16 * len(x_label)
        y_axis = Axis(ys, bottom, top, log=self.log_y, pad=0.05)
        y_ticks = y_axis.ticks(horizontal=False)
        left = 14 + math.ceil(max(text_width(label) for _, label in y_ticks))
        x_axis = Axis(xs, left, width - right, log=self.log_x, pad=0.02)

        line = "#d8dee4" if standalone else "var(--line)"
        out = [
            _text(line_, 8, 18 + 19 * n, f'font-size="{_TITLE}" font-weight="600"') for n, line_ in enumerate(heading)
        ]
        out += [_text(label, 8, 6 + 19 * len(heading) + 16 * (n + 1)) for n, label in enumerate(y_label)]
        for y, label in y_ticks:
            out.append(f'<path d="M{left} {y_axis(y):.1f}H{width - right}" stroke="{line}"/>')
            out.append(_text(label, left - 6, y_axis(y) + 4, 'text-anchor="end"'))
        out.append(f'<path d="M{left} {bottom}H{width - right}" stroke="currentColor"/>')
        edges = (2.0, width - 2.0)
        for x, label in x_axis.ticks(horizontal=True, within=edges):
            out.append(f'<path d="M{x_axis(x):.1f} {bottom}v5" stroke="currentColor"/>')
            middle = inside(x_axis(x), text_width(label) / 2, edges)
            out.append(_text(label, middle, bottom + 18, 'text-anchor="middle"'))
        middle = (left + width - right) / 2
        for n, label in enumerate(x_label):
            middle = inside(middle, text_width(label) / 2, (8, width - 8))
            out.append(_text(label, middle, bottom + 34 + 16 * n, 'text-anchor="middle"'))

        looks = list(self._looks(series, list(levels), standalone))
        for look, y in zip(looks[len(series) :], levels.values()):
            out.append(f'<path d="M{left} {y_axis(y):.1f}H{width - right}" {look.stroke}/>')
        for n, (name, points) in enumerate(series.items()):
            look = looks[n]
            if len(points) > 1:
                path = "L".join(f"{x_axis(x):.1f} {y_axis(y):.1f}" for x, y in points)
                out.append(f'<path d="M{path}" {look.stroke}/>')
            for x, low, high in spans.get(name, ()):
                ends = f"M{x_axis(x):.1f} {y_axis(low):.1f}V{y_axis(high):.1f}"
                caps = "".join(f"M{x_axis(x) - 4:.1f} {y_axis(end):.1f}h8" for end in (low, high))
                out.append(f'<path d="{ends}{caps}" stroke="{look.colour}" stroke-width="1.5"/>')
            for x, y in self._dotted(name, points, n):
                told = f"{name}\n{self.x_label}: {short(x)}\n{self.y_label}: {short(y)}"
                out.append(look.dot(x_axis(x), y_axis(y), told))
        is_said = len(looks) == 1 and looks[0].name.lower() in (self.title.lower(), self.y_label.lower())
        named = [look for look in looks if look.name and not is_said]
        drawn, more = legend(named, 8, height + 2, width - 16)
        paper = f'<path fill="#fff" d="M0 0H{width}V{height + more}H0z"/>' if standalone else ""
        return "".join([_opened(width, int(height + more), self._aloud(), standalone), paper, *out, *drawn, "</svg>"])

    def _looks(self, series: Mapping[str, Points], levels: Sequence[str], standalone: bool) -> Iterator[Look]:
        """How each series is drawn, and each level."""
        places = {name: n for n, name in enumerate(series)}
        for n, (name, points) in enumerate(series.items()):
            shape = n if self._dotted(name, points, n) else None
            dashes = "4 3" if name in self.dashed else ""
            yield Look(
                name,
                colour(places[self.like.get(name, name)], standalone),
                shape,
                dashes,
                3 if name in self.bold else 1.6,
            )
        for n, name in enumerate(levels, len(series)):
            yield Look(f"{name} ({short(self.levels[name], 4)})", colour(n, standalone), None, "7 4", 1.4)

    def _dotted(self, name: str, points: Points, n: int) -> Points:
        """The points that are drawn as dots: all, or some by which the line is told from the others."""
        if len(points) == 1:
            return points
        if name in self.dashed:
            return ()
        if self.dots or (self.dots is None and len(points) <= _FEW):
            return points
        if len(self.series) == 1:
            return ()
        every = max(1, len(points) // _MARKS)
        return points[(every * (n % 4 + 1)) // 5 :: every]

    def _aloud(self) -> str:
        names = ", ".join(filter(None, self.series))
        return f"{self.title}: {names}" if self.title and names else self.title or names


def _is_on(value: float, log: bool) -> bool:
    """Whether an axis can show it."""
    return math.isfinite(value) and (value > 0 or not log)


def _text(text: str, x: float, y: float, more: str = "") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}"{f" {more}" if more else ""}>{html.escape(text)}</text>'


def _opened(width: int, height: int, aloud: str = "", standalone: bool = True) -> str:
    size = f'width="{width}" height="{height}" viewBox="0 0 {width} {height}"'
    named = f' role="img" aria-label="{html.escape(aloud)}"' if aloud else ""
    ink = "#1f2328" if standalone else "var(--ink)"
    font = 'font-size="12" font-family="system-ui,sans-serif"'
    return f'<svg xmlns="{_XMLNS}" {size} {font} fill="{ink}" color="{ink}"{named}>'


def picture(png: bytes, width: int, height: int) -> str:
    """An SVG that shows a PNG, as large as fits into width x height."""
    image = f'<image href="data:image/png;base64,{base64.b64encode(png).decode()}" width="{width}" height="{height}"/>'
    return f"{_opened(width, height)}{image}</svg>"


def in_a_row(charts: Sequence[str], title: str) -> str:
    """One SVG, white, of several that this module made, in a row below a title."""
    sizes = [tuple(map(int, re.findall(r'width="(\d+)" height="(\d+)"', chart)[0])) for chart in charts]
    width, height = sum(w for w, _ in sizes), max(h for _, h in sizes) + 30
    out = [_opened(width, height, title), '<path fill="#fff" d="M0 0H9999V9999H0z"/>']
    out.append(f'<text x="{width / 2:g}" y="20" text-anchor="middle" font-size="14">{html.escape(title)}</text>')
    left = 0
    for chart, (chart_width, _) in zip(charts, sizes):
        out.append(f'<g transform="translate({left} 30)">{chart}</g>')
        left += chart_width
    return "".join([*out, "</svg>"])
