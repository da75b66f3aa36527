"""Generation with the KV cache, greedy: tokens per second of a batch."""

import pytest
import torch

from benchmarks import models
from benchmarks.measure import Work, device
from benchmarks.ops import able_to_run
from fastgpt import GPTConfig

GPT2 = {"vocab_size": 50304, "max_len": 1024, "n_layers": 12, "n_heads": 12, "d_model": 768}
TINY = {"vocab_size": 61, "max_len": 32, "n_layers": 1, "n_heads": 2, "d_model": 32}


@pytest.mark.parametrize("impl", [n for n in models.NAMES if not n.endswith(models.COMPILE)])
@pytest.mark.sizes(
    "shape, B, prompt, new",
    full=[(GPT2, 1, 128, 64), (GPT2, 16, 128, 64)],
    quick=[(GPT2, 1, 128, 32)],
    cpu=[(TINY | {"n_layers": 4, "d_model": 128}, 1, 16, 16)],
    smoke=[(TINY, 1, 4, 2)],
)
def test_generate(measure, measuring_now, impl, shape, B, prompt, new):
    config = GPTConfig(**shape)
    dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
    with able_to_run(impl):
        model = models.make(impl, config, measuring_now).to(dtype).eval()
        idx = torch.randint(config.vocab_size, (B, prompt), device=device())
        # Each new token reads every weight once: the floor is bytes over bandwidth.
        read = sum(p.numel() * p.element_size() for p in model.parameters())
        size = {"B": B, "prompt": prompt, "new": new, "d": config.d_model}
        measure(
            lambda: model.generate(idx, new, temperature=0.0),
            op="generate", impl=impl, dtype=dtype, work=Work(bytes=read * new, tokens=B * new), shape=size,
            mode="greedy", flush=False,
        )  # fmt: skip
