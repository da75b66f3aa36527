"""Pairs in a register of 64 bits: each half is a register of its own, so that an undefined one spoils no other."""

import numpy as np

from tests.benchmarks.softgpu.programs import program
from tests.benchmarks.softgpu.support import kernel, kinds


def keys(body: str) -> list[str]:
    return [record.key for record in program(body).records][:-1]


PUT, TAKE = "mov.b64 %rd1, {%r1, %r2};", "mov.b64 {%r3, %r4}, %rd1;"


def test_what_is_put_together_and_taken_apart_is_two_registers():
    assert keys(PUT + TAKE) == ["mov.b32"] * 4
    assert keys(PUT + "mov.b64 {_, %r4}, %rd1;") == ["mov.b32"] * 3
    assert keys(PUT + "mov.b64 %rd2, %rd1; mov.b64 {%r3, %r4}, %rd2;") == ["mov.b32"] * 6
    assert keys("@%p1 " + PUT + TAKE) == ["mov.b32"] * 4
    assert [r.pred >= 0 for r in program("@%p1 " + PUT + TAKE).records] == [True, True, False, False, False]


def test_what_is_more_than_a_pair_stays_whole():
    for use in ("add.s64 %rd3, %rd1, %rd1;", "st.shared.b64 [%r9], %rd1;", "ld.global.b32 %r9, [%rd1];"):
        assert keys(PUT + TAKE + use)[:2] == ["mov.b64", "mov.b64"]
    moved = "mov.b64 %rd2, %rd1; mov.b64 {%r3, %r4}, %rd2; add.s64 %rd3, %rd2, %rd2;"
    assert keys(PUT + moved) == ["mov.b64", "mov.b64", "mov.b64", "add.s64"]
    assert keys(PUT) == ["mov.b64"]
    assert keys(TAKE) == ["mov.b64"]


def test_arithmetic_is_two_instructions():
    body = PUT + "fma.rn.ftz.f32x2 %rd2, %rd1, %rd1, %rd1; mov.b64 {%r3, %r4}, %rd2;"
    assert keys(body) == ["mov.b32", "mov.b32", "fma.rn.ftz.f32", "fma.rn.ftz.f32", "mov.b32", "mov.b32"]
    whole = "ld.shared.b64 %rd1, [%r1]; add.f32x2 %rd2, %rd1, %rd1; st.shared.b64 [%r1], %rd2;"
    between = ["mov.b64", "mov.b64", "add.f32", "add.f32", "mov.b64"]
    assert keys(whole) == ["ld.shared.b64", *between, "st.shared.b64"]


def test_jumps_lead_behind_what_became_two():
    lowered = program(f"@%p1 bra $L; {PUT} {TAKE} $L: mov.b32 %r5, %r3; ret;")
    assert [record.imms for record in lowered.records if record.key == "bra"] == [[5]]
    assert lowered.records[5].text == "mov.b32 %r5, %r3"


def test_an_undefined_half_spoils_the_other_half_of_nothing():
    body = """
        mov.b32 %a, 0f3F800000; mov.b64 %pair, {%a, %never}; add.rn.f32x2 %sum, %pair, %pair;
        mov.b64 {%low, %high}, %sum; mad.wide.u32 %to, %tid, 4, %g0; st.global.b32 [%to], %low;"""
    declarations = ".reg .b32 %a, %never, %low, %high; .reg .b64 %pair, %sum, %to;"
    out = np.zeros(32, np.float32)
    assert not kernel(body, out, declarations=declarations).findings
    assert (out == 2).all()
    body = body.replace("[%to], %low", "[%to], %high")
    assert kinds(kernel(body, out, declarations=declarations)) == {"undefined value"}
