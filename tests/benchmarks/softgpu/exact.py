"""Number formats in exact arithmetic (fractions), by IEEE 754 and the PTX ISA: what the machine is held to."""

from __future__ import annotations

import math
from dataclasses import dataclass
from fractions import Fraction

import numpy as np

SPECIAL = (math.inf, -math.inf)


@dataclass(frozen=True)
class Format:
    exponent_bits: int
    mantissa_bits: int
    has_infinity: bool = True  # without: the greatest code is the only NaN (e4m3)

    @property
    def bits(self) -> int:
        return 1 + self.exponent_bits + self.mantissa_bits

    @property
    def sign(self) -> int:
        return 1 << (self.bits - 1)

    @property
    def nan(self) -> int:
        return self.sign - 1

    @property
    def infinity(self) -> int:
        return ((1 << self.exponent_bits) - 1) << self.mantissa_bits

    @property
    def largest(self) -> int:
        return (self.infinity if self.has_infinity else self.nan) - 1

    @property
    def least_exponent(self) -> int:
        """Of a normal number's leading bit."""
        return 2 - (1 << (self.exponent_bits - 1))

    def is_nan(self, code: int) -> bool:
        return code & self.nan > (self.infinity if self.has_infinity else self.largest)

    def decode(self, code: int) -> Fraction | float:
        """A fraction, or a float that is inf, -inf, -0.0 or NaN."""
        magnitude, negative = code & self.nan, bool(code & self.sign)
        if self.is_nan(code):
            return math.nan
        if self.has_infinity and magnitude == self.infinity:
            return -math.inf if negative else math.inf
        if magnitude == 0:
            return -0.0 if negative else Fraction(0)
        exponent, mantissa = divmod(magnitude, 1 << self.mantissa_bits)
        significand = mantissa + (1 << self.mantissa_bits if exponent else 0)
        value = significand * Fraction(2) ** (max(exponent, 1) - 1 + self.least_exponent - self.mantissa_bits)
        return -value if negative else value

    def encode(self, value: Fraction | float, mode: str = "rn", finite: bool = False) -> int:
        """The code of `value`, rounded once: "rn", "rz", "rm", "rp", "rna". `finite`: .satfinite."""
        if value != value:
            return self.nan
        if value == 0:
            return self.sign if isinstance(value, float) and math.copysign(1, value) < 0 else 0
        sign = self.sign if value < 0 else 0
        too_large = self.largest if finite or not self.has_infinity else self.infinity
        if value in SPECIAL:
            return sign | too_large
        magnitude = abs(Fraction(value))
        exponent = max(magnitude.numerator.bit_length() - magnitude.denominator.bit_length(), self.least_exponent)
        while exponent > self.least_exponent and magnitude < Fraction(2) ** exponent:
            exponent -= 1
        unit = Fraction(2) ** (exponent - self.mantissa_bits)
        count = rounded(magnitude / unit, mode, bool(sign))
        code = count + (exponent - self.least_exponent) * (1 << self.mantissa_bits)
        if code <= self.largest:
            return sign | code
        towards_zero = mode == "rz" or mode == ("rp" if sign else "rm")
        return sign | (self.largest if towards_zero else too_large)


def rounded(magnitude: Fraction, mode: str, negative: bool) -> int:
    """An integer near a magnitude, which has a sign of its own."""
    whole, rest = divmod(magnitude.numerator, magnitude.denominator)
    twice = 2 * Fraction(rest, magnitude.denominator)
    match mode[:2] if mode != "rna" else mode:
        case "rn":
            up = twice > 1 or (twice == 1 and whole % 2 == 1)
        case "rna":
            up = twice >= 1
        case "rz":
            up = False
        case "rm":
            up = negative and rest != 0
        case "rp":
            up = not negative and rest != 0
        case _:
            raise ValueError(mode)
    return whole + up


F16, BF16, F32, F64 = Format(5, 10), Format(8, 7), Format(8, 23), Format(11, 52)
TF32, E4M3, E5M2 = Format(8, 10), Format(4, 3, has_infinity=False), Format(5, 2)
BY_NAME = {"f16": F16, "bf16": BF16, "f32": F32, "f64": F64, "tf32": TF32, "e4m3": E4M3, "e5m2": E5M2}


def unsigned(form: Format) -> type[np.unsignedinteger]:
    return {16: np.uint16, 32: np.uint32, 64: np.uint64}[form.bits]


def special_codes(form: Format) -> list[int]:
    """Zeros, ones, the least and the greatest of each kind, infinities, NaNs, and halves between integers."""
    ones = form.encode(Fraction(1))
    magnitudes = [0, 1, 2, (1 << form.mantissa_bits) - 1, 1 << form.mantissa_bits, (1 << form.mantissa_bits) + 1,
                  ones - 1, ones, ones + 1, form.largest - 1, form.largest, form.infinity, form.infinity + 1, form.nan,
                  *(form.encode(Fraction(k, 2)) for k in (1, 3, 5, 7))]  # fmt: skip
    return [sign | code for code in magnitudes for sign in (0, form.sign)]


def codes(form: Format, rng: np.random.Generator, count: int) -> np.ndarray:
    """Codes of a format: special ones, any bits, and numbers near 1, whose sums cancel."""
    special = np.array(special_codes(form), np.uint64)
    near = (form.least_exponent * -1 + rng.integers(-3, 4, count)).astype(np.uint64)  # exponents around 0
    near = (near << np.uint64(form.mantissa_bits)) | rng.integers(0, 1 << form.mantissa_bits, count, np.uint64)
    near |= np.where(rng.random(count) < 0.5, np.uint64(form.sign), np.uint64(0))
    anything = (
        rng.integers(0, 1 << form.bits, count, np.uint64)
        if form.bits < 64
        else rng.integers(0, 2**64, count, np.uint64)
    )
    pick = rng.integers(0, 4, count)
    chosen = np.where(pick == 0, special[rng.integers(0, len(special), count)], np.where(pick == 1, anything, near))
    return chosen.astype(unsigned(form))
