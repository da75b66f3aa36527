"""cp.async: what arrives, when, and what is found when somebody does not wait."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.softgpu.engine import LANDINGS, Result

from .support import kernel, kinds

RANDOM = np.random.default_rng(18)
DECLARATIONS = ".reg .b64 %a<6>; .reg .b32 %s<8>; .reg .b32 %r<9>; .reg .pred %p<4>;"

# Each thread copies its 16 bytes of g0 to shared memory, and a word of them goes to g1.
START = """
    mad.wide.u32 %a0, %tid, 16, %g0; mad.wide.u32 %a1, %tid, 4, %g1; mov.u32 %s0, smem; mad.lo.u32 %s1, %tid, 16, %s0;
    setp.lt.u32 %p0, %tid, 5; shr.u32 %s4, %tid, 5; setp.eq.u32 %p1, %s4, 0;
"""
STORE = "ld.shared.u32 %r0, [%s1+4]; st.global.u32 [%a1], %r0;"
COPY = "cp.async.cg.shared.global [%s1], [%a0], 16;"


def aligned(values: np.ndarray) -> np.ndarray:
    block = np.zeros(values.nbytes + 16, np.uint8)
    out = block[-block.ctypes.data % 16 :][: values.nbytes].view(values.dtype)
    out[:] = values
    return out


def words(threads: int) -> tuple[np.ndarray, np.ndarray]:
    """Four random words for each thread, and room for a result."""
    return aligned(RANDOM.integers(1, 2**32, 4 * threads, np.uint32)), np.zeros(threads, np.uint32)


def run(body: str, *arrays: np.ndarray, threads: int = 64, **keywords) -> Result:
    return kernel(body, *arrays, declarations=DECLARATIONS, threads=threads, shared=4096, **keywords)


@pytest.mark.parametrize("landing", LANDINGS)
@pytest.mark.parametrize("wait", ["cp.async.commit_group; cp.async.wait_group 0;", "cp.async.wait_all;"])
def test_copies(wait: str, landing: str) -> None:
    x, out = words(64)
    result = run(START + COPY + wait + STORE, x, out, landing=landing, seed=2)
    assert not result.findings
    np.testing.assert_array_equal(out, x[1::4])


@pytest.mark.parametrize(("size", "kind"), [(4, "ca"), (8, "ca"), (16, "ca"), (16, "cg")])
def test_sizes(size: int, kind: str) -> None:
    x = aligned(RANDOM.integers(0, 256, 64 * size, np.uint8))
    out = aligned(np.zeros(64 * size, np.uint8))
    registers = ", ".join(f"%r{k}" for k in range(size // 4))
    vector = f"v{size // 4}.b32" if size > 4 else "b32"
    value = "{" + registers + "}" if size > 4 else registers
    result = run(
        f"""mad.wide.u32 %a0, %tid, {size}, %g0; mad.wide.u32 %a1, %tid, {size}, %g1; mov.u32 %s0, smem;
            mad.lo.u32 %s1, %tid, {size}, %s0; cp.async.{kind}.shared.global [%s1+{size}], [%a0], {size};
            cp.async.wait_all; ld.shared.{vector} {value}, [%s1+{size}]; st.global.{vector} [%a1], {value};""",
        x, out,
    )  # fmt: skip
    assert not result.findings
    np.testing.assert_array_equal(out, x)


def test_what_is_not_copied_is_zero() -> None:
    x, out = words(64)
    lines = "ld.shared.v4.u32 {{%r0, %r1, %r2, %r3}}, [%s1]; {} st.global.u32 [%a1], %r0;"
    for k in range(4):  # the number of bytes that come from the source: 16, 12, 8, 4 or 0, by thread
        size = "rem.u32 %s5, %tid, 5; mul.lo.u32 %s5, %s5, 4;"
        copy = "cp.async.cg.shared.global [%s1], [%a0], 16, %s5; cp.async.wait_all;"
        result = run(START + size + copy + lines.format(f"mov.u32 %r0, %r{k};"), x, out)
        assert not result.findings
        np.testing.assert_array_equal(out, np.where(np.arange(64) % 5 > k, x[k::4], 0))
    ignore = "cp.async.cg.shared.global [%s1], [%a0], 16, %p0; cp.async.wait_all;"
    result = run(START + ignore + lines.format(""), x, out)
    assert not result.findings
    np.testing.assert_array_equal(out, np.where(np.arange(64) < 5, 0, x[::4]))
    too_much = START + "mov.u32 %s5, 20; cp.async.cg.shared.global [%s1], [%a0], 16, %s5; cp.async.wait_all;"
    assert kinds(run(too_much, x, out)) == {"bad copy"}


def test_a_source_that_is_not_read_may_be_anywhere() -> None:
    x, out = words(64)
    beyond = START + "add.u64 %a0, %a0, 512; mov.u32 %s5, 0; setp.lt.u32 %p2, %tid, 32; selp.u32 %s5, 16, 0, %p2;"
    body = beyond + "cp.async.cg.shared.global [%s1], [%a0], 16, {}; cp.async.wait_all; ld.shared.u32 %r0, [%s1];"
    assert not run(body.format("%s5"), x, out).findings
    (finding, *_) = run(body.format("16"), x, out).findings
    assert finding.kind == "out of bounds"
    assert "behind the end of `g0`" in finding.text


@pytest.mark.parametrize("landing", LANDINGS)
@pytest.mark.parametrize(("pending", "wanted"), [(0, set()), (1, set()), (2, {"in flight"})])
def test_groups(pending: int, wanted: set[str], landing: str) -> None:
    """Three groups; the second one is read."""
    x, out = words(64)
    copies = "".join(f"cp.async.cg.shared.global [%s1+{1024 * k}], [%a0], 16; cp.async.commit_group;" for k in range(3))
    body = START + copies + f"cp.async.wait_group {pending}; ld.shared.u32 %r0, [%s1+1028]; st.global.u32 [%a1], %r0;"
    result = run(body, x, out, landing=landing)
    assert kinds(result) - {"never written"} == wanted
    if not wanted:
        np.testing.assert_array_equal(out, x[1::4])


def test_late_means_late() -> None:
    x, out = words(64)
    body = START + COPY + "cp.async.commit_group;" + STORE
    early, late = run(body, x, out, landing="early"), out.copy()
    np.testing.assert_array_equal(out, x[1::4])
    result = run(body, x, late, landing="late")
    np.testing.assert_array_equal(late, 0xFFFFFFFF)
    assert "in flight" in kinds(early)
    assert "in flight" in kinds(result)
    text = next(f.text for f in result.findings if f.kind == "in flight")
    assert "lane 0" in text
    assert "cp.async" in text
    assert "ld.shared" in text


def test_lanes_have_groups_of_their_own() -> None:
    """Some lanes commit a group more: their wait covers less."""
    x, out = words(64)
    body = START + COPY + "cp.async.commit_group; {} cp.async.commit_group; cp.async.wait_group 1;" + STORE
    assert not run(body.format(""), x, out).findings
    result = run(body.format("@%p0 bra DONE;").replace("cp.async.wait_group 1", "DONE: cp.async.wait_group 1"), x, out)
    (finding,) = (f for f in result.findings if f.kind == "in flight")
    assert finding.count == 5


def test_copies_become_known_by_a_barrier() -> None:
    x, out = words(64)
    other = "xor.b32 %s2, %s1, 512; ld.shared.u32 %r0, [%s2+4]; st.global.u32 [%a1], %r0;"
    assert not run(START + COPY + "cp.async.wait_all; bar.sync 0;" + other, x, out).findings
    np.testing.assert_array_equal(out, np.concatenate([x[1::4][32:], x[1::4][:32]]))
    for schedule in ("forward", "backward"):
        for order in ("bar.sync 0; cp.async.wait_all;", "cp.async.wait_all;"):
            found = kinds(run(START + COPY + order + other, x, out, schedule=schedule)) - {"never written"}
            assert found, (schedule, order)
            assert found <= {"in flight", "race: read after write", "race: write after read"}


def test_overwriting_a_destination() -> None:
    x, out = words(64)
    store = "st.shared.u32 [%s1+8], %tid;"
    assert kinds(run(START + COPY + store + "cp.async.wait_all;", x, out)) == {"in flight"}
    assert not run(START + COPY + "cp.async.wait_all;" + store, x, out).findings
    assert kinds(run(START + COPY + COPY + "cp.async.wait_all;", x, out)) == {"in flight"}
    # Somebody else has read it and has not said so.
    read = START + "mad.lo.u32 %s3, %tid, 16, %s0; st.shared.v4.u32 [%s3], {%tid, %tid, %tid, %tid}; bar.sync 0;"
    read += "xor.b32 %s3, %s3, 512; ld.shared.u32 %r1, [%s3];"
    for schedule in ("forward", "backward"):
        racy = kinds(run(read + COPY + "cp.async.wait_all;", x, out, schedule=schedule))
        assert racy
        assert racy <= {"race: write after read", "race: read after write", "in flight"}
        assert not kinds(run(read + "bar.sync 0;" + COPY + "cp.async.wait_all;", x, out, schedule=schedule))


def test_a_source_that_changes() -> None:
    x, out = words(64)
    change = "bar.sync 0; xor.b32 %s5, %tid, 32; mad.wide.u32 %a2, %s5, 16, %g0; st.global.u32 [%a2], %tid; bar.sync 0;"
    found = kinds(run(START + COPY + change + "cp.async.wait_all;", x, out))
    assert "source changed" in found
    x, out = words(64)
    assert not kinds(run(START + COPY + "cp.async.wait_all;" + change, x, out))


def test_alignment_and_bounds_of_the_destination() -> None:
    x, out = words(64)
    assert kinds(run(START + "cp.async.cg.shared.global [%s1+8], [%a0], 16; cp.async.wait_all;", x, out)) == {
        "misaligned"
    }
    result = run(START + "cp.async.cg.shared.global [%s1+3088], [%a0], 16; cp.async.wait_all;", x, out)
    (finding,) = result.findings
    assert finding.kind == "out of bounds"
    assert "lane 31" in finding.text
    assert finding.count == 1


def test_never_written_and_undefined() -> None:
    x, out = words(64)
    assert kinds(run(START + COPY + "cp.async.wait_all;", x, out, tracked=(0,))) == {"never written"}
    assert "undefined value" in kinds(
        run(START + "cp.async.cg.shared.global [%s1], [%a0], 16, %r7; cp.async.wait_all;", x, out)
    )
    assert "undefined value" in kinds(run(START + "add.u32 %s1, %s1, %r7;" + COPY + "cp.async.wait_all;", x, out))


# ---- by an mbarrier --------------------------------------------------------------------------------------------------

WAIT = """
WAIT:
    mbarrier.try_wait.parity.shared.b64 %p2, [%s0+2048], 0; @!%p2 bra WAIT;
"""


@pytest.mark.parametrize("landing", LANDINGS)
@pytest.mark.parametrize(("kind", "arrivals"), [(".noinc", 64), ("", 64)])
def test_an_mbarrier_waits_for_copies(kind: str, arrivals: int, landing: str) -> None:
    x, out = words(64)
    init = f"setp.eq.u32 %p3, %tid, 0; @%p3 mbarrier.init.shared.b64 [%s0+2048], {arrivals}; bar.sync 0;"
    arrive = f"cp.async.mbarrier.arrive{kind}.shared.b64 [%s0+2048];"
    arrive += "" if kind else "mbarrier.arrive.shared.b64 _, [%s0+2048];"
    other = "xor.b32 %s2, %s1, 512; ld.shared.u32 %r0, [%s2+4]; st.global.u32 [%a1], %r0;"
    for schedule in ("forward", "backward"):
        result = run(START + init + COPY + arrive + WAIT + other, x, out, landing=landing, schedule=schedule)
        assert not result.findings
        np.testing.assert_array_equal(out, np.concatenate([x[1::4][32:], x[1::4][:32]]))
    # Nor is what a thread does after its arrival.
    store = "st.shared.u32 [%s1+2064], %tid;"
    read = "xor.b32 %s2, %s1, 512; ld.shared.u32 %r0, [%s2+2064]; st.global.u32 [%a1], %r0;"
    covered = START + init + COPY + store + arrive + WAIT + read
    assert not run(covered, x, out, landing=landing).findings
    for schedule in ("forward", "backward"):
        result = run(START + init + COPY + arrive + store + WAIT + read, x, out, landing=landing, schedule=schedule)
        found = kinds(result) - {"never written"}
        assert found
        assert found <= {"race: read after write", "race: write after read"}
    # A copy issued after the arrival is not covered.
    late = run(START + init + arrive + COPY + WAIT + other, x, out, landing=landing)
    assert "in flight" in kinds(late)
