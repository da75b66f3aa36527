"""What the machine finds in accesses that nothing orders: each kind planted once, and once mended."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.softgpu.engine import Memory, launch

from .accesses import SCHEDULES, START, found, run
from .support import kinds

# ---- races in shared memory ------------------------------------------------------------------------------------------

EXCHANGE = START + """
    st.shared.u32 [%s1], %tid; {first}
    xor.b32 %s2, %s1, 128; ld.shared.u32 %r0, [%s2]; {second}
    add.u32 %r1, %tid, 1000; st.shared.u32 [%s1], %r1;
"""  # fmt: skip


@pytest.mark.parametrize(
    ("first", "second", "racy"),
    [
        ("bar.sync 0;", "bar.sync 0;", False),
        ("", "bar.sync 0;", True),
        ("bar.sync 0;", "", True),
        ("bar.sync 0, 64;", "bar.sync 1, 64;", False),
        ("bar.warp.sync -1;", "bar.sync 0;", True),
    ],
)
def test_races_between_warps(first: str, second: str, racy: bool) -> None:
    for schedule in SCHEDULES:
        result = run(EXCHANGE.format(first=first, second=second), threads=64, shared=256, schedule=schedule)
        got = kinds(result) - {"never written"}  # whoever comes first reads what the other has yet to write
        assert bool(got) == racy
        assert all(k.startswith("race") for k in got)
        for finding in result.findings:
            if finding.kind.startswith("race"):
                assert "warp 0" in finding.text
                assert "warp 1" in finding.text
                assert "lane" in finding.text
                assert finding.other_line is not None
                assert str(finding.other_line) in finding.text


def test_a_race_of_stores_needs_a_change() -> None:
    assert found(START + "st.shared.u32 [%s0], 5;", threads=96, shared=256) == set()
    assert "race: write after write" in found(START + "st.shared.u32 [%s0], %s4;", threads=96, shared=256)
    # Whoever stores the same value is there all the same for those who change it.
    later = START + """
        @%p0 st.shared.u32 [%s0], 5; @!%p0 st.shared.u32 [%s0], 5; @%p0 bar.sync 1, 32;
        @%p0 st.shared.u32 [%s0], 6;
    """  # fmt: skip
    assert "race: write after write" in kinds(run(later, threads=64, shared=256, schedule="backward"))


SPACES = pytest.mark.parametrize(("space", "at"), [("shared", "%s0"), ("global", "%g0")])


@SPACES
def test_a_reader_must_know_all_of_several_equal_stores(space: str, at: str) -> None:
    """Warps 0 and 1 store the same; warp 2 waits for one of them, or for both, and reads."""
    body = f"""{START}
        setp.eq.u32 %p3, %s4, 2; @!%p3 st.{space}.u32 [{at}], 5;
        @{{who}} bar.arrive 1, {{count}}; @%p3 bar.sync 1, {{count}}; @%p3 ld.{space}.u32 %r0, [{at}];
    """
    for schedule in SCHEDULES:
        for who in ("%p0", "%p1"):
            x = np.zeros(4, np.uint32)
            got = run(body.format(who=who, count=64), x, threads=96, shared=256, schedule=schedule)
            assert kinds(got) <= {"race: read after write", "race: write after read"}
            assert got.findings
        x = np.zeros(4, np.uint32)
        assert kinds(run(body.format(who="!%p3", count=96), x, threads=96, shared=256, schedule=schedule)) == set()


@SPACES
@pytest.mark.parametrize("value", [0, 5])
def test_a_store_that_changes_nothing_races_with_readers(space: str, at: str, value: int) -> None:
    """Whoever stores the same must still wait for whoever reads, and be waited for: lanes, warps, and CTAs."""
    first = "@%p0 st.shared.u32 [%s0], 5; bar.sync 0;" if space == "shared" else ""
    store, load = f"st.{space}.u32 [{at}], 5;", f"ld.{space}.u32 %r0, [{at}];"
    lanes = f"setp.eq.u32 %p3, %s5, 3; @%p3 {store} {{sync}} @!%p3 {load}"
    warps = f"@%p1 {store} {{sync}} @%p0 {load}"
    read_first = f"@%p0 {load} {{sync}} @%p1 {store}"
    for body, threads, sync in (
        (lanes, 32, "bar.warp.sync -1;"),
        (warps, 64, "bar.sync 0;"),
        (read_first, 64, "bar.sync 0;"),
    ):
        for schedule in SCHEDULES:
            for between in (sync, ""):
                x = np.full(4, value, np.uint32)
                text = START + first + body.format(sync=between)
                got = kinds(run(text, x, threads=threads, shared=256, schedule=schedule))
                assert got <= {"race: read after write", "race: write after read"}
                assert bool(got) == (between == "")
    if space == "global":
        for writer in range(3):
            for resident in (1, 3):
                x = np.full(4, value, np.uint32)
                ctas = f"setp.eq.u32 %p3, %ctaid, {writer}; @%p3 {store} @!%p3 {load}"
                got = kinds(run(START + ctas, x, threads=32, shared=64, grid=(3,), resident=resident))
                assert got
                assert got <= {"race: read after write", "race: write after read"}


@SPACES
def test_who_reads_what_several_store(space: str, at: str) -> None:
    """Two warps store the same and do not wait for each other: neither may read it, though it finds its own value."""
    body = f"{START} st.{space}.u32 [{at}], 5; SYNC ld.{space}.u32 %r0, [{at}];"
    assert found(body.replace("SYNC", "bar.sync 0;"), np.zeros(4, np.uint32), threads=64, shared=64) == set()
    for sync in ("", "bar.warp.sync -1;"):
        got = found(body.replace("SYNC", sync), np.zeros(4, np.uint32), threads=64, shared=64)
        assert got <= {"race: read after write", "race: write after read"}
        assert got


def test_an_equal_store_wants_a_proxy_fence_too() -> None:
    """The bytes are there and fenced; who stores them once more before a bulk copy reads them must fence again."""
    x = np.zeros(4, np.uint32)
    body = START + """
        @%p2 st.shared.v4.u32 [%s0], {1, 1, 1, 1}; fence.proxy.async; bar.warp.sync -1;
        @%p2 st.shared.v4.u32 [%s0], {1, 1, 1, 1}; FENCE
        @%p2 cp.async.bulk.global.shared::cta.bulk_group [%g0], [%s0], 16;
        cp.async.bulk.commit_group; cp.async.bulk.wait_group 0;
    """  # fmt: skip
    assert found(body.replace("FENCE", "fence.proxy.async;"), x, shared=64) == set()
    assert found(body.replace("FENCE", ""), x, shared=64) == {"no proxy fence"}


@pytest.mark.parametrize(("space", "at"), [("shared", "%s0"), ("global", "%g0")])
def test_many_readers_and_a_writer(space: str, at: str) -> None:
    x = np.zeros(4, np.uint32)
    body = f"""{START}
        @%p0 st.{space}.u32 [{at}], 1; bar.sync 0;
        ld.{space}.u32 %r0, [{at}]; SYNC setp.eq.u32 %p3, %tid, 0; @%p3 st.{space}.u32 [{at}], 2;
    """
    assert found(body.replace("SYNC", "bar.sync 0;"), x, threads=1024, shared=256) == set()
    for schedule in SCHEDULES:
        got = kinds(run(body.replace("SYNC", ""), x, threads=1024, shared=256, schedule=schedule))
        assert got
        assert got <= {"race: write after read", "race: read after write"}
    # All but one wait for each other; it tells them that it has read, or does not.
    for missing in (1, 7, 31):
        waits = f"setp.ne.u32 %p3, %s4, {missing}; @%p3 bar.sync 1, 992;"
        told = waits + "@!%p3 bar.arrive 2, 1024; @%p3 bar.sync 2, 1024;"
        assert found(body.replace("SYNC", told), x, threads=1024, shared=256) == set()
        got = run(body.replace("SYNC", waits), x, threads=1024, shared=256, schedule="backward").findings
        assert got
        for finding in got:
            assert finding.kind in ("race: write after read", "race: read after write")
            assert f"warp {missing}" in finding.text


def test_equal_stores_are_remembered_until_the_value_changes() -> None:
    """Warps 0 and 1 store the same, one after the other; then warp 0 changes it, after warp 1 in time alone."""
    flag = np.zeros(1, np.uint32)
    body = START + """
        @%p0 st.shared.u32 [%s0], 5; @%p0 bar.arrive 1, 64; @%p1 bar.sync 1, 64; @%p1 st.shared.u32 [%s0], 5;
        @%p1 red.relaxed.gpu.global.add.u32 [%g0], 1; @%p1 bra END;
        WAIT: ld.relaxed.gpu.global.u32 %r0, [%g0]; setp.lt.u32 %p3, %r0, 32; @%p3 bra WAIT;
        st.shared.u32 [%s0], 6;
        END:
    """  # fmt: skip
    for schedule in ("turns", "random"):
        flag[:] = 0
        (finding,) = run(body, flag, threads=64, shared=64, schedule=schedule, max_steps=10**6).findings
        assert finding.kind == "race: write after write"
        assert "warp 1" in finding.text
    # Who stored the old value knows nothing of the new one, which he reads some time later.
    body = (
        START
        + """
        @%p1 st.shared.u32 [%s0], 5; @%p1 st.shared.u32 [%s0], 5; bar.sync 0; @%p0 st.shared.u32 [%s0], 6; {}
        mov.u32 %r1, 0;
        WAIT: add.u32 %r1, %r1, 1; setp.lt.u32 %p3, %r1, 50; @%p3 bra WAIT;
        @%p1 ld.shared.u32 %r0, [%s0];
    """
    )
    assert kinds(run(body.format("bar.sync 0;"), threads=64, shared=64, schedule="turns")) == set()
    assert kinds(run(body.format(""), threads=64, shared=64, schedule="turns")) == {"race: read after write"}


def test_more_agents_than_there_was_room_for() -> None:
    """Atomics make agents of their own; what was remembered of the others stays."""
    body = START + """
        @%p0 st.shared.u32 [%s0], 1; @%p0 st.shared.u32 [%s0+64], 0; bar.sync 0; ld.shared.u32 %r0, [%s0];
        red.shared.add.u32 [%s0+64], 1; {} setp.eq.u32 %p3, %tid, 0; @%p3 st.shared.u32 [%s0], 2;
    """  # fmt: skip
    texts = []
    for k, schedule in enumerate(SCHEDULES):  # each in a shared memory of another size, which no other test has widened
        result = run(body.format(""), threads=128, shared=208 + 16 * k, schedule=schedule)
        texts += [f.text for f in result.findings if f.kind == "race: write after read"]
    assert texts
    assert all("`ld.shared.u32 %r0, [%s0]`; nothing" in text for text in texts)
    assert found(body.format("bar.sync 0;"), threads=128, shared=208) == set()


def test_parts_of_a_line_are_apart() -> None:
    body = START + """
        and.b32 %s2, %s1, 0xfffffff0; shl.b32 %s3, %s4, 3; add.u32 %s3, %s3, %s0; mad.lo.u32 %s3, %s5, 16, %s3;
        {whole} st.shared.v2.u32 [%s3], {{%tid, %tid}}; ld.shared.v2.u32 {{%r0, %r1}}, [%s3]; {sync}
        mad.lo.u32 %s3, %s5, 16, %s0; ld.shared.v4.u32 {{%r0, %r1, %r2, %r3}}, [%s3];
    """  # fmt: skip
    whole = "mad.lo.u32 %s6, %s5, 16, %s0; @%p0 st.shared.v4.u32 [%s6], {%tid, %tid, %tid, %tid}; bar.sync 0;"
    for first in ("", whole):
        assert found(body.format(whole=first, sync="bar.sync 0;"), threads=64, shared=512) == set()
        racy = body.format(whole=first, sync="")
        for schedule in SCHEDULES:
            got = kinds(run(racy, threads=64, shared=512, schedule=schedule)) - {"never written"}
            assert got
            assert got <= {"race: read after write", "race: write after read"}


def test_races_between_lanes() -> None:
    body = START + "st.shared.u32 [%s1], %tid; {} xor.b32 %s2, %s1, 4; ld.shared.u32 %r0, [%s2];"
    assert found(body.format(""), shared=256) == {"race: read after write"}
    assert found(body.format("bar.warp.sync -1;"), shared=256) == set()
    assert found(body.format(""), shared=256, check_lanes=False) == set()
    (finding,) = run(body.format(""), shared=256).findings
    assert "lane 0" in finding.text
    assert "lane 1" in finding.text
    # Several lanes read at once, one of them writes.
    several = (
        START + "setp.eq.u32 %p3, %tid, 3; @%p3 st.shared.u32 [%s0], 1; bar.warp.sync -1; ld.shared.u32 %r0, [%s0]; {} "
    )
    several += "@%p3 st.shared.u32 [%s0], 2;"
    assert found(several.format(""), shared=256) == {"race: write after read"}
    assert found(several.format("bar.warp.sync -1;"), shared=256) == set()


@pytest.mark.parametrize(("space", "at"), [("shared", "%s0"), ("global", "%g0")])
def test_conflicting_stores(space: str, at: str) -> None:
    x = np.zeros(32, np.uint32)
    differ = START + f"st.{space}.u32 [{at}], %tid;"
    (finding,) = run(differ, x, shared=256).findings
    assert finding.kind == "conflicting stores"
    assert "lanes 0 and 1" in finding.text
    assert found(differ, x, shared=256, check_lanes=False) == {"conflicting stores"}
    assert found(START + f"st.{space}.u32 [{at}], 9;", x, shared=256) == set()


# ---- races in global memory ------------------------------------------------------------------------------------------


def test_races_between_ctas() -> None:
    x, y = np.zeros(64, np.uint32), np.zeros(64, np.uint32)
    own = "mad.lo.u32 %s0, %ctaid, 32, %tid; mad.wide.u32 %a0, %s0, 4, %g0; mad.wide.u32 %a1, %tid, 4, %g0;"
    assert found(own + "st.global.u32 [%a0], %s0;", x, grid=(2,)) == set()
    assert found(own + "add.u32 %r0, %ctaid, 1; st.global.u32 [%a1], %r0;", y, grid=(2,)) == {"race: write after write"}
    assert found(own + "st.global.u32 [%a1], 5;", np.zeros_like(x), grid=(3,)) == set()  # all store the same
    read = own + "ld.global.u32 %r0, [%a1]; setp.eq.u32 %p0, %ctaid, {}; @%p0 st.global.u32 [%a1], 77;"
    for writer in range(4):
        for resident in (1, 8):
            got = run(read.format(writer), np.zeros_like(x), grid=(4,), resident=resident)
            assert kinds(got) <= {"race: write after read", "race: read after write"}
            assert got.findings
            assert any(f"CTA {writer}" in f.text for f in got.findings)


def test_races_between_launches_are_none() -> None:
    x = np.zeros(32, np.uint32)
    program = run(
        "mad.wide.u32 %a0, %tid, 4, %g0; ld.global.u32 %r0, [%a0]; add.u32 %r0, %r0, 1; st.global.u32 [%a0], %r0;", x
    ).program
    memory = Memory()
    own = memory.register(x.ctypes.data, x.nbytes, "x")
    for k in range(3):
        assert not launch(program, (1,), int(x.ctypes.data).to_bytes(8, "little"), 0, memory, [own]).findings
        np.testing.assert_array_equal(x, k + 2)


def test_races_between_warps_of_many_ctas() -> None:
    """Two CTAs have read a place; what another warp of the first then does is seen all the same."""
    body = START + """
        ld.global.u32 %r0, [%g0]; {sync} setp.eq.u32 %p3, %ctaid, 0; and.pred %p3, %p3, %p1; and.pred %p3, %p3, %p2;
        add.u32 %r0, %r0, 1; @%p3 st.global.u32 [%g0], %r0;
    """  # fmt: skip
    one = run(body.format(sync="bar.sync 0;"), np.zeros(4, np.uint32), threads=64, shared=64)
    assert not one.findings
    assert kinds(run(body.format(sync=""), np.zeros(4, np.uint32), threads=64, shared=64, schedule="forward")) == {
        "race: write after read"
    }
    assert run(body.format(sync="bar.sync 0;"), np.zeros(4, np.uint32), threads=64, shared=64, grid=(3,)).findings


def test_races_of_a_cta_that_reads_first() -> None:
    """Every CTA reads; one of them writes when all have."""
    body = START + """
        ld.global.u32 %r0, [%g0]; mov.u32 %r1, 0;
        WAIT: add.u32 %r1, %r1, 1; setp.lt.u32 %p3, %r1, 50; @%p3 bra WAIT; bar.warp.sync -1;
        setp.eq.u32 %p3, %ctaid, {}; @%p3 st.global.u32 [%g0], 7;
    """  # fmt: skip
    for writer in range(4):
        x = np.zeros(4, np.uint32)
        findings = run(body.format(writer), x, shared=64, grid=(4,), schedule="turns").findings
        assert {f.kind for f in findings} == {"race: write after read"}
        assert f"CTA {writer} " in findings[0].text
        assert "lane 0 read by PTX line" in findings[0].text or "several lanes read by" in findings[0].text
        same = run(body.format(writer), np.full(4, 7, np.uint32), shared=64, grid=(4,), schedule="turns").findings
        assert {f.kind for f in same} == {"race: write after read"}


def test_races_between_lanes_in_global_memory() -> None:
    body = START + "ld.global.u32 %r0, [%g0]; {} setp.eq.u32 %p3, %tid, {}; @%p3 st.global.u32 [%g0], 1;"
    for lane in (0, 9, 31):
        assert found(body.format("bar.warp.sync -1;", lane), np.zeros(4, np.uint32), shared=64) == set()
        assert kinds(run(body.format("", lane), np.zeros(4, np.uint32), shared=64)) == {"race: write after read"}


def test_a_long_access_is_looked_at_to_its_end() -> None:
    x = np.zeros(1024, np.uint32)
    body = START + """
        mov.u32 %r0, 0;
        FILL: mad.lo.u32 %s3, %r0, 32, %tid; mad.wide.u32 %a0, %s3, 4, %g0; st.global.u32 [%a0], %s3;
        add.u32 %r0, %r0, 1; setp.lt.u32 %p3, %r0, {}; @%p3 bra FILL;
        @%p2 mbarrier.init.shared.b64 [%s0+2048], 1; bar.sync 0; fence.proxy.async;
        @%p2 mbarrier.arrive.expect_tx.shared.b64 _, [%s0+2048], 2048;
        @%p2 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%s0], [%g0], 2048, [%s0+2048];
        WAIT: mbarrier.try_wait.parity.shared.b64 %p3, [%s0+2048], 0; @!%p3 bra WAIT;
    """  # fmt: skip
    assert not kinds(run(body.format(16), x, shared=4096, tracked=(0,)))
    assert kinds(run(body.format(15), x, shared=4096, tracked=(0,))) == {"never written"}
