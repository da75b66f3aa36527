"""Instructions lowered to records: keys, operands, literals, addresses, what the kernel accesses."""

from __future__ import annotations

import re
from pathlib import Path

import numpy as np
import pytest

from benchmarks.softgpu import lower as lowering
from benchmarks.softgpu import ptx
from benchmarks.softgpu.instructions import opcode, type_bytes
from benchmarks.softgpu.lower import Lowered, Record, literal

from .programs import WGMMA, program

MACHINE_H = Path(lowering.__file__).parent / "machine" / "machine.h"


def one(statement: str, **options: str) -> Record:
    """The record of a single instruction."""
    lowered = program(f"{statement}; ret;", **options)
    assert len(lowered.records) == 2
    return lowered.records[0]


def constant_of(lowered: Lowered, unit: int) -> tuple[int, int]:
    return next((c.bytes, c.value) for c in lowered.constants if c.unit == unit)


@pytest.mark.parametrize(
    ("text", "key"),
    [
        ("ld.global.L1::evict_last.L2::128B.v4.b32", "ld.global.v4.b32"),
        ("ld.global.ca.b32", "ld.global.b32"),
        ("ld.global.nc.L1::no_allocate.L2::cache_hint.b32", "ld.global.nc.b32"),
        ("st.global.wt.b16", "st.global.b16"),
        ("cp.async.cg.shared.global.L2::128B", "cp.async.shared.global"),
        ("cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes.L2::cache_hint",
         "cp.async.bulk.tensor.2d.shared::cluster.global.mbarrier::complete_tx::bytes"),
        ("fence.proxy.async.shared::cta", "fence.proxy.async.shared::cta"),
        ("prefetch.global.L2", "prefetch.global.L2"),
        ("add.rn.f32", "add.rn.f32"),
    ],
)  # fmt: skip
def test_keys_have_no_cache_hints(text: str, key: str):
    assert opcode(text).key == key


@pytest.mark.parametrize(
    ("statement", "results", "widths", "imms"),
    [
        ("add.s32 %r1, %r2, %r3", 1, [4, 4, 4], []),
        ("mul.wide.s32 %rd1, %r2, %r3", 1, [8, 4, 4], []),
        ("setp.lt.s32 %p1, %r2, %r3", 1, [0, 4, 4], []),
        ("setp.lt.and.f32 %p1|%p2, %r2, %r3, %p3", 2, [0, 0, 4, 4, 0], []),
        ("mov.b64 {%r1, %r2}, %rd1", 2, [4, 4, 8], []),
        ("mov.b64 {_, %r2}, %rd1", 2, [0, 4, 8], []),
        ("mov.b64 %rd1, {%r1, %r2}", 1, [8, 4, 4], []),
        ("shfl.sync.bfly.b32 %r1|%p1, %r2, 1, 31, -1", 2, [4, 0, 4, 4, 4, 4], []),
        ("elect.sync %r1|%p1, -1", 2, [4, 0, 4], []),
        ("vote.sync.any.pred %p1, %p2, -1", 1, [0, 0, 4], []),
        ("ld.global.v4.b32 {%r1,%r2,%r3,%r4}, [%rd1+16]", 4, [4, 4, 4, 4, 8], [16]),
        ("ld.shared.u8 %rs1, [%r1]", 1, [2, 4], [0]),
        ("ld.global.L2::cache_hint.b32 %r1, [%rd1], %rd2", 1, [4, 8], [0]),
        ("st.global.L2::cache_hint.v2.b32 [%rd1+4], {%r1,%r2}, %rd2", 0, [8, 4, 4], [4]),
        ("st.shared.b16 [%r1+-2], %rs1", 0, [4, 2], [-2]),
        ("atom.global.cas.b32 %r1, [%rd1], %r2, %r3", 1, [4, 8, 4, 4], [0]),
        ("atom.shared.cas.b128 %q1, [%r1], %q2, %q3", 1, [16, 4, 16, 16], [0]),
        ("red.global.add.f32 [%rd1], %r2", 0, [8, 4], [0]),
        ("cp.async.cg.shared.global [%r1+32], [%rd1+64], 16, %r2", 0, [4, 8, 4, 4], [32, 64]),
        ("cp.async.wait_group 2", 0, [4], []),
        ("cp.async.bulk.tensor.2d.shared::cta.global.mbarrier::complete_tx::bytes [%r1+8], [%rd1, {%r2, %r3}], [%r4]",
         0, [4, 8, 4, 4, 4], [8, 0, 0]),
        ("cp.async.bulk.tensor.1d.global.shared::cta.bulk_group [%rd1, {%r2}], [%r4]", 0, [8, 4, 4], [0, 0]),
        ("bar.sync 1, 128", 0, [4, 4], []),
        ("barrier.cta.sync 1", 0, [4], []),
        ("bar.red.popc.u32 %r1, 0, %p1", 1, [4, 4, 0], []),
        ("barrier.cta.red.popc.u32 %r1, 0, %p1", 1, [4, 4, 0], []),
        ("barrier.cluster.arrive.aligned", 0, [], []),
        ("bar.warp.sync -1", 0, [4], []),
        ("mbarrier.init.shared::cta.b64 [%r1], 2", 0, [4, 4], [0]),
        ("mbarrier.arrive.shared::cta.b64 _, [%r1]", 1, [0, 4], [0]),
        ("mbarrier.arrive.expect_tx.shared::cta.b64 %rd1, [%r1], 512", 1, [8, 4, 4], [0]),
        ("mbarrier.expect_tx.relaxed.cta.shared::cta.b64 [%r1], 512", 0, [4, 4], [0]),
        ("mbarrier.try_wait.parity.shared::cta.b64 %p1, [%r1+8], %r2", 1, [0, 4, 4], [8]),
        ("ldmatrix.sync.aligned.m8n8.x2.shared.b16 {%r1,%r2}, [%r3]", 2, [4, 4, 4], [0]),
        ("stmatrix.sync.aligned.m8n8.x2.shared.b16 [%r3], {%r1,%r2}", 0, [4, 4, 4], [0]),
        (f"{WGMMA}, %rd1, %rd2, %p1, 1, 1, 0, 0", 4, [4, 4, 4, 4, 8, 8, 0, 4, 4, 4, 4], []),
        (f"{WGMMA}, {{%r4,%r5,%r6,%r7}}, %rd2, 0, 1, 1, 0", 4, [4] * 8 + [8, 0, 4, 4, 4], []),
        ("wgmma.wait_group.sync.aligned 1", 0, [4], []),
        ("setmaxnreg.dec.sync.aligned.u32 40", 0, [4], []),
        ("fence.proxy.tensormap::generic.acquire.gpu [%rd1], 128", 0, [8, 4], [0]),
        ("mapa.shared::cluster.u32 %r1, %r2, 1", 1, [4, 4, 4], []),
        ("tensormap.replace.tile.box_dim.global.b1024.b32 [%rd1], 1, 64", 0, [8, 4, 4], [0]),
        ("tensormap.replace.tile.global_address.shared::cta.b1024.b64 [%r1], 64", 0, [4, 8], [0]),
        ("ret", 0, [], []),
        ("fence.acq_rel.gpu", 0, [], []),
        ("nanosleep.u32 20", 0, [4], []),
    ],
)  # fmt: skip
def test_operands_of_a_record(statement: str, results: int, widths: list[int], imms: list[int]):
    record = one(statement)
    assert (record.num_dst, record.widths, record.imms) == (results, widths, imms)
    assert record.text == " ".join(statement.split())
    assert [unit == -1 for unit in record.operands].count(True) == statement.count("_,")


def test_a_guard():
    record = one("@!%p3 mov.b32 %r1, %r2")
    assert record.pred >= 0
    assert record.negated
    assert record.pred not in record.operands
    assert one("mov.b32 %r1, %r2").pred == -1


def test_a_negated_operand_is_a_register_made_before():
    lowered = program("bra $L; $L: bar.red.and.pred %p1, 0, !%p2; ret;")
    jump, negation, barrier, _ = lowered.records
    assert (negation.key, negation.num_dst, negation.pred) == ("not.pred", 1, -1)
    assert barrier.operands[2] == negation.operands[0] != negation.operands[1]
    assert jump.imms == [negation.pc] == [1]


def test_branches_lead_to_records():
    lowered = program("""
        $L_top: bar.red.and.pred %p1, 0, !%p1;
        @%p1 bra $L_end;
        $L_table: .branchtargets $L_top, $L_end;
        brx.idx %r1, $L_table;
        $L_end:""")
    assert [r.key for r in lowered.records] == ["not.pred", "bar.red.and.pred", "bra", "brx.idx", "ret"]
    assert [r.pc for r in lowered.records] == [0, 1, 2, 3, 4]
    assert [r.imms for r in lowered.records[2:4]] == [[4], [0, 4]]
    assert [r.key for r in program("bra $L; $L:").records] == ["bra", "ret"]
    assert [r.key for r in program("@%p1 ret;").records] == ["ret", "ret"]
    assert [r.key for r in program("").records] == ["ret"]


@pytest.mark.parametrize(
    ("text", "type_name", "size", "value"),
    [
        ("7", "u32", 4, 7),
        ("-1", "s32", 4, 0xFFFFFFFF),
        ("-5", "s16", 2, 0xFFFB),
        ("-1", "b8", 2, 0xFFFF),
        ("0x8000000000000000", "b64", 8, 1 << 63),
        ("-9223372036854775808", "s64", 8, 1 << 63),
        ("0b101U", "u32", 4, 5),
        ("017", "u32", 4, 15),
        ("0", "u32", 4, 0),
        ("4294967295U", "u32", 4, 0xFFFFFFFF),
        ("0f3F800000", "f32", 4, 0x3F800000),
        ("0fFFC00001", "b32", 4, 0xFFC00001),
        ("0F7fc12345", "f32", 4, 0x7FC12345),
        ("0d3FF0000000000000", "f64", 8, 0x3FF0000000000000),
        ("0d3FF0000000000000", "f32", 4, 0x3F800000),
        ("0f3F800000", "f64", 8, 0x3FF0000000000000),
        ("1.5", "f32", 4, int(np.float32(1.5).view(np.uint32))),
        ("-2.5e-3", "f64", 8, int(np.float64(-2.5e-3).view(np.uint64))),
        ("0x3C00", "f16", 2, 0x3C00),
        ("0", "bf16x2", 4, 0),
        ("-1", "pred", 0, 1),
        ("0", "pred", 0, 0),
    ],
)
def test_literals(text: str, type_name: str, size: int, value: int):
    assert literal(text, type_name) == (size, value)


def test_literals_of_random_floats():
    for bits in np.random.default_rng(1).integers(0, 1 << 32, 200, dtype=np.uint32):
        assert literal(f"0f{bits:08X}", "f32") == (4, int(bits))
        number = bits.view(np.float32)
        if np.isfinite(number):
            wide = int(np.float64(number).view(np.uint64))
            assert literal(f"0f{bits:08X}", "f64") == (8, wide)
            assert literal(f"0d{wide:016X}", "f32") == (4, int(bits))


@pytest.mark.parametrize(("text", "type_name"), [("1", "f32"), ("0f3F800000", "b16"), ("1.0", "bf16x2"), ("3", "b128")])
def test_literals_of_another_kind_are_refused(text: str, type_name: str):
    with pytest.raises(ValueError, match="is no literal of type"):
        literal(text, type_name)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("shl.b64 %rd1, %rd2, 3", [(4, 3)]),
        ("bfe.u64 %rd1, %rd2, 4, 14", [(4, 4), (4, 14)]),
        ("mad.wide.u32 %rd1, %r1, 8, -1", [(4, 8), (8, (1 << 64) - 1)]),
        ("selp.b16 %rs1, -1, 0, %p1", [(2, 0xFFFF), (2, 0)]),
        ("selp.f32 %r1, 0f3F800000, %r2, %p1", [(4, 0x3F800000)]),
        ("setp.lt.and.s64 %p1, %rd1, -1, %p2", [(8, (1 << 64) - 1)]),
        ("setp.eq.and.b32 %p1, %r1, 1, 1", [(4, 1), (0, 1)]),
        ("mov.b64 %rd1, {%r1, -1}", [(4, 0xFFFFFFFF)]),
        ("mov.b32 %r1, {%rs1, 3}", [(2, 3)]),
        ("mov.pred %p1, -1", [(0, 1)]),
        ("slct.b64.s32 %rd1, 5, %rd2, 6", [(8, 5), (4, 6)]),
        ("lop3.b32 %r1, %r2, %r3, 7, 0x80", [(4, 7), (4, 0x80)]),
        ("mbarrier.init.shared::cta.b64 [%r1], 2", [(4, 2)]),
        ("st.shared.b64 [%r1], -1", [(8, (1 << 64) - 1)]),
        ("st.shared.v2.b16 [%r1], {1, 2}", [(2, 1), (2, 2)]),
        ("mad.lo.s32 %r1, %r2, 4, WARP_SZ", [(4, 4), (4, 32)]),
        (
            "cp.async.bulk.tensor.1d.shared::cluster.global.mbarrier::complete_tx::bytes.multicast::cluster "
            "[%r1], [%rd1, {-1}], [%r2], 3",
            [(4, 0xFFFFFFFF), (2, 3)],
        ),
        (f"{WGMMA}, %rd1, %rd2, 0, 1, 1, 0, 0", [(0, 0), (4, 1), (4, 1), (4, 0), (4, 0)]),
    ],
)
def test_a_literal_has_the_type_of_its_operand(statement: str, expected: list[tuple[int, int]]):
    lowered = program(f"{statement}; ret;")
    units = {c.unit for c in lowered.constants}
    assert [constant_of(lowered, unit) for unit in lowered.records[0].operands if unit in units] == expected


def test_special_registers():
    lowered = program("mov.u32 %r1, %ctaid.x; mov.u64 %rd1, %globaltimer; mov.u32 %r2, %ctaid.x; ret;")
    first, second, third, _ = lowered.records
    assert (first.widths, second.widths) == ([4, 4], [8, 8])
    assert first.operands[1] == third.operands[1]
    names = {unit: lowering.SPECIAL[index] for unit, index in lowered.specials}
    assert [names[r.operands[1]] for r in (first, second)] == ["%ctaid.x", "%globaltimer"]
    with pytest.raises(
        ptx.Unreadable, match=r"test, line \d+: %r999 is neither a declared nor a known special register"
    ):
        program("mov.u32 %r1, %r999; ret;")


def test_what_the_machine_must_agree_on():
    """machine.h has the same special registers in the same order, and the same windows."""
    header = MACHINE_H.read_text()
    names = re.search(r"enum SpecialRegister : int32_t \{(.*?)\}", header, re.S)[1]
    assert [name.lower() for name in re.findall(r"\w+", names)] == [s[1:].replace(".", "_") for s in lowering.SPECIAL]
    windows = dict(re.findall(r"(\w+_WINDOW) = 1ull << (\d+)", header))
    assert {name: getattr(lowering, name) for name in windows} == {name: 1 << int(bit) for name, bit in windows.items()}
    assert len(windows) == 3


def test_addresses_of_variables():
    declarations = """
        .extern .shared .align 16 .b8 smem[];
        .shared .b8 flag;
        .shared .align 8 .b64 full[2];
        .global .b32 counter;"""
    lowered = program(
        """
        .local .b8 depot[12]; .local .align 8 .b8 more[8];
        mov.b32 %r1, smem;
        mov.b64 %rd1, full+8;
        ld.shared.b32 %r2, [smem+64];
        mov.b64 %rd2, b;
        ld.param.b32 %r3, [b+4];
        ld.param.v2.b16 {%rs1, %rs2}, [c];
        mov.b64 %rd3, more;
        ret;""",
        declarations,
        ".param .u32 a, .param .u64 b, .param .align 8 .b8 c[16]",
    )
    smem, full, load, b, param, vector, more, _ = lowered.records
    assert lowered.shared_static == 32  # 1, padded to 8, and 16, padded to 16
    assert lowered.local_bytes == 24
    assert constant_of(lowered, smem.operands[1]) == (4, 32)
    assert constant_of(lowered, full.operands[1]) == (8, 16)
    assert (constant_of(lowered, load.operands[1]), load.imms, load.widths) == ((4, 32), [64], [4, 4])
    assert constant_of(lowered, b.operands[1]) == (8, (1 << 61) + 8)
    assert (len(param.operands), param.num_dst, param.imms) == (1, 1, [12])
    assert (len(vector.operands), vector.num_dst, vector.imms) == (2, 2, [16])
    assert constant_of(lowered, more.operands[1]) == (8, 16)
    for statement, why in (
        ("mov.b64 %rd1, counter", "counter lies in global memory"),
        ("mov.b64 %rd1, nobody", "unknown name nobody"),
        ("mov.b32 %r1, a", "unknown name a"),
        ("ld.param.b32 %r1, [%rd1]", "no parameter of this kernel"),
        ("ld.param.b32", "operands are missing"),
        ("add.f32 %r1, %r2, 1", "1 is no literal of type f32"),
    ):
        with pytest.raises(ptx.Unreadable, match=f"test, line .*{why}"):
            program(f"{statement}; ret;", declarations, ".param .u32 a")


@pytest.mark.parametrize(
    ("body", "shared", "global_"),
    [
        ("ret;", 16, 16),
        ("ld.global.v4.b32 {%r1,%r2,%r3,%r4}, [%rd1]; st.global.b16 [%rd1], %rs1;", 16, 2),
        ("ld.global.u8 %rs1, [%rd1];", 16, 1),
        ("st.shared.v4.b32 [%r1], {%r1,%r2,%r3,%r4}; ld.shared.b8 %rs1, [%r1];", 16, 16),
        ("st.shared.v2.b16 [%r1], {%rs1,%rs2}; ld.shared.b8 %rs1, [%r1];", 4, 16),
        ("ld.shared.b16 %rs1, [%r1];", 2, 16),
        ("atom.shared.add.u32 %r1, [%r2], 1;", 4, 16),
        ("st.b16 [%rd1], %rs1;", 2, 2),
        ("ld.b16 %rs1, [%rd1]; st.shared.b64 [%r1], %rd1;", 8, 2),
        ("cp.async.ca.shared.global [%r1], [%rd1], 8;", 8, 8),
        ("cp.async.cg.shared.global [%r1], [%rd1], 16, %r2;", 16, 16),
        ("mbarrier.init.shared::cta.b64 [%r1], 1;", 8, 16),
        ("stmatrix.sync.aligned.m8n8.x1.shared.b16 [%r1], {%r2};", 16, 16),
        ("cp.async.bulk.global.shared::cta.bulk_group [%rd1], [%r1], 64; ld.shared.b8 %rs1, [%r1];", 1, 16),
        (
            "cp.async.bulk.shared::cta.global.mbarrier::complete_tx::bytes [%r1], [%rd1], 64, [%r2];"
            "ld.shared.b8 %rs1, [%r1];",
            16,
            16,
        ),
        ("ld.local.b8 %rs1, [%r1]; ld.param.b8 %rs2, [a];", 16, 16),
        ("st.global.v4.b64 [%rd1], {%rd1,%rd2,%rd3,%rd4};", 16, 16),
        ("red.global.add.noftz.bf16x2 [%rd1], %r1;", 16, 4),
        ("red.async.relaxed.cluster.shared::cluster.mbarrier::complete_tx::bytes.add.u32 [%r1], %r2, [%r3];", 4, 16),
    ],
)
def test_the_least_access_is_the_granule(body: str, shared: int, global_: int):
    lowered = program(body, params=".param .u8 a")
    assert (lowered.shared_granule, lowered.global_granule) == (shared, global_)


@pytest.mark.parametrize(
    ("statement", "expected"),
    [
        ("atom.global.add.u32 %r1, [%rd1], 1", True),
        ("red.shared.add.u32 [%r1], 1", True),
        ("ld.acquire.gpu.global.b32 %r1, [%rd1]", True),
        ("st.release.sys.global.b32 [%rd1], %r1", True),
        ("fence.acq_rel.gpu", True),
        ("membar.gl", True),
        ("membar.cta", False),
        ("fence.acq_rel.cta", False),
        ("fence.proxy.async.shared::cta", False),
        ("ld.global.b32 %r1, [%rd1]", False),
    ],
)
def test_what_orders_ctas_is_noted(statement: str, expected: bool):
    assert program(f"{statement};").has_atomics is expected


@pytest.mark.parametrize(
    ("name", "size"),
    [("pred", 0), ("b8", 1), ("u16", 2), ("f16", 2), ("bf16x2", 4), ("tf32", 4), ("f64", 8), ("b128", 16), ("e4m3", 1),
     ("e4m3x2", 2), ("e5m2x4", 4)],
)  # fmt: skip
def test_sizes_of_types(name: str, size: int):
    assert type_bytes(name) == size
