"""The GELU-FFN at GPT widths, d_ff = 4 d: 2 matrix products forward, 4 backward."""

import pytest
import torch

from benchmarks import peers
from benchmarks.measure import Work
from benchmarks.ops import benchmark_op, randn


@pytest.mark.parametrize("impl", peers.names("ffn"))
@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", [torch.bfloat16], ids=str)
@pytest.mark.sizes(
    "M, d",
    full=[(16384, d) for d in (256, 512, 768, 1024, 1600, 2048, 4096)],
    quick=[(16384, d) for d in (512, 768, 1600, 4096)],
    cpu=[(256, 256)],
    smoke=[(17, 24)],
)
def test_ffn(measure, measuring_now, impl, mode, dtype, M, d):
    inputs = [
        randn(M, d, dtype=dtype),
        randn(4 * d, d, dtype=dtype) / d**0.5,
        randn(4 * d, dtype=dtype),
        randn(d, 4 * d, dtype=dtype) / (4 * d) ** 0.5,
        randn(d, dtype=dtype),
    ]
    gemms = 2 if mode == "forward" else 6
    work = Work(flops=gemms * 2 * M * d * 4 * d, tokens=M)
    benchmark_op(measure, "ffn", impl, inputs, mode=mode, work=work, shape={"M": M, "d": d}, measuring=measuring_now)
