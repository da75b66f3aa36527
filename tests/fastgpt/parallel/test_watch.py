"""What a rank that waits in vain hears of the others."""

from __future__ import annotations

import pytest
import torch.distributed as dist

from fastgpt.parallel.watch import Watch

LINE = "rank 2 is gone, or standing still"


@pytest.fixture
def watches():
    store = dist.HashStore()
    found = [Watch(store, rank, 3, 5) for rank in range(3)]
    yield found
    for watch in found:
        watch.close()


def test_who_knew_earlier_is_believed(watches):
    watches[1].lost([2], LINE)
    assert watches[0].why() == ([2], LINE)
    assert watches[1].why()[1] != LINE  # its own word


def test_who_is_blamed_looks_for_itself(watches):
    watches[1].lost([2], LINE)
    assert watches[2].why()[1] != LINE


def test_a_failure_goes_before_what_follows_from_it(watches):
    watches[1].lost([2], LINE)
    watches[2].failed("no space is left")
    assert watches[0].why() == ([2], "rank 2: no space is left")
