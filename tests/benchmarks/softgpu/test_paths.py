"""Which ways of which branches lie on the paths around a line; arguments that look at the text."""

from benchmarks.softgpu import redundant
from benchmarks.softgpu.faults import faults_of
from benchmarks.softgpu.paths import ways_around

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
    assert ways_around(TEXT, 8, BARRIER) == both | {(16, True)}


def test_what_skips_arithmetic_alone_does_not_count():
    assert not {line for line, _ in ways_around(TEXT, 8, BARRIER)} & {5, 9}


def test_ways_that_lead_elsewhere_do_not_count():
    """Line 15 is reached from line 8 by 11 and 12, of which one way each leads to it; behind it go both of 16."""
    assert ways_around(TEXT, 15, BARRIER) == {(11, False), (12, True), (16, True), (16, False)}
    assert ways_around(TEXT, 1, BARRIER) == {(2, True), (2, False)}


def test_an_argument_about_order_needs_every_way():
    fault = next(fault for fault in faults_of(TEXT) if fault.line == 15)
    ways = frozenset(ways_around(TEXT, 15, BARRIER))
    assert redundant.argument("a_kernel", fault, TEXT, ways) == redundant.ORDERED
    assert redundant.argument("a_kernel", fault, TEXT, ways | {(5, True)}) == redundant.ORDERED
    for way in ways:
        assert redundant.argument("a_kernel", fault, TEXT, ways - {way}) != redundant.ORDERED


ZEROS = """\
	mov.b32 	%r1, 0;
	shfl.sync.bfly.b32 	%r2, %r1, 16, 31, -1;
	add.f32 	%r3, %r2, 0f00000000;
	@%p1 st.shared.b32 [ %r9 + 0 ], %r3;
	@%p2 ld.shared.b32 %r4, [ %r9 + 0 ];
	shfl.sync.bfly.b32 	%r5, %r4, 8, 31, -1;
	add.f32 	%r6, %r5, %r8;
	shfl.sync.bfly.b32 	%r7, %r6, 4, 31, -1;
"""


def test_sums_of_zeros():
    shuffles = [fault for fault in faults_of(ZEROS) if fault.kind == "shuffle's lane changed"]
    assert [redundant.is_zero(ZEROS, fault) for fault in shuffles] == [True, True, False]
    other = ZEROS.replace("mov.b32 	%r1, 0", "mov.b32 	%r1, 1")
    assert not any(redundant.is_zero(other, fault) for fault in shuffles)
