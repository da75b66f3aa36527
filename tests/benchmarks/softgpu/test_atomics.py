"""atom and red: every operation against Python, contention, and the order that they give to threads."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from benchmarks.softgpu.engine import Result, known_instructions

from .support import kernel, kinds

RANDOM = np.random.default_rng(18)
DECLARATIONS = ".reg .b64 %a<6>; .reg .b32 %s<4>; .reg .b32 %r<9>; .reg .b64 %d<9>; .reg .b16 %h<9>; .reg .pred %p<4>;"


def run(body: str, *arrays: np.ndarray, **keywords) -> Result:
    return kernel(body, *arrays, declarations=DECLARATIONS, **keywords)


def bits(count: int, dtype: type) -> np.ndarray:
    return RANDOM.integers(0, 256, count * np.dtype(dtype).itemsize, np.uint8).view(dtype)


def from_bfloat16(x: np.ndarray) -> np.ndarray:
    return (x.astype(np.uint32) << 16).view(np.float32)


def to_bfloat16(x: np.ndarray) -> np.ndarray:
    """Rounded to the nearest, ties to even, by way of exact integers."""
    wide = x.astype(np.float32).view(np.uint32).astype(np.uint64)
    kept, rest = wide >> 16, wide & 0xFFFF
    kept += (rest > 0x8000) | ((rest == 0x8000) & (kept & 1 == 1))
    return kept.astype(np.uint16)


def integer(operation: Callable[[int, int], int], dtype: type) -> Callable[[np.ndarray, np.ndarray], np.ndarray]:
    info, unsigned = np.iinfo(dtype), f"u{np.dtype(dtype).itemsize}"

    def apply(old: np.ndarray, b: np.ndarray) -> np.ndarray:
        values = [operation(int(x), int(y)) & (2**info.bits - 1) for x, y in zip(old.view(dtype), b.view(dtype))]
        return np.array(values, unsigned)

    return apply


# Operation and type: bytes, and what it makes of the old bits and the operand's.
OPERATIONS: dict[str, tuple[int, Callable[[np.ndarray, np.ndarray], np.ndarray]]] = {
    "inc.u32": (4, integer(lambda x, y: 0 if x >= y else x + 1, np.uint32)),
    "dec.u32": (4, integer(lambda x, y: y if x == 0 or x > y else x - 1, np.uint32)),
    "exch.b32": (4, lambda x, y: y),
    "exch.b64": (8, lambda x, y: y),
    "add.noftz.f16": (2, lambda x, y: (x.view(np.float16) + y.view(np.float16)).view(np.uint16)),
    "add.noftz.f16x2": (4, lambda x, y: (x.view(np.float16) + y.view(np.float16)).view(np.uint32)),
    "add.noftz.bf16": (2, lambda x, y: to_bfloat16(from_bfloat16(x) + from_bfloat16(y))),
    "add.noftz.bf16x2": (
        4,
        lambda x, y: to_bfloat16(from_bfloat16(x.view(np.uint16)) + from_bfloat16(y.view(np.uint16))).view(np.uint32),
    ),
    "add.f32": (4, lambda x, y: (x.view(np.float32) + y.view(np.float32)).view(np.uint32)),
    "add.f64": (8, lambda x, y: (x.view(np.float64) + y.view(np.float64)).view(np.uint64)),
}
for _kind, _dtype in (("u32", np.uint32), ("s32", np.int32), ("u64", np.uint64), ("s64", np.int64)):
    if _kind != "s64":
        OPERATIONS[f"add.{_kind}"] = (np.dtype(_dtype).itemsize, integer(lambda x, y: x + y, _dtype))
    OPERATIONS[f"min.{_kind}"] = (np.dtype(_dtype).itemsize, integer(min, _dtype))
    OPERATIONS[f"max.{_kind}"] = (np.dtype(_dtype).itemsize, integer(max, _dtype))
for _kind in ("b32", "b64"):
    _unsigned = np.uint32 if _kind == "b32" else np.uint64
    for _name, _function in (("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor)):
        OPERATIONS[f"{_name}.{_kind}"] = (np.dtype(_unsigned).itemsize, _function)


def operands(operation: str, count: int, size: int) -> np.ndarray:
    """Random bits; of floats, without NaN, and for sums of like size so that rounding matters."""
    x = bits(count, f"u{size}")
    kind = operation.split(".")[-1]
    if kind.startswith("bf16"):
        x = to_bfloat16(RANDOM.standard_normal(count * size // 2).astype(np.float32)).view(x.dtype)
    elif kind.startswith("f"):
        dtype = {"f16": np.float16, "f16x2": np.float16, "f32": np.float32, "f64": np.float64}[kind]
        x = RANDOM.standard_normal(count * size // np.dtype(dtype).itemsize).astype(dtype).view(x.dtype)
    elif kind == "u32" and operation[:3] in ("inc", "dec"):
        x %= 4  # so that it wraps now and then
    return x


@pytest.mark.parametrize("space", ["global", "shared"])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_operations(operation: str, space: str) -> None:
    size, reference = OPERATIONS[operation]
    x, y = operands(operation, 32, size), operands(operation, 32, size)
    before, old, out = x.copy(), np.zeros_like(x), np.zeros_like(x)
    stem, width = {2: "%h", 4: "%r", 8: "%d"}[size], 8 * size
    result = run(
        f"""{"".join(f"mad.wide.u32 %a{k}, %tid, {size}, %g{k};" for k in range(4))}
            mov.u32 %s1, smem; mad.lo.u32 %s0, %tid, {size}, %s1;
            ld.global.b{width} {stem}0, [%a0]; ld.global.b{width} {stem}1, [%a1]; st.shared.b{width} [%s0], {stem}0;
            atom.{space}.{operation} {stem}2, [{"%a0" if space == "global" else "%s0"}], {stem}1;
            ld.{space}.b{width} {stem}3, [{"%a0" if space == "global" else "%s0"}];
            st.global.b{width} [%a2], {stem}2; st.global.b{width} [%a3], {stem}3;""",
        x, y, old, out, shared=256,
    )  # fmt: skip
    assert not result.findings
    np.testing.assert_array_equal(old, before)
    np.testing.assert_array_equal(out, reference(before, y))


@pytest.mark.parametrize("size", [2, 4, 8])
def test_compare_and_swap(size: int) -> None:
    x = bits(32, f"u{size}")
    before, old = x.copy(), np.zeros_like(x)
    compare = np.where(np.arange(32) % 3 == 0, x, x + 1).astype(x.dtype)
    new = bits(32, f"u{size}")
    stem, width = {2: "%h", 4: "%r", 8: "%d"}[size], 8 * size
    result = run(
        f"""{"".join(f"mad.wide.u32 %a{k}, %tid, {size}, %g{k};" for k in range(4))}
            ld.global.b{width} {stem}0, [%a1]; ld.global.b{width} {stem}1, [%a2];
            atom.global.cas.b{width} {stem}2, [%a0], {stem}0, {stem}1; st.global.b{width} [%a3], {stem}2;""",
        x, compare, new, old,
    )  # fmt: skip
    assert not result.findings
    np.testing.assert_array_equal(old, before)
    np.testing.assert_array_equal(x, np.where(compare == before, new, before))


def test_subnormals_are_flushed_in_global_memory_only() -> None:
    tiny = np.full(32, 1e-40, np.float32)
    x, out = tiny.copy(), np.zeros(32, np.float32)
    result = run(
        """mad.wide.u32 %a0, %tid, 4, %g0; mad.wide.u32 %a1, %tid, 4, %g1;
           mov.u32 %s1, smem; mad.lo.u32 %s0, %tid, 4, %s1; ld.global.b32 %r0, [%a0]; st.shared.b32 [%s0], %r0;
           red.global.add.f32 [%a0], %r0;
           red.shared.add.f32 [%s0], %r0; ld.shared.b32 %r1, [%s0]; st.global.b32 [%a1], %r1;""",
        x, out, shared=256,
    )  # fmt: skip
    assert not result.findings
    np.testing.assert_array_equal(x, 0)
    np.testing.assert_array_equal(out, tiny + tiny)


@pytest.mark.parametrize("spelling", ["red.global.add.v4.f32", "red.global.v4.f32.add", "atom.global.add.v4.f32"])
def test_vectors_of_floats(spelling: str) -> None:
    block = np.zeros(32 * 4 + 4, np.float32)
    x = block[(-block.ctypes.data % 16) // 4 :][: 32 * 4]
    x[:] = RANDOM.standard_normal(128)
    y = np.concatenate([RANDOM.standard_normal(128).astype(np.float32)])
    before = x.copy()
    old = "{%r4, %r5, %r6, %r7}, " if spelling.startswith("atom") else ""
    result = run(
        f"""mad.wide.u32 %a0, %tid, 16, %g0; mad.wide.u32 %a1, %tid, 16, %g1;
            ld.global.v4.b32 {{%r0, %r1, %r2, %r3}}, [%a1]; {spelling} {old}[%a0], {{%r0, %r1, %r2, %r3}};""",
        x, y,
    )  # fmt: skip
    assert not result.findings
    np.testing.assert_array_equal(x, before + y)


@pytest.mark.parametrize("operation", ["add", "min", "max"])
@pytest.mark.parametrize(("vector", "kind"), [("v2", "f16"), ("v8", "bf16"), ("v4", "f16x2"), ("v2", "bf16x2")])
def test_vectors_of_halves(vector: str, kind: str, operation: str) -> None:
    n, packed = int(vector[1]), 2 if kind.endswith("x2") else 1
    total = n * packed
    values = RANDOM.standard_normal((2, 32 * total)).astype(np.float32)
    encode = to_bfloat16 if kind.startswith("bf16") else lambda v: v.astype(np.float16).view(np.uint16)
    decode = from_bfloat16 if kind.startswith("bf16") else lambda v: v.view(np.float16).astype(np.float32)
    block = np.zeros(32 * total + 16, np.uint16)
    x = block[(-block.ctypes.data % 32) // 2 :][: 32 * total]
    x[:], y = encode(values[0]), encode(values[1])
    function = {"add": np.add, "min": np.minimum, "max": np.maximum}[operation]
    wanted = encode(function(decode(x), decode(y)))
    stem, width = ("%r", 32) if packed == 2 else ("%h", 16)
    names = [f"{stem}{k}" for k in range(n)]
    loads = "".join(f"ld.global.b{width} {name}, [%a1+{width // 8 * k}];" for k, name in enumerate(names))
    result = run(
        f"""mad.wide.u32 %a0, %tid, {2 * total}, %g0; mad.wide.u32 %a1, %tid, {2 * total}, %g1; {loads}
            red.relaxed.gpu.global.{operation}.noftz.{vector}.{kind} [%a0], {{{", ".join(names)}}};""",
        x, y,
    )  # fmt: skip
    assert not result.findings
    np.testing.assert_array_equal(x, wanted)


def test_contention() -> None:
    """Every thread of every CTA takes a ticket of its own."""
    counter, tickets = np.zeros(2, np.uint32), np.zeros(4 * 64, np.uint32)
    result = run(
        """atom.global.gpu.relaxed.add.u32 %r0, [%g0], 1; mad.lo.u32 %s0, %ctaid, 64, %tid;
           mad.wide.u32 %a0, %s0, 4, %g1; st.global.u32 [%a0], %r0; red.global.max.u32 [%g0+4], %s0;""",
        counter, tickets, threads=64, grid=(4,), schedule="random",
    )  # fmt: skip
    assert not result.findings
    assert counter.tolist() == [256, 255]
    np.testing.assert_array_equal(np.sort(tickets), np.arange(256))


def test_what_triton_emits_is_known() -> None:
    known = known_instructions()
    for text in (
        "atom.global.gpu.acq_rel.add.f32", "atom.global.acq_rel.gpu.cas.b32", "atom.global.gpu.relaxed.exch.b32",
        "red.global.gpu.release.add.u32", "atom.shared.cas.b32", "atom.shared.add.u32", "atom.global.add.noftz.f16",
        "atom.acq_rel.sys.shared::cluster.max.s64", "ld.global.acquire.gpu.b32", "ld.acquire.gpu.global.b32",
    ):  # fmt: skip
        assert text in known, text


# ---- the order of threads --------------------------------------------------------------------------------------------

# CTA 0 writes data and raises a flag, CTA 1 waits for the flag and reads the data.
HAND_OVER = """
    setp.eq.u32 %p0, %tid, 0; setp.eq.u32 %p1, %ctaid, 0; mad.wide.u32 %a0, %tid, 4, %g0; @!%p1 bra TAKE;
    add.u32 %r0, %tid, 5; st.global.u32 [%a0], %r0; bar.sync 0; {fence}
    @%p0 {raise};
    bra END;
TAKE:
    {look}
    setp.eq.u32 %p2, %r1, 0; @%p2 bra TAKE;
    {then} bar.sync 0; ld.global.u32 %r2, [%a0]; mad.wide.u32 %a1, %tid, 4, %g2; st.global.u32 [%a1], %r2;
END:
"""  # fmt: skip
RELEASE, ACQUIRE = "st.release.gpu.global.u32 [%g1], 1", "ld.acquire.gpu.global.u32 %r1, [%g1];"
RELAXED_RAISE, RELAXED_LOOK = "red.relaxed.gpu.global.add.u32 [%g1], 1", "ld.relaxed.gpu.global.u32 %r1, [%g1];"
FENCE = "fence.acq_rel.gpu;"


@pytest.mark.parametrize(
    ("fence", "raised", "look", "then", "clean"),
    [
        ("", RELEASE, ACQUIRE, "", True),
        ("", "red.release.gpu.global.add.u32 [%g1], 1", "atom.acquire.gpu.global.or.b32 %r1, [%g1], 0;", "", True),
        (FENCE, RELAXED_RAISE, RELAXED_LOOK, FENCE, True),
        ("", RELAXED_RAISE, RELAXED_LOOK, FENCE, False),
        (FENCE, RELAXED_RAISE, RELAXED_LOOK, "", False),
        ("", RELAXED_RAISE, ACQUIRE, "", False),
        ("", RELEASE, RELAXED_LOOK, "", False),
        ("", "st.global.u32 [%g1], 1", ACQUIRE, "", False),
    ],
)
def test_hand_over_between_ctas(fence: str, raised: str, look: str, then: str, clean: bool) -> None:
    for schedule in ("turns", "random"):
        data, flag, out = np.zeros(64, np.uint32), np.zeros(1, np.uint32), np.zeros(64, np.uint32)
        body = HAND_OVER.format(fence=fence, look=look, then=then, **{"raise": raised})
        result = run(body, data, flag, out, threads=64, grid=(2,), schedule=schedule, seed=3, max_steps=100_000)
        got = kinds(result)
        assert not got if clean else got and all(k.startswith("race") for k in got), result.findings
        np.testing.assert_array_equal(out, np.arange(64) + 5)


def test_atomics_of_two_ctas_do_not_race_but_plain_accesses_do() -> None:
    counter = np.zeros(1, np.uint32)
    atomic = "red.{}global.add.u32 [%g0], 1;"
    assert not kinds(run(atomic.format(""), counter, grid=(4,)))
    assert not kinds(run(atomic.format("relaxed.sys."), counter, grid=(4,)))
    assert kinds(run(atomic.format("relaxed.cta."), counter, grid=(2,)))  # other CTAs are outside of its scope
    assert not kinds(run(atomic.format("relaxed.cta."), counter, threads=128))
    plain = atomic.format("") + "setp.eq.u32 %p0, %ctaid, 1; setp.eq.u32 %p1, %tid, 0; and.pred %p0, %p0, %p1; @%p0 {}"
    assert kinds(run(plain.format("ld.global.u32 %r0, [%g0];"), counter, grid=(2,))) & {
        "race: read after write", "race: write after read",
    }  # fmt: skip
    assert not kinds(run(plain.format("ld.volatile.global.u32 %r0, [%g0];"), counter, grid=(2,)))


def test_atomics_in_shared_memory() -> None:
    out = np.zeros(1, np.uint32)
    body = """
        mov.u32 %s0, smem; setp.eq.u32 %p0, %tid, 0; @%p0 st.shared.u32 [%s0], 0; bar.sync 0;
        atom.shared.add.u32 %r0, [%s0], 1; {} @%p0 ld.shared.u32 %r1, [%s0]; @%p0 st.global.u32 [%g0], %r1;
    """
    assert not kinds(run(body.format("bar.sync 0;"), out, threads=256, shared=64))
    assert out[0] == 256
    for schedule in ("forward", "backward"):
        got = kinds(run(body.format(""), out, threads=256, shared=64, schedule=schedule))
        assert got
        assert got <= {"race: read after write", "race: write after read"}
    # A plain read after another warp's atomic.
    reader = body.replace("@%p0 ld.shared", "setp.eq.u32 %p0, %tid, 255; @%p0 ld.shared").format("")
    assert "race: read after write" in kinds(run(reader, out, threads=256, shared=64, schedule="forward"))
    # Without the first store nobody knows what it counts from.
    bare = "mov.u32 %s0, smem; atom.shared.add.u32 %r0, [%s0], 1;"
    assert "never written" in kinds(run(bare, threads=256, shared=64))


def test_an_undefined_operand() -> None:
    counter = np.zeros(1, np.uint32)
    assert kinds(run("red.global.add.u32 [%g0], %r7;", counter)) == {"undefined value"}
    assert not kinds(run("mov.u32 %r7, 1; red.global.add.u32 [%g0], %r7;", counter))
