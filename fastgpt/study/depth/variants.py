"""A GPT without LayerNorm, for the study alone: what LayerNorm does is seen where there is none."""

from __future__ import annotations

import torch.nn.functional as F
from torch import Tensor

from ...model.blocks import AddLayerNorm
from ...model.config import GPTConfig
from ...model.gpt import GPT


class AddOnly(AddLayerNorm):
    """Adds a sub-layer's output to the residual stream, as `AddLayerNorm` does, and hands the sum on as it is.

    Its weight and bias are there, so that checkpoints are those of any GPT, and stay untouched.
    """

    def forward(  # type: ignore[override]  # as its parent's
        self, x: Tensor | None, residual: Tensor
    ) -> tuple[Tensor, Tensor]:
        if x is not None:
            residual = residual + F.dropout(x, self.dropout, self.training)
        return residual, residual


class GPTWithoutLayerNorm(GPT):
    """`GPT` with the same parameters, in which no LayerNorm normalises anything."""

    def __init__(self, config: GPTConfig) -> None:
        super().__init__(config)
        for module in self.modules():
            if isinstance(module, AddLayerNorm):
                module.__class__ = AddOnly  # parameters, hooks and names stay


def make(config: GPTConfig, *, norm: bool) -> GPT:
    """A GPT with random weights, with or without LayerNorm."""
    return GPT(config) if norm else GPTWithoutLayerNorm(config)
