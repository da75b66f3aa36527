"""The kernels in a ring whose ranks are threads of this process: on a GPU, where one is; else through the interpreter.

The two halves of the operator are called by themselves, as autograd has one thread for each GPU, where all ranks'
backwards would wait for each other.
"""

from __future__ import annotations

import queue
from concurrent.futures import ThreadPoolExecutor
from datetime import timedelta
from typing import Any

import pytest
import torch

import fastgpt
from fastgpt.kernels import reference
from fastgpt.parallel import ring as rings
from fastgpt.parallel import ring_layout
from fastgpt.parallel.ring import Ring
from fastgpt.parallel.world import World
from tests.support.budget import GRADIENT, assert_all_within_budget, exactly

WAIT = 60.0  # seconds


class ThreadRing(Ring):
    """A rank that is a thread: what it sends lies in a queue."""

    def __init__(self, rank: int, boxes: list[queue.Queue[torch.Tensor]]) -> None:
        self.group, self.rank, self.size, self.boxes = None, rank, len(boxes), boxes

    def pass_on(self, x: torch.Tensor) -> rings.Coming:
        self.boxes[(self.rank + 1) % self.size].put(x.contiguous())
        return lambda: self.boxes[self.rank].get(timeout=WAIT)


def in_a_ring(n: int, impl: str, tensors: list[torch.Tensor]) -> list[torch.Tensor]:
    """(out, lse, dq, dk, dv) of q, k, v, dout, dlse: all tokens of each."""

    def rank(ring: ThreadRing) -> list[torch.Tensor]:
        q, k, v, dout, dlse = (ring.part(x.detach(), 2) for x in tensors)
        with torch.no_grad():
            out, lse = rings._forward(q, k, v, ring, impl)
            return [out, lse, *rings._backward(dout, dlse, q, k, v, out, lse, ring, impl)]

    boxes: list[queue.Queue[Any]] = [queue.Queue() for _ in range(n)]
    with ThreadPoolExecutor(n) as pool:
        parts = list(pool.map(rank, [ThreadRing(number, boxes) for number in range(n)]))
    at = torch.cat([ring_layout.positions(tensors[0].shape[2], number, n) for number in range(n)]).argsort()
    return [torch.cat(of_ranks, 2).index_select(2, at.to(of_ranks[0].device)) for of_ranks in zip(*parts)]


def given(device: torch.device, B: int, H: int, H_kv: int, T: int, D: int, dtype: torch.dtype) -> list[torch.Tensor]:
    shapes = (B, H, T, D), (B, H_kv, T, D), (B, H_kv, T, D), (B, H, T, D)
    return [torch.randn(s).to(device, dtype) for s in shapes] + [torch.randn(B, H, T, device=device)]


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("n", [2, 4])
def test_attention_and_its_gradients(device, seed, n, dtype):
    small = device.type == "cpu"
    sizes = (1, 2, 1, 2 * n * 9, 16) if small else (1, 4, 2, 2 * n * 40, 64)
    tensors = given(device, *sizes, dtype)
    mine = in_a_ring(n, "triton", tensors)

    def plain(q, k, v, dout, dlse):
        out, lse = reference.flash_attention(q, k, v, return_lse=True)
        return out, lse, *torch.autograd.grad((out, lse), (q, k, v), (dout.to(out), dlse.to(lse)))

    leaves = [x.cpu().requires_grad_() for x in tensors[:3]] + [x.cpu() for x in tensors[3:]]
    torchs, exact = plain(*leaves), exactly(plain, *leaves)
    mine = [x.cpu() for x in mine]
    assert_all_within_budget(("out", "lse"), mine[:2], torchs[:2], exact[:2])
    assert_all_within_budget(("dq", "dk", "dv"), mine[2:], torchs[2:], exact[2:], factor=GRADIENT)


@pytest.mark.gpu
def test_long_sequences_on_a_gpu():
    """Offsets, and tiles that end where a chunk does, at a size that trains: beside one call over all tokens."""
    torch.manual_seed(0)
    tensors = given(torch.device("cuda"), 1, 4, 2, 16384, 128, torch.bfloat16)
    q, k, v = (x.requires_grad_() for x in tensors[:3])
    out, lse = fastgpt.kernels.flash_attention(q, k, v, return_lse=True)
    alone = [out, lse, *torch.autograd.grad((out, lse), (q, k, v), tensors[3:])]
    for found, expected in zip(in_a_ring(8, "triton", tensors), alone):
        difference = (found.double() - expected.double()).norm() / expected.double().norm()
        assert difference < 2**-7  # of bfloat16: two roundings


def test_nothing_falls_back(interpreter, seed, caplog):
    """A GPT on the kernels keeps to them in a ring, here of one rank, and gives what it gives without."""
    config = fastgpt.GPTConfig(
        40, 16, n_layers=1, n_heads=2, n_kv_heads=1, d_model=32, dropout=0.0, attn_impl="triton", norm_impl="triton",
        ffn_impl="triton", loss_impl="triton",
    )  # fmt: skip
    gpt = fastgpt.GPT(config)
    idx, targets = torch.randint(40, (2, 1, 16))
    expected = gpt(idx, targets).loss
    expected.backward()
    gradients = [p.grad.clone() for p in gpt.parameters()]
    gpt.zero_grad()
    rings._set(*rings._those_that_know(gpt), ThreadRing(0, [queue.Queue()]))
    with caplog.at_level("INFO", "fastgpt"):
        loss = gpt(idx, targets).loss
        loss.backward()
    assert not caplog.records
    assert torch.equal(loss, expected)
    for p, gradient in zip(gpt.parameters(), gradients):
        torch.testing.assert_close(p.grad, gradient)
    assert {row.used for row in fastgpt.implementations(gpt)} == {"triton"}


def test_a_ring_is_of_ranks_side_by_side_that_wait_as_long_as_all(monkeypatch):
    asked: dict[str, Any] = {}

    def new_subgroups(size: int, timeout: Any) -> tuple[str, list[str]]:
        asked.update(size=size, timeout=timeout)
        return "mine", ["mine", "another"]

    monkeypatch.setattr("torch.distributed.new_subgroups", new_subgroups)
    assert rings.group_of(World(2, 4), 2, timeout=7) == "mine"
    assert asked == {"size": 2, "timeout": timedelta(seconds=7)}
