"""tcgen05.mma against a plain matrix product, and the order that its results and operands need."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest

from tests.benchmarks.softgpu import layouts
from tests.benchmarks.softgpu.shared_matrices import STEPS, SWIZZLES, THREADS, Layout, Tile, fill, padded, tile
from tests.benchmarks.softgpu.support import kernel, kinds

TARGET = "sm_100a"
SLOT, BAR = 0, 16  # in shared memory: where the address of tensor memory goes; an mbarrier
MATRICES = 1024
A_COLUMN = 256  # in tensor memory, behind the accumulators
MODES = {0: 0, 1: 2, 2: 4, 3: 6}  # of a swizzle: in wgmma's descriptors, in tcgen05's
TYPES = {"f16": 0, "bf16": 1, "tf32": 2}


def descriptor(tile: Tile, step: int, base: int) -> int:
    of_wgmma = tile.descriptor(step, base)
    return of_wgmma & (1 << 62) - 1 | 1 << 46 | MODES[of_wgmma >> 62] << 61


def instruction(kind: str, m: int, n: int, transposed: tuple[bool, bool], negated: tuple[int, int] = (0, 0)) -> int:
    """The instruction descriptor, float32 accumulators."""
    types = 1 << 4 | TYPES[kind] << 7 | TYPES[kind] << 10
    return types | negated[0] << 13 | negated[1] << 14 | transposed[0] << 15 | transposed[1] << 16 | n << 14 | m << 20


def lanes_of(m: int, first: int = 0) -> np.ndarray:
    """Where rows lie in tensor memory: 64 rows take 16 lanes of each 32."""
    rows = np.arange(m)
    return rows if m == 128 else rows // 16 * 32 + rows % 16 + first


def copy(op: str, count: int, at: int, array: str, row: int) -> list[str]:
    """PTX that brings `count` words of this thread's lane from or to row `tid` of an array."""
    lines = [f"mad.wide.u32 %to, %tid, {4 * row}, {array};"]
    registers = "{" + ", ".join(f"%x{r}" for r in range(8)) + "}"
    for column in range(0, count, 8):
        if op == "st":
            lines += [f"ld.global.b32 %x{r}, [%to + {4 * (column + r)}];" for r in range(8)]
            lines.append(f"tcgen05.st.sync.aligned.32x32b.x8.b32 [%mine + {at + column}], {registers};")
        else:
            lines.append(f"tcgen05.ld.sync.aligned.32x32b.x8.b32 {registers}, [%mine + {at + column}];")
            lines.append("tcgen05.wait::ld.sync.aligned;")
            lines += [f"st.global.b32 [%to + {4 * (column + r)}], %x{r};" for r in range(8)]
    return lines


# %t: the allocation; %mine: its part that this warp reaches.
START = f"""
setp.lt.u32 %first, %tid, 32; setp.eq.u32 %one, %tid, 0; setp.eq.u32 %true, %tid, %tid;
@%first tcgen05.alloc.cta_group::1.sync.aligned.shared::cta.b32 [smem + {SLOT}], 512;
@%one mbarrier.init.shared::cta.b64 [smem + {BAR}], 1;
bar.sync 0;
ld.shared.b32 %t, [smem + {SLOT}];
shr.u32 %mine, %tid, 5; and.b32 %mine, %mine, 3; shl.b32 %mine, %mine, 21; add.u32 %mine, %mine, %t;
"""
END = "bar.sync 0; @%first tcgen05.dealloc.cta_group::1.sync.aligned.b32 %t, 512;"
COMMIT = f"@%one tcgen05.commit.cta_group::1.mbarrier::arrive::one.shared::cluster.b64 [smem + {BAR}];"
WAIT = f"WAIT: mbarrier.try_wait.parity.shared::cta.b64 %done, [smem + {BAR}], 0; @!%done bra WAIT;"
FENCE = "fence.proxy.async.shared::cta;"
DECLARATIONS = """
.reg .pred %first, %one, %done, %true, %q; .reg .b32 %t, %mine, %x<10>, %idesc, %at;
.reg .b64 %smem, %from, %to, %da, %db;
"""


class Operands(NamedTuple):
    kind: str
    m: int
    n: int
    a: np.ndarray  # bits
    b: np.ndarray  # (k, n)
    c: np.ndarray | None
    layout_a: Layout | None  # None: in tensor memory
    layout_b: Layout
    first: int = 0  # lane, of 64 rows
    negated: tuple[int, int] = (0, 0)


def program(o: Operands) -> tuple[list[str], list[np.ndarray]]:
    """Statements, in which tests look for what they change, and the arrays: image, C, A, out."""
    bits = layouts.BITS[o.kind]
    depth = 256 // bits
    tile_b = tile(o.b.T, o.layout_b)
    tile_a = None if o.layout_a is None else tile(o.a, o.layout_a)
    base_a = MATRICES
    base_b = base_a + (0 if tile_a is None else -(-len(tile_a.image) // 1024) * 1024)
    image = np.zeros(base_b + len(tile_b.image), np.uint8)
    image[base_b:] = tile_b.image
    if tile_a is not None:
        image[base_a : base_a + len(tile_a.image)] = tile_a.image
    image = padded(image[MATRICES:])
    lanes = lanes_of(o.m, o.first)
    in_c, in_a = np.zeros((128, o.n), np.uint32), np.zeros((128, 8 * STEPS), np.uint32)
    if o.c is not None:
        in_c[lanes] = layouts.bits_of(o.c, "f32")
    if tile_a is None:
        in_a[lanes] = np.ascontiguousarray(o.a).view(np.uint32)
    transposed = (o.layout_a is not None and o.layout_a.mn_major, o.layout_b.mn_major)
    body = [START, fill(image).replace("smem;", f"smem; add.u64 %smem, %smem, {MATRICES};", 1)]
    body += [*copy("st", o.n, 0, "%g1", o.n), *copy("st", 8 * STEPS, A_COLUMN, "%g2", 8 * STEPS)]
    body += ["tcgen05.wait::st.sync.aligned;", FENCE, "bar.sync 0;"]
    body += [
        f"mov.b32 %idesc, {instruction(o.kind, o.m, o.n, transposed, o.negated)}; add.u32 %at, %t, {o.first << 16};"
    ]
    opcode = f"@%one tcgen05.mma.cta_group::1.kind::{'tf32' if o.kind == 'tf32' else 'f16'}"
    for step in range(STEPS):
        left = f"[%at + {A_COLUMN + 8 * step}]"
        if tile_a is not None:
            left = "%da"
            body.append(f"mov.b64 %da, {descriptor(tile_a, step, base_a)};")
        body.append(f"mov.b64 %db, {descriptor(tile_b, step, base_b)};")
        accumulate = "%true" if step or o.c is not None else "!%true"
        body.append(f"{opcode} [%at + 0], {left}, %db, %idesc, {accumulate};")
    assert depth * STEPS == o.a.shape[1]
    body += [COMMIT, WAIT, *copy("ld", o.n, 0, "%g3", o.n), END]
    return body, [image, in_c, in_a, np.zeros((128, o.n), np.uint32)]


def run(body: list[str], arrays: list[np.ndarray], **settings):
    return kernel(
        "\n".join(body), *arrays, threads=THREADS, shared=MATRICES + len(arrays[0]), target=TARGET,
        declarations=DECLARATIONS, **settings,
    )  # fmt: skip


def operands(
    kind: str, m: int, n: int, layout_a: Layout | None, layout_b: Layout, accumulate: bool = True, **options
) -> tuple[Operands, np.ndarray]:
    """Small integers, exact in any order; and their product."""
    rng = np.random.default_rng(n)
    depth = STEPS * 256 // layouts.BITS[kind]
    a, b, c = rng.integers(-4, 5, (m, depth)), rng.integers(-4, 5, (depth, n)), rng.integers(-50, 50, (m, n))
    sign = -1 if sum(options.get("negated", (0, 0))) == 1 else 1
    o = Operands(
        kind, m, n, layouts.bits_of(a, kind), layouts.bits_of(b, kind), c if accumulate else None, layout_a, layout_b,
        **options,
    )  # fmt: skip
    return o, sign * (a @ b) + (c if accumulate else 0)


def check(*arguments, settings=None, **options) -> None:
    o, wanted = operands(*arguments, **options)
    body, arrays = program(o)
    result = run(body, arrays, **(settings or {}))
    assert not result.findings, "\n".join(map(str, result.findings))
    got = layouts.values_of(arrays[3][lanes_of(o.m, o.first)], "f32")
    np.testing.assert_array_equal(got, wanted)


K_MAJOR = [Layout(width) for width in SWIZZLES]
MN_MAJOR = [Layout(width, True) for width in SWIZZLES]


def name(layout: Layout | None) -> str:
    return "tensor" if layout is None else f"{'mn' if layout.mn_major else 'k'}-{layout.width}"


# ---- products --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("layout", K_MAJOR + MN_MAJOR, ids=name)
@pytest.mark.parametrize("m", [64, 128])
def test_layouts_of_matrices_in_shared_memory(layout, m):
    check("bf16", m, 64, layout, Layout(128))
    check("bf16", m, 64, Layout(128), layout)


@pytest.mark.parametrize("n", [8, 16, 24, 48, 104, 128, 256])
def test_numbers_of_columns(n):
    check("f16", 64, n, Layout(128), Layout(128))
    if n % 16 == 0:
        check("f16", 128, n, Layout(128), Layout(128))


@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32"])
@pytest.mark.parametrize("m", [64, 128])
def test_formats_and_a_in_tensor_memory(kind, m):
    check(kind, m, 32, Layout(64), Layout(128))
    check(kind, m, 32, None, Layout(64))


def test_64_rows_in_the_upper_lanes():
    check("bf16", 64, 32, None, Layout(128), first=16)
    check("bf16", 64, 32, Layout(128), Layout(128), first=16)


@pytest.mark.parametrize("negated", [(1, 0), (0, 1), (1, 1)])
def test_signs(negated):
    check("bf16", 128, 32, Layout(128), Layout(128), negated=negated)


def test_accumulators_that_are_not_added_to():
    check("bf16", 128, 32, Layout(128), Layout(128), accumulate=False)


@pytest.mark.parametrize("schedule", ["backward", "turns", "random", "worst"])
@pytest.mark.parametrize("landing", ["late", "early", "random"])
def test_schedules(schedule, landing):
    for seed in range(2):  # which also moves the allocation
        check("bf16", 128, 32, None, Layout(128), settings={"schedule": schedule, "landing": landing, "seed": seed})


def test_tf32_ignores_the_lowest_bits():
    o, wanted = operands("tf32", 128, 32, Layout(128), Layout(128))
    o = o._replace(a=o.a | np.uint32(0x1FFF), b=o.b | np.uint32(0x1FFF))
    body, arrays = program(o)
    assert not run(body, arrays).findings
    np.testing.assert_array_equal(layouts.values_of(arrays[3], "f32"), wanted)


# ---- what is undefined -----------------------------------------------------------------------------------------------


def undefined_stores(body: list[str], arrays: list[np.ndarray]) -> list[str]:
    """The threads' stores of D are a row's (a lane's) in each thread, and an instruction for each column."""
    findings = run(body, arrays).findings
    assert {f.kind for f in findings} <= {"undefined value"}
    return [f.text for f in findings]


@pytest.mark.parametrize("layout_a", [None, Layout(128)], ids=name)
def test_an_undefined_element_of_a_spoils_its_row(layout_a):
    o, _ = operands("bf16", 128, 16, layout_a, Layout(128))
    body, arrays = program(o)
    if layout_a is None:  # lane 37, a column of the third step
        at = next(k for k, line in enumerate(body) if line.startswith("tcgen05.st") and f"+ {A_COLUMN + 16}]" in line)
        body.insert(at, "setp.eq.u32 %q, %tid, 37; @%q mov.b32 %x3, %never;")
    else:
        body.insert(2, f"setp.eq.u32 %q, %tid, 42; @%q st.shared.b32 [smem + {MATRICES + 37 * 128 + 40}], %never;")
    stores = [k for k, line in enumerate(body) if line.startswith("st.global")]
    for k in stores:  # only of the other rows
        body[k] = "setp.ne.u32 %q, %tid, 37; @%q " + body[k]
    assert not undefined_stores([".reg .b32 %never;", *body], arrays)
    for k in stores:
        body[k] = body[k].replace("setp.ne", "setp.eq")
    assert len(undefined_stores([".reg .b32 %never;", *body], arrays)) == 16


def test_an_undefined_element_of_b_spoils_its_column():
    o, _ = operands("bf16", 128, 16, Layout(128), Layout(128))
    body, arrays = program(o)
    base_b = MATRICES + 128 * 128
    body.insert(2, f"setp.eq.u32 %q, %tid, 42; @%q st.shared.b32 [smem + {base_b + 5 * 128 + 40}], %never;")
    stores = [k for k, line in enumerate(body) if line.startswith("st.global")]
    assert len(undefined_stores([".reg .b32 %never;", *body], arrays)) == 1
    assert "+ 20]" in body[stores[5]]
    body[stores[5]] = ""
    assert not undefined_stores([".reg .b32 %never;", *body], arrays)


def test_accumulators_that_nobody_wrote_are_undefined():
    o, _ = operands("bf16", 128, 16, Layout(128), Layout(128))
    body, arrays = program(o)
    kept = [
        line
        for line in body
        if not line.startswith(
            ("tcgen05.st.sync.aligned.32x32b.x8.b32 [%mine + 0]", "tcgen05.st.sync.aligned.32x32b.x8.b32 [%mine + 8]")
        )
    ]
    assert len(kept) == len(body) - 2
    assert len(undefined_stores(kept, arrays)) == 16


# ---- order -----------------------------------------------------------------------------------------------------------

CLEAN, ARRAYS = program(operands("bf16", 128, 16, None, Layout(128))[0])
TEXT = "\n".join(CLEAN)
MMA = next(line for line in CLEAN if "tcgen05.mma" in line)
LD = next(line for line in CLEAN if line.startswith("tcgen05.ld"))
BEFORE, AFTER = "tcgen05.fence::before_thread_sync;", "tcgen05.fence::after_thread_sync;"
WAIT_ST, WAIT_LD = "tcgen05.wait::st.sync.aligned;", "tcgen05.wait::ld.sync.aligned;"
ST_A = f"tcgen05.st.sync.aligned.32x32b.x8.b32 [%mine + {A_COLUMN}], {{%x0, %x1, %x2, %x3, %x4, %x5, %x6, %x7}};"
OTHER = MMA.replace("[%at + 0]", "[%at + 8]")
SECOND_COMMIT = COMMIT.replace(f"{BAR}]", f"{BAR + 8}]")


def edited(*changes: tuple[str, str]) -> list[set[str]]:
    """The kinds of findings, on several schedules."""
    text = TEXT
    for old, new in changes:
        assert old in text, old
        text = text.replace(old, new, 1)
    schedules = ("forward", "backward", "worst")
    return [kinds(run([text], [a.copy() for a in ARRAYS], schedule=schedule, seed=2)) for schedule in schedules]


BARRIER = "bar.sync 0;\nmov.b32 %idesc"  # before the products


def fenced(before: str = BEFORE, after: str = AFTER) -> tuple[str, str]:
    return BARRIER, f"{before} bar.sync 0; {after}\nmov.b32 %idesc"


RACES = {"race: read after write", "race: write after read", "race: write after write"}  # by who came first
# Name -> (changes, what the findings may be: at least one of these).
FAULTS = {
    "nothing": ((), set()),
    "no commit": (((COMMIT, ""),), {"deadlock"}),
    "results before the mbarrier was waited for": (((WAIT, ""),), {"in flight"} | RACES),
    "stores of tensor memory not waited for": (((WAIT_ST, ""),), {"in flight"}),
    "stores waited for behind the barrier": (
        ((WAIT_ST, ""), (BARRIER, f"bar.sync 0; {WAIT_ST}\nmov.b32 %idesc")),
        {"in flight"} | RACES,
    ),
    "no barrier before the product": (
        ((BARRIER, "mov.b32 %idesc"),),
        {"in flight", "no proxy fence", "never written", "undefined value"} | RACES,
    ),
    "no proxy fence": (((FENCE, ""),), {"no proxy fence"}),
    "A overwritten while it is read": (((WAIT, f"{ST_A} {WAIT_ST} {WAIT}"),), {"in flight"} | RACES),
    "A overwritten when it has been read": (((WAIT, f"{WAIT} {ST_A} {WAIT_ST}"),), set()),
    "B overwritten while it is read": (
        ((WAIT, f"@%one st.shared.b32 [smem + {MATRICES}], %tid; {WAIT}"),), {"race: write after read"},
    ),
    "B overwritten when it has been read": (((WAIT, f"{WAIT} @%one st.shared.b32 [smem + {MATRICES}], %tid;"),), set()),
    "results overwritten before they are loaded": (
        ((WAIT_LD, f"{ST_A.replace(f'{A_COLUMN}', '0')} {WAIT_LD} {WAIT_ST}"),), {"in flight"},
    ),
    "accumulators of another shape": (((COMMIT, f"{OTHER} {COMMIT}"),), {"in flight"}),
    "given back while the products run": (((WAIT, f"bar.sync 0; {END} {WAIT} ret;"),), {"in flight"}),
    "committed by another thread": (
        ((COMMIT, f"setp.eq.u32 %q, %tid, 1; {COMMIT.replace('%one', '%q')}"),), {"commit by another thread"},
    ),
    "mbarrier ended while a commit is under way": (
        ((WAIT, f"@%one mbarrier.inval.shared::cta.b64 [smem + {BAR}]; ret;"),),
        {"in flight", "no mbarrier", "tensor memory kept"},
    ),
    # A program that has tcgen05's fences must have them all.
    "fences": ((fenced(), (WAIT, WAIT + AFTER)), set()),
    "no fence after the commit's mbarrier": (
        (fenced(),), {"no tcgen05.fence"},
    ),
    "no fence before the barrier": (
        (fenced(before=""), (WAIT, WAIT + AFTER)), {"no tcgen05.fence"},
    ),
    "no fence after the barrier": (
        (fenced(after=""), (WAIT, WAIT + AFTER)), {"no tcgen05.fence"},
    ),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
def test_order(fault):
    changes, wanted = FAULTS[fault]
    for found in edited(*changes):
        assert found <= wanted
        assert bool(found) == bool(wanted)


def test_relaxed_waits_and_fences():
    """The ISA's own pattern: a relaxed wait, and the fence behind it."""
    relaxed = WAIT.replace("try_wait.parity", "try_wait.parity.relaxed.cta")
    assert edited(fenced(), (WAIT, f"{relaxed} {AFTER}")) == [set()] * 3
    assert all("in flight" in found for found in edited((WAIT, relaxed)))


# ---- descriptors -----------------------------------------------------------------------------------------------------

IDESC = f"mov.b32 %idesc, {instruction('bf16', 128, 16, (False, False))};"


def with_idesc(value: int) -> tuple[str, str]:
    return IDESC, f"mov.b32 %idesc, {value};"


DESCRIPTOR_B = next(line for line in CLEAN if line.startswith("mov.b64 %db"))
BITS_B = int(DESCRIPTOR_B.split()[-1].rstrip(";"))


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (with_idesc(instruction("bf16", 128, 24, (False, False))), "no such shape: 128 x 24"),
        (with_idesc(instruction("bf16", 192, 16, (False, False))), "no such shape: 192 x 16"),
        (with_idesc(instruction("bf16", 128, 16, (False, False)) & ~0x30), "not float32"),
        (with_idesc(instruction("bf16", 128, 16, (False, False)) | 4), "sparsity"),
        (with_idesc(instruction("tf32", 128, 16, (False, False))), "no such types"),
        ((DESCRIPTOR_B, f"mov.b64 %db, {BITS_B & ~(1 << 46)};"), "bits 46 to 48 are not 1"),
        ((DESCRIPTOR_B, f"mov.b64 %db, {BITS_B | 1 << 52};"), "absolute leading offsets"),
        ((DESCRIPTOR_B, f"mov.b64 %db, {BITS_B | 1 << 55};"), "bits 53 to 60 are not 0"),
        ((DESCRIPTOR_B, f"mov.b64 %db, {BITS_B | 1 << 14};"), "bits that must be 0"),
        ((DESCRIPTOR_B, f"mov.b64 %db, {BITS_B | 1 << 61};"), "swizzling mode 3 is not known"),
        ((DESCRIPTOR_B, f"mov.b64 %db, {BITS_B | 1 << 49};"), "starts in line 0"),
    ],
)
def test_descriptors_that_cannot_be(change, wanted):
    text = TEXT.replace(*change, 1)
    assert text != TEXT
    findings = [f for f in run([text], [a.copy() for a in ARRAYS]).findings if f.kind == "bad descriptor"]
    assert len(findings) == 1
    assert wanted in findings[0].text


@pytest.mark.parametrize(
    ("change", "wanted"),
    [
        (("[%at + 0]", "[%at + 500]"), "out of bounds"),
        ((f"[%at + {A_COLUMN}]", "[%at + 508]"), "out of bounds"),
        (("add.u32 %at, %t, 0;", f"add.u32 %at, %t, {16 << 16};"), "bad operand"),
        ((IDESC, ""), "undefined value"),
    ],
)
def test_operands_out_of_place(change, wanted):
    assert all(wanted in found for found in edited(change))
