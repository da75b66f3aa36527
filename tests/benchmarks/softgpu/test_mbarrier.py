"""mbarriers: phases, counts, and who learns what from them."""

import numpy as np
import pytest

from benchmarks.softgpu.engine import SCHEDULES
from tests.benchmarks.softgpu.support import kernel, kinds

DECLARATIONS = """
.reg .pred %p, %q, %one; .reg .b32 %s, %full, %empty, %at, %x<8>, %w, %i, %parity; .reg .b64 %to, %state;
"""
SETUP = """
mov.u32 %s, smem; shr.u32 %w, %tid, 5; and.b32 %x7, %tid, 31; mad.lo.u32 %at, %x7, 4, %s;
mad.wide.u32 %to, %tid, 4, %g0; add.u32 %full, %s, 1024; add.u32 %empty, %s, 1032; setp.eq.u32 %one, %tid, 0;
"""
INIT = "@%one mbarrier.init.shared::cta.b64 [%full], 32; @%one mbarrier.init.shared::cta.b64 [%empty], 32; bar.sync 0;"


def wait(bar: str, parity: str, label: str) -> str:
    return f"{label}: mbarrier.try_wait.parity.shared::cta.b64 %q, [{bar}], {parity}; @!%q bra {label};"


# Warp 0 writes a word of each lane, warp 1 adds it up; five times.
WAIT_FULL, WAIT_EMPTY = wait("%full", "%parity", "WF"), wait("%empty", "%parity", "WE")
ARRIVE_FULL = "mbarrier.arrive.shared::cta.b64 _, [%full];"
ARRIVE_EMPTY = "mbarrier.arrive.shared::cta.b64 _, [%empty];"
RING = f"""
{INIT} mov.b32 %i, 0; mov.b32 %x3, 0; setp.eq.u32 %p, %w, 0; @!%p bra CONSUME;
PRODUCE: and.b32 %parity, %i, 1; xor.b32 %parity, %parity, 1;
{WAIT_EMPTY}
add.u32 %x1, %i, %x7; st.shared.b32 [%at], %x1; {ARRIVE_FULL}
add.u32 %i, %i, 1; setp.lt.u32 %q, %i, 5; @%q bra PRODUCE; bra END;
CONSUME: and.b32 %parity, %i, 1;
{WAIT_FULL}
ld.shared.b32 %x2, [%at]; add.u32 %x3, %x3, %x2; {ARRIVE_EMPTY}
add.u32 %i, %i, 1; setp.lt.u32 %q, %i, 5; @%q bra CONSUME;
END: st.global.b32 [%to], %x3;
"""


def run(body: str, threads: int = 64, **settings):
    out = np.zeros(threads, np.int32)
    result = kernel(SETUP + body, out, threads=threads, shared=2048, declarations=DECLARATIONS, **settings)
    return result, out


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_ring(schedule, seed):
    result, out = run(RING, schedule=schedule, seed=seed)
    assert not result.findings, "\n".join(map(str, result.findings))
    np.testing.assert_array_equal(out[32:], 5 * np.arange(32) + 10)


RACES = {"race: read after write", "race: write after read", "never written"}
FAULTS = {
    "no wait for full": (WAIT_FULL, "", RACES),
    "no wait for empty": (WAIT_EMPTY, "", RACES | {"bad arrival", "deadlock"}),
    "full's parity flipped": ("and.b32 %parity, %i, 1;\n" + WAIT_FULL,
                              "and.b32 %parity, %i, 1; xor.b32 %parity, %parity, 1;\n" + WAIT_FULL,
                              RACES | {"deadlock"}),
    "empty's parity flipped": ("xor.b32 %parity, %parity, 1;", "", {"deadlock"}),
    "no arrival": (ARRIVE_FULL, "", {"deadlock"}),
    "an arrival too many": (ARRIVE_FULL, f"{ARRIVE_FULL} {ARRIVE_FULL}", {"bad arrival", "deadlock"} | RACES),
    "arrival before the store": (f"st.shared.b32 [%at], %x1; {ARRIVE_FULL}",
                                 f"{ARRIVE_FULL} st.shared.b32 [%at], %x1;", RACES),
    "arrival without release": (ARRIVE_FULL, ARRIVE_FULL.replace("arrive.", "arrive.relaxed.cta."), RACES),
    "a count too large": ("[%full], 32", "[%full], 33", {"deadlock"}),
    "init not published": ("bar.sync 0;", "", {"race: use of an mbarrier after init", "no mbarrier"}),
    "the object overwritten": (ARRIVE_EMPTY, f"{ARRIVE_EMPTY} st.shared.b32 [%full], %x7;", {"mbarrier object"}),
    "invalidated in use": (ARRIVE_EMPTY,
                           f"{ARRIVE_EMPTY} setp.eq.u32 %p, %x7, 0; @%p mbarrier.inval.shared::cta.b64 [%full];",
                           {"no mbarrier", "race: end of an mbarrier in use"}),
}  # fmt: skip


@pytest.mark.parametrize("fault", FAULTS)
@pytest.mark.parametrize("schedule", ["forward", "worst"])
def test_faults(fault, schedule):
    old, new, wanted = FAULTS[fault]
    assert RING.count(old) == 1
    result, _ = run(RING.replace(old, new), schedule=schedule, seed=1)
    assert kinds(result) & wanted, "\n".join(map(str, result.findings))


def test_a_deadlock_says_what_the_mbarrier_awaits():
    result, _ = run(RING.replace("[%full], 32", "[%full], 33"))
    text = next(f.text for f in result.findings if f.kind == "deadlock")
    assert "waits for parity 0 of the mbarrier at shared 1024 of CTA 0" in text
    assert "1 of 33 arrivals are to come" in text


PEEK = "mbarrier.try_wait.parity.shared::cta.b64 %q, [%full], 0;"
DONE = "st.global.b32 [%to], 1;"
ARRIVE_ALL = "@%one mbarrier.init.shared::cta.b64 [%full], 64; bar.sync 0;"
WORK = {
    "after one look": f"{PEEK} @%q bra DONE; {ARRIVE_FULL}",
    "after many looks": f"mov.b32 %i, 0; L: {PEEK} @%q bra DONE; add.u32 %i, %i, 1; setp.lt.u32 %p, %i, 300; @%p bra L;"
                        f"{ARRIVE_FULL}",
    "after looks at two": f"{PEEK} @%q bra DONE; {PEEK.replace('%full], 0', '%full], 1')} {PEEK} {ARRIVE_FULL}",
}  # fmt: skip


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("work", WORK)
@pytest.mark.parametrize("kind", ["try_wait", "test_wait"])
def test_who_looks_in_vain_may_do_something_else(kind, work, schedule):
    """All look whether the phase is over before anyone has arrived."""
    result, out = run(f"{ARRIVE_ALL} {WORK[work]} {wait('%full', '0', 'W')} DONE: {DONE}".replace("try_wait", kind),
                      schedule=schedule)  # fmt: skip
    assert not result.findings, "\n".join(map(str, result.findings))
    assert (out == 1).all()


def test_who_looks_in_vain_ends_while_others_poll_memory():
    """Warp 1 polls a word that warp 0 writes when its wait has given up."""
    body = f"""
    {ARRIVE_ALL} setp.eq.u32 %p, %w, 0; @!%p bra POLL;
    {PEEK} @%one st.release.cta.global.b32 [%g0], 7; bra END;
    POLL: ld.acquire.cta.global.b32 %x0, [%g0]; setp.ne.u32 %p, %x0, 7; @%p bra POLL; {DONE}
    END: mov.b32 %x1, 0;
    """
    result, out = run(body, max_steps=100_000_000)
    assert not result.findings, "\n".join(map(str, result.findings))
    assert (out[32:] == 1).all()


TWO = f"L: {PEEK} @%q bra DONE; {PEEK.replace('%full', '%empty')} @!%q bra L; DONE: {DONE}"
VAIN = {
    "one loop": wait("%full", "0", "W"),
    "two in turn": TWO,
    "counting": f"mov.b32 %i, 0; L: add.u32 %i, %i, 1; {PEEK} @!%q bra L;",
    "apart": f"and.b32 %x0, %tid, 1; setp.eq.u32 %p, %x0, 0; @%p bra A; {wait('%full', '0', 'V')} bra DONE;"
             f"A: {wait('%empty', '0', 'W')} DONE: {DONE}",
}  # fmt: skip


@pytest.mark.parametrize("schedule", ["forward", "turns", "worst"])
@pytest.mark.parametrize("loop", VAIN)
@pytest.mark.parametrize("kind", ["try_wait", "test_wait"])
def test_who_only_looks_is_in_a_deadlock(kind, loop, schedule):
    """Long before the limit of instructions, and every warp's place is told."""
    result, _ = run(f"{INIT} {VAIN[loop]}".replace("try_wait", kind), schedule=schedule, max_steps=2_000_000)
    (finding,) = result.findings
    assert finding.kind == "deadlock"
    assert "nobody can run" in finding.text
    lines = finding.text.splitlines()[1:]
    assert len(lines) == (4 if loop == "apart" else 2)
    for warp in (0, 1):
        assert any(f"CTA 0 warp {warp} lanes" in line and "32 of 32 arrivals" in line for line in lines), finding.text


def test_a_state_waits_for_its_own_phase():
    body = """
    @%one mbarrier.init.shared::cta.b64 [%full], 64; bar.sync 0;
    st.shared.b32 [%at], %x7;
    mbarrier.arrive.shared::cta.b64 %state, [%full];
    T: mbarrier.test_wait.shared::cta.b64 %q, [%full], %state; @!%q bra T;
    mbarrier.pending_count.b64 %x0, %state; st.global.b32 [%to], %x0;
    """
    result, out = run(body)
    assert not result.findings, "\n".join(map(str, result.findings))
    assert sorted(out) == list(range(1, 65))
