"""The forward for Hopper by itself: tiles that no rule takes here, CTAs with many items, NaN under masks."""

from __future__ import annotations

import pytest
import torch

from fastgpt.kernels import flash_attention, reference
from fastgpt.kernels.attention.hopper import choice, tiles
from tests.kernels.attention.support import random_qkv
from tests.support.budget import assert_all_within_budget, exactly

TILES = {
    "three in turn": (64, tiles.Tile(128, 3, 3, overlaps=False, out_apart=True, cycles=1)),
    "three, overlapped": (64, tiles.Tile(64, 3, 3, overlaps=True, out_apart=True, cycles=1)),
    "two in turn": (96, tiles.Tile(128, 2, 2, overlaps=False, out_apart=True, cycles=1)),
    "two, overlapped": (128, tiles.Tile(128, 2, 2, overlaps=True, out_apart=True, cycles=1)),
    "two, output over queries": (256, tiles.Tile(64, 2, 2, overlaps=False, out_apart=False, cycles=1)),
    "one": (64, tiles.Tile(128, 3, 1, overlaps=True, out_apart=True, cycles=1)),
}


@pytest.fixture
def taken(monkeypatch):
    """Take this tile, whatever the rule says."""
    from fastgpt.kernels.attention.hopper import launch

    def take(tile):
        monkeypatch.setattr(choice, "setting", "gluon")
        monkeypatch.setattr(tiles, "tile", lambda *_: tile)
        launch.plan_of.cache_clear()

    yield take
    launch.plan_of.cache_clear()


@torch.no_grad()
def check(qkv, **arguments):
    mine = flash_attention(*qkv, return_lse=True, **arguments)

    def plain(qkv):
        return reference.flash_attention(*qkv, return_lse=True, **arguments)

    assert_all_within_budget(("out", "lse"), mine, plain(qkv), exactly(plain, qkv))
    return mine


@pytest.mark.parametrize("name", TILES)
def test_tiles_of_every_kind(hopper, seed, taken, name):
    """More items than CTAs: rings, turns and staged outputs go on from one to the next."""
    head_dim, tile = TILES[name]
    taken(tile)
    check(random_qkv(hopper, 1, 3, 700, 700, head_dim, H_kv=1, dtype=torch.bfloat16))


@pytest.mark.parametrize("name", ["three in turn", "one"])
@pytest.mark.parametrize("what", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("at", [0, 130, 299])
def test_what_is_not_finite_reaches_the_rows_that_see_it(hopper, seed, taken, name, what, at):
    head_dim, tile = TILES[name]
    taken(tile)
    q, k, v = random_qkv(hopper, 1, 2, 300, 300, head_dim, dtype=torch.bfloat16)
    clean, _ = check((q, k, v))
    with torch.no_grad():
        v[0, 1, at, 5] = what
        out = flash_attention(q, k, v)
    sees = torch.arange(300, device=hopper) >= at
    assert out[0, 1, sees].isfinite().logical_not().any(-1).all()
    assert torch.equal(out[0, 1, ~sees], clean[0, 1, ~sees])
    assert torch.equal(out[0, 0], clean[0, 0])


def test_the_same_bits_on_every_run(hopper, seed, taken):
    taken(TILES["three in turn"][1])
    qkv = random_qkv(hopper, 1, 3, 500, 500, 64, dtype=torch.bfloat16)
    first = check(qkv)
    for a, b in zip(first, check(qkv)):
        assert torch.equal(a, b)
