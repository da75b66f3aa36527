"""Clusters: addresses in other CTAs, their barrier and what it hands on, copies between CTAs; registers handed over."""

import numpy as np
import pytest

from benchmarks.softgpu.engine import SCHEDULES
from tests.benchmarks.softgpu.support import kernel, kinds

THREADS, NBYTES = 64, 256
DECLARATIONS = """
.reg .pred %p, %one; .reg .b32 %s, %bar, %at, %other, %rank, %size, %x<8>; .reg .b64 %to, %from, %far;
"""
SETUP = """
mov.u32 %s, smem; setp.eq.u32 %one, %tid, 0; mov.u32 %rank, %cluster_ctarank; mov.u32 %size, %cluster_nctarank;
mad.lo.u32 %at, %tid, 4, %s; add.s32 %bar, %s, 1024;
mad.lo.u32 %x7, %ctaid, 64, %tid; mad.wide.u32 %to, %x7, 4, %g0;
add.s32 %other, %rank, 1; setp.eq.u32 %p, %other, %size; @%p mov.u32 %other, 0;
"""
ARRIVE, AWAIT = "barrier.cluster.arrive.aligned;", "barrier.cluster.wait.aligned;"
BARRIER = f"{ARRIVE} {AWAIT}"


def run(body: str, *more: np.ndarray, size: int = 2, clusters: int = 2, directives: str = "", **settings):
    out = np.zeros((size * clusters, THREADS), np.int32)
    result = kernel(SETUP + body, out.reshape(-1), *more, threads=THREADS, grid=(size * clusters,), shared=2048,
                    declarations=DECLARATIONS, directives=directives or f".reqnctapercluster {size}, 1, 1",
                    **settings)  # fmt: skip
    return result, out


def next_in_cluster(size: int, clusters: int) -> np.ndarray:
    """Of each CTA: the one after it in its cluster."""
    return np.arange(size * clusters).reshape(clusters, size)[:, np.r_[1:size, 0]].reshape(-1)


# Each thread leaves 1000 * CTA + thread in its own shared memory, and reads what the next CTA's thread has left.
PUT = "mad.lo.u32 %x0, %ctaid, 1000, %tid; st.shared.b32 [%at], %x0;"
GET = "mapa.shared::cluster.u32 %x1, %at, %other; ld.shared::cluster.b32 %x2, [%x1]; st.global.b32 [%to], %x2;"
EXCHANGE = f"{PUT} {BARRIER} {GET} {BARRIER}"


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("size", [2, 4])
def test_the_barrier_hands_on_what_was_stored(size, schedule):
    result, out = run(EXCHANGE, size=size, schedule=schedule, seed=size)
    assert not result.findings, "\n".join(map(str, result.findings))
    np.testing.assert_array_equal(out, 1000 * next_in_cluster(size, 2)[:, None] + np.arange(THREADS))


def test_addresses():
    """mapa and getctarank in both forms; a generic address leads to the same word."""
    body = f"""
    {PUT} {BARRIER}
    mapa.shared::cluster.u32 %x1, %at, %other; getctarank.shared::cluster.u32 %x2, %x1;
    cvt.u64.u32 %from, %at; cvta.shared.u64 %from, %from; mapa.u64 %far, %from, %other; getctarank.u64 %x3, %far;
    getctarank.u64 %x4, %from; ld.b32 %x5, [%far];
    shl.b32 %x2, %x2, 4; or.b32 %x2, %x2, %x3; shl.b32 %x2, %x2, 4; or.b32 %x2, %x2, %x4;
    mad.lo.u32 %x2, %x2, 65536, %x5; st.global.b32 [%to], %x2; {BARRIER}
    """
    result, out = run(body, size=4, clusters=1)
    assert not result.findings, "\n".join(map(str, result.findings))
    after, own = next_in_cluster(4, 1), np.arange(4)
    words = (after << 8 | after << 4 | own) << 16
    np.testing.assert_array_equal(out, (words + 1000 * after)[:, None] + np.arange(THREADS))


RACES = {"race: read after write", "race: write after read", "never written"}
FAULTS = {
    "no barrier": (f"{PUT} {BARRIER}", PUT, RACES | {"memory of a CTA that has ended"}),
    "relaxed": (f"{PUT} {BARRIER}", f"{PUT} barrier.cluster.arrive.relaxed.aligned; {AWAIT}", RACES),
    "a CTA's barrier instead": (f"{PUT} {BARRIER}", f"{PUT} bar.sync 0;", RACES | {"memory of a CTA that has ended"}),
    "stored again before the others have read": (GET, f"{GET} st.shared.b32 [%at], %tid;", RACES),
    "a rank too large": ("%at, %other", "%at, 2", {"out of bounds"}),
    "not waited for": (f"{GET} {BARRIER}", f"{GET} {ARRIVE} {ARRIVE} {AWAIT}", {"bad barrier"}),
    "not arrived": (f"{PUT} {BARRIER}", f"{PUT} {AWAIT}", {"bad barrier"}),
}


@pytest.mark.parametrize("schedule", ["forward", "backward", "turns"])
@pytest.mark.parametrize("fault", FAULTS)
def test_faults(fault, schedule):
    old, new, wanted = FAULTS[fault]
    assert EXCHANGE.count(old) == 1
    result, _ = run(EXCHANGE.replace(old, new), schedule=schedule)
    assert kinds(result) & wanted, "\n".join(map(str, result.findings))


@pytest.mark.parametrize("schedule", ["forward", "backward"])  # in turns nobody is late
def test_memory_ends_with_its_cta(schedule):
    result, _ = run(EXCHANGE.removesuffix(BARRIER), schedule=schedule)
    assert kinds(result) == {"memory of a CTA that has ended"}


def test_a_fence_before_a_relaxed_arrival_publishes():
    fenced = f"{PUT} fence.acq_rel.cluster; barrier.cluster.arrive.relaxed.aligned; {AWAIT} {GET} {BARRIER}"
    result, out = run(fenced)
    assert not result.findings, "\n".join(map(str, result.findings))
    np.testing.assert_array_equal(out, 1000 * next_in_cluster(2, 2)[:, None] + np.arange(THREADS))


def test_threads_that_have_ended_count_as_arrived():
    """Warp 1 of every CTA ends at once; warp 0 meets the others' warps 0."""
    result, out = run(f"setp.ge.u32 %p, %tid, 32; @%p ret; {EXCHANGE}", size=4, clusters=1)
    assert not result.findings, "\n".join(map(str, result.findings))
    np.testing.assert_array_equal(out[:, :32], 1000 * next_in_cluster(4, 1)[:, None] + np.arange(32))
    assert not out[:, 32:].any()


APART = "and.b32 %x3, %tid, 1; setp.eq.u32 %p, %x3, 0; @%p bra EVEN; {odd} bra MEET; EVEN: {even} MEET:"
UNALIGNED = {word: word.replace(".aligned", "") for word in (ARRIVE, AWAIT)}
TOGETHER = f"{UNALIGNED[ARRIVE]} {UNALIGNED[AWAIT]}"


def apart(even: str, odd: str) -> str:
    return APART.format(even=even, odd=odd)


LANES = {
    "both barriers apart": f"{PUT} {apart(TOGETHER, TOGETHER)} {GET} {BARRIER}",
    "the second one's arrivals apart": f"{PUT} {BARRIER} {GET} {apart(UNALIGNED[ARRIVE], UNALIGNED[ARRIVE])} {AWAIT}",
    "half of the lanes first": f"{PUT} {apart(UNALIGNED[ARRIVE], '')} @!%p {TOGETHER} {GET} {BARRIER}",
    "some are a phase ahead": f"{PUT} {UNALIGNED[ARRIVE]} {apart(UNALIGNED[AWAIT] + UNALIGNED[ARRIVE], '')}"
                              f" {UNALIGNED[AWAIT]} {GET} @!%p {UNALIGNED[ARRIVE]} @!%p {UNALIGNED[AWAIT]} {BARRIER}",
}  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("lanes", LANES)
def test_lanes_come_apart(lanes, schedule):
    result, out = run(LANES[lanes], schedule=schedule, seed=4)
    assert not result.findings, "\n".join(map(str, result.findings))
    np.testing.assert_array_equal(out, 1000 * next_in_cluster(2, 2)[:, None] + np.arange(THREADS))


LANE_FAULTS = {
    "only the even lanes arrive": (apart(UNALIGNED[ARRIVE], "") + UNALIGNED[AWAIT], "bad barrier"),
    "one lane arrives twice": (f"@%one {UNALIGNED[ARRIVE]} {TOGETHER}", "bad barrier"),
    "one lane waits for those who wait for it": (
        f"@!%one {UNALIGNED[ARRIVE]} @!%one {UNALIGNED[AWAIT]} bar.warp.sync 0xffffffff; {TOGETHER}", "deadlock",
    ),
    "a part of an aligned one": (f"@!%one {ARRIVE} @!%one {AWAIT}", "partial warp"),
    "aligned ones apart": (apart(BARRIER, BARRIER), "deadlock"),
}  # fmt: skip


@pytest.mark.parametrize("fault", LANE_FAULTS)
def test_faults_of_lanes(fault):
    body, wanted = LANE_FAULTS[fault]
    result, _ = run(body)
    assert wanted in kinds(result), "\n".join(map(str, result.findings))


# ---- mbarriers and copies between CTAs

INIT = "@%one mbarrier.init.shared::cta.b64 [%bar], 1;"
FENCE_INIT = "fence.mbarrier_init.release.cluster;"
RELAXED = f"barrier.cluster.arrive.relaxed.aligned; {AWAIT}"
LOAD = "ld.shared.b32 %x2, [%at + 512]; st.global.b32 [%to], %x2;"
WAIT = "W: mbarrier.try_wait.parity.acquire.cluster.shared::cta.b64 %p, [%bar], 0; @!%p bra W;"
REMOTE = "mapa.shared::cluster.u32 %x3, %bar, %other;"
# Each thread stores to the next CTA's shared memory; one of them then arrives at that CTA's mbarrier.
STORE = "mapa.shared::cluster.u32 %x1, %at, %other; st.shared::cluster.b32 [%x1], %x0;"
SIGNAL = "@%one mbarrier.arrive.release.cluster.shared::cluster.b64 _, [%x3];"
PUSH = f"""
{INIT} {FENCE_INIT} {RELAXED}
mad.lo.u32 %x0, %ctaid, 1000, %tid; {STORE} {REMOTE} bar.sync 0; {SIGNAL} {WAIT}
ld.shared.b32 %x2, [%at]; st.global.b32 [%to], %x2; {BARRIER}
"""


def previous_in_cluster(size: int, clusters: int) -> np.ndarray:
    return np.argsort(next_in_cluster(size, clusters))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_arrivals_at_another_ctas_mbarrier(schedule):
    result, out = run(PUSH, size=4, schedule=schedule, seed=5)
    assert not result.findings, "\n".join(map(str, result.findings))
    np.testing.assert_array_equal(out, 1000 * previous_in_cluster(4, 2)[:, None] + np.arange(THREADS))


PUSH_FAULTS = {
    "inits not released": (FENCE_INIT, "", {"race: use of an mbarrier after init"}),
    "no barrier behind the inits": (RELAXED, "", {"race: use of an mbarrier after init", "no mbarrier"}),
    "not waited for": (WAIT, "", {"race: read after write", "race: write after read", "never written"}),
    "arrival without release": (SIGNAL, SIGNAL.replace("release", "relaxed"), RACES),
    "arrival before the stores": ("bar.sync 0;", "", RACES | {"deadlock"}),
    "wait without acquire": (WAIT, WAIT.replace("acquire", "relaxed"), RACES),
    "a wait at another CTA's mbarrier": (WAIT, WAIT.replace("[%bar]", "[%x3]"), {"bad mbarrier"}),
    "own mbarrier": (SIGNAL, SIGNAL.replace("%x3", "%bar"), RACES),
}


@pytest.mark.parametrize("fault", PUSH_FAULTS)
def test_faults_of_arrivals_between_ctas(fault):
    old, new, wanted = PUSH_FAULTS[fault]
    assert PUSH.count(old) == 1
    found = set().union(*(kinds(run(PUSH.replace(old, new), schedule=s)[0]) for s in ("forward", "backward", "turns")))
    assert found & wanted, found


COPY = """
@%one mapa.shared::cluster.u32 %x1, %s, %other;
@%one cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes [%x1 + 512], [%s], 256, [%x3];
"""
EXPECT = "@%one mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], 256;"
PROXY = "fence.proxy.async.shared::cta;"
HAND_OVER = f"""
{INIT} {FENCE_INIT} {RELAXED} {EXPECT} {PUT} {PROXY} bar.sync 0; {REMOTE} {COPY} {WAIT}
{LOAD} {BARRIER}
"""


@pytest.mark.parametrize("landing", ["late", "early", "random"])
def test_copies_to_another_cta(landing):
    result, out = run(HAND_OVER, size=4, landing=landing, seed=2)
    assert not result.findings, "\n".join(map(str, result.findings))
    np.testing.assert_array_equal(out, 1000 * previous_in_cluster(4, 2)[:, None] + np.arange(THREADS))


HAND_OVER_FAULTS = {
    "not waited for": (WAIT, "", {"in flight", "never written", "race: read after write"}),
    "no proxy fence": (PROXY, "", {"no proxy fence"}),
    "the stores not waited for": (f"{PROXY} bar.sync 0;", PROXY, RACES),
    "too few bytes announced": (EXPECT, EXPECT.replace("256", "240"), {"bytes unannounced", "deadlock"}),
    "an mbarrier of another CTA": ("[%x3];", "[%bar];", {"bad copy"}),
    "the source stored again": (COPY, f"{COPY} st.shared.b32 [%at], %tid;", {"race: write after read"}),
    "ended while copies are under way": (f"{WAIT}\n{LOAD} {BARRIER}", "", {"in flight"}),
}


@pytest.mark.parametrize("fault", HAND_OVER_FAULTS)
def test_faults_of_copies_to_another_cta(fault):
    old, new, wanted = HAND_OVER_FAULTS[fault]
    assert HAND_OVER.count(old) == 1
    result, _ = run(HAND_OVER.replace(old, new))
    assert kinds(result) & wanted, "\n".join(map(str, result.findings))


@pytest.mark.parametrize("landing", ["late", "random"])
def test_reductions_in_another_ctas_memory(landing):
    """All CTAs add their words to those of rank 0, whose mbarrier awaits all their bytes."""
    key = "cp.reduce.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes.add.u32"
    body = f"""
    {INIT} {FENCE_INIT} st.shared.b32 [%at + 512], %tid; {PUT} {PROXY} {BARRIER}
    setp.eq.and.u32 %p, %rank, 0, %one; @%p mbarrier.arrive.expect_tx.shared::cta.b64 _, [%bar], 1024;
    mapa.shared::cluster.u32 %x1, %s, 0; mapa.shared::cluster.u32 %x3, %bar, 0;
    @%one {key} [%x1 + 512], [%s], 256, [%x3];
    setp.ne.u32 %p, %rank, 0; @%p bra END;
    {WAIT} ld.shared.b32 %x2, [%at + 512]; st.global.b32 [%to], %x2;
    END: {BARRIER}
    """
    result, out = run(body, size=4, clusters=1, landing=landing, seed=1)
    assert not result.findings, "\n".join(map(str, result.findings))
    np.testing.assert_array_equal(out[0], 1000 * 6 + 5 * np.arange(THREADS))


# ---- registers


def handing_over(less: int, more: int, limit: str = ".maxnreg 64", **settings):
    """Warp 1 gives registers back, and warp 0 takes some."""
    body = f"setp.lt.u32 %p, %tid, 32; @%p bra TAKE; setmaxnreg.dec.sync.aligned.u32 {less}; bra END;\n"
    body += f"TAKE: setmaxnreg.inc.sync.aligned.u32 {more}; END: st.global.b32 [%to], 1;"
    return run(body, size=1, clusters=1, directives=limit, **settings)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_registers_are_handed_over(schedule):
    result, out = handing_over(40, 88, schedule=schedule)
    assert not result.findings, "\n".join(map(str, result.findings))
    assert (out == 1).all()


@pytest.mark.parametrize(
    ("less", "more", "limit", "wanted"),
    [
        (40, 96, ".maxnreg 64", "deadlock"), (40, 84, ".maxnreg 64", "bad setmaxnreg"),
        (16, 88, ".maxnreg 64", "bad setmaxnreg"), (40, 264, ".maxnreg 64", "bad setmaxnreg"),
        (72, 88, ".maxnreg 64", "bad setmaxnreg"), (40, 56, ".maxnreg 64", "bad setmaxnreg"),
        (40, 88, " ", "bad setmaxnreg"),
    ],
)  # fmt: skip
def test_registers_that_cannot_be_handed_over(less, more, limit, wanted):
    result, _ = handing_over(less, more, limit)
    assert wanted in kinds(result), "\n".join(map(str, result.findings))
