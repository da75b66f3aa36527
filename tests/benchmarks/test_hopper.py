"""The kept tables of attention on sm_90 are about the kernels that there are, at the tiles of their launches."""

import inspect
import json

import pytest

pytest.importorskip("triton")
from benchmarks import headline, hopper, peers
from fastgpt.kernels.attention import backward, forward
from fastgpt.kernels.attention.hopper import dkdv, dq
from fastgpt.kernels.attention.hopper import forward as hopper_forward


def kept_rows() -> list[dict[str, str]]:
    """The first table of the page."""
    lines = [line.strip("| ").split(" | ") for line in hopper.PAGE.read_text().splitlines() if line.startswith("| ")]
    names, *rows = lines[: 1 + len(hopper.HEAD_DIMS) * len(hopper.PARTS) * len(hopper.PATHS)]
    return [dict(zip(names, row, strict=True)) for row in rows]


def test_every_kernel_is_in_the_kept_table_at_its_tile():
    kept = {(row["path"], row["kernel"], int(row["head_dim"])): row["tile"] for row in kept_rows()}
    shapes = {d: (hopper.TOKENS // hopper.TYPICAL, hopper.WIDTH // d, hopper.TYPICAL, d) for d in hopper.HEAD_DIMS}
    assert kept == {
        (path, part, d): hopper.tile_of(path, part, shape)[3]
        for d, shape in shapes.items()
        for part in hopper.PARTS
        for path in hopper.PATHS
    }


def test_its_kernels_exist():
    kernels = {
        name for module in (forward, backward, hopper_forward, dkdv, dq) for name, _ in inspect.getmembers(module)
    }
    assert {name.format(part) for name in hopper.PATHS.values() for part in hopper.PARTS} <= kernels


def test_all_that_the_session_measures_is_estimated():
    estimated = {(row["impl"], row["mode"], *row["shape"].items()) for row in json.loads(hopper.TABLE.read_text())}
    figures = list(headline.attention())
    assert len(figures) > 20
    for impl in (peers.OURS, peers.PORTABLE):
        assert {(impl, figure.mode, *figure.shape.items()) for figure in figures} <= estimated


def test_a_portable_kernel_is_read_as_the_loop_report_reads_it():
    """One kernel of the table, anew: figures of its loop, and a time that is not below what the products take."""
    shape = (4, 32, 4096, 64)
    one = hopper._kernel("triton", "forward", shape, hopper.compiled("triton", shape)["forward"])
    assert (one.products, one.hot_spills, one.spilled) == (12, 0, 0)
    assert 300 < one.loop < 700
    assert 0.1 < one.tensor_share < 1
    flop = 4 * 64 * 4096 * 4096 / 2 * 4 * 32
    assert hopper.seconds("triton", "forward", shape) > flop / hopper.MACHINE.peak
