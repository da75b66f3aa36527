"""mma.sync against a plain matrix product, its fragments placed by the ISA's formulas."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.softgpu import layouts
from tests.benchmarks.softgpu.support import kernel, kinds, lanes

FLOATS = [
    *((16, k, kind, kind, "f32") for kind in ("f16", "bf16") for k in (8, 16)),
    *((16, k, "f16", "f16", "f16") for k in (8, 16)),
    *((16, k, "tf32", "tf32", "f32") for k in (4, 8)),
    *((16, k, a, b, c) for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2") for c in ("f32", "f16") for k in (16, 32)),
    (8, 4, "f64", "f64", "f64"), *((16, k, "f64", "f64", "f64") for k in (4, 8, 16)),
]  # fmt: skip
INTEGERS = [(m, k, a, b, "s32") for a in ("s8", "u8") for b in ("s8", "u8") for m, k in ((8, 16), (16, 16), (16, 32))]


def opcode(m: int, k: int, a: str, b: str, c: str, saturate: bool = False) -> str:
    return f"mma.sync.aligned.m{m}n8k{k}.row.col.{'satfinite.' if saturate else ''}{c}.{a}.{b}.{c}"


def multiply(shape: tuple[int, int, str, str, str], a: np.ndarray, b: np.ndarray, c: np.ndarray, saturate=False):
    """D's bits for matrices of bits, by one warp."""
    m, k, kind_a, kind_b, kind_c = shape
    regs = {
        "a": layouts.registers(a, layouts.place_a(m, k, layouts.BITS[kind_a])),
        "b": layouts.registers(b, layouts.place_b(k, layouts.BITS[kind_b])),
        "c": layouts.registers(c, layouts.place_c(m)),
    }
    names = {x: ", ".join(f"%{x}{i}" for i in range(len(r))) for x, r in regs.items()}
    names["d"] = names["c"].replace("c", "d")
    inputs = {f"{x}{i}": r for x, many in regs.items() for i, r in enumerate(many)}
    word = np.uint64 if kind_c == "f64" else np.uint32
    out = lanes(
        f"{opcode(*shape, saturate)} {{{names['d']}}}, {{{names['a']}}}, {{{names['b']}}}, {{{names['c']}}};",
        inputs, {f"d{i}": word for i in range(len(regs["c"]))},
    )  # fmt: skip
    return layouts.matrix(list(out.values()), layouts.place_c(m), c.dtype.type)


@pytest.mark.parametrize("shape", FLOATS + INTEGERS, ids=lambda s: opcode(*s)[17:])
def test_fragments(shape):
    """Small integers: exact whatever the order of sums, and every element different enough to miss a misplaced one."""
    m, k, kind_a, kind_b, kind_c = shape
    rng = np.random.default_rng(1)
    low = 0 if "u8" in (kind_a, kind_b) else -8
    a, b = rng.integers(low, 9, (m, k)), rng.integers(low, 9, (k, 8))
    c = rng.integers(-50, 50, (m, 8))
    wanted = a @ b + c
    got = multiply(shape, *(layouts.bits_of(x, kind) for x, kind in ((a, kind_a), (b, kind_b), (c, kind_c))))
    np.testing.assert_array_equal(layouts.values_of(got, kind_c), wanted)


@pytest.mark.parametrize("shape", [s for s in INTEGERS if s[1] == 32], ids=lambda s: opcode(*s)[17:])
def test_integers_wrap_or_saturate(shape):
    m, k, kind_a, kind_b, _ = shape
    rng = np.random.default_rng(2)
    a, b = (rng.integers(0, 256, s, np.uint8) for s in ((m, k), (k, 8)))
    c = rng.choice([-(2**31), -(2**31) + 5000, 0, 2**31 - 5000, 2**31 - 1], (m, 8))
    exact = (layouts.values_of(a, kind_a) @ layouts.values_of(b, kind_b) + c).astype(np.int64)
    bits_c = layouts.bits_of(c, "s32")
    assert (np.abs(exact) > 2**31).any()
    np.testing.assert_array_equal(multiply(shape, a, b, bits_c), exact.astype(np.uint32))
    limited = np.clip(exact, -(2**31), 2**31 - 1).astype(np.int32).view(np.uint32)
    np.testing.assert_array_equal(multiply(shape, a, b, bits_c, saturate=True), limited)


@pytest.mark.parametrize("kind", ["f16", "bf16", "e4m3", "e5m2", "tf32"])
def test_every_value_of_a_format(kind):
    """A has one value a row and B is one there: the result is the value, as float32; NaNs have one form."""
    bits, k = layouts.BITS[kind], {16: 16, 8: 32, 32: 8}[layouts.BITS[kind]]
    shape = (16, k, kind, kind, "f32")
    if bits <= 16:
        values = np.arange(2**bits, dtype=f"u{bits // 8}")
    else:
        values = np.random.default_rng(3).integers(0, 2**32, 512, np.uint32)
        values[:4] = [0x7F800000, 0xFF800000, 1, 0x80001FFF]
    one = layouts.bits_of(np.ones(1), kind)[0]
    place_a, place_b = layouts.place_a(16, k, bits), layouts.place_b(k, bits)
    warps = len(values) // 16
    a, b = np.zeros((warps, 16, k), values.dtype), np.zeros((k, 8), values.dtype)
    a[:, :, 3], b[3] = values.reshape(warps, 16), one
    regs_a = [np.concatenate(r) for r in zip(*(layouts.registers(x, place_a) for x in a))]
    regs_b = [np.tile(r, warps) for r in layouts.registers(b, place_b)]
    inputs = {f"a{i}": r for i, r in enumerate(regs_a)} | {f"b{i}": r for i, r in enumerate(regs_b)}
    inputs["zero"] = np.zeros(32 * warps, np.uint32)
    names = [", ".join(f"%{x}{i}" for i in range(len(r))) for x, r in (("a", regs_a), ("b", regs_b))]
    out = lanes(
        f"{opcode(*shape)} {{%d0, %d1, %d2, %d3}}, {{{names[0]}}}, {{{names[1]}}}, {{%zero, %zero, %zero, %zero}};",
        inputs, {f"d{i}": np.uint32 for i in range(4)},
    )  # fmt: skip
    place = layouts.place_c(16)
    got = np.concatenate(
        [layouts.matrix([d[32 * w : 32 * w + 32] for d in out.values()], place, np.uint32) for w in range(warps)]
    )
    wanted = layouts.values_of(values, kind).astype(np.float32).view(np.uint32)
    wanted = np.where((wanted & 0x7FFFFFFF) > 0x7F800000, 0x7FFFFFFF, np.where(wanted == 0x80000000, 0, wanted))
    np.testing.assert_array_equal(got, np.broadcast_to(wanted[:, None], got.shape))  # -0 + 0 is 0


@pytest.mark.parametrize("shape", FLOATS, ids=lambda s: opcode(*s)[17:])
def test_accuracy(shape):
    """Within a rounding of each sum, and of the result's format."""
    m, k, kind_a, kind_b, kind_c = shape
    rng = np.random.default_rng(4)
    a, b = layouts.bits_of(rng.normal(size=(m, k)), kind_a), layouts.bits_of(rng.normal(size=(k, 8)), kind_b)
    c = layouts.bits_of(rng.normal(size=(m, 8)), kind_c)
    x, y, z = layouts.values_of(a, kind_a), layouts.values_of(b, kind_b), layouts.values_of(c, kind_c)
    got = layouts.values_of(multiply(shape, a, b, c), kind_c)
    eps = {"f32": 2**-24, "f16": 2**-11, "f64": 2**-53}[kind_c]
    wanted = x @ y + z
    bound = (np.abs(x) @ np.abs(y) + np.abs(z)) * min(eps, 2**-24) * (k + 1) + np.abs(wanted) * eps
    assert (np.abs(got - wanted) <= bound).all()


TF32 = opcode(16, 8, "tf32", "tf32", "f32")
PRODUCT = f"{TF32} {{%d0, %d1, %d2, %d3}}, {{%a0, %a1, %a2, %a3}}, {{%b0, %b1}}, {{%c0, %c1, %c2, %c3}};"


@pytest.mark.parametrize(
    ("register", "reached"),
    [  # the fragment of lane 9 (row or column 2, t 1) is not written
        ("a1", {"d2": [8, 9, 10, 11], "d3": [8, 9, 10, 11]}),
        ("b1", {"d0": [1 + 4 * g for g in range(8)], "d2": [1 + 4 * g for g in range(8)]}),
        ("c3", {"d3": [9]}),
    ],
)
def test_undefined_elements_reach_rows_and_columns(register, reached):
    names = ["a0", "a1", "a2", "a3", "b0", "b1", "c0", "c1", "c2", "c3"]
    declarations = ".reg .pred %others, %p; .reg .b64 %at;" + "".join(
        f".reg .b32 %{x};" for x in [*names, "d0", "d1", "d2", "d3"]
    )
    body = "\n".join(f"mov.b32 %{x}, 1;" for x in names if x != register) + "\nsetp.ne.u32 %others, %tid, 9;"
    body += f"@%others mov.b32 %{register}, 1; {PRODUCT} mad.wide.u32 %at, %tid, 4, %g0;"
    for d in ("d0", "d1", "d2", "d3"):
        lanes_reached = reached.get(d, [])
        for lane in range(32):
            out = np.zeros(32, np.uint32)
            stored = f"{body} setp.eq.u32 %p, %tid, {lane}; @%p st.global.b32 [%at], %{d};"
            found = kinds(kernel(stored, out, declarations=declarations))
            assert found == ({"undefined value"} if lane in lanes_reached else set()), (d, lane)


def test_the_first_lanes_wait_for_the_whole_warp():
    product = f"{TF32} {{%d0, %d1, %d2, %d3}}, {{%o, %o, %o, %o}}, {{%o, %o}}, {{%c, %c, %c, %c}};"
    body = f"setp.lt.u32 %p, %lane, 16; @%p bra FAR; BACK: {product} bra END; FAR: bra BACK; END:"
    inputs = {"lane": np.arange(32, dtype=np.uint32), "o": np.ones(32, np.float32), "c": np.zeros(32, np.float32)}
    out = lanes(body, inputs, {f"d{k}": np.float32 for k in range(4)}, ".reg .pred %p;")
    assert all((d == 8).all() for d in out.values())


def test_a_part_of_a_warp_is_found():
    product = f"{TF32} {{%x, %x, %x, %x}}, {{%x, %x, %x, %x}}, {{%x, %x}}, {{%x, %x, %x, %x}};"
    body = f"mov.b32 %x, 0; setp.lt.u32 %p, %tid, 16; @%p {product}"
    assert "partial warp" in kinds(kernel(body, declarations=".reg .pred %p; .reg .b32 %x;"))
