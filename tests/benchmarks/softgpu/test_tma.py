"""Bulk copies: boxes against numpy's slices, swizzles against their tables, and what may not be left out."""

import struct

import numpy as np
import pytest

from tests.benchmarks.softgpu.support import kernel, kinds

TYPES = {1: 0, 2: 6, 4: 7}  # bytes of an element: uint8, float16, float32
THREADS = 128


def aligned(nbytes: int) -> np.ndarray:
    room = np.zeros(nbytes + 128, np.uint8)
    return room[-room.ctypes.data % 128 :][:nbytes]


def tensor_map(x: np.ndarray, box: tuple[int, ...], swizzle: int = 0, fill: int = 0) -> np.ndarray:
    """A map of the array x, whose box is given as numpy has it, the innermost dimension last (machine/tensor_map.h)."""
    rank = x.ndim

    def pad(values, n):
        return [*values, *[0] * (n - len(values))]

    fields = struct.pack(
        "<I6B5BxQ4Q5I5H", 0x50414D54, TYPES[x.itemsize], rank - 1, 0, swizzle, 0, fill,
        *pad([1] * rank, 5), x.ctypes.data, *pad(x.strides[-2::-1] if rank > 1 else [], 4), *pad(x.shape[::-1], 5),
        *pad(box[::-1], 5),
    )  # fmt: skip
    out = aligned(128)
    out[: len(fields)] = np.frombuffer(fields, np.uint8)
    return out


DECLARATIONS = """
.reg .pred %p, %one; .reg .b32 %s, %bar, %at, %x<8>; .reg .b64 %to;
"""
SETUP = "mov.u32 %s, smem; setp.eq.u32 %one, %tid, 0;\n"
INIT = "@%one mbarrier.init.shared::cta.b64 [%bar], 1;"
PUBLISH = "fence.proxy.async.shared::cta;"
BARRIER = "bar.sync 0;"
WAIT = "W: mbarrier.try_wait.parity.shared::cta.b64 %p, [%bar], 0; @!%p bra W;"


def expect(nbytes: int) -> str:
    return f"@%one mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], {nbytes};"


def copied_out(nbytes: int) -> str:
    """All threads copy shared memory to the array of %g1, 4 bytes each time."""
    lines = ["mad.lo.u32 %at, %tid, 4, %s; mad.wide.u32 %to, %tid, 4, %g1;"]
    for start in range(0, nbytes, 4 * THREADS):
        lines.append(f"ld.shared.b32 %x0, [%at + {start}]; st.global.b32 [%to + {start}], %x0;")
    return "\n".join(lines)


def load(coordinates: tuple[int, ...]) -> str:
    rank, where = len(coordinates), ", ".join(map(str, coordinates[::-1]))
    key = f"cp.async.bulk.tensor.{rank}d.shared::cta.global.mbarrier::complete_tx::bytes"
    return f"@%one {key} [%s], [%g0, {{{where}}}], [%bar];"


def loading(x, box, coordinates, swizzle=0, fill=0, **settings):
    """Run a kernel that loads a box of x and stores shared memory; returns the result and what was stored."""
    nbytes = int(np.prod(box)) * x.itemsize
    size = -(-nbytes // (4 * THREADS)) * 4 * THREADS
    out = np.zeros(size, np.uint8)
    body = "\n".join((f"add.s32 %bar, %s, {size};", INIT, PUBLISH, BARRIER, expect(nbytes), load(coordinates), WAIT,
                      copied_out(nbytes)))  # fmt: skip
    result = kernel(SETUP + body, tensor_map(x, box, swizzle, fill), out, x.view(np.uint8).reshape(-1), threads=THREADS,
                    shared=size + 64, declarations=DECLARATIONS, **settings)  # fmt: skip
    return result, out[:nbytes]


def cut(x: np.ndarray, box, coordinates, outside=0.0) -> np.ndarray:
    """The box at these coordinates; what lies outside of x is `outside`."""
    out = np.full(box, outside, x.dtype)
    index = np.indices(box) + np.reshape(coordinates, (-1, *[1] * len(box)))
    inside = np.all([(i >= 0) & (i < n) for i, n in zip(index, x.shape)], axis=0)
    out[inside] = x[tuple(i[inside] for i in index)]
    return out


@pytest.mark.parametrize("landing", ["late", "early", "random"])
@pytest.mark.parametrize(
    ("shape", "box", "coordinates"),
    [
        ((512,), (128,), (8,)), ((40, 32), (16, 32), (8, 0)), ((40, 32), (16, 16), (30, 20)),
        ((40, 32), (16, 16), (-5, -3)), ((6, 10, 32), (2, 8, 8), (5, 4, 12)),
        ((3, 4, 5, 8), (2, 2, 4, 8), (1, 3, 2, 0)),
        ((2, 3, 2, 4, 8), (2, 1, 2, 4, 8), (0, 2, 0, 1, 0)), ((16, 8), (16, 8), (100, 0)),
    ],
)  # fmt: skip
def test_boxes(shape, box, coordinates, landing):
    x = np.random.default_rng(0).standard_normal(shape).astype(np.float32)
    result, out = loading(x, box, coordinates, landing=landing, seed=3)
    assert not result.findings, "\n".join(map(str, result.findings))
    np.testing.assert_array_equal(out.view(np.float32).reshape(box), cut(x, box, coordinates))


def test_outside_is_nan_where_asked():
    x = np.ones((8, 16), np.float32)
    _, out = loading(x, (8, 16), (4, 8), fill=1)
    assert np.isnan(out.view(np.float32).reshape(8, 16)[4:]).all()
    assert np.isnan(out.view(np.float32).reshape(8, 16)[:, 8:]).all()
    assert (out.view(np.float32).reshape(8, 16)[:4, :8] == 1).all()


# Where the 16-byte pieces of the first eight lines of 128 bytes lie (CUDA's programming guide, "Tensor Memory Access").
TABLES = {
    1: [[0, 1, 2, 3, 4, 5, 6, 7], [1, 0, 3, 2, 5, 4, 7, 6]],
    2: [[0, 1, 2, 3, 4, 5, 6, 7], [1, 0, 3, 2, 5, 4, 7, 6], [2, 3, 0, 1, 6, 7, 4, 5], [3, 2, 1, 0, 7, 6, 5, 4]],
    3: [
        [0, 1, 2, 3, 4, 5, 6, 7], [1, 0, 3, 2, 5, 4, 7, 6], [2, 3, 0, 1, 6, 7, 4, 5], [3, 2, 1, 0, 7, 6, 5, 4],
        [4, 5, 6, 7, 0, 1, 2, 3], [5, 4, 7, 6, 1, 0, 3, 2], [6, 7, 4, 5, 2, 3, 0, 1], [7, 6, 5, 4, 3, 2, 1, 0],
    ],
}  # fmt: skip


@pytest.mark.parametrize("swizzle", TABLES)
def test_swizzles(swizzle):
    span = 16 << swizzle
    x = np.random.default_rng(1).integers(0, 1 << 16, (64, span // 2), np.uint16).view(np.float16)
    result, out = loading(x, x.shape, (0, 0), swizzle)
    assert not result.findings
    lines = out.reshape(-1, 8, 16)  # of 128 bytes, in pieces
    want = x.view(np.uint8).reshape(-1, 8, 16)
    table = TABLES[swizzle]
    for number, line in enumerate(lines):
        np.testing.assert_array_equal(line[table[number % len(table)]], want[number])


STORE = "@%one cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%g0, {8, 4}], [%s];"
COMMIT = "@%one cp.async.bulk.commit_group;"
WAIT_READ, WAIT_ALL = "@%one cp.async.bulk.wait_group.read 0;", "@%one cp.async.bulk.wait_group 0;"
FILL = "mad.lo.u32 %at, %tid, 4, %s; cvt.rn.f32.u32 %x1, %tid; st.shared.b32 [%at], %x1;"
STORING = "\n".join((FILL, PUBLISH, BARRIER, STORE, COMMIT, WAIT_READ))


def storing(body: str, store: str = "", **settings):
    x = np.full((16, 32), 0.5, np.float32)
    result = kernel(SETUP + body.replace(STORE, store or STORE), tensor_map(x, (8, 16)), x.view(np.uint8).reshape(-1),
                    threads=THREADS, shared=1024, declarations=DECLARATIONS, **settings)  # fmt: skip
    return result, x


def test_a_store_writes_the_box():
    result, x = storing(STORING)
    assert not result.findings
    want = np.full((16, 32), 0.5, np.float32)
    want[4:12, 8:24] = np.arange(128).reshape(8, 16)
    np.testing.assert_array_equal(x, want)


@pytest.mark.parametrize("dtype", [np.uint8, np.float16, np.float32])
def test_boxes_may_meet_inside_16_bytes(dtype):
    """Two CTAs store boxes of 16 bytes, side by side but for the `overlap`; the second begins inside a line of 16."""
    count = 16 // np.dtype(dtype).itemsize
    body = f"""
    mad.lo.u32 %x0, %ctaid, STEP, -1; add.u32 %x1, %ctaid, 1; mad.lo.u32 %x1, %x1, 0x01010101, 0;
    mad.lo.u32 %at, %tid, 4, %s; setp.lt.u32 %p, %tid, 4; @%p st.shared.b32 [%at], %x1; {PUBLISH} {BARRIER}
    @%one cp.async.bulk.tensor.2d.global.shared::cta.bulk_group [%g0, {{%x0, 0}}], [%s]; {COMMIT} {WAIT_READ}
    """
    for resident in (1, 2):
        for overlap, wanted in ((0, set()), (1, {"race: write after write"})):
            x = np.zeros((1, 32), dtype)
            result = kernel(SETUP + body.replace("STEP", str(count - overlap)), tensor_map(x, (1, count)),
                            x.view(np.uint8).reshape(-1), threads=THREADS, grid=(2,), shared=1024,
                            declarations=DECLARATIONS, resident=resident)  # fmt: skip
            assert kinds(result) == wanted, "\n".join(map(str, result.findings))
            assert (x.view(np.uint8)[0, : (2 * count - overlap - 1) * x.itemsize] > 0).all()
            assert not x[0, 2 * count - overlap - 1 :].any()


REDUCTIONS = {
    "add": np.add, "min": np.minimum, "max": np.maximum, "and": np.bitwise_and, "or": np.bitwise_or,
    "xor": np.bitwise_xor,
    "inc": lambda a, b: np.where(a >= b, 0, a + 1), "dec": lambda a, b: np.where((a == 0) | (a > b), b, a - 1),
}  # fmt: skip
INTEGERS = {"u32": np.uint32, "s32": np.int32, "u64": np.uint64, "s64": np.int64}


def reduced_types():
    for op in REDUCTIONS:
        if op in ("inc", "dec"):
            yield op, "u32", np.uint32
        elif op in ("and", "or", "xor"):
            yield from ((op, "b32", np.uint32), (op, "b64", np.uint64))
        else:
            yield from ((op, name, dtype) for name, dtype in INTEGERS.items() if (op, name) != ("add", "s64"))
            yield op, "noftz.f16" if op == "add" else "f16", np.float16
    yield from (("add", "f32", np.float32), ("add", "f64", np.float64))


@pytest.mark.parametrize(("op", "name", "dtype"), list(reduced_types()))
def test_reductions_of_contiguous_memory(op, name, dtype):
    """Two CTAs reduce the same 512 bytes of random bits into one place, one after the other in whatever order."""
    rng, count = np.random.default_rng(0), NBYTES // np.dtype(dtype).itemsize
    if np.issubdtype(dtype, np.floating):
        x, before = rng.standard_normal(count).astype(dtype), rng.standard_normal(count).astype(dtype)
    else:
        x, before = (rng.integers(0, 256, NBYTES, np.uint8).view(dtype).copy() for _ in range(2))
        before[: count // 2] = x[: count // 2] // 2  # inc goes on where it is below
    out = before.copy()
    body = f"""
    mad.lo.u32 %at, %tid, 4, %s; mad.wide.u32 %to, %tid, 4, %g0; ld.global.b32 %x0, [%to]; st.shared.b32 [%at], %x0;
    {PUBLISH} {BARRIER}
    @%one cp.reduce.async.bulk.global.shared::cta.bulk_group.{op}.{name} [%g1], [%s], {NBYTES}; {COMMIT} {WAIT_READ}
    """
    result = kernel(SETUP + body, x.view(np.uint8), out.view(np.uint8), threads=THREADS, grid=(2,), shared=NBYTES,
                    declarations=DECLARATIONS)  # fmt: skip
    assert not result.findings, "\n".join(map(str, result.findings))
    np.testing.assert_array_equal(out, REDUCTIONS[op](REDUCTIONS[op](before, x), x).astype(dtype))


@pytest.mark.parametrize("op", ["add", "min", "max"])
def test_reductions_of_boxes(op):
    """The type is the map's: float32 adds, float16 has all three. What lies outside of the tensor is left alone."""
    x = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float16)
    before = x.copy()
    fill = "mad.lo.u32 %at, %tid, 4, %s; add.u32 %x1, %tid, 0x38003c00; st.shared.b32 [%at], %x1;"
    store = f"@%one cp.reduce.async.bulk.tensor.2d.global.shared::cta.{op}.bulk_group [%g0, {{24, 12}}], [%s];"
    result = kernel(SETUP + "\n".join((fill, PUBLISH, BARRIER, store, COMMIT, WAIT_READ)), tensor_map(x, (8, 16)),
                    x.view(np.uint8).reshape(-1), threads=THREADS, shared=1024, declarations=DECLARATIONS)  # fmt: skip
    assert not result.findings, "\n".join(map(str, result.findings))
    stored = (np.arange(THREADS, dtype=np.uint32)[:64] + 0x38003C00).view(np.float16).reshape(8, 16)
    want = before.copy()
    want[12:, 24:] = REDUCTIONS[op](before[12:, 24:], stored[:4, :8])
    np.testing.assert_array_equal(x, want)


def test_a_reduction_that_the_type_has_not():
    store = STORE.replace("cp.async", "cp.reduce.async").replace("::cta.bulk", "::cta.min.bulk")
    result, _ = storing(STORING, store)
    assert kinds(result) == {"bad copy"}


def test_reductions_of_boxes_in_float32():
    store = STORE.replace("cp.async", "cp.reduce.async").replace("::cta.bulk", "::cta.add.bulk")
    result, x = storing(STORING, store)
    assert not result.findings
    np.testing.assert_array_equal(x[4:12, 8:24], 0.5 + np.arange(128).reshape(8, 16))


def test_a_plain_write_races_with_a_reduction():
    body = STORING.replace(STORE, STORE.replace("cp.async", "cp.reduce.async").replace("::cta.bulk", "::cta.add.bulk"))
    result, _ = storing(body + "@%one st.global.b32 [%g1 + 560], 7;")
    assert kinds(result) & {"race: write after write", "race: write after read"}, result.findings


def test_what_goes_nowhere_need_not_be_written():
    """A box whose last rows lie outside of the tensor, and of which shared memory holds the first ones alone."""
    fill = "mad.lo.u32 %at, %tid, 4, %s; setp.lt.u32 %p, %tid, 64; @%p st.shared.b32 [%at], %tid;"
    result, x = storing(STORING.replace(FILL, fill), STORE.replace("{8, 4}", "{8, 12}"))
    assert not result.findings, "\n".join(map(str, result.findings))
    np.testing.assert_array_equal(x[12:, 8:24].view(np.int32), np.arange(64).reshape(4, 16))
    result, _ = storing(STORING.replace(FILL, fill), STORE.replace("{8, 4}", "{8, 11}"))
    assert kinds(result) == {"never written"}


OVERWRITE = "st.shared.b32 [%at], %tid;"
STORE_FAULTS = {
    "no proxy fence": (PUBLISH, "", {"no proxy fence"}),
    "no barrier": (BARRIER, "", {"race: read after write", "race: write after read"}),
    "no commit": (COMMIT, "", {"in flight"}),
    "no wait at the end": (WAIT_READ, "", {"in flight"}),
    "overwritten before the wait": (WAIT_READ, f"{OVERWRITE} {WAIT_READ} {BARRIER}", {"race: write after read"}),
    "overwritten after the wait": (WAIT_READ, f"{WAIT_READ} {BARRIER} {OVERWRITE}", set()),
}


@pytest.mark.parametrize("fault", STORE_FAULTS)
@pytest.mark.parametrize("schedule", ["forward", "backward", "worst"])
def test_faults_of_stores(fault, schedule):
    old, new, wanted = STORE_FAULTS[fault]
    assert STORING.count(old) == 1
    result, _ = storing(STORING.replace(old, new), schedule=schedule)
    found = kinds(result)  # beside what the fault leads to
    assert found & wanted if wanted else not found, "\n".join(map(str, result.findings))


BOX = (8, 16)
NBYTES = 512
LOADING = "\n".join(("add.s32 %bar, %s, 1024;", INIT, PUBLISH, BARRIER, expect(NBYTES), load((0, 0)), WAIT,
                     copied_out(NBYTES)))  # fmt: skip
AGAIN = "\n".join((BARRIER, expect(NBYTES), load((0, 0)), WAIT.replace("W", "V").replace(", 0;", ", 1;")))
TOO_EARLY = {"in flight", "never written", "race: read after write"}
LOAD_FAULTS = {
    "no wait": (WAIT, "", TOO_EARLY),
    "wrong parity": (WAIT, WAIT.replace("[%bar], 0", "[%bar], 1"), TOO_EARLY),
    "too many bytes announced": (expect(NBYTES), expect(NBYTES + 16), {"deadlock"}),
    "too few bytes announced": (expect(NBYTES), expect(NBYTES - 16), {"bytes unannounced", "deadlock"}),
    "nothing announced": (expect(NBYTES), "@%one mbarrier.arrive.shared::cta.b64 _, [%bar];",
                          {"bytes unannounced", "in flight", "never written", "race: read after write", "deadlock"}),
    "no arrival": (expect(NBYTES), "", {"deadlock"}),
    "no init": (INIT, "", {"no mbarrier", "deadlock"}),
    "init not published": (BARRIER, "", {"race: use of an mbarrier after init", "no mbarrier", "deadlock"}),
    "used again in order": (copied_out(NBYTES), f"{copied_out(NBYTES)} {AGAIN}", set()),
    "used again too soon": (copied_out(NBYTES), f"{copied_out(NBYTES)} {AGAIN}".replace(BARRIER, ""),
                            {"race: write after read", "in flight", "race: read after write"}),
    "coordinates too few": (load((0, 0)), load((0, 0)).replace("2d", "1d").replace("{0, 0}", "{0}"), {"bad tensor map",
                                                                                                       "bad copy"}),
    "a box off its alignment": (load((0, 0)), load((0, 0)).replace("[%s]", "[%s + 64]"), {"misaligned", "deadlock"}),
    "beyond shared memory": (load((0, 0)), load((0, 0)).replace("[%s]", "[%s + 1024]"), {"out of bounds"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", LOAD_FAULTS)
@pytest.mark.parametrize("schedule", ["forward", "backward", "worst"])
def test_faults_of_loads(fault, schedule):
    old, new, wanted = LOAD_FAULTS[fault]
    assert LOADING.count(old) == 1
    x = np.ones((16, 32), np.float32)
    out = np.zeros(NBYTES, np.uint8)
    result = kernel(SETUP + LOADING.replace(old, new), tensor_map(x, BOX), out, x.view(np.uint8).reshape(-1),
                    threads=THREADS,
                    shared=1024 + 64, declarations=DECLARATIONS, schedule=schedule)  # fmt: skip
    found = kinds(result)
    assert found & wanted if wanted else not found, "\n".join(map(str, result.findings))


@pytest.mark.parametrize("landing", ["late", "random"])
def test_a_load_is_polled_for(landing):
    """Nobody sleeps: the copy must land nevertheless."""
    x, out = np.ones((16, 32), np.float32), np.zeros(NBYTES, np.uint8)
    result = kernel(SETUP + LOADING.replace("try_wait", "test_wait"), tensor_map(x, BOX), out,
                    x.view(np.uint8).reshape(-1), threads=THREADS, shared=1024 + 64, declarations=DECLARATIONS,
                    landing=landing, max_steps=1_000_000)  # fmt: skip
    assert not result.findings, "\n".join(map(str, result.findings))
    assert (out.view(np.float32) == 1).all()


def test_a_cta_that_ends_under_a_load():
    x = np.ones((16, 32), np.float32)
    result = kernel(SETUP + LOADING.replace(WAIT, "").replace(copied_out(NBYTES), ""), tensor_map(x, BOX), x[:1].copy(),
                    x.view(np.uint8).reshape(-1), threads=THREADS, shared=1024 + 64,
                    declarations=DECLARATIONS)  # fmt: skip
    assert kinds(result) == {"in flight"}
    assert "CTA 0 has ended before its shared memory was written" in result.findings[0].text


def test_contiguous_copies_and_a_cluster():
    """Each CTA of two loads a row, hands it to the other one through its shared memory, and stores what it got."""
    x = np.arange(2 * 64, dtype=np.float32)
    out = np.zeros_like(x)
    body = f"""
    mov.u32 %x7, %cluster_ctarank; add.s32 %bar, %s, 1024;
    {INIT} @%one mbarrier.init.shared::cta.b64 [%bar + 8], 1;
    fence.mbarrier_init.release.cluster; {PUBLISH}
    barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    {expect(256)} @%one mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar + 8], 256;
    mad.wide.u32 %to, %x7, 256, %g0;
    @%one cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%s], [%to], 256, [%bar];
    {WAIT}
    xor.b32 %x6, %x7, 1; mapa.shared::cluster.u32 %x5, %s, %x6; mapa.shared::cluster.u32 %x4, %bar, %x6;
    @%one cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%x5 + 512], [%s], 256, [%x4 + 8];
    {WAIT.replace("W", "V").replace("[%bar]", "[%bar + 8]")}
    mad.wide.u32 %to, %x7, 256, %g1; add.s32 %x0, %s, 512; bar.sync 0;
    @%one cp.async.bulk.global.shared::cta.bulk_group [%to], [%x0], 256;
    {COMMIT} {WAIT_ALL}
    barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    """
    result = kernel(SETUP + body, x.view(np.uint8), out.view(np.uint8), threads=THREADS, grid=(2,), shared=1024 + 64,
                    declarations=DECLARATIONS, directives=".reqnctapercluster 2, 1, 1")  # fmt: skip
    assert not result.findings, "\n".join(map(str, result.findings))
    np.testing.assert_array_equal(out.reshape(2, 64), x.reshape(2, 64)[::-1])


@pytest.mark.parametrize("start", [0, 4])
def test_neighbours_do_not_race(start):
    """Two CTAs store boxes side by side."""
    x = np.zeros((8, 64), np.float32)
    body = "\n".join((FILL, PUBLISH, BARRIER, f"mad.lo.u32 %x2, %ctaid, 16, {start};",
                      STORE.replace("{8, 4}", "{%x2, 0}"), COMMIT, WAIT_READ))  # fmt: skip
    result = kernel(SETUP + body, tensor_map(x, (8, 16)), x.view(np.uint8).reshape(-1), threads=THREADS, grid=(2,),
                    shared=512, declarations=DECLARATIONS)  # fmt: skip
    assert not result.findings, "\n".join(map(str, result.findings))
    want = np.zeros_like(x)
    want[:, start : start + 32] = np.tile(np.arange(128).reshape(8, 16), 2)
    np.testing.assert_array_equal(x, want)


@pytest.mark.parametrize("size", [2, 4])
def test_multicast(size):
    """CTA 0 loads one box into the shared memory of all CTAs of its cluster."""
    x = np.random.default_rng(0).standard_normal((16, 32)).astype(np.float32)
    out = np.zeros((size, NBYTES), np.uint8)
    key = "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster"
    body = f"""
    mov.u32 %x7, %cluster_ctarank; add.s32 %bar, %s, 1024; {INIT}
    fence.mbarrier_init.release.cluster; {PUBLISH} {expect(NBYTES)}
    barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    setp.eq.and.u32 %p, %x7, 0, %one;
    @%p {key} [%s], [%g0, {{8, 4}}], [%bar], {(1 << size) - 1};
    {WAIT}
    mad.wide.u32 %g1, %x7, {NBYTES}, %g1; {copied_out(NBYTES)}
    barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;
    """
    result = kernel(SETUP + body, tensor_map(x, BOX), out.reshape(-1), x.view(np.uint8).reshape(-1), threads=THREADS,
                    grid=(size,), shared=1024 + 64, declarations=DECLARATIONS,
                    directives=f".reqnctapercluster {size}, 1, 1")  # fmt: skip
    assert not result.findings, "\n".join(map(str, result.findings))
    for row in out:
        np.testing.assert_array_equal(row.view(np.float32).reshape(BOX), x[4:12, 8:24])
