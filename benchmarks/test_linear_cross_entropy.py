"""The language-model head and its loss: the largest tensors of a GPT-2 step, unless they are never made."""

import pytest
import torch

from benchmarks import peers
from benchmarks.measure import Work, device
from benchmarks.ops import benchmark_op, randn


@pytest.mark.parametrize("impl", peers.names("linear_cross_entropy"))
@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
@pytest.mark.sizes(
    "N, d, V",
    full=[(N, d, V) for N in (16384, 32768) for d in (768, 1600) for V in (50257, 50304)],
    quick=[(16384, 768, 50257), (16384, 768, 50304), (16384, 1600, 50304)],
    cpu=[(256, 128, 8192)],
    smoke=[(9, 16, 67)],
)
def test_linear_cross_entropy(measure, measuring_now, impl, mode, dtype, N, d, V):
    inputs = [randn(N, d, dtype=dtype), randn(V, d, dtype=dtype) / d**0.5, torch.randint(V, (N,), device=device())]
    gemms = 1 if mode == "forward" else 3
    work = Work(flops=gemms * 2 * N * d * V, tokens=N)
    benchmark_op(
        measure, "linear_cross_entropy", impl, inputs, mode=mode, work=work, shape={"N": N, "d": d, "V": V},
        measuring=measuring_now,
    )  # fmt: skip
