"""Batches: every token once an epoch, the order the seed's alone, exact continuation, ranks that share the work."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from fastgpt.base import machine
from fastgpt.data import TokenDataset
from fastgpt.data.sampler import IGNORED, BatchSampler, sequential_batches


def stream(n: int, shard: int = 17) -> TokenDataset:
    """Token t at position t, in shards of 17: a batch tells which positions it shows."""
    ids = np.arange(n, dtype=np.uint16)
    shards = tuple(ids[i : i + shard] for i in range(0, n, shard))
    return TokenDataset(shards, np.zeros(1, np.int64), 65536, "hash", "stream")


def shown(targets: torch.Tensor) -> list[int]:
    return targets[targets != IGNORED].tolist()


@pytest.mark.parametrize(("n", "seq_len"), [(101, 10), (100, 10), (92, 10), (2, 10), (11, 10), (64, 1)])
def test_an_epoch_shows_every_token_once(n, seq_len):
    sampler = BatchSampler(stream(n), 1, seq_len, seed=3)
    assert sampler.n_windows == -(-(n - 1) // seq_len)
    seen = [t for _ in range(sampler.n_windows) for t in shown(sampler.next_batch()[1])]
    assert sorted(seen) == list(range(1, n))
    assert sampler.epoch == 1.0


def test_targets_are_the_next_tokens():
    sampler = BatchSampler(stream(100), 4, 9)
    for _ in range(10):
        idx, targets = sampler.next_batch()
        assert idx.shape == targets.shape == (4, 9)
        assert idx.dtype == targets.dtype == torch.int64
        valid = targets != IGNORED
        assert torch.equal(targets[valid], idx[valid] + 1)


def test_epochs_differ_and_batches_cross_them():
    sampler = BatchSampler(stream(101), 3, 10, seed=1)  # 10 windows: batches of 3 do not divide an epoch
    seen = [t for _ in range(10) for t in shown(sampler.next_batch()[1])]
    for epoch in range(3):
        assert sorted(seen[100 * epoch : 100 * epoch + 100]) == list(range(1, 101))
    assert seen[:100] != seen[100:200]


def test_order_is_the_seeds():
    def order(seed: int) -> list[int]:
        torch.manual_seed(np.random.randint(100))  # neither torch's nor numpy's global state matters
        return shown(BatchSampler(stream(400), 8, 10, seed=seed).next_batch()[1])

    assert order(1) == order(1)
    assert order(1) != order(2)


def test_resume_continues_exactly():
    straight = BatchSampler(stream(300), 4, 10, seed=5)
    expected = [straight.next_batch()[0] for _ in range(20)]
    first = BatchSampler(stream(300), 4, 10, seed=5)
    for _ in range(13):
        first.next_batch()
    second = BatchSampler(stream(300), 4, 10, seed=5)
    second.load_state_dict(first.state_dict())
    assert all(torch.equal(second.next_batch()[0], e) for e in expected[13:])


@pytest.mark.parametrize("world_size", [2, 3])
def test_ranks_together_see_what_one_process_sees(world_size):
    one = BatchSampler(stream(300), 2 * world_size, 10, seed=5)
    ranks = [BatchSampler(stream(300), 2, 10, seed=5, rank=r, world_size=world_size) for r in range(world_size)]
    for _ in range(25):
        together = torch.cat([rank.next_batch()[0] for rank in ranks])
        assert torch.equal(one.next_batch()[0], together)
    assert ranks[0].state_dict() == one.state_dict()


@pytest.mark.parametrize("field", ["seq_len", "seed", "n_tokens"])
def test_foreign_state_is_refused(field):
    sampler = BatchSampler(stream(300), 4, 10, seed=5)
    state = sampler.state_dict()
    state[field] += 1
    with pytest.raises(ValueError, match=f"{field}={state[field]}"):
        sampler.load_state_dict(state)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"batch_size": 0}, "batch_size=0"),
        ({"seq_len": 0}, "seq_len=0"),
        ({"world_size": 0}, "world_size=0"),
        ({"rank": 2, "world_size": 2}, "rank=2 must be an integer, at least 0 and at most 1 .world_size=2."),
        ({"dataset": stream(1)}, "has 1 tokens"),
    ],
)
def test_bad_settings(options, message):
    with pytest.raises(ValueError, match=message):
        BatchSampler(**({"dataset": stream(30), "batch_size": 1, "seq_len": 4} | options))


@pytest.mark.parametrize("seed", [2**63, 2**64 - 1])
def test_seeds_are_those_of_torch(seed):
    assert len(shown(BatchSampler(stream(400), 8, 10, seed=seed).next_batch()[1])) == 80


def test_a_batch_that_no_memory_holds(monkeypatch):
    monkeypatch.setattr(machine, "host_room", lambda: machine.Room(16 * 8 * 10, "it has"))
    BatchSampler(stream(400), 8, 10)
    for sizes, culprit in (((9, 10), "batch_size=9"), ((1, 81), "seq_len=81")):
        with pytest.raises(
            ValueError, match=rf"^BatchSampler: {culprit} is too large: batches of .* take .*; lower it"
        ):
            BatchSampler(stream(400), *sizes)


def test_sequential_batches_score_every_token_once():
    seen = [t for _, targets in sequential_batches(stream(95), 4, 10) for t in shown(targets)]
    assert seen == list(range(1, 95))
    few = list(sequential_batches(stream(1001), 2, 10, max_batches=3))
    assert [len(idx) for idx, _ in few] == [2, 2, 2]
    assert few[0][0][0, 0] == 0
    assert few[-1][0][-1, 0] == 990  # spread to the end


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"seed": -1}, "BatchSampler: seed=-1 must be an integer, at least 0"),
        ({"batch_size": 1.5}, "BatchSampler: batch_size=1.5 must be an integer, at least 1"),
        ({"dataset": "a.txt"}, "BatchSampler: dataset='a.txt' must be a TokenDataset"),
    ],
)
def test_arguments_that_are_none(options, message):
    with pytest.raises((ValueError, TypeError), match=message):
        BatchSampler(**({"dataset": stream(30), "batch_size": 1, "seq_len": 4} | options))


def test_batches_are_born_on_the_cpu():
    torch.set_default_device("meta")
    try:
        batches = [BatchSampler(stream(30), 2, 4).next_batch(), *sequential_batches(stream(30), 2, 4)]
    finally:
        torch.set_default_device(None)
    assert all((x.device.type, x.dtype) == ("cpu", torch.int64) for batch in batches for x in batch)


def test_changes_that_are_allowed_go_on_at_the_same_part_of_the_epoch():
    old, new = BatchSampler(stream(101), 5, 4), BatchSampler(stream(201), 5, 2, seed=9)
    for _ in range(7):
        old.next_batch()
    new.load_state_dict(old.state_dict(), allow_changes=True)
    assert new.epoch == pytest.approx(old.epoch)
