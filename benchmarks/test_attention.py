"""Causal attention against every other way to compute it: B·T = 16384 tokens, H·head_dim = 2048."""

import pytest
import torch

from benchmarks import peers
from benchmarks.measure import TINY, Work
from benchmarks.ops import benchmark_op, randn

FULL = [(T, d) for d in (64, 128) for T in (512, 1024, 2048, 4096, 8192, 16384)]


def flops(B: int, H: int, T: int, head_dim: int, mode: str) -> float:
    """4·T²·head_dim·H·B, half of it when causal; the backward counts 2.5 forwards (FlashAttention-2's convention)."""
    forward = 4 * T * T * head_dim * H * B / 2
    return forward * (3.5 if mode == "forward+backward" else 1.0)


@pytest.mark.parametrize("impl", peers.names("attention"))
@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.sizes(
    "T, head_dim",
    full=FULL,
    quick=[(512, 64), (4096, 64), (16384, 64), (512, 128), (4096, 128), (16384, 128)],
    cpu=[(512, 64), (1024, 64)],
    smoke=[(24, 16)],
)
def test_attention(measure, measuring_now, impl, mode, dtype, T, head_dim):
    tokens, width = (16384, 2048) if torch.cuda.is_available() and not TINY else (T, 4 * head_dim)
    B, H = tokens // T, width // head_dim
    # One packed (B, T, 3, H, head_dim) buffer, as a model's projection writes it.
    q, k, v = randn(B, T, 3, H, head_dim, dtype=dtype).permute(2, 0, 3, 1, 4).unbind(0)
    # q, k, v and out; of a backward, whose lse and delta and partial sums are each kernel's own, no count
    memory = 4 * q.numel() * q.element_size() if mode == "forward" else 0
    work = Work(flops=flops(B, H, T, head_dim, mode), bytes=memory, tokens=B * T)
    shape = {"B": B, "H": H, "T": T, "head_dim": head_dim}
    leaves = [t.detach() for t in (q, k, v)]
    benchmark_op(measure, "attention", impl, leaves, mode=mode, work=work, shape=shape, measuring=measuring_now)
