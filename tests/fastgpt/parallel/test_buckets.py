"""DDP's gradients have the same bits in the first step of a process as in every other, whatever number of ranks."""

from __future__ import annotations

import torch
from torch import nn

from fastgpt import GPT, GPTConfig
from fastgpt.parallel.strategy import DataParallel
from fastgpt.parallel.world import World

from ...support.ranks import run_ranks

CONFIG = GPTConfig(64, 16, n_layers=2, n_heads=2, d_model=16, dropout=0.0, attn_impl="sdpa", norm_impl="torch",
    ffn_impl="torch", loss_impl="torch")  # fmt: skip


def gradients(rank: int, size: int) -> tuple[list[bool], bool]:
    torch.manual_seed(0)
    model = GPT(CONFIG)
    strategy = DataParallel(model, World(rank, size, rank, size))
    is_clean = all(parameter.grad is None for parameter in model.parameters())
    ids = torch.randint(0, 64, (2, 16), generator=torch.Generator().manual_seed(rank))
    found = []
    for _ in range(3):
        model.zero_grad(set_to_none=True)
        with strategy.accumulating(last=True):
            strategy.forward(ids, ids).loss.backward()
        found.append([parameter.grad.clone() for parameter in model.parameters()])
    return [all(map(torch.equal, found[0], others)) for others in found[1:]], is_clean


def test_the_first_step_adds_in_the_order_of_the_others():
    assert run_ranks(gradients, 3, 3) == [([True, True], True)] * 3


def frozen(rank: int, size: int) -> float:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 1))
    model[0].requires_grad_(False)
    DataParallel(model, World(rank, size, rank, size)).forward(torch.ones(1, 3)).sum().backward()
    return float(model[1].bias.grad)


def test_what_is_frozen_has_no_part_in_it():
    assert run_ranks(frozen, 2, 2) == [1.0, 1.0]
