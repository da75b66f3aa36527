"""What the machine finds in accesses to memory: bounds, alignment, what nobody wrote: planted once, and once mended."""

from __future__ import annotations

import mmap

import numpy as np
import pytest

from benchmarks.softgpu.engine import Memory, Settings, launch, load

from .accesses import DECLARATIONS, START, found, run
from .support import kinds

# ---- bounds and alignment --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("op", ["ld.global.u32 %r0, [%a0{offset}];", "st.global.u32 [%a0{offset}], %tid;"])
def test_bounds_of_global_memory(op: str) -> None:
    x, other = np.zeros(32, np.uint32), np.zeros(2048, np.uint32)
    address = "mad.wide.u32 %a0, %tid, 4, %g0;"
    assert not found(address + op.format(offset=""), x)
    result = run(address + op.format(offset="+4"), x)
    (finding,) = result.findings
    assert finding.kind == "out of bounds"
    assert finding.count == 1
    assert "CTA 0 warp 0 lane 31" in finding.text
    assert "0 bytes behind the end of `g0` of 128 bytes" in finding.text
    (finding,) = run(address + op.format(offset="-12"), x).findings
    assert finding.count == 3
    assert "12 bytes before `g0` of 128 bytes" in finding.text
    # Memory that exists, but is none of the launch's arguments.
    program = load(result.program.text.replace("%g0, [p0]", "%g0, [p0+0]"))
    memory = Memory()
    own = memory.register(x.ctypes.data, x.nbytes, "x")
    memory.register(other.ctypes.data, other.nbytes, "other")
    (finding,) = launch(program, (1,), int(other.ctypes.data).to_bytes(8, "little"), 0, memory, [own]).findings
    assert finding.kind == "out of bounds"
    assert "inside `other`, which this launch was not given" in finding.text


def test_an_access_belongs_to_the_tensor_that_its_address_comes_from() -> None:
    """Two arguments without a gap: who leaves one for the other is told, though the launch was given both."""
    block = np.arange(64, dtype=np.uint32)
    x, y = block[:32], block[32:]
    for op in ("ld.global.u32 %r0, [%a0+4];", "st.global.u32 [%a0+4], %tid;", "st.u32 [%a0+4], %tid;",
               "red.relaxed.gpu.global.add.u32 [%a0+4], 1;", "atom.global.add.u32 %r0, [%a0+4], 1;",
               "cp.async.ca.shared.global [%s1], [%a0+4], 4;"):  # fmt: skip
        (finding,) = run(START + "mad.wide.u32 %a0, %tid, 4, %g0;" + op, x, y, shared=256, check_lanes=False).findings
        assert finding.kind == "out of bounds"
        assert finding.count == 1
        assert "`g1` + 0x0" in finding.text
        assert "its address comes from a pointer into `g0`" in finding.text
    bulk = START + """
        @%p2 mbarrier.init.shared.b64 [%s0+64], 1; fence.proxy.async; bar.warp.sync -1;
        @%p2 mbarrier.arrive.expect_tx.shared.b64 _, [%s0+64], 32;
        @%p2 cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%s0], [%g0+{}], 32, [%s0+64];
    """  # fmt: skip
    assert "out of bounds" in kinds(run(bulk.format(112), x, y, shared=128))
    assert "out of bounds" not in kinds(run(bulk.format(96), x, y, shared=128))


def test_an_address_may_come_from_either_of_two_tensors_or_from_memory() -> None:
    block = np.zeros(64, np.uint32)
    x, y = block[:32], block[32:]
    address = "setp.lt.u32 %p0, %tid, 16; selp.b64 %a0, %g0, %g1, %p0; mad.wide.u32 %a0, %tid, 4, %a0;"
    assert found(address + "st.global.u32 [%a0], %tid;", x, y) == set()
    (finding,) = run(address + "st.global.u32 [%a0+4], %tid;", x, y).findings
    assert "0 bytes behind the end of `g1`" in finding.text
    # A pointer that lies in memory leads wherever the launch may go; an index from there does not.
    table = np.array([y.ctypes.data], np.uint64)
    assert found("ld.global.u64 %a0, [%g2]; st.global.u32 [%a0+-4], 1;", x, y, table, threads=1) == set()
    either = "setp.eq.u32 %p0, %tid, 0; ld.global.u64 %a0, [%g2]; selp.b64 %a0, %g0, %a0, %p0;"
    assert found(either + "mad.wide.u32 %a0, %tid, 4, %a0; st.global.u32 [%a0], 1;", x, y, table) == set()
    index = np.array([128], np.uint64)
    body = "ld.global.u64 %a1, [%g2]; add.s64 %a0, %g0, %a1; ld.global.u32 %r0, [%a0{}];"
    assert found(body.format("+-4"), x, y, index, threads=1) == set()
    assert found(body.format(""), x, y, index, threads=1) == {"out of bounds"}


def test_addresses_that_wrap_around() -> None:
    x = np.zeros(32, np.uint32)
    assert found("mov.b64 %a0, -4; ld.global.u32 %r0, [%a0];", x) == {"out of bounds"}
    assert found("mov.b64 %a0, -16; ld.global.v4.u32 {%r0, %r1, %r2, %r3}, [%a0];", x) == {"out of bounds"}
    assert found("mov.b64 %a0, 0; ld.u32 %r0, [%a0];", x) == {"out of bounds"}
    assert found(START + "sub.u32 %s1, %s0, 16; ld.shared.v4.u32 {%r0, %r1, %r2, %r3}, [%s1];", shared=64) == {
        "out of bounds"
    }


def test_without_checks_bounds_are_kept() -> None:
    x = np.zeros(32, np.uint32)
    body = START + "mad.wide.u32 %a0, %tid, 4, %g0; ld.shared.u32 %r0, [%s1]; {} st.global.u32 [%a0+4], %r0;"
    assert found(body.format(""), x, shared=128, check=False) == {"out of bounds"}
    assert found(body.format("add.u32 %s1, %s1, 4; ld.shared.u32 %r0, [%s1];"), x[:0], shared=128, check=False) == {
        "out of bounds"
    }


def test_what_is_out_of_bounds_is_not_done() -> None:
    block, out = np.full(64, 7, np.uint32), np.zeros(32, np.uint32)
    x = block[:16]
    result = run(
        """mad.wide.u32 %a0, %tid, 4, %g0; mad.wide.u32 %a1, %tid, 4, %g1;
           ld.global.u32 %r0, [%a0]; st.global.u32 [%a0], %tid; st.global.u32 [%a1], %r0;""",
        x, out,
    )  # fmt: skip
    np.testing.assert_array_equal(block[16:], 7)
    np.testing.assert_array_equal(block[:16], np.arange(16))
    np.testing.assert_array_equal(out[:16], 7)
    assert kinds(result) == {"out of bounds", "undefined value"}  # what could not be read is undefined


@pytest.mark.parametrize("op", ["ld.shared.u32 %r0, [%s1{offset}];", "st.shared.u32 [%s1{offset}], %tid;"])
def test_bounds_of_shared_memory(op: str) -> None:
    first = START + "st.shared.u32 [%s1], %tid; bar.warp.sync -1;"
    assert not found(first + op.format(offset=""), shared=128)
    (finding,) = run(first + op.format(offset="+4"), shared=128, check_lanes=False).findings
    assert finding.kind == "out of bounds"
    assert "lane 31" in finding.text
    assert "0x80" in finding.text


@pytest.mark.parametrize(("space", "base"), [("global", "%a0"), ("shared", "%s1")])
@pytest.mark.parametrize("op", ["ld.{}.v2.b32 {{%r0, %r1}}, [{}+4];", "st.{}.v2.b32 [{}+4], {{%tid, %tid}};"])
def test_alignment(op: str, space: str, base: str) -> None:
    x = np.zeros(256, np.uint32)
    body = START + "mad.wide.u32 %a0, %tid, 8, %g0; mad.lo.u32 %s1, %tid, 8, %s0; st.shared.v2.u32 [%s1], {%tid, %tid};"
    body += "st.shared.v2.u32 [%s1+8], {%tid, %tid};" if "ld" in op else ""
    assert kinds(run(body + op.format(space, base), x, shared=264, check_lanes=False)) >= {"misaligned"}
    assert kinds(run(body + op.format(space, base).replace("+4", ""), x, shared=264, check_lanes=False)) <= {
        "conflicting stores"
    }


# ---- what nobody wrote -----------------------------------------------------------------------------------------------


def test_shared_memory_that_nobody_wrote() -> None:
    body = START + "st.shared.u32 [%s1], %tid; ld.shared.u32 %r0, [%s1{}];"
    assert not found(body.format(""), shared=256)
    assert found(body.format("+128"), shared=256) == {"never written"}


def test_every_cta_starts_with_shared_memory_that_nobody_wrote() -> None:
    body = START + "setp.eq.u32 %p3, %ctaid, 0; @%p3 st.shared.u32 [%s1], %tid; ld.shared.u32 %r0, [%s1];"
    (finding,) = run(body, shared=256, grid=(3,), resident=1).findings
    assert finding.kind == "never written"
    assert finding.count == 64
    assert "of CTA 1" in finding.text


def test_global_memory_that_nobody_wrote() -> None:
    x, y = np.zeros(64, np.uint16), np.zeros(64, np.uint16)
    body = "mad.wide.u32 %a0, %tid, 2, %g0; {} ld.global.u16 %h, [%a0]; st.global.u16 [%a0+64], %h;"
    declarations = DECLARATIONS + ".reg .b16 %h;"
    assert not found(body.format(""), x, declarations=declarations)
    assert found(body.format(""), x, declarations=declarations, tracked=(0,)) == {"never written"}
    # Written earlier by the same kernel, at another width.
    write = "mad.wide.u32 %a1, %tid, 4, %g0; setp.lt.u32 %p0, %tid, 16; @%p0 st.global.u32 [%a1], %tid; bar.sync 0;"
    assert not found(write + body.format(""), x, declarations=declarations, tracked=(0,))
    assert "g1" not in str(run(body.format(""), x, y, declarations=declarations, tracked=(1,)).findings)


def test_what_a_launch_wrote_stays_written() -> None:
    x = np.zeros(64, np.uint32)
    write = run("mad.wide.u32 %a0, %tid, 4, %g0; st.global.u32 [%a0], %tid;", x).program
    read = run(f"mad.wide.u32 %a0, %tid, 4, %g0; ld.global.u32 %r0, [%a0+{0}];", x).program
    beyond = run(f"mad.wide.u32 %a0, %tid, 4, %g0; ld.global.u32 %r0, [%a0+{4}];", x).program
    memory = Memory()
    own = memory.register(x.ctypes.data, x.nbytes, "x", True)
    params = int(x.ctypes.data).to_bytes(8, "little")
    assert kinds(launch(read, (1,), params, 0, memory, [own])) == {"never written"}
    assert not launch(write, (1,), params, 0, memory, [own]).findings
    assert not launch(read, (1,), params, 0, memory, [own]).findings
    (finding,) = launch(beyond, (1,), params, 0, memory, [own]).findings
    assert finding.count == 1
    assert "`x` + 0x80" in finding.text
    own = memory.register(x.ctypes.data, x.nbytes, "x", True)
    assert kinds(launch(read, (1,), params, 0, memory, [own])) == {"never written"}


def test_undefined_values() -> None:
    x = np.zeros(32, np.uint32)
    address = START + "mad.wide.u32 %a0, %tid, 4, %g0;"
    assert found(address + "st.global.u32 [%a0], %r5;", x, shared=256) == {"undefined value"}
    assert found(address + "mov.u32 %r5, 1; st.global.u32 [%a0], %r5;", x, shared=256) == set()
    # Through shared memory, and only where the undefined element goes.
    through = address + "st.shared.v2.u32 [%s0], {%tid, %r5}; ld.shared.u32 %r1, [%s0OFFSET]; st.global.u32 [%a0], %r1;"
    single = {"threads": 1, "shared": 256}
    assert found(through.replace("OFFSET", "+4"), x, **single) == {"undefined value"}
    assert found(through.replace("OFFSET", ""), x, **single) == set()
    first = through.replace("{%tid, %r5}", "{%r5, %tid}")
    assert found(first.replace("OFFSET", ""), x, **single) == {"undefined value"}
    assert found(first.replace("OFFSET", "+4"), x, **single) == set()
    # An address: the access is not done.
    x[:] = 0
    (finding,) = run(address + "add.u64 %a1, %a0, %d5; st.global.u32 [%a1], %tid;", x, shared=256).findings
    assert finding.kind == "undefined value"
    assert "address" in finding.text
    assert not x.any()


# ---- large and sparse ------------------------------------------------------------------------------------------------


def test_a_sparse_tensor_of_20_gib() -> None:
    size = 20 << 30
    block = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | getattr(mmap, "MAP_NORESERVE", 0x4000))
    data = np.frombuffer(block, np.uint8)
    before = _resident()
    program = run(
        """mul.wide.u32 %a0, %tid, 671088640; add.u64 %a0, %a0, %g0;
           st.global.u32 [%a0], %tid; ld.global.u32 %r0, [%a0]; st.global.u32 [%a0+8], %r0;""",
        np.zeros(4, np.uint32), max_steps=10**6,
    ).program  # fmt: skip
    memory = Memory()
    own = memory.register(data.ctypes.data, size, "large", True)
    params = int(data.ctypes.data).to_bytes(8, "little")
    result = launch(program, (1,), params, 0, memory, [own], Settings())
    assert not result.findings
    assert result.seconds < 1
    np.testing.assert_array_equal(data[8 :: size // 32][:32], np.arange(32))
    assert _resident() - before < 64 << 20
    memory.forget(own)
    del data


def _resident() -> int:
    with open("/proc/self/statm") as f:
        return int(f.read().split()[1]) * mmap.PAGESIZE
