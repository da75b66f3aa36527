"""Modules and a whole GPT compiled as on a GPU, where there is none: as `tests/kernels/test_traced_on_cuda.py`."""

from __future__ import annotations

import pytest
import torch
from torch._subclasses import FakeTensorMode

from fastgpt import GPT, GPTConfig
from fastgpt.nn import GELUFFN, FlashMultiheadAttention, LayerNorm, LinearCrossEntropyLoss
from tests.support.traced import CUDA, compiled, fake_cuda, skip_where_torch_cannot

X = torch.empty(2, 16, 32)
TOKENS = torch.empty(2, 16, dtype=torch.int64)
PARTS = {f"{part}_impl": "triton" for part in ("attn", "norm", "ffn", "loss")}
CONFIG = GPTConfig(vocab_size=128, max_len=16, n_layers=2, n_heads=2, d_model=32, **PARTS)

CASES = {
    "attention": (lambda: FlashMultiheadAttention(32, 2, batch_first=True), (X,)),
    "ffn": (lambda: GELUFFN(32), (X,)),
    "layer_norm": (lambda: LayerNorm(32), (X,)),
    "loss": (lambda: LinearCrossEntropyLoss(32, 128), (X[0], TOKENS[0])),
    "gpt": (lambda: GPT(CONFIG), (TOKENS, TOKENS)),
}


def on_fake_cuda(mode, module):
    for part in module.modules():
        for key, weight in part._parameters.items():
            if weight is not None:
                part._parameters[key] = torch.nn.Parameter(fake_cuda(mode, weight), requires_grad=False)
    return module


@pytest.mark.parametrize("name", CASES)
def test_compiles_whole(name):
    make, inputs = CASES[name]
    mode = FakeTensorMode()
    module = on_fake_cuda(mode, make())
    fakes = [fake_cuda(mode, x) for x in inputs]
    with mode, skip_where_torch_cannot():
        if name == "attention":
            out = compiled(lambda x: module(x, x, x, is_causal=True, need_weights=False)[0], *fakes)
        else:
            out = compiled(module, *fakes)
    assert (out.loss if name == "gpt" else out).device == CUDA


@pytest.mark.parametrize("kind", [FlashMultiheadAttention, torch.nn.MultiheadAttention])
def test_weights_are_float32_under_autocast(kind):
    """As torch's softmax has it on a GPU; the switch is set by hand, as torch.autocast looks for the GPU."""
    mode = FakeTensorMode()
    module, x = on_fake_cuda(mode, kind(32, 2, batch_first=True)), fake_cuda(mode, X)
    torch.set_autocast_dtype("cuda", torch.bfloat16)
    torch.set_autocast_enabled("cuda", True)
    try:
        with mode, skip_where_torch_cannot():
            out, weights = module(x, x, x)
    finally:
        torch.set_autocast_enabled("cuda", False)
    assert (out.dtype, weights.dtype) == (torch.bfloat16, torch.float32)
