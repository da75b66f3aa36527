"""Which GPUs hold one model together, and which of them sit on one machine."""

from __future__ import annotations

import pytest

from fastgpt import GPTConfig
from fastgpt.base.settings import SettingError
from fastgpt.model.size import state_bytes
from fastgpt.tools.placement import Group, place

CONFIG = GPTConfig(101, 32, 2, 2, 32)
GIB = 2**30


def test_auto_is_ddp_where_a_whole_copy_fits_one_gpu():
    takes = state_bytes(CONFIG.to_dict())
    fits, not_quite = (place(CONFIG, 4, memory) for memory in (takes, takes - 1))
    assert (fits.strategy, fits.shard_ranks, fits.copies) == ("ddp", 1, 4)
    assert fits.why.startswith("a whole copy fits one GPU: parameters, gradients and AdamW's state take ")
    assert (not_quite.strategy, not_quite.shard_ranks, not_quite.copies) == ("fsdp", 4, 1)
    assert "does not fit" in not_quite.why


@pytest.mark.parametrize(
    ("gpus", "options", "shards", "replicas", "sequence"),
    [
        (8, {"strategy": "ddp"}, Group(1, 1), Group(8, 8), Group(1, 1)),
        (256, {"strategy": "ddp"}, Group(1, 1), Group(256, 8), Group(1, 1)),
        (256, {"strategy": "fsdp"}, Group(256, 8), Group(1, 1), Group(1, 1)),
        # A copy on each machine: its replicas are all on others.
        (64, {"strategy": "hsdp"}, Group(8, 8), Group(8, 1), Group(1, 1)),
        (64, {"strategy": "hsdp", "shard_ranks": 4}, Group(4, 4), Group(16, 2), Group(1, 1)),
        (64, {"strategy": "hsdp", "shard_ranks": 16}, Group(16, 8), Group(4, 1), Group(1, 1)),
        (4, {"strategy": "hsdp", "shard_ranks": 2}, Group(2, 2), Group(2, 2), Group(1, 1)),
        (16, {"strategy": "fsdp", "context_parallel": 4}, Group(16, 8), Group(1, 1), Group(4, 4)),
        (32, {"strategy": "ddp", "context_parallel": 16}, Group(1, 1), Group(32, 8), Group(16, 8)),
        (12, {"strategy": "ddp", "context_parallel": 3, "gpus_per_node": 4}, Group(1, 1), Group(12, 4), Group(3, 1)),
    ],
)
def test_groups(gpus, options, shards, replicas, sequence):
    placed = place(CONFIG, gpus, GIB, **options)
    assert (placed.shards(), placed.replicas(), placed.sequence()) == (shards, replicas, sequence)
    assert placed.data_ranks * placed.context_parallel == gpus
    assert placed.copies * placed.shard_ranks == gpus


@pytest.mark.parametrize(
    ("gpus", "options", "message"),
    [
        (0, {}, "gpus=0 must be an integer, at least 1"),
        (12, {}, r"gpus=12 must be whole machines of 8 \(--gpus-per-node\); take 8 or 16"),
        (8, {"strategy": "zero"}, "strategy='zero' must be one of auto, ddp, fsdp, hsdp"),
        (8, {"shard_ranks": 2}, "shard_ranks=2 belongs to hsdp"),
        (8, {"strategy": "hsdp", "shard_ranks": 3}, r"shard_ranks=3 must divide the 8 GPUs .*; take 1 or 2 or 4"),
        (8, {"context_parallel": 6}, r"context_parallel=6 must divide the 8 GPUs \(--gpus\); take 2 or 4 or 8"),
        (8, {"gpus_per_node": 0}, "gpus_per_node=0 must be an integer, at least 1"),
    ],
)  # fmt: skip
def test_bad_values_are_named(gpus, options, message):
    with pytest.raises(SettingError, match=message):
        place(CONFIG, gpus, GIB, **options)
