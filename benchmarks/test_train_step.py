"""A whole training step: forward, backward, AdamW. Tokens/s, MFU and peak memory, for GPT-2 124M and the depth study.

The depth study's sizes (2, 4, 8, 12 layers) give time as a + b · layers; the report fits it and prints R².
"""

import pytest
import torch

from benchmarks import models
from benchmarks.measure import device
from benchmarks.ops import able_to_run
from fastgpt import GPTConfig

GPT2 = ("gpt2-124m", {"vocab_size": 50304, "max_len": 1024, "n_layers": 12, "n_heads": 12, "d_model": 768}, 16)


def depth(n_layers: int, d_model: int = 512, B: int = 64) -> tuple[str, dict, int]:
    shape = {"vocab_size": 50304, "max_len": 512, "n_layers": n_layers, "n_heads": d_model // 64, "d_model": d_model}
    return f"depth-{n_layers}x{d_model}", shape, B


SMOKE = ("tiny", {"vocab_size": 61, "max_len": 16, "n_layers": 1, "n_heads": 2, "d_model": 32}, 2)
CPU = [
    (f"cpu-{n}", {"vocab_size": 4096, "max_len": 128, "n_layers": n, "n_heads": 4, "d_model": 128}, 4) for n in (2, 4)
]


@pytest.mark.parametrize("impl", models.NAMES)
@pytest.mark.sizes(
    "name, shape, B",
    full=[GPT2, *(depth(n, d) for d in (256, 512) for n in (2, 4, 8, 12))],
    quick=[GPT2, depth(2), depth(4), depth(8)],
    cpu=CPU,
    smoke=[SMOKE],
)
def test_train_step(measure, measuring_now, impl, name, shape, B):
    config = GPTConfig(**shape)
    torch.manual_seed(0)
    with able_to_run(impl):
        model = models.make(impl, config, measuring_now)
        step_model = models.compiled(impl, model)
        optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4, fused=torch.cuda.is_available())
        tokens = torch.randint(config.vocab_size, (B, config.max_len + 1), device=device())
        idx, targets = tokens[:, :-1], tokens[:, 1:].contiguous()

        def step() -> None:
            with models.autocast(torch.bfloat16):
                loss = step_model(idx, targets, return_logits=False).loss
            loss.backward()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

        work = models.step_work(model, idx.numel())
        size = {"layers": config.n_layers, "d": config.d_model, "T": config.max_len, "B": B}
        dtype = torch.bfloat16 if torch.cuda.is_available() else torch.float32
        measure(
            step, op="train_step", impl=impl, dtype=dtype, work=work, shape=size, mode=name.split("-")[0], flush=False
        )
