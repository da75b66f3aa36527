"""The compile gate: what it measures, what it refuses, and that the committed tables hold."""

from __future__ import annotations

import dataclasses
import functools

import pytest
import triton
from triton.runtime.jit import JITFunction

from benchmarks.gate import __main__ as cli
from benchmarks.gate import attention, ffn, run, table
from benchmarks.gate.limits import LIMITS, ctas_per_sm
from benchmarks.gate.prefetch import unconditional_copies
from benchmarks.gate.rows import Row, attending_by
from fastgpt.kernels import _runtime
from fastgpt.kernels.attention.hopper import choice, structs, tiles

from .sample_kernels import grouped_row, matmul_row, row_sum_row

compiles = pytest.mark.skipif(
    bool(triton.knobs.runtime.interpret), reason="TRITON_INTERPRET=1 leaves nothing to compile in this process"
)
ALL = {"tensor_core", "wide_loads", "no_spills"}
GOOD = matmul_row("good", 128, 128, 8, expect=ALL)
SPILLING = matmul_row("spilling", 256, 128, 4, expect={"no_spills"})


@pytest.fixture(scope="module")
def good() -> run.Result:
    return run.compile_row(GOOD, "sm_90")


@compiles
@pytest.mark.parametrize(
    ("arch", "kind"), [("sm_80", "mma"), ("sm_90", "wgmma"), ("sm_100", "tcgen05"), ("gfx942", "mfma")]
)
def test_usage_of_a_matmul(arch, kind):
    result = run.compile_row(GOOD, arch)
    (used,) = result.kernels.values()
    assert table.problems(result) == []
    assert used.tensor_core == kind
    assert used.tensor_core_count > 0
    assert used.wide_loads >= 8
    assert used.narrow_loads == 0
    assert used.spill_bytes == 0
    assert 0 < used.hot_loop < used.instructions
    assert 32 <= used.registers <= 256
    # Two operand tiles of 128 x 64 bfloat16, buffered at least once, and on sm_100 a few words more.
    assert 2 * 128 * 64 * 2 <= used.shared_bytes <= LIMITS[arch].shared_per_cta


@compiles
def test_deliberate_spills_and_serialized_wgmma_are_refused():
    result = run.compile_row(SPILLING, "sm_90")
    (used,) = result.kernels.values()
    assert used.spill_bytes > 100
    assert used.wgmma_serialized
    assert used.warnings == ("C7511",)
    assert [p.split(": ")[1].split()[0] for p in table.problems(result)] == ["wgmma", "spills"]


@compiles
def test_a_role_that_spills_where_it_multiplies_is_refused(monkeypatch):
    """Three consumers of 160 registers each cannot hold 64 x 128 sums beside as many scores."""
    monkeypatch.setattr(tiles, "tile", lambda *problem: tiles.Tile(128, 2, 3, True, False, 1))
    call = functools.partial(attention._call, head_dim=128, T=2047, causal=False, backward=False)  # of no other test
    result = run.compile_row(Row("attention", "tall", attending_by("gluon")(call), attention.SPECIALISED), "sm_90")
    (used,) = result.kernels.values()
    assert used.hot_spills > 100
    *_, problem = table.problems(result)
    assert problem.endswith(f"{used.hot_spills} accesses to spilled values in the hot loops of its roles")


@compiles
def test_a_role_may_spill_elsewhere(monkeypatch):
    """The table has all of it; of registers, those that roles hand over to each other, and not those of the launch."""
    monkeypatch.setattr(tiles, "tile", lambda *problem: tiles.Tile(128, 2, 2, True, True, 1))
    call = functools.partial(attention._call, head_dim=128, T=2046, backward=False)  # of no other test
    row = Row("attention", "two", attending_by("gluon")(call), attention.SPECIALISED)
    result = run.compile_row(row, "sm_90")
    (used,) = result.kernels.values()
    assert (used.hot_spills, used.warps, used.ctas_per_sm, used.wgmma_serialized) == (0, 12, 1, False)
    assert 0 < used.spill_bytes < 100
    assert 168 < used.registers <= 240  # at the launch each of 12 warps has 168
    assert table.problems(result) == []
    strict = dataclasses.replace(result, expect=frozenset({"no_spills"}))
    assert table.problems(strict) == [f"attention two sm_90 hopper_forward_kernel: spills {used.spill_bytes} bytes"]


def launches_of(rows):
    """(kernel, arguments) of every launch of these rows on sm_90, in order; nothing is compiled."""
    found = []
    with pytest.MonkeyPatch.context() as patch, _runtime.pretend(_runtime.KNOWN_TARGETS["sm_90"]):
        patch.setattr(JITFunction, "run", lambda jit, *args, **kwargs: found.append((jit.fn.__name__, args)))
        for row in rows:
            row.call()
    return found


def test_every_tile_of_hoppers_kernels_is_in_a_row():
    found = set()
    for name, args in launches_of(attention.rows()):
        for C in args:
            if isinstance(C, structs.Config):
                kernel = name.removeprefix("hopper_").removesuffix("_kernel")
                found.add((kernel, C.head_dim, C.block, C.stages, C.consumers, C.overlaps, C.out_apart))
    listed = {
        (kernel, head_dim, *tile[:5])
        for kernel, heads in tiles.TABLE.items()
        for head_dim, candidates in heads.items()
        for tile in candidates
    }
    assert found == listed


@pytest.mark.parametrize("setting", choice.SETTINGS)
def test_rows_of_both_paths_whatever_the_setting(monkeypatch, setting):
    monkeypatch.setattr(choice, "setting", setting)
    rows = run.rows_of("attention")
    for label, kernel in (
        ("bf16-d128-causal", "attention_forward_kernel"),
        ("bf16-d128-causal-hopper", "hopper_forward_kernel"),
    ):
        assert launches_of([rows[label]])[0][0] == kernel
    assert choice.setting == setting


@compiles
def test_shared_memory_over_the_limit_is_refused():
    row = matmul_row("large", 128, 128, 8, block_k=128, expect=set())
    assert table.problems(run.compile_row(row, "sm_80")) == []
    (problem,) = table.problems(run.compile_row(row, "sm_86"))
    assert "shared memory, 101376 is the most" in problem


@compiles
def test_tensor_memory_over_the_limit_is_refused(good):
    (name, used), *_ = good.kernels.items()
    (problem,) = table.problems(dataclasses.replace(good, kernels={name: dataclasses.replace(used, tensor_memory=64)}))
    assert "64 columns of tensor memory, 0 is the most" in problem
    row = matmul_row("tcgen05", 128, 128, 4, block_k=64, expect=set())
    (product,) = run.compile_row(row, "sm_100").kernels.values()
    assert 128 <= product.tensor_memory <= LIMITS["sm_100"].tensor_memory == 512


@compiles
def test_missing_instructions_are_refused():
    no_dot = run.compile_row(row_sum_row("sum", 4096, expect={"tensor_core", "wide_loads"}), "sm_80")
    assert table.problems(no_dot) == ["sample sum sm_80: no kernel uses tensor cores"]
    scalar = run.compile_row(row_sum_row("scalar", 64, block=1, expect={"wide_loads"}), "sm_80")
    assert [p for p in table.problems(scalar) if "16-bit loads outnumber" in p]


@compiles
def test_a_row_that_does_not_compile_is_a_failure():
    result = run.compile_row(matmul_row("odd", 100, 128, 4, expect=set()), "sm_80")  # a block must be a power of two
    (problem,) = table.problems(result)
    assert "does not compile" in problem
    assert "power of 2" in problem


@compiles
def test_a_dot_without_tensor_cores_is_refused(good):
    (name, used), *_ = good.kernels.items()
    scalar = dataclasses.replace(used, tensor_core="none", tensor_core_count=0)
    found = table.problems(dataclasses.replace(good, kernels={name: scalar, "other": used}))
    assert found == ["sample good sm_90 matmul: no tensor-core instruction"]


@compiles
@pytest.mark.parametrize("arch", ["sm_80", "sm_90", "sm_100"])
def test_copies_issued_before_a_loop_without_steps_are_refused(arch):
    """A division by the number of tiles, which may be 0: the compiler concludes that it is not, and always copies."""
    (problem,) = table.problems(run.compile_row(grouped_row("unsafe", safe=False), arch))
    assert "the copies of a loop's first steps are issued whether or not it has one" in problem
    assert problem.count("sample_kernels.py:") == 2  # a and b
    assert table.problems(run.compile_row(grouped_row("safe", safe=True), arch)) == []
    assert table.problems(run.compile_row(GOOD, arch)) == []  # another loop with copies


TTGIR = """
tt.func public @kernel(%X: !tt.ptr<f32>, %K: i32, %L: i32) {
  %n = arith.constant 32 : i32
  %shift = arith.constant dense<SHIFT> : tensor<8xi32, #row>
  %range = tt.make_range {end = 40 : i32, start = 32 : i32} : tensor<8xi32, #row>
  %k = arith.addi %range, %shift : tensor<8xi32, #row>
  %bounds = tt.splat BOUND : i32 -> tensor<8xi32, #row>
  %in_k = arith.cmpi LESS, %k, %bounds : tensor<8xi32, #row>
  %rows = tt.expand_dims %in_k {axis = 0 : i32} : tensor<8xi1, #row> -> tensor<1x8xi1, #tile>
  %step = arith.cmpi sgt, %K, %n : i32
  %steps = tt.splat %step : i1 -> tensor<1x8xi1, #tile>
  %mask = arith.andi %steps, %rows : tensor<1x8xi1, #tile>
  %copy = ttg.async_copy_global_to_local %x, %buffer mask %mask other %zero : tensor<1x8xf32, #tile> loc(#loc1)
#loc1 = loc("kernel.py":3:4)
"""
PTX = """
	.loc	1 3 4 // kernel.py:3:4
	@%p1 cp.async.cg.shared.global [ %r1 + 0 ], [ %rd1 + 0 ], 0x10, 0x10;
$L__BB0_1:
	@%p2 bra 	$L__BB0_1;
"""


@pytest.mark.parametrize(
    ("shift", "bound", "less", "found"),
    [
        (0, "%K", "slt", []),
        (-1, "%K", "slt", ["kernel.py:3:4"]),  # 31 < K does not say that 32 < K
        (0, "%L", "slt", ["kernel.py:3:4"]),
        (0, "%K", "sle", ["kernel.py:3:4"]),
    ],
)
def test_a_mask_that_implies_the_loops_condition_serves_for_it(shift, bound, less, found):
    ttgir = TTGIR.replace("SHIFT", str(shift)).replace("BOUND", bound).replace("LESS", less)
    assert unconditional_copies(ttgir, PTX) == found


@compiles
def test_the_mask_of_a_products_columns_serves_for_the_loops_condition():
    (row,) = [row for row in ffn.rows() if row.label == "tf32-up"]
    assert table.problems(run.compile_row(row, "sm_100")) == []


LINE = table.Line("fwd", "kernel", "sm_90", 128, 0, 65536, 2, "wgmma:8", 16, 0, 4, 200, "-")


@pytest.mark.parametrize(
    "change",
    [
        {"regs": 129},
        {"spill": 4},
        {"shared": 65552},
        {"ctas": 1},
        {"tensor": "mma:8"},
        {"tensor": "-"},
        {"wide": 0},
        {"narrow": 1},
        {"tma": 0},
        {"hot": 201},
        {"serial": "C7515"},
    ],
    ids=lambda c: "-".join(map(str, *c.items())),
)
def test_each_column_that_gets_worse_fails(change):
    now = dataclasses.replace(LINE, **change)
    assert table.compare([now], [LINE], whole=True).failures
    if "tensor" not in change:  # which kind is better is not decided: any change of kind is shown
        assert not table.compare([LINE], [now], whole=True).failures
        assert table.compare([LINE], [now], whole=True).better


def test_rows_that_appear_or_vanish_fail():
    other = dataclasses.replace(LINE, label="bwd")
    assert table.compare([LINE], [LINE], whole=True) == table.Comparison([], [])
    assert "not in the committed table" in table.compare([LINE, other], [LINE], whole=True).failures[0]
    assert "compiled no more" in table.compare([LINE], [LINE, other], whole=True).failures[0]
    assert table.compare([LINE], [LINE, other], whole=False).failures == []


def test_a_table_reads_back_as_it_was_written():
    lines = [LINE, dataclasses.replace(LINE, label="x" * 60, serial="C7510,C7511")]
    text = table.HEADING.format(versions=table.versions()) + table.render(lines)
    assert table.read(text) == (table.versions(), lines)
    assert all(line == line.rstrip() for line in text.splitlines())


@compiles
def test_the_command_detects_a_regression(monkeypatch, tmp_path, capsys):
    """The committed table says fewer registers than the kernel takes: --check must fail, and name the row."""
    monkeypatch.setattr(run, "rows_of", lambda family: {"good": dataclasses.replace(GOOD, family="ffn")})
    monkeypatch.setattr(table, "table_path", lambda family: tmp_path / f"{family}.txt")
    every_row = ["--jobs", "1", "--family", "ffn"]
    monkeypatch.setattr(run, "ARCHES", ("sm_80", "gfx942"))
    every_row += ["--arch", *run.ARCHES]
    assert cli.main([*every_row, "--write"]) == 0
    assert cli.main([*every_row, "--check"]) == 0
    written = (tmp_path / "ffn.txt").read_text()
    (line,) = [line for line in table.read(written)[1] if line.arch == "gfx942"]
    (tmp_path / "ffn.txt").write_text(written.replace(f" {line.regs} ", f" {line.regs - 4} "))
    capsys.readouterr()
    assert cli.main([*every_row, "--check"]) == 1
    out = capsys.readouterr().out
    assert f"good matmul gfx942: worse than committed: regs {line.regs - 4} -> {line.regs}" in out
    # Another compiler's figures are not ours to compare with.
    (tmp_path / "ffn.txt").write_text((tmp_path / "ffn.txt").read_text().replace("# triton ", "# triton 0."))
    assert cli.main([*every_row, "--check"]) == 0


@compiles
def test_some_rows_are_written_and_the_others_kept(monkeypatch, tmp_path, capsys):
    rows = {
        label: dataclasses.replace(row_sum_row(label, 4096, expect=set()), family="ffn") for label in ("a1", "a2", "b")
    }
    monkeypatch.setattr(run, "rows_of", lambda family: dict(rows) if family == "ffn" else {})
    monkeypatch.setattr(run, "ARCHES", ("sm_80", "sm_90"))
    monkeypatch.setattr(table, "table_path", lambda family: tmp_path / f"{family}.txt")
    command = ["--jobs", "1", "--family", "ffn", "--arch", "sm_80", "sm_90"]

    def written() -> dict[tuple[str, str], table.Line]:
        return {(x.label, x.arch): x for x in table.read((tmp_path / "ffn.txt").read_text())[1]}

    with pytest.raises(SystemExit):
        cli.main([*command, "--write", "--label", "a"])
    assert "is missing: write the whole table first" in capsys.readouterr().err
    assert cli.main([*command, "--write"]) == 0
    whole = written()
    assert set(whole) == {(label, arch) for label in rows for arch in ("sm_80", "sm_90")}

    # Every row changes; what is not asked for keeps its old figures, and a label that is listed no more goes.
    for label in ("a1", "b"):
        rows[label] = dataclasses.replace(row_sum_row(label, 4096, expect=set(), block=256), family="ffn")
    del rows["a2"]
    assert cli.main([*command, "--write", "--label", "a", "--arch", "sm_90", "sm_90"]) == 0
    now = written()
    assert set(now) == {key for key in whole if key[0] != "a2"}
    assert [key for key in now if now[key] != whole[key]] == [("a1", "sm_90")]
    assert cli.main([*command, "--write", "--label", "b", "a1"]) == 0
    partly = (tmp_path / "ffn.txt").read_text()
    assert cli.main([*command, "--write"]) == 0
    assert (tmp_path / "ffn.txt").read_text() == partly

    with pytest.raises(SystemExit):
        cli.main([*command, "--write", "--label", "none such"])
    with pytest.raises(SystemExit):
        cli.main([*command, "--write", "--sample", "1"])
    (tmp_path / "ffn.txt").write_text(partly.replace("# triton ", "# triton 0."))
    with pytest.raises(SystemExit):
        cli.main([*command, "--write", "--label", "a1"])
    assert "one table cannot hold both" in capsys.readouterr().err
    assert (tmp_path / "ffn.txt").read_text() == partly.replace("# triton ", "# triton 0.")


def test_a_sample_is_fixed_and_spread():
    tasks = [run.Task(f, f"row{i}", a) for f in ("attention", "ffn") for i in range(9) for a in ("sm_80", "sm_90")]
    chosen = run.sample(tasks, 8, seed=0)
    assert chosen == run.sample(list(reversed(tasks)), 8, seed=0)
    assert chosen != run.sample(tasks, 8, seed=1)
    assert len({(t.family, t.arch) for t in chosen}) == 4
    assert run.sample(tasks, 1000, seed=0) == sorted(tasks)


@pytest.mark.parametrize(
    ("arch", "registers", "warps", "shared", "ctas"),
    [
        ("sm_90", 168, 12, 160 * 1024, 1),  # shared memory binds
        ("sm_90", 128, 8, 0, 2),  # registers bind: 8 warps x 4096 of 65536
        ("sm_90", 32, 4, 1024, 16),  # warps bind: 64 of them
        ("sm_80", 255, 4, 83968 - 1024, 2),  # exactly two with the 1 KiB that the system takes
        ("sm_80", 255, 4, 83968 - 1023, 1),
        ("sm_86", 64, 4, 101376 + 1, 0),  # over the limit
        ("sm_86", 16, 1, 0, 16),  # CTAs bind
        ("gfx942", 128, 4, 0, 4),  # 512 registers for each lane of a SIMD
        ("gfx942", 256, 8, 65536, 1),
    ],
)
def test_ctas_per_sm(arch, registers, warps, shared, ctas):
    assert ctas_per_sm(arch, registers=registers, warps=warps, shared_bytes=shared) == ctas


def test_rows_check_themselves():
    with pytest.raises(ValueError, match="unknown expectation 'tensorcore'"):
        Row("ffn", "fwd", lambda: None, frozenset({"tensorcore"}))
    with pytest.raises(ValueError, match="no spaces"):
        Row("ffn", "fwd bf16", lambda: None)


@pytest.mark.parametrize("family", run.FAMILIES)
def test_the_committed_table_lists_every_row(family):
    _, lines = table.read(table.table_path(family).read_text())
    assert {line.label for line in lines} == set(run.rows_of(family))
    assert {line.arch for line in lines} == set(run.ARCHES)
    keys = [line.key for line in lines]
    assert len(keys) == len(set(keys))


@compiles
def test_a_sample_of_the_rows_is_as_committed(capsys):
    """A handful; CI's gate step and `make gate-check` compile more."""
    assert cli.main(["--check", "--sample", "8", "--seed", "1", "--jobs", "1"]) == 0, capsys.readouterr().out


@compiles
@pytest.mark.parametrize(
    ("spill", "ours", "other"), [(0, 0, 0), (4, 1, 0), (table.FEW_BYTES, 1, 0), (table.FEW_BYTES + 4, 1, 1)]
)
def test_a_few_spilled_bytes_are_a_fault_of_our_compilers_only(monkeypatch, tmp_path, good, spill, ours, other):
    """A kernel that just fits into the registers does so for the versions that the table was written with."""
    name, used = next(iter(good.kernels.items()))
    result = dataclasses.replace(
        good,
        task=dataclasses.replace(good.task, family="ffn"),
        expect=frozenset({"no_spills"}),
        kernels={name: dataclasses.replace(used, spill_bytes=spill)},
    )
    monkeypatch.setattr(run, "rows_of", lambda family: {"good": dataclasses.replace(GOOD, family="ffn")})
    monkeypatch.setattr(run, "compile_all", lambda tasks, jobs, show: [result])
    monkeypatch.setattr(table, "table_path", lambda family: tmp_path / f"{family}.txt")
    (tmp_path / "ffn.txt").write_text(
        table.HEADING.format(versions=table.versions()) + table.render(table.lines_of([result]))
    )
    command = ["--check", "--family", "ffn", "--arch", "sm_90"]
    assert cli.main(command) == ours
    (tmp_path / "ffn.txt").write_text((tmp_path / "ffn.txt").read_text().replace("# triton ", "# triton 0."))
    assert cli.main(command) == other
