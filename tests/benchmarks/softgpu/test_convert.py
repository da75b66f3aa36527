"""cvt against exact fractions, over all codes of 16 bits and fewer, and over special and random ones of more."""

from __future__ import annotations

import itertools
import math
from fractions import Fraction

import numpy as np
import pytest

from tests.benchmarks.softgpu import exact
from tests.benchmarks.softgpu.support import lanes

ALL_16 = np.arange(2**16, dtype=np.uint16)
INTEGERS = ("u8", "s8", "u16", "s16", "u32", "s32", "u64", "s64")
ROUNDS = ("rn", "rz", "rm", "rp")
UNSIGNED = {8: np.uint16, 16: np.uint16, 32: np.uint32, 64: np.uint64}  # of a register that holds so many bits


def bits_of(kind: str) -> int:
    return int(kind[1:])


def limits(kind: str) -> tuple[int, int]:
    bits = bits_of(kind)
    return (-(1 << (bits - 1)), (1 << (bits - 1)) - 1) if kind[0] == "s" else (0, (1 << bits) - 1)


def register(kind: str) -> type[np.unsignedinteger]:
    return UNSIGNED[bits_of(kind)]


def integer_codes(kind: str, count: int = 256) -> tuple[np.ndarray, list[int]]:
    """Registers, whose bits beyond the type are anything, and their values: ends, ties at 11, 24 and 53 bits, any."""
    rng = np.random.default_rng([1, bits_of(kind)])
    bits = bits_of(kind)
    values = rng.integers(0, 2**64, count, np.uint64) >> rng.integers(0, 64, count, np.uint64)
    ties = [(1 << top) + (1 << (top - mantissa - 1)) + d for top in range(64) for mantissa in (7, 10, 23, 52)
            for d in (-1, 0, 1) if top > mantissa]  # fmt: skip
    special = [*limits(kind), 0, 1, 2, limits(kind)[1] - 1, *(t for t in ties if t < 1 << bits)]
    special = [s % 2**64 for s in special] + [-s % 2**64 for s in special]
    codes = np.concatenate([np.array(special, np.uint64), values])
    codes = np.resize(codes, (len(codes) + 31) // 32 * 32).astype(register(kind))
    low = [int(c) & ((1 << bits) - 1) for c in codes]
    return codes, [x - (1 << bits) if kind[0] == "s" and x >> (bits - 1) else x for x in low]


def float_codes(kind: str, count: int = 512) -> tuple[np.ndarray, list]:
    form = exact.BY_NAME[kind]
    rng = np.random.default_rng([2, form.bits, form.exponent_bits])
    codes = exact.codes(form, rng, count)
    if form.bits > 16:  # numbers between integers and just beyond the ends of integer types
        near = rng.integers(-(2**20), 2**20, count // 2) / 2.0 ** rng.integers(0, 12, count // 2)
        ends = np.array([2.0**k + d for k in (7, 8, 15, 16, 31, 32, 63, 64) for d in (-1, -0.5, 0, 0.5, 1)])
        more = np.concatenate([near, ends, -ends])
        more = more.astype({32: np.float32, 64: np.float64}[form.bits]).view(exact.unsigned(form))
        codes = np.concatenate([codes, more])
        codes = np.resize(codes, (len(codes) + 31) // 32 * 32)
    return codes, [form.decode(int(c)) for c in codes]


def converted(opcode: str, inputs: dict[str, np.ndarray], dtype) -> np.ndarray:
    operands = ", ".join(f"%{name}" for name in inputs)
    return lanes(f"{opcode} %d, {operands};", inputs, {"d": dtype})["d"]


def extended(kind: str, value: int, size: int) -> int:
    """What a register of `size` bits holds of a value of type `kind`."""
    low = value % (1 << bits_of(kind))
    if kind[0] == "s" and low >> (bits_of(kind) - 1):
        low -= 1 << bits_of(kind)
    return low % (1 << size)


def same(opcode, inputs, got, wanted):
    for k, code in enumerate(wanted):
        assert int(got[k]) == code, (opcode, [hex(int(a[k])) for a in inputs], hex(int(got[k])), hex(code))


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("to", INTEGERS)
def test_between_integers(to, source):
    codes, values = integer_codes(source)
    size = 8 * np.dtype(register(to)).itemsize
    got = converted(f"cvt.{to}.{source}", {"a": codes}, register(to))
    same("cvt", [codes], got, [extended(to, v, size) for v in values])
    low, high = limits(to)
    got = converted(f"cvt.sat.{to}.{source}", {"a": codes}, register(to))
    same("cvt.sat", [codes], got, [extended(to, min(max(v, low), high), size) for v in values])


def test_a_wider_destination_is_extended():
    codes, values = integer_codes("s16")
    got = lanes("cvt.s16.s16 %d, %a; cvt.u8.s16 %e, %a;", {"a": codes}, {"d": np.uint64, "e": np.uint32})
    same("cvt.s16.s16", [codes], got["d"], [v % 2**64 for v in values])
    same("cvt.u8.s16", [codes], got["e"], [v % 2**8 for v in values])


@pytest.mark.parametrize("source", INTEGERS)
@pytest.mark.parametrize("to", ["f16", "bf16", "f32", "f64"])
def test_integers_to_floats(to, source):
    form = exact.BY_NAME[to]
    codes, values = integer_codes(source)
    for mode in ROUNDS:
        got = converted(f"cvt.{mode}.{to}.{source}", {"a": codes}, exact.unsigned(form))
        same(mode, [codes], got, [form.encode(Fraction(v), mode) for v in values])


def to_integer(kind: str, source: str, value, mode: str) -> int:
    """The ISA: clamped; NaN is 0, or the top bit alone if 64 bits take part."""
    if value != value:
        return 1 << (bits_of(kind) - 1) if "64" in kind + source else 0
    low, high = limits(kind)
    if value in exact.SPECIAL:
        return low if value < 0 else high
    whole = exact.rounded(abs(Fraction(value)), mode, value < 0)
    return min(max(-whole if value < 0 else whole, low), high)


@pytest.mark.parametrize("to", INTEGERS)
@pytest.mark.parametrize("source", ["f16", "bf16", "f32", "f64"])
def test_floats_to_integers(source, to):
    codes, values = float_codes(source)
    size = 8 * np.dtype(register(to)).itemsize
    for mode in ROUNDS:
        got = converted(f"cvt.{mode}i.{to}.{source}", {"a": codes}, register(to))
        same(f"{mode}i", [codes], got, [extended(to, to_integer(to, source, v, mode), size) for v in values])


@pytest.mark.parametrize("source", ["f32", "f64"])
@pytest.mark.parametrize("to", ["f16", "bf16", "f32"])
def test_floats_are_rounded_once(to, source):
    form, (codes, values) = exact.BY_NAME[to], float_codes(source)
    for mode in ROUNDS:
        for finite in ("", ".satfinite") if source == "f32" and to != "f32" and mode in ("rn", "rz") else ("",):
            got = converted(f"cvt.{mode}{finite}.{to}.{source}", {"a": codes}, exact.unsigned(form))
            same(mode + finite, [codes], got, [form.encode(v, mode, bool(finite)) for v in values])


@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_ties_between_all_neighbours_of_16_bits(kind):
    """The middle between two neighbours, and what lies next to it, to either side."""
    form = exact.BY_NAME[kind]
    values = [form.decode(code) for code in range(form.largest)]
    middles = np.array([float((values[k] + values[k + 1]) / 2) for k in range(len(values) - 1)], np.float32)
    bits = np.concatenate([middles.view(np.uint32) + d for d in (np.uint32(2**32 - 1), np.uint32(0), np.uint32(1))])
    bits = np.resize(np.concatenate([bits, bits | np.uint32(2**31)]), (6 * len(middles) + 31) // 32 * 32)
    even = np.arange(len(middles)) + np.arange(len(middles)) % 2
    wanted = np.concatenate([np.arange(len(middles)), even, np.arange(len(middles)) + 1]).astype(np.uint16)
    wanted = np.resize(np.concatenate([wanted, wanted | np.uint16(2**15)]), len(bits))
    np.testing.assert_array_equal(converted(f"cvt.rn.{kind}.f32", {"a": bits}, np.uint16), wanted)
    pairs = converted(f"cvt.rn.{kind}x2.f32", {"a": bits[::-1].copy(), "b": bits}, np.uint32)
    np.testing.assert_array_equal(pairs & np.uint32(0xFFFF), wanted)
    np.testing.assert_array_equal(pairs >> np.uint32(16), wanted[::-1])


@pytest.mark.parametrize("kind", ["f16", "bf16"])
@pytest.mark.parametrize("to", ["f32", "f64"])
def test_all_16_bit_floats_widened(kind, to):
    form, wide = exact.BY_NAME[kind], exact.BY_NAME[to]
    got = converted(f"cvt.{to}.{kind}", {"a": ALL_16}, exact.unsigned(wide))
    values = [form.decode(code) for code in range(2**16)]
    if (kind, to) == ("bf16", "f32"):  # a shift: what NaN holds stays
        np.testing.assert_array_equal(got, ALL_16.astype(np.uint32) << np.uint32(16))
    else:
        same(to, [ALL_16], got, [wide.encode(v) for v in values])
        if kind == "f16":
            isnan = np.isnan(ALL_16.view(np.float16))
            widened = ALL_16.view(np.float16).astype({"f32": np.float32, "f64": np.float64}[to]).view(got.dtype)
            np.testing.assert_array_equal(got[~isnan], widened[~isnan])


@pytest.mark.parametrize(("source", "to"), [("f16", "bf16"), ("bf16", "f16")])
def test_16_bit_floats_between_each_other(source, to):
    """All to nearest; by the other roundings some of each binade."""
    a, b = exact.BY_NAME[source], exact.BY_NAME[to]
    for mode in ROUNDS:
        codes = ALL_16 if mode == "rn" else np.resize(ALL_16[::13], 5056)
        got = converted(f"cvt.{mode}.{to}.{source}", {"a": codes}, np.uint16)
        same(mode, [codes], got, [b.encode(a.decode(int(code)), mode) for code in codes])


@pytest.mark.parametrize("kind", ["f32", "f64"])
def test_rounding_to_integers_within_a_format(kind):
    form, (codes, values) = exact.BY_NAME[kind], float_codes(kind)
    for mode in ROUNDS:
        wanted = []
        for v in values:
            if v != v or v in exact.SPECIAL or v == 0:
                wanted.append(form.encode(v))
            else:
                whole = exact.rounded(abs(v), mode, v < 0)
                wanted.append(
                    form.encode((-0.0 if v < 0 else 0.0) if whole == 0 else Fraction(-whole if v < 0 else whole))
                )
        same(mode, [codes], converted(f"cvt.{mode}i.{kind}.{kind}", {"a": codes}, exact.unsigned(form)), wanted)


def test_saturation_and_flushing():
    codes, values = float_codes("f32")
    clamped = [exact.F32.encode(min(v, Fraction(1)) if v > 0 else Fraction(0)) for v in values]
    same("sat", [codes], converted("cvt.sat.f32.f32", {"a": codes}, np.uint32), clamped)
    flushed = [exact.F32.encode(v if not 0 < abs(v) < Fraction(2) ** -126 else math.copysign(0.0, v)) for v in values]
    same("ftz", [codes], converted("cvt.ftz.f32.f32", {"a": codes}, np.uint32), flushed)
    halves = [exact.F16.encode(min(v, Fraction(1)) if v > 0 else Fraction(0)) for v in values]
    same("sat.f16", [codes], converted("cvt.rn.sat.f16.f32", {"a": codes}, np.uint16), halves)
    tiny = [to_integer("s32", "f32", 0 if 0 < abs(v) < Fraction(2) ** -126 else v, "rp") % 2**32 for v in values]
    same("ftz.s32", [codes], converted("cvt.rpi.ftz.s32.f32", {"a": codes}, np.uint32), tiny)


@pytest.mark.parametrize("mode", ["rn", "rz"])
@pytest.mark.parametrize("options", ["", ".relu", ".satfinite", ".relu.satfinite"])
@pytest.mark.parametrize("kind", ["f16", "bf16"])
def test_pairs_of_16_bits(kind, options, mode):
    """The first operand is the upper half."""
    form, (codes, values) = exact.BY_NAME[kind], float_codes("f32")
    wanted = []
    for v in values:
        v = Fraction(0) if "relu" in options and (v < 0 or v == 0) else v
        wanted.append(form.encode(v, mode, "satfinite" in options))
    other = np.roll(codes, 7)
    got = converted(f"cvt.{mode}{options}.{kind}x2.f32", {"a": codes, "b": other}, np.uint32)
    high_low = [high << 16 | low for high, low in zip(wanted, np.roll(wanted, 7).tolist(), strict=True)]
    same(mode, [codes, other], got, high_low)
    same(mode, [codes], converted(f"cvt.{mode}{options}.{kind}.f32", {"a": codes}, np.uint16), wanted)


def test_tf32():
    codes, values = float_codes("f32")
    ties = np.random.default_rng(4).integers(0, 2**19, 512, np.uint32) << np.uint32(13) | np.uint32(0x1000)
    ties = np.concatenate([ties, ties - np.uint32(1), ties + np.uint32(1)])
    codes = np.concatenate([codes, ties])
    values = [exact.F32.decode(int(c)) for c in codes]
    for mode in ("rn", "rz"):
        wanted = [exact.TF32.encode(v, mode) << 13 for v in values]
        same(mode, [codes], converted(f"cvt.{mode}.tf32.f32", {"a": codes}, np.uint32), wanted)
        relu = [exact.TF32.encode(Fraction(0) if v <= 0 else v, mode) << 13 for v in values]
        same(mode, [codes], converted(f"cvt.{mode}.relu.tf32.f32", {"a": codes}, np.uint32), relu)
    # rna is no instruction of the hardware: ptxas adds half a unit to finite numbers and cuts; NaN's upper bits stay.
    wanted = [int(c) & 0xFFFFE000 if v != v else exact.TF32.encode(v, "rna") << 13
              for c, v in zip(codes, values, strict=True)]  # fmt: skip
    same("rna", [codes], converted("cvt.rna.tf32.f32", {"a": codes}, np.uint32), wanted)


@pytest.mark.parametrize("kind", ["e4m3", "e5m2"])
def test_fp8_from_all_halves(kind):
    form = exact.BY_NAME[kind]
    for relu in ("", ".relu"):
        wanted = []
        for code in range(2**16):
            v = exact.F16.decode(code)
            wanted.append(form.encode(Fraction(0) if relu and v <= 0 else v, finite=True))
        pairs = ALL_16.view(np.uint32)
        got = converted(f"cvt.rn.satfinite{relu}.{kind}x2.f16x2", {"a": pairs}, np.uint16)
        np.testing.assert_array_equal(got.view(np.uint8), np.array(wanted, np.uint8))


@pytest.mark.parametrize("kind", ["e4m3", "e5m2"])
def test_fp8_from_float32(kind):
    form, (codes, _) = exact.BY_NAME[kind], float_codes("f32")
    small = [form.decode(code) for code in range(form.largest)]
    middles = np.array([float((x + y) / 2) for x, y in itertools.pairwise(small)], np.float32).view(np.uint32)
    codes = np.concatenate([codes, middles, middles + np.uint32(1), middles - np.uint32(1)])
    codes = np.resize(codes, (len(codes) + 31) // 32 * 32)
    wanted = [form.encode(exact.F32.decode(int(c)), finite=True) for c in codes]
    other = np.roll(codes, 5)
    got = converted(f"cvt.rn.satfinite.{kind}x2.f32", {"a": codes, "b": other}, np.uint16)
    pairs = [high << 8 | low for high, low in zip(wanted, np.roll(wanted, 5).tolist(), strict=True)]
    same(kind, [codes, other], got, pairs)


@pytest.mark.parametrize("kind", ["e4m3", "e5m2"])
def test_all_pairs_of_fp8_to_halves(kind):
    form = exact.BY_NAME[kind]
    wanted = [exact.F16.encode(form.decode(code)) for code in range(256)]
    got = converted(f"cvt.rn.f16x2.{kind}x2", {"a": ALL_16}, np.uint32)
    table = np.array(wanted, np.uint32)
    np.testing.assert_array_equal(got, table[ALL_16 >> 8] << np.uint32(16) | table[ALL_16 & 255])


def test_fp8_ends():
    """Written out: 448 and 57344 are the largest, 2^-9 and 2^-16 the least; beyond is the largest, NaN is 0x7f."""
    values = np.array([448, 1e9, -np.inf, np.nan, 2**-9, 2**-10, 1.5 * 2**-10, 57344], np.float32)
    a = np.resize(values, 32).view(np.uint32)
    e4m3 = converted("cvt.rn.satfinite.e4m3x2.f32", {"a": np.zeros(32, np.uint32), "b": a}, np.uint16)[:8]
    np.testing.assert_array_equal(e4m3, [0x7E, 0x7E, 0xFE, 0x7F, 0x01, 0x00, 0x01, 0x7E])
    values = np.array([57344, 1e9, -np.inf, np.nan, 2**-16, 2**-17, 1.5 * 2**-17, 1], np.float32)
    a = np.resize(values, 32).view(np.uint32)
    e5m2 = converted("cvt.rn.satfinite.e5m2x2.f32", {"a": np.zeros(32, np.uint32), "b": a}, np.uint16)[:8]
    np.testing.assert_array_equal(e5m2, [0x7B, 0x7B, 0xFB, 0x7F, 0x01, 0x00, 0x01, 0x3C])
