"""Integer and bit instructions against Python's integers, by the formulas of the PTX ISA."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.softgpu.support import lanes

COUNT = 256
TYPES = ("s16", "u16", "s32", "u32", "s64", "u64")
BITS = ("b16", "b32", "b64")


def width(kind: str) -> int:
    return int(kind[1:])


def dtype(kind: str) -> type[np.unsignedinteger]:
    return {16: np.uint16, 32: np.uint32, 64: np.uint64}[width(kind)]


def words(kind: str, seed: int, small: bool = False) -> np.ndarray:
    """Any bits, small numbers of both signs, and the ends of the type's range."""
    rng = np.random.default_rng([seed, width(kind)])
    bits = width(kind)
    ends = np.array([0, 1, 2, 2**bits - 1, 2**bits - 2, 2 ** (bits - 1), 2 ** (bits - 1) - 1], np.uint64)
    anything = rng.integers(0, 2**64, COUNT, np.uint64)
    near = rng.integers(-40, 80, COUNT).astype(np.uint64)
    pick = rng.integers(0, 3, COUNT)
    chosen = (
        near
        if small
        else np.where(pick == 0, ends[rng.integers(0, len(ends), COUNT)], np.where(pick == 1, near, anything))
    )
    return chosen.astype(dtype(kind))


def value(kind: str, x: int) -> int:
    x = int(x)
    return x - (1 << width(kind)) if kind[0] == "s" and x >> (width(kind) - 1) else x


def run(opcode, kinds, result, wanted, small=(), literals=""):
    """One instruction on inputs of `kinds`, against `wanted`, a function of their values."""
    inputs = {"abcd"[k]: words(kind, k + 1, small=k in small) for k, kind in enumerate(kinds)}
    operands = ", ".join(f"%{name}" for name in inputs)
    out = lanes(f"{opcode} %out, {operands}{literals};", inputs, {"out": dtype(result)})["out"]
    for k in range(COUNT):
        values = [value(kind, a[k]) for kind, a in zip(kinds, inputs.values(), strict=True)]
        assert int(out[k]) == wanted(*values) % 2 ** width(result), (opcode, values, hex(out[k]))


def quotient(kind, a, b):
    """Towards zero; all ones by zero."""
    return -1 if b == 0 else abs(a) // abs(b) * (-1 if (a < 0) != (b < 0) else 1)


def clamp(x):
    return max(-(2**31), min(2**31 - 1, x))


@pytest.mark.parametrize("kind", TYPES)
def test_arithmetic(kind):
    bits = width(kind)
    two, three = (kind,) * 2, (kind,) * 3
    run(f"add.{kind}", two, kind, lambda a, b: a + b)
    run(f"sub.{kind}", two, kind, lambda a, b: a - b)
    run(f"mul.lo.{kind}", two, kind, lambda a, b: a * b)
    run(f"mul.hi.{kind}", two, kind, lambda a, b: a * b >> bits)
    run(f"mad.lo.{kind}", three, kind, lambda a, b, c: a * b + c)
    run(f"mad.hi.{kind}", three, kind, lambda a, b, c: (a * b >> bits) + c)
    run(f"sad.{kind}", three, kind, lambda a, b, c: c + abs(a - b))
    run(f"min.{kind}", two, kind, min)
    run(f"max.{kind}", two, kind, max)
    run(f"div.{kind}", two, kind, lambda a, b: quotient(kind, a, b))
    run(f"rem.{kind}", two, kind, lambda a, b: a - quotient(kind, a, b) * b if b else -1)
    run(f"shr.{kind}", (kind, "u32"), kind, lambda a, n: a >> n, small=(1,))
    if kind[0] == "s":
        run(f"neg.{kind}", (kind,), kind, lambda a: -a)
        run(f"abs.{kind}", (kind,), kind, abs)


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32"])
def test_wide_products(kind):
    wide = f"{kind[0]}{2 * width(kind)}"
    run(f"mul.wide.{kind}", (kind, kind), wide, lambda a, b: a * b)
    run(f"mad.wide.{kind}", (kind, kind, wide), wide, lambda a, b, c: a * b + c)


def test_saturation():
    s32 = ("s32",) * 3
    run("add.sat.s32", s32[:2], "s32", lambda a, b: clamp(a + b))
    run("sub.sat.s32", s32[:2], "s32", lambda a, b: clamp(a - b))
    run("mad.hi.sat.s32", s32, "s32", lambda a, b, c: clamp((a * b >> 32) + c))
    run("min.relu.s32", s32[:2], "s32", lambda a, b: max(min(a, b), 0))
    run("max.relu.s32", s32[:2], "s32", lambda a, b: max(a, b, 0))


def low24(kind, x):
    x &= 0xFFFFFF
    return x - (1 << 24) if kind == "s32" and x >> 23 else x


@pytest.mark.parametrize("kind", ["s32", "u32"])
def test_products_of_24_bits(kind):
    three = (kind,) * 3
    run(f"mul24.lo.{kind}", three[:2], kind, lambda a, b: low24(kind, a) * low24(kind, b))
    run(f"mul24.hi.{kind}", three[:2], kind, lambda a, b: low24(kind, a) * low24(kind, b) >> 16)
    run(f"mad24.lo.{kind}", three, kind, lambda a, b, c: low24(kind, a) * low24(kind, b) + c)
    run(f"mad24.hi.{kind}", three, kind, lambda a, b, c: (low24(kind, a) * low24(kind, b) >> 16) + c)
    if kind == "s32":
        run("mad24.hi.sat.s32", three, kind, lambda a, b, c: clamp((low24(kind, a) * low24(kind, b) >> 16) + c))


@pytest.mark.parametrize(
    ("name", "function"), [("add", lambda a, b: a + b), ("sub", lambda a, b: a - b), ("min", min), ("max", max)]
)
@pytest.mark.parametrize("kind", ["s16", "u16"])
def test_packed(name, function, kind):
    def wanted(a, b):
        low, high = (function(value(kind, a >> k & 0xFFFF), value(kind, b >> k & 0xFFFF)) & 0xFFFF for k in (0, 16))
        return high << 16 | low

    run(f"{name}.{kind}x2", ("u32", "u32"), "u32", wanted)
    if kind == "s16" and name in ("min", "max"):
        relu = function
        function = lambda a, b: max(relu(a, b), 0)  # noqa: E731
        run(f"{name}.relu.s16x2", ("u32", "u32"), "u32", wanted)


@pytest.mark.parametrize("kind", BITS)
def test_logic_and_shifts(kind):
    of = f"u{width(kind)}"
    for name, function in (("and", lambda a, b: a & b), ("or", lambda a, b: a | b), ("xor", lambda a, b: a ^ b)):
        run(f"{name}.{kind}", (of, of), of, function)
    run(f"not.{kind}", (of,), of, lambda a: ~a)
    run(f"cnot.{kind}", (of,), of, lambda a: a == 0)
    run(f"shl.{kind}", (of, "u32"), of, lambda a, n: a << min(n, 100), small=(1,))
    run(f"shr.{kind}", (of, "u32"), of, lambda a, n: a >> n, small=(1,))


def bits_from(x, start, count):
    return [x >> k & 1 for k in range(start, start + count)]


@pytest.mark.parametrize("kind", ["b32", "b64"])
def test_counts(kind):
    n = width(kind)
    run(f"popc.{kind}", (f"u{n}",), "u32", lambda a: bin(a).count("1"))
    run(f"clz.{kind}", (f"u{n}",), "u32", lambda a: n - a.bit_length())
    run(f"brev.{kind}", (f"u{n}",), f"u{n}", lambda a: int(f"{a:0{n}b}"[::-1], 2))


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_bfind(kind):
    def place(a):
        return (~a if a < 0 else a).bit_length() - 1

    run(f"bfind.{kind}", (kind,), "u32", place)
    run(f"bfind.shiftamt.{kind}", (kind,), "u32", lambda a: -1 if place(a) < 0 else width(kind) - 1 - place(a))


@pytest.mark.parametrize("kind", ["s32", "u32", "s64", "u64"])
def test_bit_fields(kind):
    top = width(kind) - 1

    def extract(a, start, length):
        start, length = start & 255, length & 255
        fill = a >> min(start + length - 1, top) & 1 if kind[0] == "s" and length else 0
        return sum((a >> (start + k) & 1 if k < length and start + k <= top else fill) << k for k in range(top + 1))

    def insert(a, b, start, length):
        start, length = start & 255, length & 255
        for k in range(length):
            if start + k <= top:
                b = b & ~(1 << (start + k)) | (a >> k & 1) << (start + k)
        return b

    run(f"bfe.{kind}", (kind, "u32", "u32"), kind, extract, small=(1, 2))
    if kind[0] == "u":
        run(f"bfi.b{width(kind)}", (kind, kind, "u32", "u32"), kind, insert, small=(2, 3))


def test_masks_and_extensions():
    def mask(start, length):
        return sum(1 << k for k in range(32) if start <= k < start + length)

    run("bmsk.clamp.b32", ("u32", "u32"), "u32", mask, small=(0, 1))
    run("bmsk.wrap.b32", ("u32", "u32"), "u32", lambda a, b: mask(a % 32, b % 32), small=(0, 1))

    def extended(kind, a, n):
        if n == 0:
            return 0
        if n >= 32:
            return a
        low = a & ((1 << n) - 1)
        return low - (1 << n) if kind == "s32" and low >> (n - 1) else low

    for kind in ("s32", "u32"):
        run(f"szext.clamp.{kind}", (kind, "u32"), kind, lambda a, n, kind=kind: extended(kind, a, n), small=(1,))
        run(f"szext.wrap.{kind}", (kind, "u32"), kind, lambda a, n, kind=kind: extended(kind, a, n % 32), small=(1,))


def test_the_nth_set_bit():
    def find(mask, base, offset):
        if offset == 0:
            return base if base < 32 and mask >> base & 1 else -1
        step = 1 if offset > 0 else -1
        places = [p for p in range(base, 32 if step > 0 else -1, step) if 0 <= p < 32 and mask >> p & 1]
        return places[abs(offset) - 1] if base < 32 and abs(offset) <= len(places) else -1

    rng = np.random.default_rng(3)
    mask, base = rng.integers(0, 2**32, COUNT, np.uint32), rng.integers(0, 40, COUNT).astype(np.uint32)
    offset = rng.integers(-12, 13, COUNT).astype(np.int32)
    out = lanes("fns.b32 %d, %a, %b, %c;", {"a": mask, "b": base, "c": offset}, {"d": np.uint32})["d"]
    for k in range(COUNT):
        assert int(out[k]) == find(int(mask[k]), int(base[k]), int(offset[k])) % 2**32


@pytest.mark.parametrize("mode", ["clamp", "wrap"])
def test_funnel_shifts(mode):
    def amount(c):
        return min(c, 32) if mode == "clamp" else c % 32

    three = ("u32",) * 3
    run(f"shf.l.{mode}.b32", three, "u32", lambda a, b, c: (b << 32 | a) << amount(c) >> 32, small=(2,))
    run(f"shf.r.{mode}.b32", three, "u32", lambda a, b, c: (b << 32 | a) >> amount(c), small=(2,))


# Bytes that the modes of prmt pick, from the least significant of the result, by the selector's low two bits (the ISA).
MODES = {
    "f4e": ["0123", "1234", "2345", "3456"],
    "b4e": ["0765", "1076", "2107", "3210"],
    "rc8": ["0000", "1111", "2222", "3333"],
    "ecl": ["0123", "1123", "2223", "3333"],
    "ecr": ["0000", "0111", "0122", "0123"],
    "rc16": ["0101", "2323", "0101", "2323"],
}


def test_byte_permutations():
    def picked(a, b, nibbles):
        data = list(a.to_bytes(4, "little") + b.to_bytes(4, "little"))
        chosen = [data[n & 7] if n < 8 else 255 * (data[n & 7] >> 7) for n in nibbles]
        return int.from_bytes(bytes(chosen), "little")

    three = ("u32",) * 3
    run("prmt.b32", three, "u32", lambda a, b, c: picked(a, b, [c >> 4 * k & 15 for k in range(4)]))
    for mode, table in MODES.items():
        run(f"prmt.b32.{mode}", three, "u32", lambda a, b, c, table=table: picked(a, b, [int(n) for n in table[c & 3]]))


@pytest.mark.parametrize("table", [0x00, 0x01, 0x96, 0xE8, 0xCA, 0x80, 0xFE, 0x1B, 0x6A, 0xF8])
def test_functions_of_three_bits(table):
    def wanted(a, b, c):
        return sum((table >> ((a >> k & 1) << 2 | (b >> k & 1) << 1 | (c >> k & 1)) & 1) << k for k in range(32))

    run("lop3.b32", ("u32",) * 3, "u32", wanted, literals=f", {table}")
    a, b, c = (words("u32", k, small=True) & np.uint32(3) for k in (5, 6, 7))
    q = np.arange(COUNT) % 2 == 0
    inputs = {"a": a, "b": b, "c": c, "q": q}
    full = np.array([wanted(int(x), int(y), int(z)) for x, y, z in zip(a, b, c, strict=True)], np.uint32)
    out = lanes(f"lop3.or.b32 %d|%p, %a, %b, %c, {table}, %q;", inputs, {"d": np.uint32, "p": bool})
    np.testing.assert_array_equal(out["d"], full)
    np.testing.assert_array_equal(out["p"], (full != 0) | q)
    out = lanes(f"lop3.and.b32 %d|%p, %a, %b, %c, {table}, %q;", inputs, {"d": np.uint32, "p": bool})
    np.testing.assert_array_equal(out["p"], (full != 0) & q)


@pytest.mark.parametrize("first", ["s32", "u32"])
@pytest.mark.parametrize("second", ["s32", "u32"])
def test_dot_products(first, second):
    def part(kind, x, bits, place):
        x = x >> bits * place & ((1 << bits) - 1)
        return x - (1 << bits) if kind == "s32" and x >> (bits - 1) else x

    result = "u32" if (first, second) == ("u32", "u32") else "s32"
    three = ("u32",) * 3
    types = f"{first}.{second}"
    run(f"dp4a.{types}", three, result,
        lambda a, b, c: c + sum(part(first, a, 8, k) * part(second, b, 8, k) for k in range(4)))  # fmt: skip
    for half, offset in (("lo", 0), ("hi", 2)):
        run(f"dp2a.{half}.{types}", three, result, lambda a, b, c, offset=offset: c + sum(
            part(first, a, 16, k) * part(second, b, 8, k + offset) for k in range(2)))  # fmt: skip


def test_only_the_lanes_of_a_guard_are_written():
    a = words("u32", 9)
    guard = np.random.default_rng(4).random(COUNT) < 0.5
    out = lanes("mov.b32 %d, 7; @%p add.u32 %d, %a, 1; @!%p mul.lo.u32 %e, %a, 3; @%p mov.b32 %e, 5;",
                {"a": a, "p": guard}, {"d": np.uint32, "e": np.uint32})  # fmt: skip
    np.testing.assert_array_equal(out["d"], np.where(guard, a + np.uint32(1), 7))
    np.testing.assert_array_equal(out["e"], np.where(guard, 5, a * np.uint32(3)))
