"""One pre-LN block, forward and backward, at GPT-2 widths."""

import pytest
import torch

from benchmarks import models
from benchmarks.measure import Work, device
from benchmarks.ops import able_to_run, randn
from fastgpt import GPTConfig


@pytest.mark.parametrize("impl", models.NAMES)
@pytest.mark.parametrize("mode", ["forward", "forward+backward"])
@pytest.mark.sizes(
    "B, T, d",
    full=[(16, 1024, d) for d in (512, 768, 1024, 1600)] + [(4, 4096, 768), (1, 16384, 768)],
    quick=[(16, 1024, 768), (4, 4096, 768)],
    cpu=[(1, 256, 256)],
    smoke=[(1, 9, 32)],
)
def test_block(measure, measuring_now, impl, mode, B, T, d):
    heads = 25 if d == 1600 else max(1, d // 64)
    config = GPTConfig(vocab_size=1, max_len=T, n_layers=1, n_heads=heads, d_model=d)
    with able_to_run(impl):
        plain = models.make(impl, config, measuring_now).blocks[0]
        block = models.compiled(impl, plain)
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        x, residual = (randn(B, T, d, dtype=torch.float32).requires_grad_(mode != "forward") for _ in range(2))
        weights = list(plain.parameters())
        grad = torch.randn(B, T, d, device=device())

        def run() -> None:
            with models.autocast(dtype), torch.set_grad_enabled(mode != "forward"):
                out, stream = block(x, residual)
                total = out + stream
            if mode != "forward":
                torch.autograd.grad(total, [x, residual, *weights], grad.to(total.dtype))

        matrices = sum(p.numel() for p in weights if p.dim() > 1)
        passes = 1 if mode == "forward" else 3
        work = Work(flops=passes * B * T * (2 * matrices + 2 * T * d), tokens=B * T)
        measure(run, op="block", impl=impl, dtype=dtype, work=work, shape={"B": B, "T": T, "d": d}, mode=mode)
