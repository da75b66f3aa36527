"""What is counted of a launch: which instructions move what, and what the table says of it."""

from __future__ import annotations

import numpy as np
import pytest

from benchmarks.softgpu import table
from benchmarks.softgpu.counting import by_kernel, counts_of, moves_of
from benchmarks.softgpu.engine import Settings
from benchmarks.softgpu.matrix import Cell
from tests.benchmarks.softgpu.support import kernel

TENSOR = "cp.async.bulk.tensor.2d"


@pytest.mark.parametrize(
    ("key", "moves"),
    [
        ("ld.global.v4.b32", ["read"]), ("ld.acquire.gpu.global.b32", ["read"]), ("st.global.b32", ["written"]),
        ("atom.global.gpu.acq_rel.add.u32", ["read", "written"]), ("red.relaxed.gpu.global.add.f32", ["written"]),
        ("cp.async.cg.shared.global", ["read"]), ("cp.async.ca.shared::cta.global", ["read"]),
        (f"{TENSOR}.shared::cluster.global.mbarrier::complete_tx::bytes", ["read"]),
        (f"{TENSOR}.global.shared::cta.bulk_group", ["written"]),
        ("cp.reduce.async.bulk.tensor.2d.global.shared::cta.add.bulk_group", ["written"]),
        ("cp.async.bulk.shared::cluster.shared::cta.mbarrier::complete_tx::bytes", []),
        ("ld.shared.b32", ["shared"]), ("stmatrix.sync.aligned.m8n8.x4.shared.b16", ["shared"]),
        ("ld.param.b64", []), ("mov.b32", []), ("cvta.to.global.u64", []),
    ],
)  # fmt: skip
def test_what_an_instruction_moves(key: str, moves: list[str]) -> None:
    assert moves_of(key) == moves


# Each lane reads a word, `stride` bytes behind the last lane's, half of them another, and writes one of each pair.
MOVES = """
.reg .b32 %r<4>; .reg .b64 %a<4>; .reg .pred %p0;
mul.lo.s32 %r0, %tid, {stride}; cvt.s64.s32 %a0, %r0; add.s64 %a1, %a0, %g0; ld.global.b32 %r1, [%a1];
setp.lt.u32 %p0, %tid, 16; mul.wide.s32 %a2, %tid, 4; add.s64 %a3, %a2, %g0; @%p0 ld.global.b32 %r2, [%a3];
add.s64 %a3, %a2, %g1; @%p0 st.global.b32 [%a3], %r1;
"""


def moved(stride: int):
    x = aligned(32 * stride // 4)
    result = kernel(MOVES.format(stride=stride), x, aligned(32), target="sm_80")
    assert not result.findings
    return counts_of(result)


def aligned(words: int) -> np.ndarray:
    block = np.zeros(words + 8, np.int32)
    return block[-block.ctypes.data % 32 // 4 :][:words]


def test_what_moved_is_whole_sectors_and_a_request_what_was_asked_for():
    counts = moved(stride=4)
    assert (counts.read, counts.written) == (128 + 64, 64)
    assert counts.request == (128 + 64 + 64) / 3
    assert counts.overhead("read", "written") == counts.overhead("shared") == 1.0


def test_what_is_not_coalesced_moves_more_for_the_same_request():
    counts = moved(stride=16)
    assert (counts.read, counts.written) == (4 * 128 + 64, 64)
    assert counts.request == (128 + 64 + 64) / 3
    assert counts.overhead("read") == (16 + 2) / (4 + 2)
    assert counts.overhead("read", "written") == (16 + 2 + 2) / (4 + 2 + 2)


def test_launches_of_one_kernel_add_up():
    (both,) = by_kernel([moved(stride=4), moved(stride=16)])
    assert (both.launches, both.read, both.written) == (2, (128 + 64) + (512 + 64), 128)
    assert both.overhead("written") == 1.0


def test_the_table_says_what_moved(monkeypatch, tmp_path):
    monkeypatch.setattr(table, "RESULT", tmp_path / "softgpu.md")
    table.write([Cell("ffn", "a case", 80, kernels=[moved(stride=16)] * 16, nbytes=3 << 10)], [Settings()], 1.0)
    lines = (tmp_path / "softgpu.md").read_text().splitlines()
    case = row_of(lines, "| a case ")
    assert (case["read"], case["written"], case["tensors"]) == ("9.0", "1.0", "3.0")
    (name,) = {k.name for k in [moved(stride=16)]}
    found = row_of(lines, f"| {name} ")
    assert (found["read"], found["written"], found["a request"], found["sectors"], found["wavefronts"]) == (
        "9", "1", "85", "2.50", "1.00",
    )  # fmt: skip


def row_of(lines: list[str], start: str) -> dict[str, str]:
    """The columns of the only row that starts so."""
    (at,) = [n for n, line in enumerate(lines) if line.startswith(start)]
    head = max(n for n in range(at) if lines[n].startswith("|---")) - 1
    names, rule, values = ([c.strip() for c in lines[n].strip("|").split("|")] for n in (head, head + 1, at))
    assert len(names) == len(rule) == len(values)
    return dict(zip(names, values))
