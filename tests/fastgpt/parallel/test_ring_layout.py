"""Which tokens a rank of a ring holds, and which pairs of query and key it computes."""

from __future__ import annotations

import pytest
import torch

from fastgpt.base.settings import SettingError, SettingTypeError
from fastgpt.parallel import ring, ring_layout


@pytest.mark.parametrize("n", range(1, 9))
def test_every_pair_is_computed_once_and_all_ranks_have_the_same_number_at_every_step(n):
    T = 2 * n * 3
    seen = torch.zeros(T, T, dtype=torch.int64)
    pairs = torch.zeros(n, n, dtype=torch.int64)  # of a rank, at a step
    for rank in range(n):
        mine = ring_layout.positions(T, rank, n)
        for step in range(n):
            of = (rank - step) % n
            piece = ring_layout.piece(rank, of, T // n)
            queries, keys = mine[piece.queries], ring_layout.positions(T, of, n)[piece.keys]
            block = torch.ones(len(queries), len(keys), dtype=torch.int64)
            block = block.tril() if piece.causal else block
            seen[queries[:, None], keys] += block
            pairs[rank, step] = piece.pairs
            assert piece.pairs == int(block.sum())
    assert torch.equal(seen, torch.ones(T, T, dtype=torch.int64).tril())
    assert torch.equal(pairs, pairs[:1].expand(n, n))
    assert int(pairs.sum()) == T * (T + 1) // 2


@pytest.mark.parametrize("n", [1, 2, 3, 4])
def test_every_token_is_held_once(n):
    held = torch.cat([ring_layout.positions(8 * n, rank, n) for rank in range(n)])
    assert torch.equal(held.sort().values, torch.arange(8 * n))
    assert torch.equal(ring_layout.positions(8 * n, 0, n)[:4], torch.arange(4))


def test_a_length_that_does_not_divide_names_those_that_would_do():
    assert ring_layout.local_length("Trainer", 24, 4) == 6
    assert ring_layout.local_length("Trainer", 7, 1) == 7
    with pytest.raises(SettingError, match=r"Trainer: seq_len=30 must be a multiple of 8: .* 24 or 32 would do"):
        ring_layout.local_length("Trainer", 30, 4)
    with pytest.raises(SettingError, match="chunks of one length; 8 would do"):
        ring_layout.local_length("Trainer", 4, 4)
    with pytest.raises(SettingError, match="context_parallel=0 must be an integer, at least 1"):
        ring_layout.local_length("Trainer", 8, 0)
    with pytest.raises(SettingTypeError):
        ring_layout.local_length("Trainer", 8, 2.0)


def test_ranks_that_do_not_divide_are_named():
    assert ring.check_size("Trainer", 4, 2) == 2
    with pytest.raises(
        SettingError, match="context_parallel=4 must divide the ranks, and there are 6 ranks: 1, 2, 3, 6"
    ):
        ring.check_size("Trainer", 6, 4)
    with pytest.raises(SettingError, match="there is 1 rank: 1 would do, or torchrun --nproc-per-node 2"):
        ring.check_size("Trainer", 1, 2)
