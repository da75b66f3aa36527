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


@pytest.mark.parametrize("impl", peers.names("add_layer_norm"))
@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32], ids=str)
@pytest.mark.parametrize("dropout_p", [0.0, 0.1])
@pytest.mark.sizes(
    "M, N",
    full=[(M, N) for M in (4096, 32768) for N in (768, 1024, 1600, 2048, 4096, 8192)],
    quick=[(32768, 768)],
    cpu=[(4096, 768)],
    smoke=[(5, 48)],
)
def test_add_layer_norm(measure, measuring_now, impl, mode, dtype, dropout_p, M, N):
    inputs = [randn(M, N, dtype=dtype), randn(M, N, dtype=dtype), randn(N, dtype=dtype), randn(N, dtype=dtype)]
    # forward: x, residual in, normed, new residual out; backward: two gradients and the new residual in, one gradient
    # out, which serves x and residual both, or two where dropout makes them differ
    passes = 4 + (0 if mode == "forward" else 5 if dropout_p else 4)
    work = Work(bytes=passes * M * N * inputs[0].element_size(), tokens=M)
    benchmark_op(
        measure, "add_layer_norm", impl, inputs, mode=mode, work=work, shape={"M": M, "N": N, "dropout_p": dropout_p},
        measuring=measuring_now, dropout_p=dropout_p,
    )  # fmt: skip
