"""Checkpointed and compiled blocks on two ranks: each strategy's losses and gradients are those of plain blocks."""

from __future__ import annotations

import warnings
from typing import Any

import pytest
import torch
import torch.distributed as dist

from fastgpt import GPT, GPTConfig
from fastgpt.model import remat
from fastgpt.model.config import IMPLEMENTATION_SETS
from fastgpt.model.sharding import full_tensor
from fastgpt.parallel import ring
from fastgpt.parallel.strategy import DataParallel, Sharded
from fastgpt.parallel.world import World
from fastgpt.tools.moments import moments

from ...support.ranks import run_ranks

CONFIG = GPTConfig(
    vocab_size=101, max_len=16, n_layers=3, n_heads=2, d_model=32, dropout=0.1, **IMPLEMENTATION_SETS["torch"]
)
SHARDED = {"fsdp": torch.float32, "fsdp in bfloat16": torch.bfloat16}
WAYS = [(name, mode, False) for name in ("ddp", *SHARDED) for mode in remat.MODES] + [("fsdp", "full", True)]


def found_by(rank: int) -> dict[Any, list[torch.Tensor]]:
    warnings.filterwarnings("ignore", "FSDP2-wrapped module")
    return {way: two_steps(rank, *way) for way in WAYS} | {mode: of_a_ring(rank, mode) for mode in remat.MODES}


def of_a_ring(rank: int, mode: str) -> list[torch.Tensor]:
    """Loss and gradients of a rank that shares its sequences with the other."""
    torch.manual_seed(0)
    model = remat.apply(GPT(CONFIG.replace(dropout=0.0)), mode)
    ring.use(model, dist.group.WORLD)
    idx = (torch.arange(16).reshape(2, 8) * 7 + rank) % 101
    loss = model(idx, idx, positions=torch.arange(8) + 8 * rank).loss
    loss.backward()
    return [loss.detach(), *(p.grad for p in model.parameters())]


def two_steps(rank: int, name: str, mode: str, compiled: bool) -> list[torch.Tensor]:
    """Losses, and the gradients of the second step."""
    torch.manual_seed(0)
    model = remat.apply(GPT(CONFIG), mode)
    if compiled:
        remat.compile_blocks(model, "aot_eager")
    world = World(rank, 2, rank, 2)
    strategy = DataParallel(model, world) if name == "ddp" else Sharded(model, world, compute=SHARDED[name])
    idx = (torch.arange(32).reshape(2, 16) * 7 + rank) % 101
    losses = []
    for step in range(2):
        torch.manual_seed(step)
        model.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled="bfloat16" in name):
            loss = strategy.forward(idx, idx).loss
        loss.backward()
        losses.append(loss.detach())
    return [*losses, *(full_tensor(p.grad).clone() for p in model.parameters())]


@pytest.fixture(scope="module")
def ranks() -> list[dict[Any, list[torch.Tensor]]]:
    return run_ranks(found_by, 2)


@pytest.mark.parametrize(
    "way", [way for way in WAYS if way[1:] != ("none", False)], ids=lambda way: " ".join(map(str, way))
)
def test_the_numbers_are_those_of_plain_blocks(ranks, way):
    for found in ranks:
        plain = found[way[0], "none", False]
        assert all(torch.equal(a, b) for a, b in zip(found[way], plain, strict=True))
    assert not torch.equal(ranks[0][way][0], ranks[1][way][0])  # each has its own sequences


@pytest.mark.parametrize("mode", ["selective", "full"])
def test_ranks_that_share_a_sequence_find_the_same(ranks, mode):
    for found in ranks:
        assert all(torch.equal(a, b) for a, b in zip(found[mode], found["none"], strict=True))


@pytest.mark.parametrize("name", IMPLEMENTATION_SETS)
def test_what_they_keep_is_counted(name):
    """Our operator's results, which the ring writes over, are not kept as they were."""
    pytest.importorskip("triton")
    config = CONFIG.replace(dropout=0.0, **IMPLEMENTATION_SETS[name])
    none, selective, full = (moments(config, 2, 8, ranks=2, remat=mode).activations for mode in remat.MODES)
    assert full < selective < none
