"""The loop report: parser, natural loops, cost model, calibration, and the report on a small kernel's cubin."""

from __future__ import annotations

import dataclasses
import json

import pytest
import triton

from benchmarks.gate import run
from benchmarks.sass import __main__ as cli
from benchmarks.sass import calibration, launches
from benchmarks.sass.cost import announced_bytes, ceiling, cost_of
from benchmarks.sass.loops import Loop, find_loops, hot_loop
from benchmarks.sass.machines import MACHINES, SUSTAINED
from benchmarks.sass.parser import Instruction, parse_amdgcn, parse_sass
from benchmarks.sass.scheduler import Timeline
from benchmarks.sass.timeline import Loops
from benchmarks.sass.units import access_bytes, is_tensor, tensor_op, tensor_work, unit_of

from .sample_kernels import matmul_row, row_sum_row

compiles = pytest.mark.skipif(
    bool(triton.knobs.runtime.interpret), reason="TRITON_INTERPRET=1 leaves nothing to compile in this process"
)


def sass(*body: str) -> str:
    """A listing as nvdisasm prints it: labels end in a colon, everything else is an instruction."""
    lines = ["        .type           kernel,@function", ".text.kernel:"]
    for i, line in enumerate(body):
        lines.append(line if line.endswith(":") else f"        /*{16 * i:04x}*/                   {line} ;")
    return "\n".join(lines)


HOPPER = MACHINES["sm_90"]
WORK = ["FADD R1, R2, R3"] * 10  # enough not to be taken for a spin loop


def test_parser_reads_predicates_targets_and_labels():
    program = parse_sass(
        sass(".L_x_0:", "@!P0 BRA `(.L_x_1)", "BRA.U UP0, `(.L_x_0)", "BRA `(.L_x_1)", ".L_x_1:", "@P1 EXIT", "EXIT")
    )
    conditional, uniform, always, maybe_exit, leave = program.instructions
    assert program.labels[".L_x_0"] == 0
    assert program.labels[".L_x_1"] == 3
    assert (conditional.targets, conditional.falls_through) == ((".L_x_1",), True)
    assert (uniform.opcode, uniform.base, uniform.falls_through) == ("BRA.U", "BRA", True)
    assert (always.targets, always.falls_through) == ((".L_x_1",), False)
    assert (maybe_exit.falls_through, leave.falls_through) == (True, False)


def test_parser_reads_indirect_branches():
    text = 'BRX R2 -0x10 (*"BRANCH_TARGETS .L_x_1,.L_x_2,.L_x_1"*)'
    (branch, *_) = parse_sass(sass(text, ".L_x_1:", "NOP", ".L_x_2:", "EXIT")).instructions
    assert set(branch.targets) == {".L_x_1", ".L_x_2"}
    assert not branch.falls_through


def test_nested_loops_and_the_innermost():
    program = parse_sass(
        sass("MOV R0, R1", ".L_x_0:", *WORK, ".L_x_1:", *WORK, "@P0 BRA `(.L_x_1)", *WORK, "@P1 BRA `(.L_x_0)", "EXIT")
    )
    outer, inner = find_loops(program)
    assert (outer.header, len(outer.instructions), outer.innermost) == (1, 32, False)
    assert (inner.header, len(inner.instructions), inner.innermost) == (11, 11, True)


def test_a_wait_moved_out_of_line_is_not_a_loop():
    """The main loop tries a barrier; on failure it jumps to a spin behind the kernel's end, which jumps back."""
    spin = [".L_x_9:", "SYNCS.PHASECHK.TRANS64.TRYWAIT P2, [R4], R5", "@!P2 BRA `(.L_x_9)", "BRA `(.L_x_2)"]
    program = parse_sass(
        sass(".L_x_0:", *WORK, "@!P2 BRA `(.L_x_9)", ".L_x_2:", *WORK, "@P0 BRA `(.L_x_0)", "EXIT", *spin)
    )
    (loop,) = find_loops(program)
    assert loop.innermost
    assert len(loop.instructions) == 25  # the spin belongs to the loop that it serves


def test_a_jump_upwards_into_straight_code_is_not_a_loop():
    program = parse_sass(sass("BRA `(.L_x_1)", ".L_x_0:", *WORK, "EXIT", ".L_x_1:", *WORK, "BRA `(.L_x_0)"))
    assert find_loops(program) == []


def test_the_hot_loop_is_the_one_with_the_most_tensor_work_for_its_length():
    mma = "HGMMA.64x128x16.F32.BF16 R24, gdesc[UR8], R24, gsb0"
    program = parse_sass(
        sass(
            *[".L_x_0:", *WORK * 4, "@P0 BRA `(.L_x_0)"],  # long, without tensor work
            *[".L_x_1:", mma, *WORK, "@P0 BRA `(.L_x_1)"],  # the main loop
            *[".L_x_2:", mma, *WORK * 2, "@P0 BRA `(.L_x_2)"],  # the same with a mask
            "EXIT",
        )
    )
    loops = find_loops(program)
    assert len(loops) == 3
    assert hot_loop(loops, is_tensor) is loops[1]
    assert hot_loop(loops[:1], is_tensor) is loops[0]
    assert hot_loop([], is_tensor) is None


def test_narrow_tensor_instructions_do_not_pass_for_much_work():
    narrow, wide = (Instruction(f"HGMMA.64x{n}x16.F32.BF16", "R24, R4, gdesc[UR8], R24") for n in (32, 128))
    filler = (Instruction("FADD"),)
    loops = [Loop(0, (narrow,) * 3 + filler * 9, True), Loop(20, (wide,) * 2 + filler * 10, True)]
    assert hot_loop(loops, tensor_work) is loops[1]
    assert tensor_work(Instruction("UTCHMMA")) == 1


def test_amd_assembly():
    program = parse_amdgcn(
        "kernel:\n\ts_load_dwordx2 s[2:3], s[0:1], 0x0\n.LBB0_1: ; =>This Inner Loop\n"
        + "\tv_mfma_f32_32x32x8_bf16 v[0:15], v[1:2], v[3:4], v[0:15]\n" * 9
        + "\ts_cbranch_scc1 .LBB0_1\n; %bb.2:\n\ts_endpgm\n\t.section .debug\n\t.byte 1\nnot_code\n"
    )
    assert len(program.instructions) == 12
    (loop,) = find_loops(program)
    assert len(loop.instructions) == 10


@pytest.mark.parametrize(
    ("opcode", "unit", "size"),
    [
        ("LDG.E.128.CONSTANT", "global", 16),
        ("LDG.E.U16", "global", 2),
        ("LDGSTS.E.BYPASS.128", "global", 16),
        ("UTMALDG.2D", "global", 0),
        ("LDS.64", "lsu", 8),
        ("SHFL.BFLY", "lsu", 4),
        ("MUFU.EX2", "mufu", 4),
        ("FFMA", "fma", 4),
        ("FMNMX", "alu", 4),
        ("HMMA.16816.F32.BF16", "tensor", 4),
        ("UTCHMMA", "tensor", 4),
        ("BAR.SYNC.DEFER_BLOCKING", "other", 4),
    ],
)
def test_units(opcode, unit, size):
    assert unit_of(Instruction(opcode)) == unit
    assert access_bytes(Instruction(opcode)) == size


def test_tensor_operations():
    shared = tensor_op(Instruction("HGMMA.64x128x16.F32.BF16", "R24, gdesc[UR8].tnspB, R24, gsb0"))
    assert (shared.flop, shared.a_bytes, shared.b_bytes) == (2 * 64 * 128 * 16, 64 * 16 * 2, 128 * 16 * 2)
    registers = tensor_op(Instruction("HGMMA.64x64x8.F32.TF32", "R24, R4, gdesc[UR8], R24"))
    assert (registers.flop, registers.a_bytes, registers.b_bytes) == (2 * 64 * 64 * 8, 0, 64 * 8 * 4)
    warp = tensor_op(Instruction("HMMA.16816.F32.BF16", "R4, R8, R10, R4"))
    assert (warp.flop, warp.warps) == (2 * 16 * 8 * 16, 1)
    assert tensor_op(Instruction("UTCHMMA", "gdesc[UR6], gdesc[UR4], tmem[UR8]")) is None


def test_cycles_by_unit():
    """By hand: a warpgroup MMA 64 x 128 x 16 takes 64 cycles; an exp2 of one warp takes 8 of its scheduler."""
    loop = [Instruction("HGMMA.64x128x16.F32.BF16", "R24, R4, gdesc[UR8], R24")] * 8
    loop += [Instruction("MUFU.EX2")] * 16 + [Instruction("FFMA")] * 32 + [Instruction("FMNMX")] * 8
    loop += [Instruction("LDS.128"), Instruction("IMAD")]
    cost = cost_of(loop, 8, MACHINES["sm_90"])
    assert cost.cycles["tensor"] == 8 * 64 * 2  # two warpgroups
    assert cost.cycles["mufu"] == 16 * 8 * 2  # two warps on each scheduler
    assert cost.cycles["fma"] == 32 * 2 + 2 * 2  # IMAD at half the rate
    assert cost.cycles["alu"] == 8 * 2 * 2
    assert cost.cycles["lsu"] == 4 * 8
    assert cost.cycles["issue"] == len(loop) * 2
    assert cost.flop == 2 * 8 * 2 * 64 * 128 * 16
    assert cost.bound_by == "tensor"
    assert cost.mix["mufu"] == 16


def test_operands_from_shared_memory_can_bind_a_narrow_mma():
    narrow = Instruction("HGMMA.64x32x16.F32.BF16", "R24, gdesc[UR8], R24")
    cost = cost_of([narrow], 4, MACHINES["sm_90"])
    assert cost.cycles["tensor"] == (64 * 16 * 2 + 32 * 16 * 2) / 128  # not 32 / 2


def test_bytes_of_bulk_copies():
    ptx = "@%p1 mbarrier.arrive.expect_tx.shared::cta.b64 _, [%r1], 32768;\n" * 3
    assert announced_bytes(ptx) == 32768
    assert announced_bytes("ld.global.v4.b32 {%r1}, [%rd1];") == 0
    loop = [Instruction("HGMMA.64x128x16.F32.BF16", "R24, R4, gdesc[UR8], R24")] * 8
    loop += [Instruction("UTMALDG.4D"), Instruction("SYNCS.ARRIVE.TRANS64"), Instruction("SYNCS.ARRIVE.TRANS64.A1T0")]
    assert cost_of(loop, 8, MACHINES["sm_90"], bulk_bytes=32768).bytes == 32768
    assert cost_of(loop, 8, MACHINES["sm_90"]).bytes == 8 * 128 * 16 * 2


def test_peaks_are_those_of_the_data_sheets():
    sheets = {"sm_80": 312e12, "sm_86": 149.7e12, "sm_89": 362e12, "sm_90": 989e12, "sm_100": 2250e12, "sm_120": 500e12}
    for arch, peak in sheets.items():
        assert MACHINES[arch].peak == pytest.approx(peak, rel=0.02), arch


def test_nothing_is_above_the_ceiling():
    loop = [Instruction("HGMMA.64x128x16.F32.BF16", "R24, R4, gdesc[UR8], R24")] * 8 + [Instruction("MUFU.EX2")] * 64
    cost, machine = cost_of(loop, 8, MACHINES["sm_90"]), MACHINES["sm_90"]
    assert cost.bound_by == "tensor"
    assert ceiling(cost, machine) == pytest.approx(machine.peak * SUSTAINED, rel=0.01)


def test_the_kept_table_is_of_the_points_and_near_them():
    rows, points = calibration.kept(), calibration.points()
    assert {row.name: row.measured for row in rows if row.kind != calibration.PUBLISHED} == {
        point.name: pytest.approx(point.seconds) for point in points
    }
    fit = [row.error for row in rows if row.kind == calibration.FIT]
    assert len(fit) == 8
    assert max(map(abs, fit)) < 0.06
    held_out = [row.error for row in rows if row.kind == calibration.HELD_OUT and not row.spills]
    assert sum(error**2 for error in held_out) / len(held_out) < 0.07**2
    assert f"{max(held_out, key=abs):+.0%}" in calibration.known_error()
    assert calibration.known_error([]) == "not known: nothing was measured"


def test_a_launch_by_hand():
    """Four tiles of 128 rows with 0, 1, 2, 3 steps of 1000 cycles and two masked ones of 500, on 132 places."""
    full, masked = (Loops(Timeline(cycles, {}, {}), 0, 1) for cycles in (1000, 500))
    work = launches.Causal(length=512, heads=33, held=128, step=128, edge=64, section=33)
    cycles = launches.PROGRAM + 3 * 1000 + 2 * 500
    assert launches.seconds(work, full, masked, HOPPER) == pytest.approx(cycles / HOPPER.sustained_clock)
    twice = dataclasses.replace(work, heads=66, section=66)  # the longest first: the last to begin are the shortest
    cycles = 2 * launches.PROGRAM + 3 * 1000 + 4 * 500
    assert launches.seconds(twice, full, masked, HOPPER) == pytest.approx(cycles / HOPPER.sustained_clock)


def test_measured_figures_are_found_by_row(tmp_path):
    def row(**changes):
        base = {"op": "attention", "impl": "fastgpt", "mode": "forward", "dtype": "bfloat16", "tflop_s": 400.0}
        return {"extra_info": base | {"shape": {"T": 4096, "head_dim": 128}} | changes}

    rows = [
        row(),
        row(tflop_s=450.0, shape={"T": 8192, "head_dim": 128}),
        row(tflop_s=900.0, impl="sdpa-flash"),
        row(tflop_s=901.0, dtype="float16"),
        row(tflop_s=902.0, mode="forward+backward"),
        row(tflop_s=903.0, shape={"T": 8192, "head_dim": 64}),
        row(tflop_s=904.0, op="ffn"),
    ]
    results = {"machine_info": {"fastgpt": {"gpu": "NVIDIA H200", "commit": "49acfdc"}}, "benchmarks": rows}
    (tmp_path / "h200.json").write_text(json.dumps(results))
    (tmp_path / "foreign.json").write_text("[1, 2]")
    found = calibration.measured("attention", "fwd-bf16-d128-causal", "sm_90", tmp_path)
    assert [m.tflops for m in found] == [450.0, 400.0]
    assert (found[0].gpu, found[0].commit) == ("NVIDIA H200", "49acfdc")
    assert calibration.measured("attention", "fwd-bf16-d128-causal", "sm_80", tmp_path) == []
    assert calibration.measured("attention", "bwd-bf16-d128-causal", "sm_90", tmp_path) == []


@compiles
def test_report_on_a_small_kernel(monkeypatch, capsys):
    """By hand: a 128 x 128 x 64 step is 4 instructions of 64 x 128 x 16 for each of two warpgroups: 512 cycles."""
    rows = [
        matmul_row("wide", 128, 128, 8, expect=set()),
        matmul_row("narrow", 128, 128, 4, expect=set()),
        row_sum_row("sum", 8192, expect=set()),
    ]
    monkeypatch.setattr(run, "rows_of", lambda family: {row.label: row for row in rows})
    assert cli.main(["ffn", "--arch", "sm_90", "--label", "wide", "--against", "narrow"]) == 0
    lines = {
        line.split("  ")[0].strip() or line.strip().split("  ")[0]: line
        for line in capsys.readouterr().out.splitlines()
    }
    assert lines["tensor instructions"].split()[2:] == ["4", "8"]
    assert lines["tensor cycles"].split()[2:] == ["512", "512"]
    assert "of peak" in lines["estimate"]
    assert "tiles of our attention on an H200" in lines["error of the estimate"]
    assert lines["who multiplies"].split()[2:] == ["8", "warps", "4", "warps"]
    assert 0 < float(lines["hot loop: tensor share"].split()[-1]) <= 1

    assert cli.main(["ffn", "--arch", "sm_80", "--label", "sum"]) == 0
    out = capsys.readouterr().out
    assert "none: whole kernel" in out
    assert "of 2.04 TB/s" in out
    assert "memory cycles" in next(line for line in out.splitlines() if line.endswith("<- binds"))


def test_the_command_refuses_what_it_does_not_know(capsys):
    with pytest.raises(SystemExit) as stopped:
        cli.main(["no_such_kernel"])
    assert "no kernel is named 'no_such_kernel'" in str(stopped.value)
    with pytest.raises(SystemExit):
        cli.main(["attention", "--arch", "gfx942"])
    assert "invalid choice: 'gfx942'" in capsys.readouterr().err
