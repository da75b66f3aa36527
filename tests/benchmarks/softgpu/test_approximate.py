"""Special functions: correctly rounded, and within the error that the PTX ISA documents when they are moved."""

from __future__ import annotations

import math
from fractions import Fraction

import mpmath
import numpy as np
import pytest

from tests.benchmarks.softgpu import exact
from tests.benchmarks.softgpu.support import lanes

MODES = (0, 1, -1, 2)
mpmath.mp.prec = 200


def fraction(x) -> Fraction | float:
    """An mpf as what exact.Format encodes."""
    if not mpmath.isfinite(x):
        return math.nan if mpmath.isnan(x) else math.inf if x > 0 else -math.inf
    sign, mantissa, exponent, _ = x._mpf_
    value = mantissa * Fraction(2) ** exponent
    return -value if sign else value


def sine(x):
    return math.nan if x in exact.SPECIAL else mpmath.sin(x)


def cosine(x):
    return math.nan if x in exact.SPECIAL else mpmath.cos(x)


def logarithm(x):
    return math.nan if x < 0 else -math.inf if x == 0 else mpmath.log(x, 2)


def power(x):
    return mpmath.inf if x > 2000 else mpmath.mpf(0) if x < -2000 else mpmath.mpf(2) ** x


def reciprocal(x):
    return 1 / x if x else math.copysign(math.inf, x)


def root(x):
    return math.nan if x < 0 else mpmath.sqrt(x)


def reciprocal_root(x):
    return math.nan if x < 0 else math.copysign(math.inf, x) if x == 0 else 1 / mpmath.sqrt(x)


def ulp(y) -> Fraction:
    """Of float32 at y rounded."""
    nearest = exact.F32.decode(exact.F32.encode(y) & 0x7FFFFFFF)
    exponent = math.frexp(nearest)[1] - 1 if nearest else -126
    return Fraction(2) ** (max(exponent, -126) - 23)


def relative(power_of_2):
    return lambda x, y: abs(y) * Fraction(2.0**power_of_2)


def absolute(power_of_2):
    return lambda x, y: Fraction(2.0**power_of_2)


def ulps(count):
    return lambda x, y: count * ulp(y)


def of_angle(x, y):
    return Fraction(2.0**-20.5 if abs(x) <= 2 * math.pi else 2.0**-14.7)


def of_logarithm(x, y):
    return Fraction(2) ** -22 * (1 if 0.5 < x < 2 else abs(y))


# Function, the error that the ISA documents (absolute, of input and exact result), the inputs' range.
FUNCTIONS = {
    "ex2.approx.f32": (power, ulps(2), (-160, 140)),
    "ex2.approx.ftz.f32": (power, ulps(2), (-160, 140)),
    "lg2.approx.f32": (logarithm, of_logarithm, (0, 4)),
    "lg2.approx.ftz.f32": (logarithm, of_logarithm, (0, 4)),
    "sin.approx.f32": (sine, of_angle, (-300, 300)),
    "sin.approx.ftz.f32": (sine, of_angle, (-7, 7)),
    "cos.approx.f32": (cosine, of_angle, (-300, 300)),
    "cos.approx.ftz.f32": (cosine, of_angle, (-7, 7)),
    "rcp.approx.f32": (reciprocal, ulps(1), (-4, 4)),
    "rcp.approx.ftz.f32": (reciprocal, ulps(1), (-4, 4)),
    "sqrt.approx.f32": (root, relative(-23), (0, 9)),
    "sqrt.approx.ftz.f32": (root, relative(-23), (0, 9)),
    "rsqrt.approx.f32": (reciprocal_root, relative(-22.9), (0, 9)),
    "rsqrt.approx.ftz.f32": (reciprocal_root, relative(-22.9), (0, 9)),
    "tanh.approx.f32": (mpmath.tanh, relative(-11), (-6, 6)),
    "ex2.approx.f16": (power, relative(-9.9), None),
    "ex2.approx.ftz.bf16": (power, relative(-7), None),
    "tanh.approx.f16": (mpmath.tanh, absolute(-10.987), None),
    "tanh.approx.bf16": (mpmath.tanh, absolute(-8), None),
}


def inputs(form, limits) -> np.ndarray:
    """Codes: all of every 29th of 16 bits; of 32 bits special ones, any, and some in a range."""
    if limits is None:
        return np.resize(np.arange(0, 2**16, 29, dtype=np.uint16), 2272)
    rng = np.random.default_rng(9)
    few = rng.uniform(*limits, 600).astype(np.float32).view(np.uint32)
    codes = np.concatenate([few, np.array(exact.special_codes(form), np.uint32), exact.codes(form, rng, 200)])
    return np.resize(codes, (len(codes) + 31) // 32 * 32)


def flushed(form, code):
    return code & form.sign if not code & form.infinity else code


def goes_far_enough(form, code, step, y, error) -> bool:
    """One more step, up (1) or down (-1), would be further from y than `error`: where it stays on y's side of zero."""
    if form.decode(code) in exact.SPECIAL or abs(y) <= max(error, Fraction(2) ** (form.least_exponent + 1)):
        return True
    beyond = form.decode(code + (step if y > 0 else -step))
    return beyond in exact.SPECIAL or abs(beyond - y) * (1 + Fraction(2) ** -40) > error


def results(opcode, codes, mode):
    return lanes(f"{opcode} %d, %a;", {"a": codes}, {"d": codes.dtype}, approx=mode)["d"]


@pytest.mark.parametrize("opcode", FUNCTIONS)
def test_functions(opcode):
    function, error, limits = FUNCTIONS[opcode]
    form, ftz = exact.BY_NAME[opcode.split(".")[-1]], "ftz" in opcode
    codes = inputs(form, limits)
    got = {mode: results(opcode, codes, mode) for mode in MODES}
    np.testing.assert_array_equal(got[2], results(opcode, codes, 2))  # by value: the same again
    moved, sides = dict.fromkeys(MODES, 0), set()
    for k, code in enumerate(codes):
        x = form.decode(flushed(form, int(code)) if ftz else int(code))
        y = math.nan if x != x else function(mpmath.mpf(x.numerator) / x.denominator if isinstance(x, Fraction) else x)
        y = fraction(y) if isinstance(y, mpmath.mpf) else y
        if x == 0 and opcode.startswith(("sin", "tanh", "sqrt")):
            y = math.copysign(0.0, x)
        nearest = form.encode(y)
        wanted = flushed(form, nearest) if ftz else nearest
        assert int(got[0][k]) == wanted, (hex(int(code)), hex(int(got[0][k])), hex(wanted))
        if y != y or y in exact.SPECIAL or x == 0 or x in exact.SPECIAL:
            for mode in MODES:  # the ISA's tables
                assert int(got[mode][k]) == wanted, (mode, hex(int(code)))
            continue
        allowed = error(x, y) * (1 + Fraction(2) ** -40)  # the machine adds the error in float64
        for mode in MODES:
            value = form.decode(int(got[mode][k]))
            assert mode not in (1, -1) or goes_far_enough(form, int(got[mode][k]), mode, y, error(x, y)), hex(int(code))
            if int(got[mode][k]) == wanted:
                continue
            moved[mode] += 1
            sides |= {value > form.decode(wanted)} if mode == 2 else set()
            assert value not in exact.SPECIAL
            distance = Fraction(value) - y
            from_nearest = abs(Fraction(value) - Fraction(form.decode(nearest)))
            tiny = ftz and value == 0 and abs(y) - allowed < Fraction(2) ** form.least_exponent
            assert abs(distance) <= allowed or from_nearest <= allowed or tiny, (mode, hex(int(code)), float(distance))
            if mode in (1, -1):
                assert (Fraction(value) - Fraction(form.decode(wanted))) * mode > 0
    least = len(codes) // 8 if form is exact.F32 else len(codes) // 20
    assert moved[0] == 0
    assert min(moved[1], moved[-1]) > least, moved
    assert moved[2] > least // 2, moved
    assert sides == {True, False}


@pytest.mark.parametrize("opcode", ["ex2.approx.f16", "ex2.approx.ftz.bf16", "tanh.approx.f16", "tanh.approx.bf16"])
@pytest.mark.parametrize("mode", MODES)
def test_packed_functions(opcode, mode):
    codes = np.arange(2**16, dtype=np.uint16)
    pairs = lanes(f"{opcode}x2 %d, %a;", {"a": codes.view(np.uint32)}, {"d": np.uint32}, approx=mode)["d"]
    np.testing.assert_array_equal(pairs.view(np.uint16), results(opcode, codes, mode))


@pytest.mark.parametrize("opcode", ["div.full.f32", "div.full.ftz.f32", "div.approx.f32", "div.approx.ftz.f32"])
def test_quotients(opcode):
    form, ftz = exact.F32, "ftz" in opcode
    rng = np.random.default_rng(10)
    a, b = exact.codes(form, rng, 1024), exact.codes(form, rng, 1024)
    got = {mode: lanes(f"{opcode} %d, %a, %b;", {"a": a, "b": b}, {"d": np.uint32}, approx=mode)["d"] for mode in MODES}
    moved = dict.fromkeys(MODES, 0)
    for k, codes in enumerate(zip(a, b, strict=True)):
        seen = [flushed(form, int(code)) if ftz else int(code) for code in codes]
        x, y = (np.float64(np.array(code, np.uint32).view(np.float32)) for code in seen)
        if "approx" in opcode and 2.0**126 < abs(y) < 2.0**128:
            quotient = (
                math.nan if np.isinf(x) else math.copysign(0.0, x) * math.copysign(1.0, y) if x == x else math.nan
            )
        elif np.isfinite(x) and np.isfinite(y) and x and y:
            quotient = Fraction(float(x)) / Fraction(float(y))
        else:
            with np.errstate(all="ignore"):
                quotient = float(x / y)
        wanted = form.encode(quotient)
        wanted = flushed(form, wanted) if ftz else wanted
        assert int(got[0][k]) == wanted, seen
        for mode in MODES:
            value = form.decode(int(got[mode][k]))
            if mode in (1, -1) and isinstance(quotient, Fraction):
                assert goes_far_enough(form, int(got[mode][k]), mode, quotient, 2 * ulp(quotient)), seen
            if int(got[mode][k]) != wanted:
                moved[mode] += 1
                assert abs(Fraction(value) - quotient) <= 2 * ulp(quotient)
                assert mode not in (1, -1) or (Fraction(value) - Fraction(form.decode(wanted))) * mode > 0
    assert moved[0] == 0
    assert min(moved[1], moved[-1]) > 300, moved
    assert moved[2] > 150, moved
