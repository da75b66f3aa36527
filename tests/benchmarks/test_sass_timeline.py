"""The timeline of a loop: control codes, roles, mbarriers, and steady states counted by hand."""

from __future__ import annotations

import pytest

from benchmarks.gate.offline import offline
from benchmarks.sass import mbarriers
from benchmarks.sass.loops import find_loops
from benchmarks.sass.machines import MACHINES
from benchmarks.sass.parser import Control, Instruction, parse_sass
from benchmarks.sass.roles import path, producer_loop, roles_of
from benchmarks.sass.scheduler import (
    ARRIVAL_LATENCY,
    BARRIER_LATENCY,
    BRANCH,
    LATENCY,
    TENSOR_LATENCY,
    Bandwidth,
    Deadlock,
    simulate,
)
from benchmarks.sass.timeline import tensor_share, timeline_of

from .sample_kernels import matmul_row, row_sum_row
from .test_sass import WORK, compiles, sass

HOPPER = MACHINES["sm_90"]
STEP = 64  # cycles of the tensor core that MMA takes


def op(opcode: str, operands: str = "", stall: int = 1, **control) -> Instruction:
    return Instruction(opcode, operands, control=Control(stall, **control))


MMA = op("HGMMA.64x128x16.F32.BF16", "R24, R4, gdesc[UR8], R24")
LAST_MMA = op("HGMMA.64x128x16.F32.BF16", "R24, R4, gdesc[UR8], R24, gsb0")
WAIT = op("WARPGROUP.DEPBAR.LE", "gsb0, 0x0")
CHAIN = [op("FADD", stall=4)] * 100  # 400 cycles, whoever else is there
BACK = op("BRA", "`(.L_x_0)")


def steady(*traces: list[Instruction], ctas: int = 1, **kwargs):
    return simulate(traces, set(range(len(traces))), HOPPER, ctas, **kwargs)


def test_control_codes_are_read_from_the_encoding():
    """By hand: 0x000e640000000800 >> 41 = 0x732: stall 2, write barrier 1, read none, no waits."""
    text = """
    .text.kernel:
            /*0180*/                   LDC R2, c[0x2][R4] ;                /* 0x0080000004027b82 */
                                                                           /* 0x000e640000000800 */
            /*0190*/                   SHF.R.S32.HI R3, RZ, 0x1f, R2 ;     /* 0x0000001fff037819 */
                                                                           /* 0x002fc80000011402 */
            /*01a0*/                   EXIT ;                              /* 0x000000000000794d */
    """
    load, shift, leave = parse_sass(text).instructions
    assert load.control == Control(stall=2, write=1)
    assert shift.control == Control(stall=4, waits=(1,))
    assert leave.control is None
    assert Control.decode(0x000FF60000000000) == Control(stall=11)


def test_a_chain_stalls_and_two_warps_fill_each_others_gaps():
    chain = [*CHAIN, BACK]
    assert steady(chain).cycles == pytest.approx(400 + BRANCH, abs=1)
    both = steady(chain, chain)
    assert both.cycles == pytest.approx(400 + BRANCH, abs=2)
    assert both.busy["issue"] == pytest.approx(2 * 101 / both.cycles, rel=0.01)


@pytest.mark.parametrize(
    ("opcode", "cycles"),
    [("FFMA", 1), ("FMNMX", 2), ("IMAD", 2), ("IMAD.MOV", 1), ("MUFU.EX2", 8), ("SHFL.BFLY", 4), ("LDS.128", 16)],
)
def test_the_units_take_an_instruction_in_so_many_cycles(opcode, cycles):
    """32 lanes of float32, 16 of integers, 4 of MUFU; 128 bytes of shared memory for four schedulers."""
    timeline = steady(*[[op(opcode)] * 100] * 2)
    assert timeline.cycles == pytest.approx(200 * cycles, abs=BRANCH + 2)


def test_a_scoreboard_waits_for_the_latency():
    loop = [op("MUFU.EX2", write=0), op("FADD", waits=(0,)), BACK]
    assert steady(loop).cycles == pytest.approx(8 + LATENCY["MUFU"] + 1 + BRANCH, abs=1)


def test_products_run_on_while_the_warp_does_not_wait():
    hidden = steady([MMA, LAST_MMA, *CHAIN[:25], WAIT, BACK])
    assert hidden.cycles == pytest.approx(2 * STEP + TENSOR_LATENCY + BRANCH, abs=4)
    exposed = steady([MMA, LAST_MMA, WAIT, *CHAIN[:25], BACK])
    assert exposed.cycles == pytest.approx(2 * STEP + TENSOR_LATENCY + 100 + BRANCH, abs=4)
    assert exposed.tensor == pytest.approx(2 * STEP / exposed.cycles)


def test_waiting_for_all_but_one_group_leaves_the_last_in_flight():
    all_but_one = op("WARPGROUP.DEPBAR.LE", "gsb0, 0x1")
    loop = [LAST_MMA, LAST_MMA, all_but_one, *CHAIN[:25], WAIT, BACK]
    assert steady(loop).cycles == pytest.approx(STEP + TENSOR_LATENCY + 100 + BRANCH, abs=6)


def test_two_ctas_hide_each_other_and_a_barrier_forbids_it():
    loop = [*[MMA] * 7, LAST_MMA, WAIT, *CHAIN, BACK]  # 512 cycles of products, 400 of the rest
    assert steady(loop, ctas=2).tensor > 0.95
    meet = op("BAR.SYNC.DEFER_BLOCKING", "0x0")
    together = [*[MMA] * 7, LAST_MMA, WAIT, meet, *CHAIN, meet, BACK]
    both = steady(together, together)
    assert both.cycles == pytest.approx(2 * 8 * STEP + TENSOR_LATENCY + 400 + 2 * BARRIER_LATENCY + BRANCH, abs=STEP)


def test_a_named_barrier_of_one_warpgroup_waits_for_nobody():
    own = [*[MMA] * 7, LAST_MMA, WAIT, op("BAR.SYNC.DEFER_BLOCKING", "0x2, 0x80"), *CHAIN, BACK]
    other = [*[MMA] * 7, LAST_MMA, WAIT, op("BAR.SYNC.DEFER_BLOCKING", "0x3, 0x80"), *CHAIN, BACK]
    assert steady(own, other).tensor > 0.95


def test_operands_from_shared_memory_slow_narrow_products():
    """By hand: 64 x 64 x 16 with both operands there reads 4096 bytes, 32 cycles: with one LDS.128 of each warp, 48."""
    narrow = op("HGMMA.64x64x16.F32.BF16", "R24, gdesc[UR8], R24")
    assert steady([narrow] * 20).cycles == pytest.approx(20 * 32, rel=0.02)
    assert steady([narrow, op("LDS.128")] * 20).cycles == pytest.approx(20 * 48, rel=0.05)


def turns(number: int) -> list[Instruction]:
    """A consumer that multiplies when the other one has issued its products."""
    mine, others = (f"[UR8+0x{8 * (number ^ i):x}]" for i in (0, 1))
    wait = op("SYNCS.PHASECHK.TRANS64.TRYWAIT", f"P0, {mine}, R5")
    give = op("SYNCS.ARRIVE.TRANS64.A1T0", f"RZ, {others}, RZ")
    return [wait, *[MMA] * 7, LAST_MMA, give, WAIT, *CHAIN, BACK]


def test_consumers_in_turns():
    pair = [turns(0), turns(1)]
    rules = mbarriers.protocol(pair, {0, 1}, {})
    assert rules.arrivals == {"0x0": 1, "0x8": 1}
    assert rules.credit == {(0, "0x0"): 1}
    assert steady(*pair, protocol=rules).tensor > 0.95
    alone = [[*trace[1:9], *trace[10:]] for trace in pair]
    assert steady(alone[0]).tensor < 0.6
    rules.credit.clear()
    with pytest.raises(Deadlock, match="turn"):
        steady(*pair, protocol=rules)


def producer_and_consumer() -> tuple[list[Instruction], list[Instruction]]:
    full, empty = "[UR8+0x100]", "[UR8+0x120]"
    consumer = [
        op("SYNCS.PHASECHK.TRANS64.TRYWAIT", f"P0, {full}, R5"),
        *[MMA] * 7, LAST_MMA, WAIT,
        op("SYNCS.ARRIVE.TRANS64.A1T0", f"RZ, {empty}, RZ"),
        BACK,
    ]  # fmt: skip
    producer = [
        op("SYNCS.PHASECHK.TRANS64.TRYWAIT", f"P0, {empty}, R5"),
        op("SYNCS.ARRIVE.TRANS64", f"RZ, {full}, R2"),
        op("UTMALDG.4D", "[UR8], [UR4]"),
        BACK,
    ]
    return consumer, producer


@pytest.mark.parametrize("stages", [1, 2])
def test_a_ring_hides_the_copies(stages):
    """By hand: 512 cycles of products; a copy takes 300 + 12800 / 64, and comes when the slot is empty."""
    traces = producer_and_consumer()
    rules = mbarriers.protocol(traces, {0}, {"0x100": stages, "0x120": stages})
    assert rules.credit == {(0, "0x100"): 0, (1, "0x120"): stages}
    bandwidth = Bandwidth(latency=300, best=64, fair=64)
    timeline = simulate(traces, {0}, HOPPER, 1, rules, [{}, {1: 12800}], bandwidth)
    products = 8 * STEP + TENSOR_LATENCY
    least = products + (300 + 12800 / 64 + ARRIVAL_LATENCY if stages == 1 else 0)
    assert timeline.cycles == pytest.approx(least, abs=20)


def test_copies_cannot_be_faster_than_l2():
    traces = producer_and_consumer()
    rules = mbarriers.protocol(traces, {0}, {"0x100": 2, "0x120": 2})
    bandwidth = Bandwidth(latency=100, best=64, fair=16, burst=0)
    timeline = simulate(traces, {0}, HOPPER, 1, rules, [{}, {1: 12800}], bandwidth)
    assert timeline.cycles == pytest.approx(12800 / 16, rel=0.02)
    assert timeline.busy["l2"] == pytest.approx(1, abs=0.02)


def test_two_consumers_empty_a_slot_together():
    consumer, producer = producer_and_consumer()
    rules = mbarriers.protocol([consumer, consumer, producer], {0, 1}, {})
    assert rules.arrivals == {"0x100": 1, "0x120": 2}
    slow = [*consumer[:-1], *CHAIN, *consumer[-1:]]
    slow[10], slow[-2] = slow[-2], slow[10]  # it gives the slot back 400 cycles later
    bandwidth = Bandwidth(latency=300, best=64, fair=64)
    timeline = simulate([consumer, slow, producer], {0, 1}, HOPPER, 1, rules, [{}, {}, {1: 12800}], bandwidth)
    assert timeline.cycles == pytest.approx(2 * 8 * STEP + TENSOR_LATENCY + 400 + 500 + ARRIVAL_LATENCY, abs=20)


def test_a_plain_loop_loads_for_itself_once():
    """Both warps have the code, one thread loads; stages - 1 copies were begun before the loop."""
    wait, load = (i for i in producer_and_consumer()[0][:1] + producer_and_consumer()[1][1:2])
    loop = [wait, MMA, load, BACK]
    rules = mbarriers.protocol([loop, loop], {0, 1}, {"0x100": 3})
    assert rules.arrivals == {"0x100": 1}
    assert rules.loader == {"0x100": 0}
    assert rules.credit == {(0, "0x100"): 2, (1, "0x100"): 2}


def test_rings_and_the_bytes_of_a_copy_are_in_the_code():
    program = parse_sass(
        sass(
            *[f"SYNCS.EXCH.64 URZ, [UR9+0x{at:x}], UR20" for at in (0x100, 0x108, 0x110, 0x120)],
            "MOV R2, 0x40",
            "IMAD.MOV.U32 R2, RZ, RZ, 0x8000", "MOV R3, 0x200", "FADD R2, R7, R7",
            "SYNCS.ARRIVE.TRANS64 RZ, [UR33+0x100], R2", "SYNCS.ARRIVE.TRANS64 RZ, [UR33+0x120], R3",
            "SYNCS.ARRIVE.TRANS64 RZ, [UR33+0x120], R5",
        )
    )  # fmt: skip
    assert mbarriers.slots(program) == {"0x100": 3, "0x108": 2, "0x110": 1, "0x120": 1}
    assert [mbarriers.announced(program, i) for i in (8, 9, 10)] == [0x8000, 0x200, 0]


def specialised() -> list[str]:
    """A dispatch loop; two consumers, the first with a masked loop too; a producer."""
    mma = "HGMMA.64x128x16.F32.BF16 R24, R4, gdesc[UR8], R24, gsb0"
    own = "BAR.SYNC.DEFER_BLOCKING 0x2, 0x100"
    dispatch = 'BRX R2 -0x10 (*"BRANCH_TARGETS .L_x_1,.L_x_3,.L_x_5"*)'
    return [
        *[".L_x_0:", *WORK, dispatch],
        *[".L_x_1:", "USETMAXREG.TRY_ALLOC.CTAPOOL UP0, 0xf0", *WORK],
        *[".L_x_11:", mma, *WORK * 2, "@P0 BRA `(.L_x_11)", ".L_x_2:", mma, own, *WORK, "@P0 BRA `(.L_x_2)"],
        "BRA `(.L_x_0)",
        *[".L_x_3:", ".L_x_4:", mma, *WORK, "@P0 BRA `(.L_x_4)", "BRA `(.L_x_0)"],
        *[".L_x_5:", *WORK, ".L_x_6:", *WORK, "UTMALDG.4D [UR8], [UR4]", "@P0 BRA `(.L_x_6)", "BRA `(.L_x_0)"],
    ]


def test_roles_of_a_specialised_kernel():
    program = parse_sass(sass(*specialised()))
    first, second = roles_of(program, 16)
    assert [len(loop.instructions) for loop in first.loops] == [13, 22]  # the hot one, then the masked one
    assert (first.warps, second.warps) == (8, 4)
    assert [len(loop.instructions) for loop in second.loops] == [12]
    assert producer_loop(program, [first, second]).instructions[-2].base == "UTMALDG"


def test_a_plain_kernel_has_one_role():
    mma = "HGMMA.64x128x16.F32.BF16 R24, R4, gdesc[UR8], R24, gsb0"
    program = parse_sass(sass(".L_x_0:", mma, *WORK, "@P0 BRA `(.L_x_0)", "EXIT"))
    (role,) = roles_of(program, 8)
    assert (role.warps, len(role.loops)) == (8, 1)
    assert producer_loop(program, [role]) is None


def test_the_path_passes_by_spins_and_by_what_is_rare():
    rare, short = ["FADD R9, R9, R9"] * 40, ["FADD R8, R8, R8"] * 3
    spin = [".L_x_9:", "SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [R4+0x8], R5", "@!P2 BRA `(.L_x_9)", "BRA `(.L_x_2)"]
    program = parse_sass(
        sass(
            *[".L_x_0:", *WORK, "@!P2 BRA `(.L_x_9)", ".L_x_2:", "@P3 BRA `(.L_x_3)", *rare, ".L_x_3:"],
            *["@P4 BRA `(.L_x_4)", *short, ".L_x_4:", *WORK, "@P0 BRA `(.L_x_0)", "EXIT", *spin],
        )
    )
    (loop,) = find_loops(program)
    operands = [program.instructions[i].operands for i in path(program, loop)]
    assert operands.count("R8, R8, R8") == 3
    assert operands.count("R9, R9, R9") == 0
    assert len(operands) == 2 * len(WORK) + 3 + 4


def test_barriers_that_do_not_fit_are_taken_as_complete():
    mma = "HGMMA.64x128x16.F32.BF16 R24, R4, gdesc[UR8], R24, gsb0"
    encoded = "/* 0x000fe20000000a00 */"
    body = [
        "SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [R4+0x8], R5", "SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [R4+0x8], R5", mma,
        *WORK, "SYNCS.ARRIVE.TRANS64.A1T0 RZ, [R4+0x8], RZ",
    ]  # fmt: skip
    lines = sass(".L_x_0:", *body, "@P0 BRA `(.L_x_0)", "EXIT").splitlines()
    text = "\n".join(line + ("\n" + encoded if ";" in line else "") for line in lines)
    loops = timeline_of(parse_sass(text), 4, 1, HOPPER)
    assert "do not fit" in loops.note
    assert loops.flop == 2 * 64 * 128 * 16
    assert timeline_of(parse_sass("\n".join(lines)), 4, 1, HOPPER) is None  # no control codes


@compiles
def test_tensor_share_of_compiled_kernels():
    with offline("sm_90") as compiled:
        matmul_row("wide", 128, 128, 8, expect=set()).call()
        row_sum_row("sum", 8192, expect=set()).call()
    wide, total = compiled
    assert 0.1 < tensor_share(wide, "sm_90") <= 1
    with pytest.raises(ValueError, match="has no products"):
        tensor_share(total, "sm_90")
