"""Comparisons, logic of predicates, choices and moves; what they make of values that nobody wrote."""

from __future__ import annotations

import operator

import numpy as np
import pytest

from tests.benchmarks.softgpu import exact
from tests.benchmarks.softgpu.support import kernel, kinds, lanes

COUNT = 512
RNG = np.random.default_rng(11)
ORDERED = {
    "eq": operator.eq,
    "ne": operator.ne,
    "lt": operator.lt,
    "le": operator.le,
    "gt": operator.gt,
    "ge": operator.ge,
}
UNSIGNED = {"lo": operator.lt, "ls": operator.le, "hi": operator.gt, "hs": operator.ge}
COMBINATIONS = {"": lambda t, c: t, ".and": np.logical_and, ".or": np.logical_or, ".xor": np.logical_xor}
INTEGERS = {"s16": np.int16, "u16": np.uint16, "s32": np.int32, "u32": np.uint32, "s64": np.int64, "u64": np.uint64,
            "b16": np.uint16, "b32": np.uint32, "b64": np.uint64}  # fmt: skip


def integers(dtype):
    """Two arrays, equal in places, with the ends of the type."""
    ends = np.iinfo(dtype)
    values = np.array([ends.min, ends.max, 0, 1, ends.max // 2 + 1], dtype)
    a, b = RNG.integers(ends.min, ends.max, (2, COUNT), dtype, endpoint=True)
    a = np.where(RNG.random(COUNT) < 0.3, values[RNG.integers(0, 5, COUNT)], a)
    b = np.where(RNG.random(COUNT) < 0.3, a, np.where(RNG.random(COUNT) < 0.3, values[RNG.integers(0, 5, COUNT)], b))
    return a, b


def compared(name, x, y):
    """Of floats: names that end in u are true if an operand is NaN, the others false."""
    unordered = np.isnan(x) | np.isnan(y)
    if name in ("num", "nan"):
        return ~unordered if name == "num" else unordered
    holds = ORDERED[name.removesuffix("u")](x, y)
    return holds | unordered if name.endswith("u") else holds & ~unordered


FLOAT_NAMES = [*ORDERED, *(name + "u" for name in ORDERED), "num", "nan"]


def floats(kind, flush=False):
    """Codes and their values in float64."""
    form = exact.BY_NAME[kind]
    a, b = (exact.codes(form, RNG, COUNT) for _ in range(2))
    b = np.where(RNG.random(COUNT) < 0.2, a, b)
    values = []
    for array in (a, b):
        values.append(np.array([float(form.decode(int(code))) for code in array]))
        if flush:
            values[-1] = np.where(np.abs(values[-1]) < 2.0**form.least_exponent, 0.0, values[-1])
    return a, b, *values


@pytest.mark.parametrize("combination", COMBINATIONS)
@pytest.mark.parametrize("kind", INTEGERS)
def test_integers(kind, combination):
    a, b = integers(INTEGERS[kind])
    c = RNG.random(COUNT) < 0.5
    names = {name: ORDERED[name] for name in ("eq", "ne")} if kind[0] == "b" else ORDERED
    for name, function in {**names, **(UNSIGNED if kind[0] == "u" else {})}.items():
        third = ", %c" if combination else ""
        opcode = f"setp.{name}{combination}.{kind}"
        body = f"{opcode} %p|%q, %a, %b{third}; {opcode} %r, %a, %b{third};"
        out = lanes(body, {"a": a, "b": b, "c": c}, {"p": bool, "q": bool, "r": bool})
        holds = function(a, b)
        np.testing.assert_array_equal(out["p"], COMBINATIONS[combination](holds, c))
        np.testing.assert_array_equal(out["q"], COMBINATIONS[combination](~holds, c))
        np.testing.assert_array_equal(out["r"], out["p"])


@pytest.mark.parametrize("kind", ["f32", "ftz.f32", "f64", "f16", "ftz.f16", "bf16"])
def test_floats(kind):
    a, b, x, y = floats(kind.removeprefix("ftz."), kind.startswith("ftz"))
    c = RNG.random(COUNT) < 0.5
    for name in FLOAT_NAMES:
        out = lanes(f"setp.{name}.{kind} %p|%q, %a, %b; setp.{name}.and.{kind} %r, %a, %b, !%c;",
                    {"a": a, "b": b, "c": c}, {"p": bool, "q": bool, "r": bool})  # fmt: skip
        holds = compared(name, x, y)
        np.testing.assert_array_equal(out["p"], holds)
        np.testing.assert_array_equal(out["q"], ~holds)
        np.testing.assert_array_equal(out["r"], holds & ~c)


@pytest.mark.parametrize("kind", ["f16x2", "ftz.f16x2", "bf16x2"])
def test_packed_floats(kind):
    """p: the low halves, q: the high ones."""
    a, b, x, y = floats(kind.removesuffix("x2").removeprefix("ftz."), kind.startswith("ftz"))
    c = RNG.random(COUNT // 2) < 0.5
    for name in FLOAT_NAMES:
        for combination, combine in COMBINATIONS.items():
            third = ", %c" if combination else ""
            out = lanes(f"setp.{name}{combination}.{kind} %p|%q, %a, %b{third};",
                        {"a": a.view(np.uint32), "b": b.view(np.uint32), "c": c}, {"p": bool, "q": bool})  # fmt: skip
            holds = compared(name, x, y)
            np.testing.assert_array_equal(out["p"], combine(holds[::2], c))
            np.testing.assert_array_equal(out["q"], combine(holds[1::2], c))


def test_set():
    a, b = integers(np.int32)
    f, g, x, y = floats("f32")
    h, k, u, v = floats("f16")
    c = RNG.random(COUNT) < 0.5
    body = """
    set.lt.u32.s32 %d, %a, %b; set.lt.f32.s32 %e, %a, %b;
    set.geu.and.s32.f32 %i, %f, %g, %c; set.ne.or.f32.f32 %j, %f, %g, %c;
    set.le.f16.f16 %l, %h, %k; set.gt.u16.f16 %m, %h, %k; set.lt.bf16.f16 %n, %h, %k; set.num.u32.f16 %o, %h, %k;
    """
    outputs = dict.fromkeys("deijo", np.uint32) | dict.fromkeys("lmn", np.uint16)
    out = lanes(body, {"a": a, "b": b, "f": f, "g": g, "h": h, "k": k, "c": c}, outputs)
    full, one = 0xFFFFFFFF, 0x3F800000
    wanted = {
        "d": (a < b, full), "e": (a < b, one),
        "i": (compared("geu", x, y) & c, full), "j": (compared("ne", x, y) | c, one),
        "l": (compared("le", u, v), 0x3C00), "m": (compared("gt", u, v), 0xFFFF), "n": (compared("lt", u, v), 0x3F80),
        "o": (compared("num", u, v), full),
    }  # fmt: skip
    for name, (holds, true) in wanted.items():
        np.testing.assert_array_equal(out[name], np.where(holds, true, 0), err_msg=name)
    out = lanes("set.lt.f16x2.f16x2 %d, %a, %b;", {"a": h.view(np.uint32), "b": k.view(np.uint32)}, {"d": np.uint32})
    np.testing.assert_array_equal(out["d"].view(np.uint16), np.where(compared("lt", u, v), 0x3C00, 0))


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_classes(kind):
    a, _, x, _ = floats(kind)
    least = 2.0 ** exact.BY_NAME[kind].least_exponent
    classes = {
        "finite": np.isfinite(x), "infinite": np.isinf(x), "number": ~np.isnan(x), "notanumber": np.isnan(x),
        "normal": np.isfinite(x) & (np.abs(x) >= least), "subnormal": (x != 0) & (np.abs(x) < least),
    }  # fmt: skip
    for name, wanted in classes.items():
        np.testing.assert_array_equal(lanes(f"testp.{name}.{kind} %p, %a;", {"a": a}, {"p": bool})["p"], wanted)


def test_logic_of_predicates():
    a, b = RNG.random((2, COUNT)) < 0.5
    body = """and.pred %d, %a, %b; or.pred %e, %a, !%b; xor.pred %f, %a, %b;
    not.pred %g, %a; mov.pred %h, %a; mov.pred %i, 1;"""
    out = lanes(body, {"a": a, "b": b}, dict.fromkeys("defghi", bool))
    wanted = {"d": a & b, "e": a | ~b, "f": a ^ b, "g": ~a, "h": a, "i": a | True}
    for name, values in wanted.items():
        np.testing.assert_array_equal(out[name], values, err_msg=name)


@pytest.mark.parametrize("kind", ["b16", "u16", "s16", "b32", "u32", "s32", "f32", "b64", "u64", "s64", "f64"])
def test_choices(kind):
    dtype = {16: np.uint16, 32: np.uint32, 64: np.uint64}[int(kind[1:])]
    a, b = integers(dtype)
    p = RNG.random(COUNT) < 0.5
    c = np.where(RNG.random(COUNT) < 0.1, 0, integers(np.int32)[0]).astype(np.int32)
    f, _, x, _ = floats("f32")
    inputs = {"a": a, "b": b, "p": p, "c": c, "f": f}
    body = f"""selp.{kind} %d, %a, %b, %p; slct.{kind}.s32 %e, %a, %b, %c; slct.{kind}.f32 %g, %a, %b, %f;
    slct.ftz.{kind}.f32 %h, %a, %b, %f;"""
    out = lanes(body, inputs, dict.fromkeys("degh", dtype))
    np.testing.assert_array_equal(out["d"], np.where(p, a, b))
    np.testing.assert_array_equal(out["e"], np.where(c >= 0, a, b))
    np.testing.assert_array_equal(out["g"], np.where(x >= 0, a, b))
    np.testing.assert_array_equal(out["h"], np.where((x >= 0) | (np.abs(x) < 2.0**-126), a, b))


# ---- moves -----------------------------------------------------------------------------------------------------------


def test_packing_and_unpacking():
    rng = np.random.default_rng(5)
    halves, words = rng.integers(0, 2**16, (4, COUNT), np.uint16), rng.integers(0, 2**32, (2, COUNT), np.uint32)
    pair, quad = words[0], words.T.copy().view(np.uint64)[:, 0]
    inputs = {**dict(zip("abcd", halves, strict=True)), "e": words[0], "f": words[1], "p": pair, "q": quad}
    body = """
    mov.b32 %i, {%a, %b}; mov.b64 %j, {%e, %f}; mov.b64 %k, {%a, %b, %c, %d};
    mov.b32 {%l, %m}, %p; mov.b64 {%n, %o}, %q; mov.b64 {%r, _, %s, %t}, %q; mov.b64 {_, %u}, %q;
    mov.b128 %big, {%q, %j}; mov.b128 {%v, %w}, %big;
    """
    sizes = {
        "i": 32,
        "j": 64,
        "k": 64,
        "l": 16,
        "m": 16,
        "n": 32,
        "o": 32,
        "r": 16,
        "s": 16,
        "t": 16,
        "u": 32,
        "v": 64,
        "w": 64,
    }
    types = {16: np.uint16, 32: np.uint32, 64: np.uint64}
    out = lanes(body, inputs, {name: types[size] for name, size in sizes.items()}, ".reg .b128 %big;")
    parts = quad.view(np.uint16).reshape(COUNT, 4)
    wanted = {
        "i": halves[:2].T.copy().view(np.uint32)[:, 0], "j": quad, "k": halves.T.copy().view(np.uint64)[:, 0],
        "l": pair & 0xFFFF, "m": pair >> 16, "n": words[0], "o": words[1], "r": parts[:, 0], "s": parts[:, 2],
        "t": parts[:, 3], "u": words[1], "v": quad, "w": quad,
    }  # fmt: skip
    for name, values in wanted.items():
        np.testing.assert_array_equal(out[name], values, err_msg=name)


def test_a_part_may_take_the_place_of_the_whole():
    """The source dies where its parts are born: they may share its place in the register file."""
    a = RNG.integers(0, 2**63, COUNT, np.uint64)
    body = "add.u64 %t, %a, 1; mov.b64 {%lo, %hi}, %t; xor.b32 %d, %lo, %hi;"
    out = lanes(body, {"a": a}, {"d": np.uint32}, ".reg .b64 %t; .reg .b32 %lo, %hi;")["d"]
    t = a + np.uint64(1)
    np.testing.assert_array_equal(out, (t ^ (t >> np.uint64(32))).astype(np.uint32))


def test_moves_keep_to_their_lanes():
    a = RNG.integers(0, 2**64, COUNT, np.uint64)
    p = RNG.random(COUNT) < 0.5
    body = "mov.b32 %d, 1; mov.b32 %e, 2; @%p mov.b64 {%d, %e}, %a; mov.b64 %f, 3; @!%p mov.b64 %f, {%e, %d};"
    out = lanes(body, {"a": a, "p": p}, {"d": np.uint32, "e": np.uint32, "f": np.uint64})
    low, high = (a & np.uint64(0xFFFFFFFF)), a >> np.uint64(32)
    np.testing.assert_array_equal(out["d"], np.where(p, low, 1))
    np.testing.assert_array_equal(out["e"], np.where(p, high, 2))
    np.testing.assert_array_equal(out["f"], np.where(p, 3, 1 << 32 | 2))


def test_special_registers_of_another_size():
    inputs, outputs = {"a": np.zeros(64, np.uint32)}, {"d": np.uint16, "e": np.uint64}
    out = lanes("mov.u16 %d, %tid.x; mov.u64 %e, %tid.x;", inputs, outputs, threads=64)
    np.testing.assert_array_equal(out["d"], np.arange(64))
    np.testing.assert_array_equal(out["e"], np.arange(64))


# ---- what nobody wrote -----------------------------------------------------------------------------------------------


def undefined(body, declarations):
    """Kinds of findings of a kernel that stores %d."""
    a = np.zeros(32, np.uint32)
    return kinds(
        kernel(f"{body} mad.wide.u32 %g0, %tid, 4, %g0; st.global.b32 [%g0], %d;", a, declarations=declarations)
    )


REGISTERS = ".reg .b32 %x, %y, %d; .reg .pred %p, %q, %r;"


@pytest.mark.parametrize(
    ("body", "is_found"),
    [
        ("mov.b32 %d, 1;", False),
        ("add.s32 %d, %x, 1;", True),
        ("setp.lt.u32 %p, %tid, 16; selp.b32 %d, %tid, %x, %p;", True),
        ("setp.lt.u32 %p, %tid, 32; selp.b32 %d, %tid, %x, %p;", False),
        ("setp.lt.u32 %p, %tid, 32; selp.b32 %d, %x, %tid, %p;", True),
        ("setp.lt.u32 %p, %x, 16; selp.b32 %d, 1, 2, %p;", True),
        ("slct.b32.s32 %d, %tid, %x, 1;", False),
        ("slct.b32.s32 %d, %tid, %x, -1;", True),
        ("setp.lt.u32 %p, %x, 16; setp.lt.u32 %q, %tid, 0; and.pred %r, %p, %q; selp.b32 %d, 1, 2, %r;", False),
        ("setp.lt.u32 %p, %x, 16; setp.lt.u32 %q, %tid, 9; and.pred %r, %q, %p; selp.b32 %d, 1, 2, %r;", True),
        ("setp.lt.u32 %p, %x, 16; setp.lt.u32 %q, %tid, 32; or.pred %r, %q, %p; selp.b32 %d, 1, 2, %r;", False),
        ("setp.lt.u32 %p, %x, 16; setp.lt.u32 %q, %tid, 9; or.pred %r, %p, %q; selp.b32 %d, 1, 2, %r;", True),
        ("setp.lt.u32 %p, %tid, 16; @%p mov.b32 %d, 1;", True),
        ("setp.lt.u32 %p, %tid, 16; @%p mov.b32 %d, 1; @!%p mov.b32 %d, 2;", False),
    ],
)
def test_only_what_decides_makes_a_value_undefined(body, is_found):
    found = undefined(body, REGISTERS)
    assert any("undefined" in kind for kind in found) == is_found, found
