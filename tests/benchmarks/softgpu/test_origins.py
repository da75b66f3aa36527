"""Which parameters the addresses of accesses come from."""

from __future__ import annotations

import pytest

from benchmarks.softgpu.origins import ANYWHERE

from .programs import program

PARAMS = ".param .u64 a, .param .u64 b, .param .u32 n, .param .u64 c"
LOADS = "ld.param.u64 %rd0, [a]; ld.param.u64 %rd1, [b]; ld.param.u32 %r0, [n]; ld.param.u64 %rd2, [c];"
A, B, C = 1, 2, 4


@pytest.mark.parametrize(
    ("body", "wanted"),
    [
        ("ld.global.u32 %r1, [%rd1+8];", B),
        ("cvta.to.global.u64 %rd3, %rd0; mad.wide.u32 %rd4, %r0, 4, %rd3; st.global.u32 [%rd4], %r0;", A),
        ("mov.u32 %r1, %tid.x; mul.wide.u32 %rd3, %r1, 4; add.s64 %rd4, %rd3, %rd2; st.global.u32 [%rd4], 1;", C),
        ("selp.b64 %rd3, %rd0, %rd2, %p0; red.global.add.u32 [%rd3], 1;", A | C),
        ("mov.u64 %rd3, %rd0; L: add.s64 %rd4, %rd3, 4; mov.u64 %rd3, %rd4; @%p0 bra L; ld.global.u32 %r1, [%rd3];", A),
        ("mov.u64 %rd3, %rd0; L: ld.global.u32 %r1, [%rd3]; mov.u64 %rd3, %rd1; @%p0 bra L;", A | B),
        # What is loaded may be a pointer; added to one, it is none.
        ("ld.global.u64 %rd3, [%rd0]; add.s64 %rd4, %rd3, 8; st.global.u32 [%rd4], 1;", ANYWHERE),
        ("ld.global.u64 %rd3, [%rd0]; shl.b64 %rd3, %rd3, 2; add.s64 %rd4, %rd3, %rd1; st.global.u32 [%rd4], 1;", B),
        ("ld.global.u64 %rd3, [%rd0]; selp.b64 %rd4, %rd3, %rd1, %p0; st.global.u32 [%rd4], 1;", B | ANYWHERE),
        ("ld.global.u32 %r1, [%rd0]; mad.wide.u32 %rd4, %r1, 4, %rd1; st.global.u32 [%rd4], 1;", B),
        ("setp.eq.u64 %p1, %rd0, %rd1; selp.b64 %rd3, %rd2, %rd2, %p1; st.global.u32 [%rd3], 1;", C),
        # A generic address; those of other spaces.
        ("st.u32 [%rd0], 1;", A), ("atom.add.u32 %r1, [%rd0+4], 1;", A),
        ("mov.b64 %rd3, 16; st.global.u32 [%rd3], 1;", 0), ("cvt.u32.u64 %r1, %rd0; st.shared.u32 [%r1], 1;", 0),
        # Copies: of threads, of bulk; a tensor map has its own bounds.
        ("cp.async.cg.shared.global [%r1], [%rd1], 16;", B),
        ("cp.async.bulk.shared::cluster.global.mbarrier::complete_tx::bytes [%r1], [%rd1], 16, [%r2];", B),
        ("cp.async.bulk.global.shared::cta.bulk_group [%rd2], [%r1], 16;", C),
        ("cp.reduce.async.bulk.global.shared::cta.bulk_group.add.u32 [%rd2], [%r1], 16;", C),
        ("cp.async.bulk.tensor.1d.global.shared::cta.bulk_group [%rd2, {%r1}], [%r2];", 0),
    ],
)  # fmt: skip
def test_origins(body: str, wanted: int) -> None:
    lowered = program(LOADS + body, params=PARAMS)
    assert lowered.pointers == [0, 8, 24]
    accesses = ("st.", "red.", "atom.", "cp.", "ld.")
    last = [record for record in lowered.records if record.key.startswith(accesses)][-1]
    assert last.origins == wanted


def test_more_parameters_than_can_be_told_apart() -> None:
    params = ", ".join(f".param .u64 p{k}" for k in range(70))
    loads = "".join(f"ld.param.u64 %rd{k}, [p{k}]; st.global.u32 [%rd{k}], 1;" for k in range(0, 20))
    lowered = program(loads + "ld.param.u64 %rd1, [p69]; st.global.u32 [%rd1], 1;", params=params)
    assert len(lowered.pointers) == 21
    many = "".join(f"ld.param.u64 %rd1, [p{k}]; add.u64 %rd{2 + k % 2}, %rd1, 4;" for k in range(69))
    many += "ld.param.u64 %rd4, [p69]; st.global.u32 [%rd4], 1;"
    lowered = program(many, params=params)
    assert len(lowered.pointers) == 63
    assert [record.origins for record in lowered.records if record.key.startswith("st.")] == [ANYWHERE]
