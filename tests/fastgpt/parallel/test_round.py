"""A restarted job's ranks find each other, and nothing of those that were there before them."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor

import pytest
import torch.distributed as dist

from fastgpt.parallel.round import own_round


def a_round(store: dist.Store, size: int, late: int) -> list[dist.Store]:
    """Every rank's store, in threads; `late`: the rank that comes last."""

    def rank(number: int) -> dist.Store:
        time.sleep(0.2 if number == late else 0.0)
        return own_round(store, number, size, timeout=10)

    with ThreadPoolExecutor(size) as threads:
        return list(threads.map(rank, range(size)))


def test_every_round_has_a_part_of_its_own():
    store, before = dist.HashStore(), set()
    for size, late in ((3, 0), (3, 1), (3, 2), (2, 0), (2, 1), (4, 0), (1, 0)):
        of_ranks = a_round(store, size, late)
        assert not any(found.check(["address"]) for found in of_ranks), "of another round"
        name = f"{size}-{late}"
        of_ranks[-1].set("address", name)
        assert [found.get("address").decode() for found in of_ranks] == [name] * size
        before.add(name)
    assert len(before) == 7


def test_ranks_that_do_not_come_are_named():
    store = dist.HashStore()
    with pytest.raises(TimeoutError) as error:
        own_round(store, 0, 3, timeout=0.1)
    assert error.value.args == (1, 2)
    with pytest.raises(TimeoutError) as error:
        own_round(store, 1, 3, timeout=0.1)
    assert error.value.args == (2,)  # rank 0 was there, a moment ago
