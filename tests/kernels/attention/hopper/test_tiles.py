"""Which tile a problem gets: a rule of plain numbers, tried at the sizes where GPT is trained."""

from __future__ import annotations

import pytest

from fastgpt.kernels.attention.hopper import tiles
from fastgpt.kernels.attention.hopper.tiles import Tile
from fastgpt.kernels.attention.tiles import split_head_dim

SMS = 132
SHARED_MEMORY = 232_448  # bytes of a CTA on sm_90

ALL_TILES = [
    pytest.param(kernel, head_dim, tile, id=f"{kernel}-{head_dim}-{tile.consumers}")
    for kernel, rows in tiles.TABLE.items()
    for head_dim, row in rows.items()
    for tile in row
]


@pytest.mark.parametrize(("kernel", "head_dim", "tile"), ALL_TILES)
def test_every_tile_fits_into_shared_memory(kernel, head_dim, tile):
    row = sum(split_head_dim(head_dim)) * 2  # bytes
    held = tile.rows * row * (1 if kernel == "forward" else 2)
    staged = tile.out_apart * (held if kernel == "dkdv" else tile.rows * row)  # dK/dV: what the next item holds
    statistics = 2 * 4 * tile.block if kernel == "dkdv" else 0
    if kernel == "dkdv" and head_dim > 128:
        staged += tiles.ROWS * tile.block * 4  # weights, from one warpgroup to the other
    barriers = 1024
    assert held + staged + tile.stages * (2 * tile.block * row + statistics) + barriers <= SHARED_MEMORY


@pytest.mark.parametrize(("kernel", "head_dim", "tile"), ALL_TILES)
def test_what_the_kernels_ask_of_a_tile(kernel, head_dim, tile):
    assert tile.block in (32, 64, 128, 256)  # a power of two, and no more than a TMA box has rows
    assert tile.stages >= 2  # a slot is filled while another is read
    assert tile.consumers in (1, 2, 3)
    assert tile.cycles > 0


@pytest.mark.parametrize("kernel", tiles.TABLE)
def test_each_head_dim_has_the_least_row_that_serves_it(kernel):
    for head_dim in range(8, 257, 8):
        row = min(row for row in tiles.TABLE[kernel] if head_dim <= row)
        assert tiles.tile(kernel, head_dim, 4096, 4096, 64, True, SMS) in tiles.TABLE[kernel][row]


@pytest.mark.parametrize(
    ("head_dim", "rows", "heads", "causal", "consumers"),
    [
        (64, 128, 8, True, 1),  # 8 CTAs of 128 queries, or 16 of 64: as many as there can be
        (64, 1024, 8, True, 1),  # 128 low tiles are one round
        (64, 1024, 16, True, 2),  # 256 would be two
        (64, 128, 768, True, 2),  # 192 rows would hold 128
        (64, 8192, 64, True, 3),  # enough of everything
        (64, 512, 192, True, 3),
        (64, 512, 96, False, 2),
        (128, 1024, 192, True, 2),  # six tiles of 192 rows are 1152
        (128, 8192, 64, True, 3),
        (128, 256, 12, True, 1),
        (256, 100_000, 1, True, 2),
    ],
)
def test_the_rule(head_dim, rows, heads, causal, consumers):
    assert tiles.tile("forward", head_dim, rows, rows, heads, causal, SMS).consumers == consumers


@pytest.mark.parametrize("head_dim", [64, 96, 128])
def test_documents_leave_no_registers_for_three_consumers(head_dim):
    problem = ("forward", head_dim, 8192, 8192, 64, True, SMS)
    assert [tiles.tile(*problem, has_documents=documents).consumers for documents in (False, True)] == [3, 2]


def test_a_small_gpu_is_full_sooner():
    assert tiles.tile("forward", 64, 1024, 1024, 8, True, 132).consumers == 1
    assert tiles.tile("forward", 64, 1024, 1024, 8, True, 32).consumers > 1


@pytest.mark.parametrize("causal", [True, False])
@pytest.mark.parametrize("heads", [8, 12, 96, 192, 768])
@pytest.mark.parametrize("rows", [128, 256, 512, 1024])
@pytest.mark.parametrize("head_dim", [64, 128])
def test_no_other_tile_is_estimated_to_be_faster(head_dim, rows, heads, causal):
    problem = (head_dim, rows, rows, heads, causal, SMS)
    times = [tiles.estimated_cycles(tile, *problem) for tile in tiles.TABLE["forward"][head_dim]]
    assert tiles.estimated_cycles(tiles.tile("forward", *problem), *problem) == min(times)


def test_estimated_cycles():
    tall, low = Tile(128, 2, 2, True, True, 2000), Tile(128, 2, 1, True, True, 1500)

    def cycles(tile, rows, columns, heads, causal=False):
        return tiles.estimated_cycles(tile, 64, rows, columns, heads, causal, SMS)

    one_round = 4 * 2000 + tiles.OUTSIDE
    assert cycles(tall, 128, 512, SMS) == one_round
    assert cycles(tall, 129, 512, SMS) == 2 * one_round  # a row more is a tile more for every head
    assert cycles(tall, 128, 512, SMS + 1) == 2 * one_round
    assert cycles(low, 64, 512, SMS) == 4 * 1500 + tiles.OUTSIDE  # half the work, alone
    # 1, 2, 3 and 4 steps, of which every SM gets its share; or one head's longest item, on SMs that have no other.
    assert cycles(tall, 512, 512, 33 * 4, causal=True) == 4 * (2.5 * 2000 + tiles.OUTSIDE)
    assert cycles(tall, 512, 512, 1, causal=True) == 4 * 2000 + tiles.OUTSIDE


def test_l2_slows_a_low_tile_on_every_sm():
    tile = Tile(128, 2, 1, True, True, 100)

    def cycles(heads):
        return tiles.estimated_cycles(tile, 128, 64, 128, heads, False, SMS)

    step = 2 * 128 * 128 * 2 / tiles.L2_BYTES_PER_CYCLE
    assert cycles(SMS) == pytest.approx(step + tiles.OUTSIDE)
    assert cycles(SMS // 4) == pytest.approx(step / 4 + tiles.OUTSIDE)


@pytest.mark.parametrize(("items", "programs"), [(1, 1), (131, 131), (132, 132), (10_000, 132)])
def test_a_grid_has_no_more_ctas_than_sms(items, programs):
    assert tiles.programs(items, SMS) == programs
