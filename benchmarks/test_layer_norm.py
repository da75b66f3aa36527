"""LayerNorm at GPT widths: bound by memory, so GB/s and the fraction of the copy bandwidth are the figures."""

import pytest
import torch

from benchmarks import peers
from benchmarks.measure import Work
from benchmarks.ops import benchmark_op, randn


@pytest.mark.parametrize("impl", peers.names("layer_norm"))
@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.sizes(
    "M, N",
    full=[(M, N) for M in (4096, 32768) for N in (768, 1024, 1600, 2048, 4096, 8192)],
    quick=[(4096, 768), (32768, 768), (32768, 1600), (32768, 4096)],
    cpu=[(4096, 768)],
    smoke=[(5, 48)],
)
def test_layer_norm(measure, measuring_now, impl, mode, dtype, M, N):
    inputs = [randn(M, N, dtype=dtype), randn(N, dtype=dtype), randn(N, dtype=dtype)]
    passes = 2 if mode == "forward" else 5  # forward: x in, y out; backward: x, dy in, dx out
    work = Work(bytes=passes * M * N * inputs[0].element_size(), tokens=M)
    benchmark_op(
        measure, "layer_norm", impl, inputs, mode=mode, work=work, shape={"M": M, "N": N}, measuring=measuring_now
    )
