"""Floating-point arithmetic against exact fractions, rounded once, and against IEEE's rules for what is not finite."""

from __future__ import annotations

import math
from fractions import Fraction

import numpy as np
import pytest

from tests.benchmarks.softgpu import exact
from tests.benchmarks.softgpu.support import lanes

COUNT = 512
FORMS = ("f16", "bf16", "f32", "f64")


def operands(form, count, flush=False, seed=0):
    """Codes for each operand, and what an instruction sees of them."""
    rng = np.random.default_rng([seed, form.bits, form.exponent_bits])
    special = np.array(exact.special_codes(form), exact.unsigned(form))
    pairs = [np.repeat(special, len(special)), np.tile(special, len(special))]  # each with each
    pairs.append(special[rng.integers(0, len(special), len(special) ** 2)])
    arrays = [np.concatenate([exact.codes(form, rng, COUNT), pairs[k]]) for k in range(count)]
    arrays = [np.resize(array, (len(array) + 63) // 64 * 64) for array in arrays]
    seen = [[form.decode(flushed(form, int(code)) if flush else int(code)) for code in array] for array in arrays]
    return arrays, seen


def flushed(form, code):
    return code & form.sign if not code & form.infinity else code


def total(a, b, mode="rn"):
    """a + b: exact, or what IEEE says of zeros, infinities and NaN."""
    if isinstance(a, Fraction) and isinstance(b, Fraction) and (a or b):
        s = a + b
        return s if s else (-0.0 if mode == "rm" else Fraction(0))
    if a == 0 and b == 0:
        signs = {math.copysign(1, float(a)), math.copysign(1, float(b))}
        return float(a) if len(signs) == 1 else (-0.0 if mode == "rm" else 0.0)
    if a == 0 or b == 0:  # one is -0.0
        return b if a == 0 else a
    return sum(x if isinstance(x, float) else 0.0 for x in (a, b))  # infinities and NaNs alone


def product(a, b):
    if isinstance(a, Fraction) and isinstance(b, Fraction) and a and b:
        return a * b
    sign = math.copysign(1, float(a > 0) - float(a < 0) or float(a)) * math.copysign(
        1, float(b > 0) - float(b < 0) or float(b)
    )
    if a != a or b != b or (a == 0 and b in exact.SPECIAL) or (b == 0 and a in exact.SPECIAL):
        return math.nan
    return sign * (0.0 if a == 0 or b == 0 else math.inf)


def negated(a):
    return -0.0 if a == 0 and math.copysign(1, float(a)) > 0 else Fraction(0) if a == 0 else -a


def difference(a, b, mode="rn"):
    return total(a, negated(b), mode)


def quotient(a, b):
    if isinstance(a, Fraction) and isinstance(b, Fraction) and a and b:
        return a / b
    if a != a or b != b or (a == 0 and b == 0) or (a in exact.SPECIAL and b in exact.SPECIAL):
        return math.nan
    inverse = math.copysign(math.inf if b == 0 else 0.0, float(b)) if b == 0 or b in exact.SPECIAL else Fraction(1) / b
    return product(a, inverse)


def check(opcode, form, arrays, wanted):
    """`wanted`: codes; of 64 bits any NaN will do."""
    out = lanes(f"{opcode} %d, {', '.join('%' + 'abc'[k] for k in range(len(arrays)))};",
                dict(zip("abc", arrays)), {"d": arrays[-1].dtype})["d"]  # fmt: skip
    for k, code in enumerate(wanted):
        got = int(out[k])
        inputs = [hex(int(a[k])) for a in arrays]
        if form is exact.F64 and form.is_nan(code):
            assert form.is_nan(got), (opcode, inputs, hex(got))
        else:
            assert got == code, (opcode, inputs, hex(got), hex(code))


FUNCTIONS = {
    "add": lambda mode, a, b: total(a, b, mode),
    "sub": lambda mode, a, b: difference(a, b, mode),
    "mul": lambda mode, a, b: product(a, b),
    "fma": lambda mode, a, b, c: total(product(a, b), c, mode),
    "mad": lambda mode, a, b, c: total(product(a, b), c, mode),
    "div": lambda mode, a, b: quotient(a, b),
    "rcp": lambda mode, a: quotient(Fraction(1), a),
}
ARITY = {"fma": 3, "mad": 3, "rcp": 1}


@pytest.mark.parametrize("mode", ["", "rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("name", FUNCTIONS)
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_arithmetic(kind, name, mode):
    if not mode and name in ("fma", "mad", "div", "rcp"):
        return  # these have no default
    form, rounding = exact.BY_NAME[kind], mode or "rn"
    arrays, seen = operands(form, ARITY.get(name, 2))
    wanted = [form.encode(FUNCTIONS[name](rounding, *values), rounding) for values in zip(*seen)]
    check(".".join(filter(None, (name, mode, kind))), form, arrays, wanted)


@pytest.mark.parametrize("options", [("ftz",), ("sat",), ("ftz", "sat")])
@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
@pytest.mark.parametrize("kind", ["f32", "f16"])
def test_flushing_and_saturation(kind, name, options):
    form = exact.BY_NAME[kind]
    arrays, seen = operands(form, ARITY.get(name, 2), flush="ftz" in options, seed=1)
    wanted = []
    for values in zip(*seen):
        result = FUNCTIONS[name]("rn", *values)
        if "sat" in options:
            result = Fraction(0) if not result > 0 else min(result, Fraction(1))
        code = form.encode(result)
        wanted.append(flushed(form, code) if "ftz" in options else code)
    check(".".join((name, "rn", *options, kind)), form, arrays, wanted)


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma", "fma.relu"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_16_bits_are_rounded_once(kind, name):
    form, relu, name = exact.BY_NAME[kind], name.endswith("relu"), name.removesuffix(".relu")
    arrays, seen = operands(form, ARITY.get(name, 2), seed=2)
    wanted = []
    for values in zip(*seen):
        result = FUNCTIONS[name]("rn", *values)
        wanted.append(form.encode(Fraction(0) if relu and result <= 0 else result))
    opcode = f"{name}.rn.relu.{kind}" if relu else f"{name}.rn.{kind}"
    check(opcode, form, arrays, wanted)
    pairs = [a.view(np.uint32) for a in arrays]
    out = lanes(f"{opcode}x2 %d, {', '.join('%' + 'abc'[k] for k in range(len(pairs)))};", dict(zip("abc", pairs)),
                {"d": np.uint32})["d"]  # fmt: skip
    np.testing.assert_array_equal(out.view(np.uint16), np.array(wanted, np.uint16))


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_a_sum_between_two_of_16_bits(kind):
    """Products whose sum lies next to a tie, on either side: a second rounding would go wrong."""
    form = exact.BY_NAME[kind]
    one, count = form.encode(Fraction(1)), 1 << form.mantissa_bits
    a = np.full(2 * count, one + 1, np.uint16)
    b = np.tile(one + np.arange(count), 2).astype(np.uint16)
    c = np.repeat([1, form.sign | 1], count).astype(np.uint16)  # the least subnormal number
    wanted = [form.encode(form.decode(int(x)) * form.decode(int(y)) + form.decode(int(z))) for x, y, z in zip(a, b, c)]
    check(f"fma.rn.{kind}", form, [a, b, c], wanted)


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_mixed_with_float32(kind):
    form = exact.BY_NAME[kind]
    (a, b), (x, y) = operands(form, 2, seed=3)
    (c,), (z,) = operands(exact.F32, 1, seed=4)
    for mode in ("rn", "rz", "rm", "rp"):
        for name, inputs, values in (("add", {"a": a, "c": c}, (x, z)), ("sub", {"a": a, "c": c}, (x, z)),
                                     ("fma", {"a": a, "b": b, "c": c}, (x, y, z))):  # fmt: skip
            out = lanes(
                f"{name}.{mode}.f32.{kind} %d, {', '.join('%' + k for k in inputs)};", inputs, {"d": np.uint32}
            )["d"]
            wanted = [exact.F32.encode(FUNCTIONS[name](mode, *v), mode) for v in zip(*values)]
            np.testing.assert_array_equal(out, np.array(wanted, np.uint32))


@pytest.mark.parametrize("name", ["add", "sub", "mul", "fma"])
def test_pairs_of_float32(name):
    arrays, seen = operands(exact.F32, ARITY.get(name, 2), seed=5)
    pairs = [a.view(np.uint64) for a in arrays]
    out = lanes(f"{name}.rn.f32x2 %d, {', '.join('%' + 'abc'[k] for k in range(len(pairs)))};", dict(zip("abc", pairs)),
                {"d": np.uint64})["d"]  # fmt: skip
    wanted = [exact.F32.encode(FUNCTIONS[name]("rn", *values)) for values in zip(*seen)]
    np.testing.assert_array_equal(out.view(np.uint32), np.array(wanted, np.uint32))


@pytest.mark.parametrize("mode", ["rn", "rz", "rm", "rp"])
@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_square_roots(kind, mode):
    form = exact.BY_NAME[kind]
    (a,), (values,) = operands(form, 1, seed=6)
    out = lanes(f"sqrt.{mode}.{kind} %d, %a;", {"a": a}, {"d": a.dtype})["d"]
    for k, x in enumerate(values):
        got = int(out[k])
        if x != x or x < 0:
            assert form.is_nan(got)
        elif x == 0 or x == math.inf:
            assert got == int(a[k])
        else:  # bounds of the square, by the neighbours of the result
            root, above = form.decode(got), form.decode(got + 1)
            below = form.decode(got - 1)
            holds = {
                "rn": (root + below) ** 2 <= 4 * x <= (root + above) ** 2,
                "rz": root**2 <= x < above**2,
                "rm": root**2 <= x < above**2,
                "rp": below**2 < x <= root**2,
            }[mode]
            assert holds, (hex(int(a[k])), hex(got))


def extremum(name, options, form, a, b, x, y):
    """The ISA's text. a, b: codes; x, y: their values."""
    sign = 0
    if "xorsign" in options:
        sign = (a ^ b) & form.sign
        a, b, x, y = a & form.nan, b & form.nan, abs(x), abs(y)
    if x != x or y != y:
        if (x != x and y != y) or "NaN" in options:
            return form.nan
        result = b if x != x else a
    else:
        key = lambda code, value: (value, math.copysign(1, -1 if code & form.sign else 1))  # noqa: E731
        pick = (min if name == "min" else max)([(key(a, x), a), (key(b, y), b)])
        result = pick[1]
    return result | sign


@pytest.mark.parametrize("options", [(), ("NaN",), ("xorsign",), ("NaN", "xorsign"), ("ftz",), ("ftz", "NaN")])
@pytest.mark.parametrize("name", ["min", "max"])
@pytest.mark.parametrize("kind", FORMS)
def test_extrema(kind, name, options):
    if ("ftz" in options and kind == "bf16") or (options and kind == "f64"):
        return  # there are none
    form = exact.BY_NAME[kind]
    (a, b), (x, y) = operands(form, 2, flush="ftz" in options, seed=7)
    codes = [[flushed(form, int(c)) if "ftz" in options else int(c) for c in array] for array in (a, b)]
    wanted = [extremum(name, options, form, *values) for values in zip(*codes, x, y)]
    spelled = [{"xorsign": "xorsign.abs"}.get(option, option) for option in options]
    check(".".join((name, *spelled, kind)), form, [a, b], wanted)
    if kind in ("f16", "bf16"):
        inputs = {"a": a.view(np.uint32), "b": b.view(np.uint32)}
        out = lanes(f"{'.'.join((name, *spelled, kind))}x2 %d, %a, %b;", inputs, {"d": np.uint32})["d"]
        np.testing.assert_array_equal(out.view(np.uint16), np.array(wanted, np.uint16))


@pytest.mark.parametrize("options", [(), ("NaN",), ("ftz",), ("ftz", "NaN")])
@pytest.mark.parametrize("name", ["min", "max"])
def test_extrema_of_three(name, options):
    (a, b, c), _ = operands(exact.F32, 3, flush="ftz" in options, seed=9)
    codes = [[flushed(exact.F32, int(x)) if "ftz" in options else int(x) for x in array] for array in (a, b, c)]
    wanted = []
    for x, y, z in zip(*codes):
        values = [exact.F32.decode(code) for code in (x, y, z)]
        first = extremum(name, options, exact.F32, x, y, *values[:2])
        wanted.append(extremum(name, options, exact.F32, first, z, exact.F32.decode(first), values[2]))
    check(".".join((name, *options, "f32")), exact.F32, [a, b, c], wanted)


@pytest.mark.parametrize("kind", FORMS)
def test_signs(kind):
    form = exact.BY_NAME[kind]
    (a, b), _ = operands(form, 2, seed=8)
    x, y = [int(code) for code in a], [int(code) for code in b]
    check(f"neg.{kind}", form, [a], [form.nan if form.is_nan(c) else c ^ form.sign for c in x])
    check(f"abs.{kind}", form, [a], [form.nan if form.is_nan(c) else c & form.nan for c in x])
    if kind in ("f32", "f16"):
        check(
            f"neg.ftz.{kind}",
            form,
            [a],
            [form.nan if form.is_nan(c) else flushed(form, c) ^ form.sign for c in x],
        )
        check(
            f"abs.ftz.{kind}",
            form,
            [a],
            [form.nan if form.is_nan(c) else flushed(form, c) & form.nan for c in x],
        )
    if kind in ("f32", "f64"):
        wanted = [d & form.nan | c & form.sign for c, d in zip(x, y)]
        out = lanes(f"copysign.{kind} %d, %a, %b;", {"a": a, "b": b}, {"d": a.dtype})["d"]
        np.testing.assert_array_equal(out, np.array(wanted, a.dtype))
