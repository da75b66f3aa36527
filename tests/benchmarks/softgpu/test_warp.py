"""Shuffles, votes, matches, reductions, elections, and matrices to and from shared memory, against Python."""

from __future__ import annotations

import functools

import numpy as np
import pytest

from tests.benchmarks.softgpu.support import kernel, kinds, lanes

LANES = 32
RNG = np.random.default_rng(5)
WORDS = RNG.integers(0, 2**32, LANES, np.uint32)


# ---- shuffles --------------------------------------------------------------------------------------------------------


def shuffled(mode: str, lane: int, b: int, c: int) -> tuple[int, bool]:
    """The lane that `lane` reads, and whether it is in bounds: the ISA's text."""
    segment, b = c >> 8 & 31, b & 31
    greatest = (lane & segment) | (c & 31 & ~segment)
    source = {"up": lane - b, "down": lane + b, "bfly": lane ^ b, "idx": (lane & segment) | (b & ~segment & 31)}[mode]
    inside = source >= greatest if mode == "up" else source <= greatest
    return (source if inside else lane), inside


@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
@pytest.mark.parametrize("width", [32, 16, 8])
def test_shuffles(mode, width):
    c = (32 - width) << 8 | (0 if mode == "up" else 31)
    for b in (0, 1, 3, 7, 16, 31):
        out = lanes(f"shfl.sync.{mode}.b32 %d|%p, %a, {b}, {c}, -1;", {"a": WORDS}, {"d": np.uint32, "p": bool})
        wanted = [shuffled(mode, lane, b, c) for lane in range(LANES)]
        np.testing.assert_array_equal(out["d"], WORDS[[source for source, _ in wanted]])
        np.testing.assert_array_equal(out["p"], [inside for _, inside in wanted])


def test_a_shuffle_takes_each_lane_s_own_operands():
    b, c = RNG.integers(0, 64, (2, LANES), np.uint32)
    c |= RNG.integers(0, 32, LANES, np.uint32) << 8
    for mode in ("up", "down", "bfly", "idx"):
        out = lanes(f"shfl.sync.{mode}.b32 %d, %a, %b, %c, 0xffffffff;", {"a": WORDS, "b": b, "c": c}, {"d": np.uint32})
        wanted = [shuffled(mode, lane, int(b[lane]), int(c[lane]))[0] for lane in range(LANES)]
        np.testing.assert_array_equal(out["d"], WORDS[wanted])


def test_halves_of_a_warp_shuffle_apart():
    """Diverged, each half with its own members."""
    body = """
    setp.lt.u32 %low, %lane, 16;
    @%low bra LOW;
    shfl.sync.idx.b32 %d, %a, 17, 31, 0xffff0000;
    bra END;
    LOW: shfl.sync.idx.b32 %d, %a, 3, 31, 0x0000ffff;
    END:
    """
    out = lanes(body, {"a": WORDS, "lane": np.arange(LANES, dtype=np.uint32)}, {"d": np.uint32}, ".reg .pred %low;")
    np.testing.assert_array_equal(out["d"], np.repeat(WORDS[[3, 17]], 16))


def test_diverged_lanes_meet_at_a_shuffle():
    """All are members: those that come first wait."""
    body = """
    setp.lt.u32 %low, %lane, 16;
    mov.b32 %x, 1;
    @%low bra LOW;
    mov.b32 %x, 2;
    LOW: shfl.sync.bfly.b32 %d, %x, 16, 31, -1;
    """
    out = lanes(body, {"lane": np.arange(LANES, dtype=np.uint32)}, {"d": np.uint32}, ".reg .pred %low; .reg .b32 %x;")
    np.testing.assert_array_equal(out["d"], [2] * 16 + [1] * 16)


def test_the_first_lanes_wait_for_those_that_are_further_on():
    body = """
    setp.lt.u32 %low, %lane, 16;
    mov.b32 %x, 1;
    @%low bra FAR;
    BACK: shfl.sync.bfly.b32 %d, %x, 16, 31, -1;
    bra END;
    FAR: mov.b32 %x, 2;
    bra BACK;
    END:
    """
    out = lanes(body, {"lane": np.arange(LANES, dtype=np.uint32)}, {"d": np.uint32}, ".reg .pred %low; .reg .b32 %x;")
    np.testing.assert_array_equal(out["d"], [1] * 16 + [2] * 16)


def test_members_come_from_each_lane():
    """One instruction, two groups."""
    members = np.where(np.arange(LANES) % 2, 0xAAAAAAAA, 0x55555555).astype(np.uint32)
    body = "shfl.sync.down.b32 %d, %a, 2, 31, %m; vote.sync.ballot.b32 %v, %p, %m;"
    p = RNG.random(LANES) < 0.5
    out = lanes(body, {"a": WORDS, "m": members, "p": p}, {"d": np.uint32, "v": np.uint32})
    np.testing.assert_array_equal(out["d"], [WORDS[lane + 2 if lane < 30 else lane] for lane in range(LANES)])
    ballot = sum(1 << k for k in range(LANES) if p[k])
    np.testing.assert_array_equal(out["v"], members & np.uint32(ballot))


@pytest.mark.parametrize(
    "body",
    [
        "shfl.sync.bfly.b32 %d, %tid, 1, 31, 0xfffffffe;",  # lane 0 is no member
        "setp.lt.u32 %p, %tid, 8; @%p shfl.sync.bfly.b32 %d, %tid, 1, 31, -1;",  # members that the guard holds back
    ],
)
def test_members_must_be_who_executes(body):
    assert "bad member mask" in kinds(kernel(body, declarations=".reg .pred %p; .reg .b32 %d;"))


def test_members_that_never_come_are_a_deadlock():
    """Each half waits for the other, at an instruction of its own."""
    shuffle = "shfl.sync.bfly.b32 %d, %tid, 16, 31, -1;"
    body = f"setp.lt.u32 %p, %tid, 16; @%p bra LOW; {shuffle} bra END; LOW: {shuffle} END:"
    assert kinds(kernel(body, declarations=".reg .pred %p; .reg .b32 %d;")) == {"deadlock"}


@pytest.mark.parametrize(("operands", "reached"), [("%x, 1", 4), ("%tid, %x", 5)])
def test_a_shuffle_moves_what_nobody_wrote(operands, reached):
    """Lane 5 writes nothing: lane 4 reads it; or lane 5 does not know which lane to read."""
    for lane in (4, 5, 6):
        out = np.zeros(LANES, np.uint32)
        body = f"""
        setp.ne.u32 %p, %tid, 5; @%p mov.b32 %x, 1;
        shfl.sync.bfly.b32 %d, {operands}, 31, -1;
        mad.wide.u32 %at, %tid, 4, %g0;
        setp.eq.u32 %p, %tid, {lane}; @%p st.global.b32 [%at], %d;
        """
        found = kinds(kernel(body, out, declarations=".reg .pred %p; .reg .b32 %x, %d; .reg .b64 %at;"))
        assert found == ({"undefined value"} if lane == reached else set())


# ---- votes, matches, elections, reductions ---------------------------------------------------------------------------


@pytest.mark.parametrize(
    "p", [np.ones(LANES, bool), np.zeros(LANES, bool), RNG.random(LANES) < 0.5], ids=["all", "none", "some"]
)
def test_votes(p):
    body = """
    vote.sync.all.pred %all, %p, -1; vote.sync.any.pred %any, %p, -1; vote.sync.uni.pred %uni, %p, -1;
    vote.sync.ballot.b32 %ballot, %p, -1; vote.sync.any.pred %none, !%p, -1;
    """
    out = lanes(body, {"p": p}, {"all": bool, "any": bool, "uni": bool, "none": bool, "ballot": np.uint32})
    bits = sum(int(x) << k for k, x in enumerate(p))
    assert (out["ballot"] == bits).all()
    for name, wanted in (("all", p.all()), ("any", p.any()), ("uni", p.all() or not p.any()), ("none", not p.all())):
        assert (out[name] == wanted).all(), name


@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_matches(dtype):
    bits = np.dtype(dtype).itemsize * 8
    a = RNG.integers(0, 4, LANES).astype(dtype) << dtype(bits - 8)
    body = f"""
    match.any.sync.b{bits} %any, %a, -1;
    match.all.sync.b{bits} %all|%p, %a, -1;
    match.all.sync.b{bits} %same|%q, %one, -1;
    """
    out = lanes(
        body,
        {"a": a, "one": np.ones(LANES, dtype)},
        dict.fromkeys(("any", "all", "same"), np.uint32) | {"p": bool, "q": bool},
    )
    np.testing.assert_array_equal(out["any"], [sum(1 << k for k in range(LANES) if a[k] == x) for x in a])
    assert not out["all"].any()
    assert not out["p"].any()
    assert (out["same"] == 2**32 - 1).all()
    assert out["q"].all()


@pytest.mark.parametrize(("schedule", "seed"), [("forward", 0), ("worst", 0), ("worst", 1), ("random", 7)])
def test_elections(schedule, seed):
    body = "elect.sync %who|%p, -1; elect.sync %again|%q, -1;"
    outputs = {"who": np.uint32, "again": np.uint32, "p": bool, "q": bool}
    out = lanes(body, {"a": WORDS}, outputs, schedule=schedule, seed=seed)
    leader = int(out["who"][0])
    assert (out["who"] == leader).all()
    assert (out["again"] == leader).all()
    np.testing.assert_array_equal(out["p"], np.arange(LANES) == leader)
    np.testing.assert_array_equal(out["q"], out["p"])
    assert schedule != "forward" or leader == 0


def test_some_schedule_elects_another_leader():
    leaders = {
        int(lanes("elect.sync %d|%p, -1;", {"a": WORDS}, {"d": np.uint32, "p": bool}, schedule="worst", seed=s)["d"][0])
        for s in range(8)
    }
    assert len(leaders) > 1


@pytest.mark.parametrize(
    ("key", "dtype", "function"),
    [
        ("add.u32", np.uint32, lambda x, y: x + y), ("add.s32", np.uint32, lambda x, y: x + y),
        ("min.u32", np.uint32, min), ("max.u32", np.uint32, max),
        ("min.s32", np.int32, min), ("max.s32", np.int32, max),
        ("and.b32", np.uint32, lambda x, y: x & y), ("or.b32", np.uint32, lambda x, y: x | y),
        ("xor.b32", np.uint32, lambda x, y: x ^ y),
    ],
)  # fmt: skip
def test_integer_reductions(key, dtype, function):
    a = (WORDS | 0x10 if key.startswith("and") else WORDS).view(dtype)
    wanted = np.uint32(functools.reduce(function, map(int, a)) & 0xFFFFFFFF)
    out = lanes(f"redux.sync.{key} %d, %a, -1;", {"a": a}, {"d": np.uint32})
    assert (out["d"] == wanted).all()
    half = np.uint32(functools.reduce(function, map(int, a[:16])) & 0xFFFFFFFF)
    body = f"setp.lt.u32 %p, %lane, 16; mov.b32 %d, 0; @%p redux.sync.{key} %d, %a, 0xffff;"
    out = lanes(body, {"a": a, "lane": np.arange(LANES, dtype=np.uint32)}, {"d": np.uint32}, ".reg .pred %p;")
    np.testing.assert_array_equal(out["d"], np.where(np.arange(LANES) < 16, half, 0))


def test_float_reductions():
    a = RNG.normal(size=LANES).astype(np.float32)
    a[[3, 9]], a[11] = np.nan, -50
    names = {"max": np.nanmax(a), "min": np.nanmin(a), "max.abs": np.nanmax(abs(a)), "min.abs": np.nanmin(abs(a))}
    for name, wanted in names.items():
        out = lanes(
            f"redux.sync.{name}.f32 %d, %a, %m;", {"a": a, "m": np.full(LANES, 2**32 - 1, np.uint32)}, {"d": np.float32}
        )
        assert (out["d"] == wanted).all(), name
        out = lanes(
            f"redux.sync.{name}.NaN.f32 %d, %a, %m;",
            {"a": a, "m": np.full(LANES, 2**32 - 1, np.uint32)},
            {"d": np.uint32},
        )
        assert (out["d"] == 0x7FFFFFFF).all(), name


def test_activemask():
    body = "setp.lt.u32 %p, %lane, 7; mov.b32 %d, 0; @%p bra LOW; bra END; LOW: activemask.b32 %d; END:"
    out = lanes(body, {"lane": np.arange(LANES, dtype=np.uint32)}, {"d": np.uint32}, ".reg .pred %p;")
    np.testing.assert_array_equal(out["d"], [127] * 7 + [0] * 25)


# ---- ldmatrix, stmatrix, movmatrix -----------------------------------------------------------------------------------


def element(lane: int, half: int, transposed: bool) -> tuple[int, int]:
    """Row and column, in an 8x8 matrix, of a half of a lane's register."""
    row, column = lane // 4, 2 * (lane % 4) + half
    return (column, row) if transposed else (row, column)


def fragments(matrices: np.ndarray, transposed: bool) -> np.ndarray:
    """(count, 32) registers of (count, 8, 8) matrices of 16 bits."""
    halves = [[[m[element(lane, half, transposed)] for half in (0, 1)] for lane in range(LANES)] for m in matrices]
    return np.array(halves, np.uint16).view(np.uint32)[..., 0]


SPACES = {".shared": "", ".shared::cta": "", "": "cvta.shared.u64 %p, %p;"}


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_ldmatrix(count, transposed, space):
    """Rows at addresses in any order, of which some are shared."""
    data = RNG.integers(0, 2**16, (64, 8), np.uint16)  # rows of 16 bytes
    rows = RNG.integers(0, 64, LANES)
    names = ", ".join(f"%d{i}" for i in range(count))
    offset = 32
    body = f"""
    mad.wide.u32 %at, %tid, 16, %g0; ld.global.v4.b32 {{%x0, %x1, %x2, %x3}}, [%at];
    mov.b64 %p, smem; mad.wide.u32 %q, %tid, 16, %p; st.shared.v4.b32 [%q], {{%x0, %x1, %x2, %x3}};
    ld.global.v4.b32 {{%x0, %x1, %x2, %x3}}, [%at + 512]; st.shared.v4.b32 [%q + 512], {{%x0, %x1, %x2, %x3}};
    bar.sync 0;
    mad.wide.u32 %at, %tid, 4, %g1; ld.global.b32 %x0, [%at];
    {SPACES[space]} mad.wide.s32 %p, %x0, 16, %p;
    ldmatrix.sync.aligned.m8n8.x{count}{".trans" if transposed else ""}{space}.b16 {{{names}}}, [%p + {offset}];
    mad.wide.u32 %at, %tid, 4, %g2;
    {" ".join(f"st.global.b32 [%at + {128 * i}], %d{i};" for i in range(count))}
    """
    out = np.zeros((count, LANES), np.uint32)
    declarations = ".reg .b32 %x<4>, %d<4>; .reg .b64 %p, %q, %at;"
    result = kernel(body, data, (rows - offset // 16).astype(np.int32), out, shared=1024, declarations=declarations)
    assert not result.findings
    np.testing.assert_array_equal(out, fragments(data[rows[: 8 * count]].reshape(count, 8, 8), transposed))


@pytest.mark.parametrize("space", SPACES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("count", [1, 2, 4])
def test_stmatrix(count, transposed, space):
    matrices = RNG.integers(0, 2**16, (count, 8, 8), np.uint16)
    rows = RNG.permutation(LANES)
    names = ", ".join(f"%x{i}" for i in range(count))
    body = f"""
    mad.wide.u32 %at, %tid, 4, %g0;
    {" ".join(f"ld.global.b32 %x{i}, [%at + {128 * i}];" for i in range(count))}
    mov.b64 %s, smem; mov.b64 %p, %s; mov.b32 %row, 0;
    mad.wide.u32 %q, %tid, 16, %s; st.shared.v4.b32 [%q], {{%row, %row, %row, %row}};
    bar.sync 0;
    mad.wide.u32 %at, %tid, 4, %g1; ld.global.b32 %row, [%at];
    {SPACES[space]} mad.wide.s32 %p, %row, 16, %p;
    stmatrix.sync.aligned.m8n8.x{count}{".trans" if transposed else ""}{space}.b16 [%p + 16], {{{names}}};
    bar.sync 0;
    ld.shared.v4.b32 {{%x0, %x1, %x2, %x3}}, [%q];
    mad.wide.u32 %at, %tid, 16, %g2; st.global.v4.b32 [%at], {{%x0, %x1, %x2, %x3}};
    """
    out = np.zeros((LANES, 8), np.uint16)
    declarations = ".reg .b32 %x<4>, %row; .reg .b64 %p, %q, %s, %at;"
    regs = fragments(matrices, transposed)
    result = kernel(body, regs, (rows - 1).astype(np.int32), out, shared=512, declarations=declarations)
    assert not result.findings
    wanted = np.zeros((LANES, 8), np.uint16)
    wanted[rows[: 8 * count]] = matrices.reshape(-1, 8)
    np.testing.assert_array_equal(out, wanted)


def test_movmatrix():
    m = RNG.integers(0, 2**16, (1, 8, 8), np.uint16)
    out = lanes("movmatrix.sync.aligned.m8n8.trans.b16 %d, %a;", {"a": fragments(m, False)[0]}, {"d": np.uint32})
    np.testing.assert_array_equal(out["d"], fragments(m, True)[0])


LDMATRIX = "ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%d}, [%p];"
STORE = "mov.b64 %p, smem; mad.wide.u32 %p, %tid, 16, %p; st.shared.v4.b32 [%p], {%x, %x, %x, %x};"


@pytest.mark.parametrize(
    ("body", "kind"),
    [
        (f"mov.b32 %x, 0; {STORE} bar.sync 0; add.s64 %p, %p, 8; {LDMATRIX}", "misaligned"),
        (f"mov.b32 %x, 0; {STORE} bar.sync 0; add.s64 %p, %p, 512; {LDMATRIX}", "out of bounds"),
        (f"mov.b64 %p, smem; mad.wide.u32 %p, %tid, 16, %p; {LDMATRIX}", "never written"),
        (f"mov.b32 %x, 0; {STORE} bar.sync 0; {LDMATRIX.replace('%p', '%q')}", "undefined value"),
    ],
)
def test_faults_of_ldmatrix(body, kind):
    found = kinds(kernel(body, shared=512, declarations=".reg .b32 %x, %d; .reg .b64 %p, %q;"))
    assert found == {kind}


@pytest.mark.parametrize("transposed", [False, True])
def test_ldmatrix_carries_what_nobody_wrote(transposed):
    """Row 3 comes from an undefined register: of its elements alone a store is found."""
    for lane in range(LANES):
        out = np.zeros(LANES, np.uint32)
        body = f"""
        setp.ne.u32 %some, %tid, 3; @%some mov.b32 %x, 1; {STORE} bar.sync 0;
        {LDMATRIX.replace(".x1", ".x1.trans") if transposed else LDMATRIX}
        mad.wide.u32 %at, %tid, 4, %g0; setp.eq.u32 %some, %tid, {lane}; @%some st.global.b32 [%at], %d;
        """
        declarations = ".reg .b32 %x, %d; .reg .b64 %p, %at; .reg .pred %some;"
        found = kinds(kernel(body, out, shared=512, declarations=declarations))
        tainted = any(element(lane, half, transposed)[0] == 3 for half in (0, 1))
        assert found == ({"undefined value"} if tainted else set()), lane


@pytest.mark.parametrize("transposed", [False, True])
def test_stmatrix_carries_what_nobody_wrote(transposed):
    """Lane 13's register is undefined: what it stores is, and nothing else."""
    for row in range(8):
        out = np.zeros((LANES, 4), np.uint32)
        body = f"""
        setp.ne.u32 %some, %tid, 13; @%some mov.b32 %x, 1; mov.b64 %p, smem; mad.wide.u32 %p, %tid, 16, %p;
        stmatrix.sync.aligned.m8n8.x1{".trans" if transposed else ""}.shared.b16 [%p], {{%x}};
        bar.sync 0; mad.wide.u32 %at, %tid, 16, %g0; setp.eq.u32 %some, %tid, {row};
        @%some ld.shared.v4.b32 {{%d0, %d1, %d2, %d3}}, [%p];
        @%some st.global.v4.b32 [%at], {{%d0, %d1, %d2, %d3}};
        """
        declarations = ".reg .b32 %x, %d<4>; .reg .b64 %p, %at; .reg .pred %some;"
        found = kinds(kernel(body, out, shared=512, declarations=declarations))
        tainted = any(element(13, half, transposed)[0] == row for half in (0, 1))
        assert found == ({"undefined value"} if tainted else set()), row


def test_movmatrix_carries_what_nobody_wrote():
    """Of lane 13's elements, who holds one afterwards is undefined."""
    for lane in range(LANES):
        out = np.zeros(LANES, np.uint32)
        body = f"""
        setp.ne.u32 %some, %tid, 13; @%some mov.b32 %x, 1; movmatrix.sync.aligned.m8n8.trans.b16 %d, %x;
        mad.wide.u32 %at, %tid, 4, %g0; setp.eq.u32 %some, %tid, {lane}; @%some st.global.b32 [%at], %d;
        """
        found = kinds(kernel(body, out, declarations=".reg .b32 %x, %d; .reg .b64 %at; .reg .pred %some;"))
        moved = {element(13, half, False) for half in (0, 1)} & {element(lane, half, True) for half in (0, 1)}
        assert found == ({"undefined value"} if moved else set()), lane


def test_conflicts_are_counted():
    """Rows 16 bytes apart take one wavefront a matrix, rows 128 bytes apart eight."""
    for stride, waves in ((16, 4), (128, 32)):
        body = f"""
        mov.b32 %x, 0; mov.b64 %p, smem; mad.wide.u32 %p, %tid, {stride}, %p;
        st.shared.v4.b32 [%p], {{%x, %x, %x, %x}}; bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x4.shared.b16 {{%d0, %d1, %d2, %d3}}, [%p];
        """
        result = kernel(body, shared=32 * stride, declarations=".reg .b32 %x, %d<4>; .reg .b64 %p;")
        assert not result.findings
        at = next(k for k, r in enumerate(result.program.lowered.records) if r.key.startswith("ldmatrix"))
        executed, _, moved, transactions, ideal = result.counts[at]
        assert (executed, moved, transactions, ideal) == (1, 512, waves, 4)
