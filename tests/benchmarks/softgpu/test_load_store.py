"""ld and st: widths, vectors, extension, spaces; what a request costs."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.softgpu.engine import COUNTS, Result

from .support import kernel, kinds

RANDOM = np.random.default_rng(18)
DECLARATIONS = ".reg .b64 %a<4>; .reg .b32 %s<4>; .reg .b16 %h<9>; .reg .b32 %r<9>; .reg .b64 %d<9>; .reg .pred %p<3>;"


def run(body: str, *arrays: np.ndarray, **keywords) -> Result:
    return kernel(body, *arrays, declarations=DECLARATIONS, **keywords)


def bits(count: int, dtype: type = np.uint8) -> np.ndarray:
    return RANDOM.integers(0, 256, count * np.dtype(dtype).itemsize, np.uint8).view(dtype)


def zeros(count: int, alignment: int) -> np.ndarray:
    block = np.zeros(count + alignment, np.uint8)
    return block[-block.ctypes.data % alignment :][:count]


def counts(result: Result, opcode: str) -> dict[str, int]:
    """Of the one instruction with that opcode."""
    (k,) = (k for k, r in enumerate(result.program.lowered.records) if r.key == opcode)
    return dict(zip(COUNTS, map(int, result.counts[k])))


# A type, the register's bytes, and what numpy makes of it.
NARROW = [
    ("u8", 2, np.uint8), ("u8", 4, np.uint8), ("u8", 8, np.uint8), ("b8", 2, np.uint8),
    ("s8", 2, np.int8), ("s8", 4, np.int8), ("s8", 8, np.int8),
    ("u16", 2, np.uint16), ("u16", 4, np.uint16), ("u16", 8, np.uint16), ("s16", 4, np.int16), ("s16", 8, np.int16),
    ("u32", 4, np.uint32), ("u32", 8, np.uint32), ("s32", 8, np.int32), ("f32", 4, np.uint32), ("b64", 8, np.uint64),
    ("f64", 8, np.uint64),
]  # fmt: skip


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize(("kind", "width", "dtype"), NARROW)
def test_load_extends(kind: str, width: int, dtype: type, space: str) -> None:
    x, out = bits(32, dtype), np.zeros(32, f"u{width}")
    size, register = x.itemsize, {2: "%h0", 4: "%r0", 8: "%d0"}[width]
    body = f"""
        mad.wide.u32 %a0, %tid, {size}, %g0; mad.wide.u32 %a1, %tid, {width}, %g1;
        mul.lo.u32 %s0, %tid, {size}; mov.u32 %s1, smem; add.u32 %s0, %s0, %s1;
        ld.{space}.{kind} {register}, [{"%a0" if space == "global" else "%s0"}];
        st.global.b{8 * width} [%a1], {register};
    """
    if space == "shared":  # by way of registers that the test of global memory has seen
        copied = {1: "u8 %h8", 2: "u16 %h8", 4: "u32 %r8", 8: "b64 %d8"}[size].split()
        body = body.replace(
            "ld.shared",
            f"ld.global.{copied[0]} {copied[1]}, [%a0]; st.shared.{copied[0]} [%s0], {copied[1]};\nld.shared",
        )
    result = run(body, x, out, shared=256)
    assert not result.findings
    np.testing.assert_array_equal(out, x.astype(np.int64 if np.dtype(dtype).kind == "i" else dtype).astype(out.dtype))


@pytest.mark.parametrize(("width", "size"), [(2, 1), (4, 1), (8, 1), (4, 2), (8, 2), (8, 4)])
def test_store_takes_the_low_bits(width: int, size: int) -> None:
    x, out = bits(32, f"u{width}"), np.zeros(32, f"u{size}")
    register = {2: "%h0", 4: "%r0", 8: "%d0"}[width]
    result = run(
        f"""mad.wide.u32 %a0, %tid, {width}, %g0; mad.wide.u32 %a1, %tid, {size}, %g1;
            ld.global.b{8 * width} {register}, [%a0]; st.global.b{8 * size} [%a1], {register};""",
        x, out,
    )  # fmt: skip
    assert not result.findings
    np.testing.assert_array_equal(out, x.astype(out.dtype))


@pytest.mark.parametrize("way", ["global", "shared", "generic"])
@pytest.mark.parametrize(("vector", "size"), [(2, 1), (4, 1), (2, 2), (4, 2), (2, 4), (4, 4), (8, 4), (2, 8), (4, 8)])
def test_vectors_with_an_offset(vector: int, size: int, way: str) -> None:
    total = vector * size
    x, out = zeros(33 * total, total), zeros(33 * total, total)
    x[:] = bits(33 * total)
    stem = {1: "%h", 2: "%h", 4: "%r", 8: "%d"}[size]
    registers = "{" + ", ".join(f"{stem}{k}" for k in range(vector)) + "}"
    kind = f"v{vector}.b{8 * size}"
    inner = {
        "global": "",
        "shared": f"st.shared.{kind} [%s0+{total}], {registers}; ld.shared.{kind} {registers}, [%s0+{total}];",
        "generic": f"""cvt.u64.u32 %a2, %s0; cvta.shared.u64 %a2, %a2;
            st.{kind} [%a2], {registers}; ld.{kind} {registers}, [%a2];""",
    }[way]
    result = run(
        f"""mad.wide.u32 %a0, %tid, {total}, %g0; mad.wide.u32 %a1, %tid, {total}, %g1;
            mov.u32 %s1, smem; mad.lo.u32 %s0, %tid, {total}, %s1;
            ld.global.{kind} {registers}, [%a0+{total}];
            {inner}
            st.global.{kind} [%a1+{total}], {registers};""",
        x, out, shared=33 * total,
    )  # fmt: skip
    assert not result.findings
    np.testing.assert_array_equal(out[total:], x[total:])
    assert not out[:total].any()


def test_128_bits_and_a_sink() -> None:
    x, out = bits(32 * 16, np.uint32), np.zeros(32 * 4, np.uint32)
    result = kernel(
        """mad.wide.u32 %a0, %tid, 16, %g0; mad.wide.u32 %a1, %tid, 16, %g1;
           ld.global.b128 %q, [%a0]; st.global.b128 [%a1], %q;
           ld.global.v4.b32 {%r0, _, %r1, _}, [%a0]; st.global.v2.b32 [%a1+8], {%r0, %r1};""",
        x, out, declarations=DECLARATIONS + ".reg .b128 %q;",
    )  # fmt: skip
    assert not result.findings
    rows = x[: 32 * 4].reshape(32, 4)
    np.testing.assert_array_equal(out.reshape(32, 4), np.stack([rows[:, 0], rows[:, 1], rows[:, 0], rows[:, 2]], 1))


def test_a_guarded_load_leaves_other_lanes() -> None:
    x, out = np.arange(32, dtype=np.uint32), np.zeros(32, np.uint32)
    result = run(
        """mad.wide.u32 %a0, %tid, 4, %g0; mad.wide.u32 %a1, %tid, 4, %g1; mov.u32 %r0, 77;
           setp.lt.u32 %p0, %tid, 5; @%p0 ld.global.u32 %r0, [%a0]; st.global.u32 [%a1], %r0;""",
        x, out,
    )  # fmt: skip
    assert not result.findings
    np.testing.assert_array_equal(out, np.where(np.arange(32) < 5, x, 77))


def test_a_guarded_load_defines_its_lanes_only() -> None:
    x, out = np.arange(32, dtype=np.uint32), np.zeros(32, np.uint32)
    body = """
        mad.wide.u32 %a0, %tid, 4, %g0; mad.wide.u32 %a1, %tid, 4, %g1; setp.lt.u32 %p0, %tid, 5;
        @%p0 ld.global.u32 %r0, [%a0]; {} st.global.u32 [%a1], %r0;
    """
    (finding,) = run(body.format(""), x, out).findings
    assert finding.kind == "undefined value"
    assert "lane 5" in finding.text
    assert not run(body.format("@%p0"), x, out).findings


def test_local_memory() -> None:
    out = np.zeros(64, np.uint32)
    body = """
        mov.u32 %s0, depot; add.u32 %s1, %tid, 100; st.local.u32 [%s0+4], %s1;
        ld.local.u32 %r0, [%s0+{offset}]; mad.wide.u32 %a0, %tid, 4, %g0; st.global.u32 [%a0], %r0;
    """
    declarations = DECLARATIONS + ".local .align 8 .b8 depot[16];"
    result = kernel(body.format(offset=4), out, declarations=declarations, threads=64)
    assert not result.findings
    np.testing.assert_array_equal(out, np.arange(64) + 100)
    assert kinds(kernel(body.format(offset=8), out, declarations=declarations)) == {"undefined value"}
    assert kinds(kernel(body.format(offset=16), out, declarations=declarations)) == {"out of bounds", "undefined value"}


def test_spaces_of_generic_addresses() -> None:
    out = np.zeros(32 * 4, np.uint32)
    result = run(
        """mov.u32 %s0, smem; cvt.u64.u32 %a0, %s0; cvta.shared.u64 %a0, %a0; cvta.global.u64 %a1, %g0;
           isspacep.shared %p0, %a0; isspacep.global %p1, %a0; selp.u32 %r0, 1, 0, %p0; selp.u32 %r1, 1, 0, %p1;
           isspacep.shared %p0, %a1; isspacep.global %p1, %a1; selp.u32 %r2, 1, 0, %p0; selp.u32 %r3, 1, 0, %p1;
           cvta.to.shared.u64 %a2, %a0; cvt.u32.u64 %s1, %a2; sub.u32 %s1, %s1, %s0; add.u32 %r0, %r0, %s1;
           mad.wide.u32 %a3, %tid, 16, %g0; st.global.v4.u32 [%a3], {%r0, %r1, %r2, %r3};""",
        out, shared=64,
    )  # fmt: skip
    assert not result.findings
    np.testing.assert_array_equal(out.reshape(32, 4), np.broadcast_to([1, 0, 0, 1], (32, 4)))


@pytest.mark.parametrize("order", ["volatile", "relaxed.gpu", "acquire.gpu", "mmio.relaxed.sys"])
def test_strong_loads_and_stores(order: str) -> None:
    x, out = bits(32, np.uint32), np.zeros(32, np.uint32)
    stored = order.replace("acquire", "release")
    result = run(
        f"""mad.wide.u32 %a0, %tid, 4, %g0; mad.wide.u32 %a1, %tid, 4, %g1;
            ld.{order}.global.u32 %r0, [%a0]; st.{stored}.global.u32 [%a1], %r0;""",
        x, out,
    )  # fmt: skip
    assert not result.findings
    np.testing.assert_array_equal(out, x)


def test_hints_do_nothing() -> None:
    x = bits(32, np.uint32)
    before = x.copy()
    result = run(
        """prefetch.global.L2 [%g0]; discard.global.L2 [%g0], 128; applypriority.global.L2::evict_normal [%g0], 128;
           createpolicy.fractional.L2::evict_first.b64 %d0, 1.0; mad.wide.u32 %a0, %tid, 4, %g0;
           ld.global.L1::evict_last.L2::cache_hint.u32 %r0, [%a0], %d0; st.global.wb.u32 [%a0], %r0;""",
        x,
    )  # fmt: skip
    assert not result.findings
    np.testing.assert_array_equal(x, before)


# ---- what requests cost ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("kind", "stride", "lanes", "sectors", "least"),
    [
        ("b32", 4, 32, 4, 4), ("b32", 8, 32, 8, 4), ("b32", 32, 32, 32, 4), ("b32", 0, 32, 1, 1),
        ("v4.b32", 16, 32, 16, 16), ("v4.b32", 32, 32, 32, 16), ("b16", 2, 32, 2, 2), ("b16", 2, 3, 1, 1),
        ("v2.b64", 16, 8, 4, 4), ("b32", -4, 32, 4, 4),
    ],
)  # fmt: skip
def test_sectors(kind: str, stride: int, lanes: int, sectors: int, least: int) -> None:
    x = zeros(32 * 32, 32)
    start = 31 * -stride if stride < 0 else 0
    n = int(kind[1]) if kind[0] == "v" else 1
    register = "%h" if kind.endswith("b16") else "%d" if kind.endswith("b64") else "%r"
    names = ", ".join(f"{register}{k}" for k in range(n))
    result = run(
        f"""mul.lo.s32 %s0, %tid, {stride}; add.s32 %s0, %s0, {start}; cvt.s64.s32 %a0, %s0; add.s64 %a0, %a0, %g0;
            setp.lt.u32 %p0, %tid, {lanes}; @%p0 ld.global.{kind} {"{" + names + "}" if n > 1 else names}, [%a0];""",
        x,
    )  # fmt: skip
    assert not result.findings
    count = counts(result, f"ld.global.{kind}")
    size = n * int(kind.split("b")[-1]) // 8
    assert count == {
        "executed": 1, "lanes": lanes, "bytes": lanes * size, "transactions": sectors, "ideal": least,
    }  # fmt: skip


@pytest.mark.parametrize(
    ("kind", "stride", "lanes", "wavefronts", "least"),
    [
        ("b32", 4, 32, 1, 1), ("b32", 8, 32, 2, 1), ("b32", 128, 32, 32, 1), ("b32", 0, 32, 1, 1),
        ("b32", 36, 32, 1, 1), ("b16", 2, 32, 1, 1), ("b64", 8, 32, 2, 2), ("b64", 16, 32, 4, 2), ("b64", 8, 16, 1, 1),
        ("v4.b32", 16, 32, 4, 4),
        ("v4.b32", 32, 32, 8, 4), ("v4.b32", 128, 32, 32, 4), ("v4.b32", 144, 32, 4, 4), ("v4.b32", 16, 8, 1, 1),
    ],
)  # fmt: skip
def test_wavefronts(kind: str, stride: int, lanes: int, wavefronts: int, least: int) -> None:
    n = int(kind[1]) if kind[0] == "v" else 1
    register = "%h" if kind.endswith("b16") else "%d" if kind.endswith("b64") else "%r"
    names = ", ".join(f"{register}{k}" for k in range(n))
    size = n * int(kind.split("b")[-1]) // 8
    value = "{" + names + "}" if n > 1 else names
    moves = "".join(f"mov.b{8 * size // n} {register}{k}, {k};" for k in range(n))
    result = run(
        f"""mov.u32 %s1, smem; mad.lo.u32 %s0, %tid, {stride}, %s1; {moves}
            setp.lt.u32 %p0, %tid, {lanes}; @%p0 st.shared.{kind} [%s0], {value};""",
        shared=32 * 160,
    )  # fmt: skip
    assert not result.findings
    count = counts(result, f"st.shared.{kind}")
    assert count == {
        "executed": 1, "lanes": lanes, "bytes": lanes * size, "transactions": wavefronts, "ideal": least,
    }  # fmt: skip
