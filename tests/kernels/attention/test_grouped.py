"""Grouped queries in 16 bits, whose loads are prefetched: each group size, with and without full tiles."""

from __future__ import annotations

import pytest
import torch

from fastgpt.kernels.attention import tiles
from tests.support.compiled import COMPILED

from .support import check, random_qkv


@pytest.fixture(autouse=True)
def few_tiles(table_tiles, monkeypatch):
    """In the interpreter three tiles of 128, of which T = 300 makes full and masked ones; compiled, the table's."""
    if not COMPILED:
        monkeypatch.setattr(tiles, "_for_rows", lambda *_: tiles.Tile(128, 128, 64, 4, 2))


@pytest.mark.parametrize("head_dim", [64, 128])
@pytest.mark.parametrize("T", [20, 300])  # no program with a full tile; some with one or two
@pytest.mark.parametrize("group", range(1, 9))
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=["bf16", "fp16"])
def test_groups(device, seed, dtype, group, T, head_dim):
    if not COMPILED and (
        (dtype == torch.float16 and (group, T) != (3, 20))
        or (T == 300 and (group not in (3, 4, 5) or (head_dim == 128 and group != 3)))
    ):
        pytest.skip("without prefetches, which the interpreter has not, the others run the same code: seconds each")
    check(device, random_qkv(device, 1, group, T, T, head_dim, H_kv=1, dtype=dtype))


@pytest.mark.parametrize("group", [3, 5, 7])
@pytest.mark.parametrize(
    "masks", [{"causal": False}, {"window": 150}, {"causal": False, "window": 100}, {"key_lengths": 120}, {"T_q": 40}]
)
def test_groups_under_masks(device, seed, group, masks):
    masks = dict(masks)
    if not COMPILED and group != 3:
        pytest.skip("as above")
    T_q = masks.pop("T_q", 300)
    if "key_lengths" in masks:
        masks["key_lengths"] = torch.tensor([masks["key_lengths"]], device=device)
    check(device, random_qkv(device, 1, group, T_q, 300, 64, H_kv=1, dtype=torch.bfloat16), **masks)
