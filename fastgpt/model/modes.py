"""Evaluation for a while: every module gets its own mode back."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def evaluating(model: nn.Module) -> Iterator[None]:
    """Puts `model` in eval mode; afterwards each of its modules is in the mode that it was in, also after an exception.

    `model.train(was_training)` would not do: it wakes the dropout of a block that its owner put in eval mode.
    """
    before = [(module, module.training) for module in model.modules()]  # parents before their children
    if not any(training for _, training in before):
        yield
        return
    model.eval()
    try:
        yield
    finally:
        for module, training in before:
            if module.training is not training:
                # By its method, for modules that do more than to set the flag (LoRA layers that merge their weights).
                module.train(training)
        for module, training in before:
            if module.training is not training:  # a method that set another module's flag, or refused
                module.training = training
