"""The schedule: barriers, divergence, branches, ends; what orders warps, lanes and CTAs, and what does not."""

import numpy as np
import pytest

from benchmarks.softgpu.engine import SCHEDULES, Settings, Unsupported
from tests.benchmarks.softgpu.support import kernel, kinds

DECLARATIONS = """
.reg .pred %p, %q; .reg .b32 %s, %at, %x<8>, %w; .reg .b64 %to, %lock;
"""
SETUP = """
mov.u32 %s, smem; shr.u32 %w, %tid, 5; mad.lo.u32 %at, %tid, 4, %s; mad.wide.u32 %to, %tid, 4, %g0;
"""


def run(body: str, threads: int = 64, grid=(1,), **settings):
    out = np.zeros(threads, np.int32)
    result = kernel(SETUP + body, out, threads=threads, grid=grid, shared=4096, declarations=DECLARATIONS, **settings)
    return result, out


def test_a_wrong_setting_is_named():
    with pytest.raises(ValueError, match="schedule='sideways' is none of 'forward'"):
        Settings(schedule="sideways")
    with pytest.raises(ValueError, match="resident=0 must be at least 1"):
        Settings(resident=0)


def test_an_unknown_instruction_is_named_with_its_line():
    with pytest.raises(
        Unsupported, match=r"test, PTX line \d+: no such instruction is known: frobnicate\.s32 %x0, %x1"
    ):
        run("frobnicate.s32 %x0, %x1;")


MIRROR = """
st.shared.b32 [%at], %tid;
bar.sync 0;
sub.u32 %x0, 63, %tid; mad.lo.u32 %x1, %x0, 4, %s; ld.shared.b32 %x2, [%x1]; st.global.b32 [%to], %x2;
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_barrier_hands_over_shared_memory(schedule):
    result, out = run(MIRROR, schedule=schedule, seed=2)
    assert not result.findings
    np.testing.assert_array_equal(out, 63 - np.arange(64))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_without_the_barrier_it_is_a_race_in_every_order(schedule):
    result, _ = run(MIRROR.replace("bar.sync 0;", ""), schedule=schedule, seed=2)
    assert kinds(result) & {"race: read after write", "race: write after read"}
    assert {"never written"} >= kinds(result) - {"race: read after write", "race: write after read"}


def test_storing_what_is_there_is_no_race():
    assert not run("mov.b32 %x0, 7; st.shared.b32 [%s], %x0;")[0].findings
    assert "race: write after write" in kinds(run("st.shared.b32 [%s], %w;")[0])


# Warp 0 fills, warp 1 empties; barrier 1 says full, barrier 2 says empty.
NAMED = """
setp.eq.u32 %p, %w, 0; mov.b32 %x7, 0; mov.b32 %x3, 0; and.b32 %x6, %tid, 31; mad.lo.u32 %at, %x6, 4, %s;
@!%p bra CONSUME;
FILL: setp.eq.u32 %q, %x7, 0; @%q bra FIRST; bar.sync 2, 64;
FIRST: add.u32 %x1, %x7, %x6; st.shared.b32 [%at], %x1; bar.arrive 1, 64;
add.u32 %x7, %x7, 1; setp.lt.u32 %q, %x7, 4; @%q bra FILL; bra END;
CONSUME: bar.sync 1, 64; ld.shared.b32 %x2, [%at]; add.u32 %x3, %x3, %x2;
setp.lt.u32 %q, %x7, 3; @%q bar.arrive 2, 64;
add.u32 %x7, %x7, 1; setp.lt.u32 %q, %x7, 4; @%q bra CONSUME;
END: st.global.b32 [%to], %x3;
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_named_barriers_between_roles(schedule):
    result, out = run(NAMED, schedule=schedule, seed=5)
    assert not result.findings, "\n".join(map(str, result.findings))
    np.testing.assert_array_equal(out[32:], 4 * np.arange(32) + 6)
    result, _ = run(NAMED.replace("bar.sync 2, 64;", ""), schedule=schedule, seed=5)
    assert result.findings


def test_a_deadlock_is_told_with_every_warp():
    result, _ = run("setp.eq.u32 %p, %w, 0; @%p bra WAIT; ret; WAIT: bar.sync 3, 64;")
    assert kinds(result) == {"deadlock"}
    assert "warp 0 lanes ffffffff at PTX line" in result.findings[0].text
    assert "bar.sync 3, 64" in result.findings[0].text


def test_a_kernel_that_does_not_end_is_told():
    result, _ = run("AGAIN: bra AGAIN;", max_steps=10_000)
    assert kinds(result) == {"deadlock"}
    assert "as if somebody waited for ever" in result.findings[0].text


def test_warps_that_ended_are_not_awaited_at_a_barrier_for_all():
    assert not run("setp.eq.u32 %p, %w, 0; @%p ret; bar.sync 0;")[0].findings


def test_lanes_part_and_meet_again():
    body = """
    and.b32 %x0, %tid, 3; setp.lt.u32 %p, %x0, 2; mov.b32 %x1, 0; @%p bra LOW;
    add.u32 %x1, %tid, 100; bra MEET;
    LOW: add.u32 %x1, %tid, 200;
    MEET: vote.sync.ballot.b32 %x2, %p, 0xffffffff;
    add.u32 %x1, %x1, %x2; st.global.b32 [%to], %x1;
    """
    result, out = run(body)
    assert not result.findings
    low = np.arange(64) % 4 < 2
    ballot = sum(1 << lane for lane in range(32) if lane % 4 < 2)
    np.testing.assert_array_equal(out, np.arange(64) + np.where(low, 200, 100) + ballot)


def test_a_table_of_branches():
    body = """
    and.b32 %x0, %tid, 3;
    TABLE: .branchtargets A, B, C, D;
    brx.idx %x0, TABLE;
    A: mov.b32 %x1, 10; bra END;
    B: mov.b32 %x1, 20; bra END;
    C: mov.b32 %x1, 30; bra END;
    D: mov.b32 %x1, 40;
    END: st.global.b32 [%to], %x1;
    """
    result, out = run(body)
    assert not result.findings
    np.testing.assert_array_equal(out, 10 * (np.arange(64) % 4 + 1))


LANES = "st.shared.b32 [%at], %tid; SYNC xor.b32 %x0, %tid, 1; mad.lo.u32 %x1, %x0, 4, %s; ld.shared.b32 %x2, [%x1];"


@pytest.mark.parametrize(
    ("sync", "ordered"),
    [("", False), ("bar.warp.sync 0xffffffff;", True), ("shfl.sync.bfly.b32 %x3, %tid, 1, 31, 0xffffffff;", True)],
)
def test_lanes_of_a_warp_are_ordered_by_what_joins_them(sync, ordered):
    body = LANES.replace("SYNC", sync)
    assert bool(run(body, threads=32)[0].findings) is not ordered
    assert not run(body, threads=32, check_lanes=False)[0].findings


def test_ctas_race_in_global_memory():
    assert "race: write after write" in kinds(run("st.global.b32 [%to], %ctaid;", grid=(2,))[0])
    assert not run("st.global.b32 [%to], %tid;", grid=(2,))[0].findings  # of one same value


# CTA after CTA adds 1 to a word, under a lock.
LOCK = """
add.s64 %lock, %g0, 4; setp.ne.u32 %p, %tid, 0; @%p ret;
TRY: atom.global.acquire.gpu.cas.b32 %x0, [%lock], 0, 1; setp.ne.u32 %p, %x0, 0; @%p bra TRY;
ld.global.b32 %x1, [%g0]; add.u32 %x1, %x1, 1; st.global.b32 [%g0], %x1;
atom.global.release.gpu.exch.b32 %x0, [%lock], 0;
"""


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_lock_orders_ctas(schedule):
    result, out = run(LOCK, threads=32, grid=(6,), schedule=schedule, seed=1)
    assert not result.findings, "\n".join(map(str, result.findings))
    assert out[0] == 6
    result, _ = run(LOCK.replace("release", "relaxed"), threads=32, grid=(6,), schedule=schedule, seed=1)
    assert "race: read after write" in kinds(result)
    fences = LOCK.replace(".acquire", ".relaxed").replace(".release", ".relaxed")
    fences = fences.replace("ld.global", "fence.acq_rel.gpu; ld.global").replace("atom.global.relaxed.gpu.exch",
                            "fence.acq_rel.gpu; atom.global.relaxed.gpu.exch")  # fmt: skip
    result, out = run(fences, threads=32, grid=(6,), schedule=schedule, seed=1)
    assert not result.findings
    assert out[0] == 6


def test_undefined_values_are_told_where_they_decide():
    assert not run("add.u32 %x0, %x1, %x2; mov.b32 %x3, %x0;")[0].findings  # nobody cares
    assert kinds(run("setp.eq.u32 %p, %x1, 0; @%p bra A; A: mov.b32 %x0, 0;")[0]) == {"undefined value"}
    assert kinds(run("st.global.b32 [%to], %x1;")[0]) == {"undefined value"}
    assert "undefined value" in kinds(run("st.shared.b32 [%x1], %tid;")[0])
    through = "st.shared.b32 [%at], %x1; ld.shared.b32 %x2, [%at]; st.global.b32 [%to], %x2;"
    assert kinds(run(through)[0]) == {"undefined value"}


def test_registers_are_handed_over():
    body = """
    setp.eq.u32 %p, %w, 0; @%p bra GIVE;
    setmaxnreg.inc.sync.aligned.u32 168; bra END;
    GIVE: setmaxnreg.dec.sync.aligned.u32 88;
    END: mov.b32 %x0, 0;
    """
    assert not run(body, directives=".maxnreg 128")[0].findings
    assert kinds(run(body.replace("88", "96"), directives=".maxnreg 128")[0]) == {"deadlock"}
    assert kinds(run(body.replace("88", "90"), directives=".maxnreg 128")[0]) >= {"bad setmaxnreg"}


def test_the_seed_decides_the_order_and_nothing_else():
    runs = [run(MIRROR, schedule="random", seed=seed)[0] for seed in (1, 1, 2)]
    assert runs[0].steps == runs[1].steps == runs[2].steps
    np.testing.assert_array_equal(runs[0].counts, runs[1].counts)
