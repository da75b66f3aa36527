"""`Strategy`: how one model lies on the devices of a `World`, and how gradients come together. Here: on one."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from .world import World


class Strategy:
    """One device, alone.

    name     as `--strategy` has it
    forward  what is called in the model's place

    A rank multiplies its part of the loss by `share` before the backward, so that the gradient that comes together is
    that of the sum over all ranks.
    """

    name = "single"
    share = 1.0

    def __init__(self, model: nn.Module, world: World | None = None) -> None:
        self.model, self.world = model, World() if world is None else world
        self.forward: Callable[..., Any] = model

    def accumulating(self, *, last: bool) -> contextlib.AbstractContextManager[None]:
        """Around forward and backward of one micro-batch; `last`: of the update, when gradients come together."""
        return contextlib.nullcontext()

    def clip(self, parameters: Sequence[nn.Parameter], most: float) -> Tensor:
        """Scale the gradients to a norm of at most `most`. Returns the norm before, over all ranks: a plain scalar."""
        return torch.nn.utils.clip_grad_norm_(parameters, most)
