"""A chart's axes: where a value stands, which values are named there, and how they are written so that they fit.

x = Axis([1, 4000], 60, 700)
x(2000)                                  # 380.0 pixels
x.ticks(horizontal=True)                 # [(0.0, "0"), (500.0, "500"), ...]: no two of them touch
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Sequence

FONT = 12  # pixels

MOST = 9  # ticks an axis; more are not read


def ticks(low: float, high: float, about: int = 6) -> list[float]:
    """Round numbers between low and high: steps of 1, 2 or 5 times a power of ten."""
    raw = (high - low) / about
    power = 10.0 ** math.floor(math.log10(raw)) if raw > 0 else 1.0
    step = next(power * factor for factor in (1, 2, 5, 10, 20) if power * factor >= raw * (1 - 1e-9))
    first = math.ceil(low / step - 1e-9)
    return [float(f"{n * step:.12g}") for n in range(first, math.floor(high / step + 1e-9) + 1)]


def log_ticks(low: float, high: float, most: int = MOST) -> list[float]:
    """Of numbers 1, 2 and 5 times a power of ten between low and high, or of those powers, as many as are at most
    `most`; round numbers in equal steps where that would be fewer than three."""
    powers = range(math.floor(math.log10(low)), min(math.ceil(math.log10(high)), 307) + 1)
    found: list[float] = []
    for factors in ((1, 2, 5), (1,)):
        every = [float(f"{factor}e{power}") for power in powers for factor in factors]
        found = [number for number in every if low * (1 - 1e-9) <= number <= high * (1 + 1e-9)]
        if len(found) < 3 and len(factors) > 1:
            return ticks(low, high, max(2, most - 2))
        if len(found) <= most:
            return found
    return found[:: math.ceil(len(found) / most)]


def short(number: float, digits: int = 6) -> str:
    """5e8 as 500M, 1e-05 as 1e-5, with at most so many digits."""
    for unit, size in (("T", 1e12), ("G", 1e9), ("M", 1e6), ("k", 1e3)):
        if max(size, 1e5) <= abs(number) < 1e15:
            return f"{number / size:.{digits}g}{unit}"
    mantissa, e, power = f"{number:.{digits}g}".partition("e")
    return f"{mantissa}e{int(power)}" if e else mantissa


def labels(numbers: Sequence[float]) -> list[str]:
    """The numbers, short, with as many digits as tell them apart."""
    found: list[str] = []
    for digits in (6, 9, 12, 17):
        found = [short(number, digits) for number in numbers]
        if len(set(found)) == len(set(numbers)):
            break
    return found


def text_width(text: str, size: float = FONT) -> float:
    """Pixels that a text takes at most, whatever sans-serif font the reader has (CJK: a square a letter)."""
    return size * sum(1.05 if ord(letter) > 0x2E7F or letter in "MWmw@%—" else 0.65 for letter in text)


def wrapped(text: str, width: float, size: float = FONT) -> list[str]:
    """The text in lines of at most `width` pixels, broken at spaces, and within words that are longer than that."""
    lines: list[str] = []
    line = ""
    for word in text.split():
        longer = f"{line} {word}".strip()
        if text_width(longer, size) > width and line:
            lines.append(line)
            longer = word
        while text_width(longer, size) > width and len(longer) > 1:
            cut = max(1, next(n for n in range(len(longer), -1, -1) if text_width(longer[:n], size) <= width))
            lines.append(longer[:cut])
            longer = longer[cut:]
        line = longer
    return [*lines, line] if line else lines


class Axis:
    """An axis over `values`, from pixel `start` to pixel `end`; calling it with a value gives its pixel.

    pad  share of the range that is added at both ends
    log  equal steps for equal factors: `values` are above 0

    Where all values are the same, the axis reaches to both sides of it.
    """

    def __init__(self, values: Iterable[float], start: float, end: float, *, log: bool = False, pad: float = 0.0):
        self.values = sorted(set(values))
        self.start, self.end, self.log = start, end, log
        self.whole = all(float(value).is_integer() for value in self.values)  # there is no layer 1.2, and no step
        low, high = self._scale(self.values[0]), self._scale(self.values[-1])
        if high - low <= 1e-12 * max(abs(low), abs(high)):
            about = 0.1 if log else 0.05 * abs(low) or 0.5
            low, high = low - about, high + about
        self.low, self.high = low - pad * (high - low), high + pad * (high - low)

    def _scale(self, value: float) -> float:
        return math.log10(value) if self.log else float(value)

    def __call__(self, value: float) -> float:
        return self.start + (self._scale(value) - self.low) / (self.high - self.low) * (self.end - self.start)

    def ticks(
        self, *, horizontal: bool, within: tuple[float, float] = (-math.inf, math.inf)
    ) -> list[tuple[float, str]]:
        """(value, label) of as many as stand apart from each other: a line of text from top to bottom, or side by side.

        Few values, each of which is short, are named themselves: the depths 2, 4, 8, 12 rather than round numbers.

        Args:
            within: pixels that labels keep to, side by side.
        """
        found: list[tuple[float, str]] = []
        for numbers in self._candidates(horizontal):
            found = list(zip(numbers, labels(numbers)))
            if len(found) >= 2 and self._fits(found, horizontal, within):
                return found
        return found[:1] or [(self.values[0], short(self.values[0]))]

    def _candidates(self, horizontal: bool) -> Iterator[list[float]]:
        if horizontal and 3 <= len(self.values) < MOST and all(_is_short(value) for value in self.values):
            yield self.values
        for most in range(MOST, 1, -1):
            if self.log:
                yield log_ticks(10**self.low, 10 ** min(self.high, 308), most)
            else:
                found = ticks(self.low, self.high, most)
                yield [tick for tick in found if tick.is_integer()] if horizontal and self.whole else found

    def _fits(self, found: Sequence[tuple[float, str]], horizontal: bool, within: tuple[float, float]) -> bool:
        before = -math.inf
        for value, label in sorted(found, key=lambda tick: self(tick[0])):
            half = text_width(label) / 2 + 4 if horizontal else 0.75 * FONT
            middle = inside(self(value), half, within) if horizontal else self(value)
            if middle - half < before:
                return False
            before = middle + half
        return True


def inside(middle: float, half: float, within: tuple[float, float]) -> float:
    """Where a label of this half width stands, moved from `middle` so that it stays within these pixels."""
    return min(max(middle, within[0] + half), within[1] - half)


def _is_short(value: float) -> bool:
    text = short(value)
    return len(text) <= 5 and float(f"{value:.6g}") == value
