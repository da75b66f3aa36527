"""Models to benchmark: each implementation is the same GPT with other parts, compiled or not."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from benchmarks import peers
from benchmarks.measure import Work, device
from fastgpt import GPT, GPTConfig
from fastgpt.model.config import IMPLEMENTATION_SETS

COMPILE = "-compile"  # the suffix of what runs under torch.compile; the reference stays plain
NAMES = [peers.OURS, peers.OURS + COMPILE, "torch", "torch" + COMPILE, "reference"]


def make(impl: str, config: GPTConfig, measuring: bool) -> GPT:
    """The model of `impl`, not compiled. Skips the test, with the reason, where `impl` cannot run."""
    base = impl.removesuffix(COMPILE)
    if not torch.cuda.is_available():
        if impl.endswith(COMPILE):
            pytest.skip(f"{peers.NEEDS_GPU}: {impl}")
        if base == peers.OURS and measuring:
            pytest.skip(f"{peers.INTERPRETED}: {impl}")
    return GPT(config.replace(**IMPLEMENTATION_SETS[base])).to(device())


def compiled(impl: str, module: nn.Module) -> nn.Module:
    """`module` as `impl` calls it: under torch.compile, for one benchmark, where the name says so."""
    return peers.compiled(module) if impl.endswith(COMPILE) else module


def autocast(dtype: torch.dtype):
    """bf16 autocast on CUDA, as one trains; float32 elsewhere."""
    return torch.autocast("cuda", dtype, enabled=torch.cuda.is_available())


def step_work(model: GPT, tokens: int) -> Work:
    """A training step of `tokens` tokens: the causal half of the T x T square is its floor, an MFU counts all of it."""
    least, published = (model.flops_per_token(causal=causal) for causal in (True, False))
    return Work(flops=least * tokens, model_flops=published * tokens, tokens=tokens)
