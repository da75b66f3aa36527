"""How a chart tells its lines apart: colours, shapes of their points, broken lines; and the legend that names them."""

from __future__ import annotations

import html
from collections.abc import Sequence
from dataclasses import dataclass

from .axes import text_width, wrapped

COLOURS = ("#1f6feb", "#c4400a", "#1f883d", "#8250df", "#8a6100", "#bf3989", "#57606a", "#0a7d91")  # page.css: --s0 ...

_ROW, _SAMPLE = 18, 34  # pixels: a line of the legend; the piece of a line before each name, and the gap to the next

_SHAPES = (
    '<circle cx="{x:.1f}" cy="{y:.1f}" r="3.2" {filled}>',
    '<path d="M{x:.1f} {y:.1f}m-3-3h6v6h-6z" {filled}>',
    '<path d="M{x:.1f} {y:.1f}m0-4l4 7h-8z" {filled}>',
    '<path d="M{x:.1f} {y:.1f}m0-4.5l4 4.5-4 4.5-4-4.5z" {filled}>',
    '<path d="M{x:.1f} {y:.1f}m0 4l4-7h-8z" {filled}>',
    '<path d="M{x:.1f} {y:.1f}m-4-4l8 8m-8 0l8-8" stroke="{colour}" stroke-width="2" class="dot">',
)


@dataclass(frozen=True)
class Look:
    """Of one line: the colour and, for who cannot tell colours apart, the shape of its points and how it is broken.

    name     as the legend says it
    shape    which of the shapes; None: no points
    dashes   "" or lengths of dashes and gaps, pixels
    """

    name: str
    colour: str
    shape: int | None = None
    dashes: str = ""
    width: float = 1.6

    @property
    def stroke(self) -> str:
        broken = f' stroke-dasharray="{self.dashes}"' if self.dashes else ""
        return f'fill="none" stroke="{self.colour}" stroke-width="{self.width}"{broken}'

    def dot(self, x: float, y: float, told: str = "") -> str:
        """Its point at these pixels; `told` appears below the mouse."""
        shape = _SHAPES[(self.shape or 0) % len(_SHAPES)]
        drawn = shape.format(x=x, y=y, colour=self.colour, filled=f'fill="{self.colour}" class="dot"')
        title = f"<title>{html.escape(told)}</title>" if told else ""
        return f"{drawn}{title}{'</circle>' if drawn.startswith('<circle') else '</path>'}"


def colour(n: int, standalone: bool) -> str:
    """Of the n-th line: a page's own, or one for light paper."""
    return COLOURS[n % len(COLOURS)] if standalone else f"var(--s{n % len(COLOURS)})"


def legend(looks: Sequence[Look], left: float, top: float, width: float) -> tuple[list[str], float]:
    """(SVG, its height in pixels) of the names, each behind a piece of its line, in as many rows as they need."""
    out: list[str] = []
    x, row = left, 0
    for look in looks:
        lines = wrapped(look.name, width - _SAMPLE)
        wide = _SAMPLE + max(map(text_width, lines), default=0)
        if x > left and x + wide > left + width:
            x, row = left, row + 1
        y = top + row * _ROW + 12
        out.append(f'<path d="M{x:.1f} {y - 4:.1f}h24" {look.stroke}/>')
        if look.shape is not None:
            out.append(look.dot(x + 12, y - 4))
        for n, line in enumerate(lines):
            out.append(f'<text x="{x + 29:.1f}" y="{y + n * _ROW:.1f}">{html.escape(line)}</text>')
        x += wide + 12
        if len(lines) > 1:
            x, row = left, row + len(lines)
    rows = row + (x > left)
    return out, rows * _ROW + (4 if rows else 0)
