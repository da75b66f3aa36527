"""wgmma against a plain matrix product: fragments by the ISA's formulas, shared memory by tables of swizzles."""

from __future__ import annotations

import numpy as np
import pytest

from tests.benchmarks.softgpu import layouts
from tests.benchmarks.softgpu.shared_matrices import STEPS, SWIZZLES, THREADS, Layout, describe, fill, padded, tile
from tests.benchmarks.softgpu.support import kernel, kinds

ROWS = 64

DECLARATIONS = ".reg .b64 %smem, %from, %to, %da, %db; .reg .b32 %x<4>; .reg .pred %p, %q;"


def of_warps(x: np.ndarray, place: tuple[np.ndarray, np.ndarray]) -> np.ndarray:
    """(registers, 128): what four warps hold, of 16 rows each."""
    warps = [layouts.registers(x[16 * warp : 16 * warp + 16], place) for warp in range(4)]
    return np.stack([np.concatenate(r) for r in zip(*warps)])


def suffix(kind: str, signs: tuple[int, int], layout_a: Layout | None, layout_b: Layout) -> str:
    """What follows scale-d."""
    if kind in ("s8", "u8"):
        return ""
    text = f", {signs[0]}, {signs[1]}"
    if kind in ("f16", "bf16"):
        if layout_a is not None:
            text += f", {int(layout_a.mn_major)}"
        text += f", {int(layout_b.mn_major)}"
    return text


def multiply(
    kinds_: tuple[str, str, str], n: int, a: np.ndarray, b: np.ndarray, c: np.ndarray, layout_a: Layout | None,
    layout_b: Layout, scale_d: str = "%p", signs: tuple[int, int] = (1, 1), saturate: str = "", shift: int = 0,
    **settings,
) -> np.ndarray:  # fmt: skip
    """D's bits for matrices of bits A (64, k), B (k, n), C (64, n).

    A comes from registers if it has no layout; B starts at `shift` in shared memory, or that far behind A.
    """
    kind_a, kind_b, kind_d = kinds_
    bits, k = layouts.BITS[kind_a], 256 // layouts.BITS[kind_a]
    tile_b = tile(b.T, layout_b)
    image, base_b = np.concatenate([np.zeros(shift, np.uint8), tile_b.image]), shift
    if layout_a is not None:
        tile_a = tile(a, layout_a)
        base_b = -(-len(tile_a.image) // 1024) * 1024 + shift
        image = np.concatenate([tile_a.image, np.zeros(base_b - len(tile_a.image), np.uint8), tile_b.image])
    image = padded(image)
    place = layouts.place_d(n)
    in_c = of_warps(c, place)
    place_a = layouts.place_a(16, k, bits)
    in_a = np.concatenate([of_warps(a[:, k * step : k * step + k], place_a) for step in range(STEPS)])
    out = np.zeros_like(in_c)
    accumulators = ", ".join(f"%d{r}" for r in range(len(in_c)))
    body = [
        fill(image),
        "mad.wide.u32 %from, %tid, 4, %g1; mad.wide.u32 %to, %tid, 4, %g2; setp.eq.u32 %p, %tid, %tid;",
    ]
    body += [f"ld.global.b32 %d{r}, [%from + {512 * r}];" for r in range(len(in_c))]
    body += [f"ld.global.b32 %a{r}, [%to + {512 * r}];" for r in range(16)]
    body.append("fence.proxy.async; bar.sync 0; wgmma.fence.sync.aligned;")
    key = f"wgmma.mma_async.sync.aligned.m64n{n}k{k}.{kind_d}.{kind_a}.{kind_b}{saturate}"
    rest = suffix(kind_a, signs, layout_a, layout_b)
    for step in range(STEPS):
        body.append(f"mov.b64 %db, {tile_b.descriptor(step, base_b)};")
        if layout_a is None:
            left = "{" + ", ".join(f"%a{4 * step + r}" for r in range(4)) + "}"
        else:
            left = "%da"
            body.append(f"mov.b64 %da, {tile_a.descriptor(step, 0)};")
        body.append(f"{key} {{{accumulators}}}, {left}, %db, {scale_d if step == 0 else 1}{rest};")
    body.append("wgmma.commit_group.sync.aligned; wgmma.wait_group.sync.aligned 0; mad.wide.u32 %to, %tid, 4, %g3;")
    body += [f"st.global.b32 [%to + {512 * r}], %d{r};" for r in range(len(in_c))]
    result = kernel(
        "\n".join(body), image, in_c, in_a, out, threads=THREADS, shared=len(image),
        declarations=f"{DECLARATIONS} .reg .b32 %d<{len(in_c)}>, %a<16>;", **settings,
    )  # fmt: skip
    assert not result.findings, "\n".join(map(str, result.findings))
    warps = [layouts.matrix([r[32 * w : 32 * w + 32] for r in out], place, c.dtype.type) for w in range(4)]
    return np.concatenate(warps)


def check(kinds_: tuple[str, str, str], n: int, layout_a: Layout | None, layout_b: Layout, **options) -> None:
    """Small integers: exact in any order, so that a misplaced element shows."""
    rng = np.random.default_rng(n)
    low = 0 if "u8" in kinds_ else -4
    depth = STEPS * 256 // layouts.BITS[kinds_[0]]
    a, b = rng.integers(low, 5, (ROWS, depth)), rng.integers(low, 5, (depth, n))
    c = rng.integers(-50, 50, (ROWS, n))
    bits = [layouts.bits_of(x, kind) for x, kind in ((a, kinds_[0]), (b, kinds_[1]), (c, kinds_[2]))]
    sign = np.prod(options.get("signs", (1, 1)))
    wanted = sign * (a @ b) + (0 if options.get("scale_d") == "0" else c)
    got = layouts.values_of(multiply(kinds_, n, *bits, layout_a, layout_b, **options), kinds_[2])
    np.testing.assert_array_equal(got, wanted)


K_MAJOR = [Layout(width) for width in SWIZZLES]
MN_MAJOR = [Layout(width, True) for width in SWIZZLES]
BF16 = ("bf16", "bf16", "f32")


def name(layout: Layout | None) -> str:
    return "registers" if layout is None else f"{'mn' if layout.mn_major else 'k'}-{layout.width}"


@pytest.mark.parametrize("layout_b", K_MAJOR + MN_MAJOR, ids=name)
@pytest.mark.parametrize("layout_a", [None, *K_MAJOR, *MN_MAJOR], ids=name)
def test_layouts(layout_a, layout_b):
    check(BF16, 64, layout_a, layout_b)


@pytest.mark.parametrize("n", range(8, 257, 8))
def test_every_n(n):
    check(BF16, n, Layout(128), Layout(128))
    if n % 64 == 8:
        check(BF16, n, Layout(128, True), Layout(128, True))


FORMATS = [
    ("f16", "f16", "f32"), ("f16", "f16", "f16"), BF16, ("tf32", "tf32", "f32"),
    *((a, b, d) for a in ("e4m3", "e5m2") for b in ("e4m3", "e5m2") for d in ("f32", "f16")),
    *((a, b, "s32") for a in ("s8", "u8") for b in ("s8", "u8")),
]  # fmt: skip


@pytest.mark.parametrize("kinds_", FORMATS, ids="-".join)
def test_formats(kinds_):
    check(kinds_, 32, Layout(128), Layout(128))
    check(kinds_, 32, None, Layout(64))
    if layouts.BITS[kinds_[0]] == 16:
        check(kinds_, 32, Layout(128, True), Layout(32, True))


@pytest.mark.parametrize("signs", [(1, -1), (-1, 1), (-1, -1)])
def test_signs(signs):
    check(BF16, 16, Layout(128), Layout(128), signs=signs)
    check(("e4m3", "e4m3", "f32"), 16, None, Layout(128), signs=signs)


@pytest.mark.parametrize("layout", [Layout(128), Layout(128, True), Layout(64), Layout(64, True), Layout(32)], ids=name)
def test_base_offsets(layout):
    """A pattern that starts at any line of 128 bytes."""
    for line in (1, 2, 3, 6, 7):
        check(BF16, 64, Layout(128), layout, shift=128 * line)


def test_scale_d():
    check(BF16, 16, Layout(128), Layout(128), scale_d="0")
    check(("s8", "s8", "s32"), 16, Layout(128), Layout(128), scale_d="0")


def test_integers_saturate():
    rng = np.random.default_rng(1)
    a, b = rng.integers(100, 256, (ROWS, 128), np.uint8), rng.integers(100, 256, (128, 16), np.uint8)
    c = rng.choice([-(2**31), 0, 2**31 - 1], (ROWS, 16))
    exact = (a.astype(np.int64) @ b.astype(np.int64)) + c
    got = multiply(
        ("u8", "u8", "s32"), 16, a, b, layouts.bits_of(c, "s32"), Layout(128), Layout(128), saturate=".satfinite"
    )
    np.testing.assert_array_equal(got.view(np.int32), np.clip(exact, -(2**31), 2**31 - 1))
    got = multiply(("u8", "u8", "s32"), 16, a, b, layouts.bits_of(c, "s32"), Layout(128), Layout(128))
    np.testing.assert_array_equal(got, exact.astype(np.uint32))


def test_accuracy():
    rng = np.random.default_rng(2)
    for kinds_ in FORMATS[:4]:
        depth = STEPS * 256 // layouts.BITS[kinds_[0]]
        shapes = ((ROWS, depth), (depth, 64), (ROWS, 64))
        bits = [layouts.bits_of(rng.normal(size=s), kind) for s, kind in zip(shapes, kinds_)]
        a, b, c = (layouts.values_of(x, kind) for x, kind in zip(bits, kinds_))
        got = layouts.values_of(multiply(kinds_, 64, *bits, Layout(128), Layout(128)), kinds_[2])
        eps = 2**-24 if kinds_[2] == "f32" else STEPS * 2**-11
        assert (np.abs(got - (a @ b + c)) <= (np.abs(a) @ np.abs(b) + np.abs(c)) * (2**-24 * depth + eps)).all()


@pytest.mark.parametrize("schedule", ["forward", "backward", "turns", "random", "worst"])
def test_schedules(schedule):
    check(BF16, 64, Layout(128), Layout(128), schedule=schedule, seed=3)


# ---- faults ----------------------------------------------------------------------------------------------------------

# A clean kernel of one product, n 8, of which each case replaces something.
B_IMAGE = tile(layouts.bits_of(np.ones((8, 64)), "bf16"), Layout(128))
A_IMAGE = tile(layouts.bits_of(np.ones((64, 64)), "bf16"), Layout(128))
IMAGE = padded(np.concatenate([A_IMAGE.image, B_IMAGE.image]))
DESC_A, DESC_B = A_IMAGE.descriptor(0, 0), B_IMAGE.descriptor(0, len(A_IMAGE.image))
PRODUCT = "wgmma.mma_async.sync.aligned.m64n8k16.f32.bf16.bf16"
ISSUE = f"{PRODUCT} {{%d0, %d1, %d2, %d3}}, {{%a0, %a1, %a2, %a3}}, %db, 1, 1, 1, 0;"
ISSUE_SHARED = f"{PRODUCT} {{%d0, %d1, %d2, %d3}}, %da, %db, 1, 1, 1, 0, 0;"
COMMIT, WAIT = "wgmma.commit_group.sync.aligned;", "wgmma.wait_group.sync.aligned 0;"
FENCE, PROXY, BARRIER = "wgmma.fence.sync.aligned;", "fence.proxy.async;", "bar.sync 0;"
STORE = "st.global.v4.b32 [%out], {%d0, %d1, %d2, %d3};"
CLEAN = "\n".join((
    fill(IMAGE), f"mov.b64 %da, {DESC_A}; mov.b64 %db, {DESC_B}; mad.wide.u32 %out, %tid, 16, %g1;",
    *(f"mov.b32 %d{k}, 0; mov.b32 %a{k}, 0x3f803f80;" for k in range(4)),
    PROXY, BARRIER, FENCE, ISSUE, ISSUE_SHARED, COMMIT, WAIT, STORE,
))  # fmt: skip


def run(body: str, threads: int = THREADS, **settings):
    out = np.zeros((THREADS, 4), np.float32)
    declarations = f"{DECLARATIONS} .reg .b32 %d<16>, %a<4>; .reg .b64 %out;"
    return kernel(body, IMAGE, out, threads=threads, shared=len(IMAGE), declarations=declarations, **settings), out


@pytest.mark.parametrize("schedule", ["forward", "backward", "turns", "random", "worst"])
def test_the_kernel_of_the_faults_is_clean(schedule):
    result, out = run(CLEAN, schedule=schedule)
    assert not result.findings
    assert (out == 32).all()


def replaced(*changes: tuple[str, str]) -> str:
    body = CLEAN
    for old, new in changes:
        assert body.count(old) == 1, old
        body = body.replace(old, new)
    return body


RACES = {"race: read after write", "race: write after read"}
UNUSABLE = {"bad descriptor", "undefined value"}
SET_A3 = "mov.b32 %a3, 0x3f803f80;"
ONE_THREAD = "setp.eq.u32 %q, %tid, 0;"
OVERWRITE_B = f"{ONE_THREAD} mov.b32 %x0, 0; @%q st.shared.b32 [%smem + {len(A_IMAGE.image)}], %x0;"
FIRST_WARP = "setp.lt.u32 %q, %tid, 32;"
BY_TWO_WAYS = f"{FIRST_WARP} @%q bra LOW; {ISSUE} bra END; LOW: {ISSUE} END:"
OTHER_SHAPE = f"{PRODUCT.replace('n8', 'n16')} {{%d4, %d5, %d6, %d7, %d0, %d1, %d2, %d3}}, %da, %db, 0, 1, 1, 0, 0;"
D_AS_A = f"{PRODUCT} {{%d4, %d5, %d6, %d7}}, {{%d0, %d1, %d2, %d3}}, %db, 0, 1, 1, 0;"
A_AS_D = f"{PRODUCT} {{%a0, %a1, %a2, %a3}}, %da, %db, 0, 1, 1, 0, 0;"
FRESH = ISSUE.replace("%db, 1", "%db, 0")
# What is replaced by what, and the kinds of findings.
FAULTS = {
    "no wait": (WAIT, "", {"in flight"}),
    "a wait one group short": (WAIT, "wgmma.wait_group.sync.aligned 1;", {"in flight"}),
    "no commit": (COMMIT, "", {"in flight"}),
    "results before the wait": (f"{WAIT}\n{STORE}", f"{STORE} {WAIT}", {"in flight"}),
    "A's register changed in flight": (WAIT, f"mov.b32 %a1, 0; {WAIT}", {"in flight"}),
    "A's register read in flight": (WAIT, f"mov.b32 %x0, %a1; {WAIT}", set()),
    "accumulator changed in flight": (WAIT, f"add.f32 %d2, %x0, %x1; {WAIT}", {"in flight"}),
    "no fence": (FENCE, "", {"no wgmma.fence"}),
    "accumulator set after the fence": (FENCE, f"{FENCE} mov.b32 %d1, 0;", set()),
    "accumulator set in a second group without a fence": (
        WAIT, f"{WAIT} mov.b32 %d1, 0; {ISSUE} {COMMIT} {WAIT}", {"no wgmma.fence"},
    ),
    "A's register set after its group's fence": (FENCE, f"{FENCE} {SET_A3}", set()),
    "A's register set in a second group without a fence": (
        WAIT, f"{WAIT} {SET_A3} {ISSUE} {COMMIT} {WAIT}", {"no wgmma.fence"},
    ),
    "no proxy fence": (PROXY, "", {"no proxy fence"}),
    "proxy fence by who reads": (f"{PROXY}\n{BARRIER}", f"{BARRIER} {PROXY}", set()),
    "no barrier": (BARRIER, "", RACES),
    "B overwritten before the wait": (WAIT, f"{OVERWRITE_B} {WAIT}", RACES),
    "B overwritten after one warp's wait": (WAIT, f"{WAIT} {OVERWRITE_B}", RACES),
    "B overwritten after all warps' waits": (WAIT, f"{WAIT} {BARRIER} {OVERWRITE_B}", set()),
    "another shape in the same registers": (COMMIT, f"{OTHER_SHAPE} {COMMIT}", {"in flight"}),
    "accumulators as A": (COMMIT, f"{D_AS_A} {COMMIT}", {"in flight"}),
    "A as accumulators": (COMMIT, f"{A_AS_D} {COMMIT}", {"in flight"}),
    "accumulators that nobody wrote": ("mov.b32 %d1, 0;", "", {"undefined value"}),
    "A that nobody wrote": ("mov.b32 %a1, 0x3f803f80;", "", {"undefined value"}),
    "a descriptor that nobody wrote": (f"mov.b64 %da, {DESC_A};", "", {"undefined value"}),
    "a start off the pattern": (f"{DESC_A}", f"{DESC_A + (128 >> 4)}", {"bad descriptor"}),
    "a base offset without a swizzle": (f"{DESC_A}", f"{describe(0, 128, 256, 0, 1)}", {"bad descriptor"}),
    "bits that must be 0": (f"{DESC_A}", f"{DESC_A | 1 << 15}", {"bad descriptor"}),
    "lanes with several descriptors": (FENCE, f"{FENCE} {ONE_THREAD} @%q mov.b64 %da, 0;", UNUSABLE),
    "warps with several descriptors": (
        FENCE, f"{FENCE} {FIRST_WARP} @%q mov.b64 %da, {A_IMAGE.descriptor(1, 0)};", {"warpgroup disagrees"},
    ),
    "warps with several instructions": (ISSUE, BY_TWO_WAYS, {"warpgroup disagrees"}),
    "beyond shared memory": (f"{DESC_B}", f"{B_IMAGE.descriptor(0, len(IMAGE))}", {"out of bounds"}),
    "A's last rows beyond it": (f"{DESC_A}", f"{A_IMAGE.descriptor(0, len(IMAGE) - 4096)}", {"out of bounds"}),
    "a sign of 2": (ISSUE, ISSUE.replace("1, 1, 1, 0;", "1, 2, 1, 0;"), {"bad operand"}),
    "scale-d of some lanes": (ISSUE, f"{FIRST_WARP[:-3]} 70; {ISSUE.replace('%db, 1', '%db, %q')}", {"bad operand"}),
    "one warp issues none": (
        ISSUE_SHARED, f"setp.ge.u32 %q, %tid, 96; @%q bra NONE; {ISSUE_SHARED} NONE:", {"partial warpgroup"},
    ),
    "a part of a warp": (
        ISSUE, f"setp.ne.u32 %q, %tid, 70; @%q {ISSUE}",
        {"partial warp", "undefined value", "warpgroup disagrees", "partial warpgroup"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("schedule", ["forward", "worst"])
def test_faults(fault, schedule):
    old, new, wanted = FAULTS[fault]
    result = run(replaced((old, new)), schedule=schedule)[0]
    found, text = kinds(result), "\n".join(map(str, result.findings))
    if wanted == RACES:  # the schedule decides who comes first, and whether there is something yet
        assert found & RACES, text
        found -= RACES | {"never written"}
        wanted = set()
    if wanted == {"out of bounds"}:  # what is stored of it is then undefined, too
        found.discard("undefined value")
    assert found == wanted, text


def test_accumulators_that_are_not_read_may_be_undefined():
    assert not run(replaced(("mov.b32 %d1, 0;", ""), (ISSUE, FRESH)))[0].findings


def test_shared_memory_that_nobody_wrote():
    body = CLEAN.replace(fill(IMAGE), "mov.b64 %smem, smem; mov.b32 %x0, 0;")
    assert kinds(run(body)[0]) == {"never written"}


def test_half_a_warpgroup():
    assert "partial warpgroup" in kinds(run(CLEAN, threads=64)[0])


def test_who_never_issues_is_named():
    none = f"shr.u32 %x0, %tid, 5; setp.eq.u32 %q, %x0, 2; @%q bra NONE; {ISSUE_SHARED} NONE:"
    (finding,) = run(replaced((ISSUE_SHARED, none)))[0].findings
    assert "CTA 0 warp 2 ended after 1 wgmmas" in finding.text
    assert ISSUE_SHARED.removesuffix(";") in finding.text


def test_the_last_warp_overwrites_what_it_still_reads():
    """Its write meets its own engine's read at least."""
    last = OVERWRITE_B.replace(ONE_THREAD, "setp.eq.u32 %q, %tid, 127;")
    again = f"{WAIT} {BARRIER} {FENCE} {ISSUE} {COMMIT}"
    not_yet = f"{ISSUE} {COMMIT} wgmma.wait_group.sync.aligned 1; {BARRIER}"
    for before in ("", f"{again} {BARRIER}", not_yet):  # in the first group; in the second one, of the same rows
        result = run(replaced((WAIT, f"{before} {last} {WAIT}")))[0]
        assert "race: write after read" in kinds(result)
    assert not run(replaced((WAIT, f"{again} {WAIT} {BARRIER} {last}")))[0].findings


def test_groups_end_in_order():
    """Two groups; after wait_group 1 the first one's accumulators may be read, the second one's not."""
    second = f"{PRODUCT} {{%d4, %d5, %d6, %d7}}, %da, %db, 0, 1, 1, 0, 0; {COMMIT} wgmma.wait_group.sync.aligned 1;"
    for register, wanted in (("%d0", set()), ("%d4", {"in flight"})):
        body = replaced((WAIT, f"{second} add.f32 %x1, {register}, {register}; {WAIT}"))
        assert kinds(run(body)[0]) == wanted


def test_accumulators_are_busy_until_their_last_group_ends():
    again = f"{ISSUE_SHARED} {COMMIT} wgmma.wait_group.sync.aligned 1;"
    assert not run(replaced((WAIT, f"{again} {WAIT}")))[0].findings
    assert kinds(run(replaced((WAIT, f"{again} add.f32 %x1, %d0, %d0; {WAIT}")))[0]) == {"in flight"}


def test_a_fence_comes_before_the_first_wgmma():
    """Even if no register of it was written before."""
    changes = [(f"mov.b32 %d{k}, 0;", "") for k in range(4)]
    fresh = ISSUE_SHARED.replace("%db, 1", "%db, 0")
    for fence, wanted in ((FENCE, set()), ("", {"no wgmma.fence"})):
        result = run(replaced(*changes, (ISSUE + "\n", ""), (ISSUE_SHARED, fresh), (FENCE, fence)))[0]
        assert kinds(result) == wanted


def test_accumulators_go_on_without_a_fence_after_a_wait():
    """The ISA orders wgmmas of one shape in the same registers among themselves."""
    result, out = run(replaced((WAIT, f"{WAIT} {ISSUE_SHARED} {COMMIT} {WAIT}")))
    assert not result.findings
    assert (out == 48).all()


@pytest.mark.parametrize("operand", ["A", "B", "A in registers"])
def test_undefined_elements_reach_rows_and_columns(operand):
    """Row 21 of A, or column 5 of B, comes from a register that nobody wrote."""
    row, column = (21, None) if operand != "B" else (None, 5)
    if operand == "A in registers":  # warp 1 lane 20 has row 5 of its 16 in register 0
        changes = [("mov.b32 %a0, 0x3f803f80;", "setp.ne.u32 %q, %tid, 52; @%q mov.b32 %a0, 0x3f803f80;")]
    else:
        at = (
            128 * row if operand == "A" else len(A_IMAGE.image) + 128 * column
        ) + 16 * 5  # chunk 0 of row 5 of a pattern
        changes = [(PROXY, f"{BARRIER} setp.eq.u32 %q, %tid, 0; @%q st.shared.b32 [%smem + {at}], %nobody;\n{PROXY}")]
    rows, columns = layouts.place_d(8)
    for register in range(4):
        for thread in (0, 6, 2, 33, 52, 53, 55, 56, 60, 127):
            warp, lane = divmod(thread, 32)
            body = replaced(
                *changes, (STORE, f"setp.eq.u32 %q, %tid, {thread}; @%q st.global.b32 [%out], %d{register};")
            )
            out = np.zeros((THREADS, 4), np.float32)
            declarations = f"{DECLARATIONS} .reg .b32 %d<16>, %a<4>, %nobody; .reg .b64 %out;"
            result = kernel(body, IMAGE, out, threads=THREADS, shared=len(IMAGE), declarations=declarations)
            reached = 16 * warp + rows[lane, register] == row or columns[lane, register] == column
            assert kinds(result) == ({"undefined value"} if reached else set()), (thread, register)
