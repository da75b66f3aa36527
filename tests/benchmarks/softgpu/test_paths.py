"""Which ways of which branches lie on the paths around a line; what arguments ask of the text."""

import pytest

from benchmarks.softgpu import asked, faults, redundant
from benchmarks.softgpu.faults import faults_of
from benchmarks.softgpu.paths import Paths

# Lines are counted from 1, the line behind the quotes.
TEXT = """\
	bar.sync 	0;
	@%p1 bra 	$L__BB0_2;
	st.shared.b32 [%r1], %r2;
$L__BB0_2:
	@%p2 bra 	$L__BB0_3;
	add.s32 	%r3, %r3, 1;
$L__BB0_3:
	bar.sync 	0;
	@!complete bra.uni waitLoop;
	ld.shared.b32 	%r4, [%r1];
	@%p3 bra 	$L__BB0_2;
	@%p4 bra 	$L__BB0_5;
	bra.uni 	$L__BB0_6;
$L__BB0_5:
	bar.sync 	0;
	@%p5 bra 	$L__BB0_2;
$L__BB0_6:
	ret;
"""
BARRIER = r"bar\.sync"


def test_ways_to_a_barrier_and_from_it():
    """To line 8 by either way of 2, by the loop's 11 and by 16; from it by 11 and 12."""
    both = {(line, way) for line in (2, 11, 12) for way in (True, False)}
    assert Paths(TEXT).ways_around(8, BARRIER) == both | {(16, True)}


def test_what_skips_arithmetic_alone_does_not_count():
    assert not {line for line, _ in Paths(TEXT).ways_around(8, BARRIER)} & {5, 9}


def test_ways_that_lead_elsewhere_do_not_count():
    """Line 15 is reached from line 8 by 11 and 12, of which one way each leads to it; behind it go both of 16."""
    assert Paths(TEXT).ways_around(15, BARRIER) == {(11, False), (12, True), (16, True), (16, False)}
    assert Paths(TEXT).ways_around(1, BARRIER) == {(2, True), (2, False)}


def test_an_argument_about_order_needs_every_way():
    fault = next(fault for fault in faults_of(TEXT) if fault.line == 15)
    ways = frozenset(Paths(TEXT).ways_around(15, BARRIER))
    assert redundant.argument("a_kernel", fault, TEXT, ways) == redundant.ORDERED
    assert redundant.argument("a_kernel", fault, TEXT, ways | {(5, True)}) == redundant.ORDERED
    for way in ways:
        assert redundant.argument("a_kernel", fault, TEXT, ways - {way}) != redundant.ORDERED


GUARDED = """\
	@%p1 bra 	$L__BB0_2;
	bra.uni 	$L__BB0_1;
$L__BB0_1:
	st.shared.b32 [%r1], %r2;
	@%p2 bra 	$L__BB0_1;
$L__BB0_2:
	bar.sync 	0;
	ret;
"""


def test_the_guard_of_a_loop():
    paths = Paths(GUARDED)
    assert paths.ways_around(7, BARRIER) == {(1, True), (1, False), (5, True), (5, False)}
    assert [way for way in sorted(paths.ways_around(7, BARRIER)) if paths.skips_a_loop(way)] == [(1, True)]
    assert not any(Paths(TEXT).skips_a_loop((line, way)) for line in (2, 11, 12) for way in (True, False))


def test_a_loop_that_is_never_skipped_needs_to_be_entered_alone():
    fault = next(fault for fault in faults_of(GUARDED) if fault.kind == "barrier removed")
    entered = frozenset({(1, False), (5, True), (5, False)})
    assert redundant.argument("up_kernel", fault, GUARDED, entered).startswith(redundant.ORDERED)
    assert not redundant.argument("up_kernel", fault, GUARDED, entered - {(5, True)})
    assert not redundant.argument("another_kernel", fault, GUARDED, entered)


def test_ways_that_need_a_huge_number():
    made = "\tsetp.eq.b32 \t%p1, %r1, 33554431;\n"
    assert [way for way in (True, False) if Paths(made + GUARDED).needs_a_huge_number((2, way))] == [True]
    assert [
        way for way in (True, False) if Paths(made.replace("eq", "ne") + GUARDED).needs_a_huge_number((2, way))
    ] == [False]
    assert not any(
        Paths(made.replace("33554431", "64") + GUARDED).needs_a_huge_number((2, way)) for way in (True, False)
    )


# ---- what arguments ask of the text ----------------------------------------------------------------------------------

UNIFORM = """
	mov.u32 	%r1, %tid.x;
	mov.u32 	%r2, %ctaid.x;
	ld.shared.b32 	%r3, [global_smem];
	add.s32 	%r4, %r2, 4;
	add.s32 	%r5, %r1, 4;
	mov.b32 	%r6, 0;
	shfl.sync.bfly.b32 	%r7, %r6, 16, 31, -1;
	add.f32 	%r8, %r6, %r7;
"""


@pytest.mark.parametrize(
    ("instruction", "same"),
    [("@%p1 st.global.b32 [ %r4 + 0 ], { %r3 };", True),
     ("@%p1 st.global.b32 [ %r5 + 0 ], { %r3 };", False),
     ("@%p1 st.global.b32 [ %r4 + 0 ], { %r1 };", False)],
)  # fmt: skip
def test_a_store_that_any_thread_may_make(instruction, same):
    assert asked.is_stored_by_any(UNIFORM, faults.Fault("", 9, instruction, "")) == same


@pytest.mark.parametrize(("register", "same"), [("%r8", True), ("%r7", True), ("%r5", False)])
def test_a_shuffle_for_nothing(register, same):
    fault = faults.Fault("", 9, f"shfl.sync.bfly.b32 %r9, {register}, 8, 31, -1;", "")
    assert asked.is_shuffled_for_nothing(UNIFORM, fault) == same


@pytest.mark.parametrize(("first", "holds"), [(4, True), (16, False)])
def test_partial_results_of_the_first_lanes(first, holds):
    text = f"\n\t@%p1 ld.shared.b32 %r1, [ %r2 + 0 ];\n\tshfl.sync.bfly.b32 \t%r3, %r1, {first}, 31, -1;\n"
    fault = faults.Fault("", 2, "@%p1 ld.shared.b32 %r1, [ %r2 + 0 ];", "ld.shared.b32 %r1, [ %r2 + 0 ];")
    assert asked.is_summed_by_the_first_lanes(text, fault) == holds


COPIES = """
	mov.b64 	%rd1, %rd9;
	cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r3;
	cp.async.cg.shared.global [ %r2 + 0 ], [ %rd2 + 0 ], 0x10, %r3;
	cp.async.wait_group 	0;
	cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, %r3;
	cp.async.cg.shared.global [ %r2 + 0 ], [ %rd1 + 0 ], 0x10, %r3;
	cp.async.cg.shared.global [ %r2 + 0 ], [ %rd2 + 0 ], 0x10, %r3;
"""


def test_a_copy_of_what_lies_there():
    """From where an earlier one read, whose address was set once, and to the same place."""
    copies = [fault for fault in faults_of(COPIES) if fault.kind == "copy not begun"]
    again = [asked.copies_the_same_again(COPIES, fault) for fault in copies]
    assert again == [False, False, True, False, False]
    assert not any(asked.copies_the_same_again(COPIES.replace("%rd9", "%rd9;\n\tmov.b64 %rd1, 8"), f) for f in copies)
