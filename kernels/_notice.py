"""Say what runs another way than it was asked to: once per message and process, in the "fastgpt" log."""

from __future__ import annotations

import logging

logger = logging.getLogger("fastgpt")
_said: set[str] = set()


def say_once(message: str, level: int = logging.WARNING) -> None:
    """Log `message`, unless this process has logged it before."""
    if message not in _said:
        _said.add(message)
        logger.log(level, message)


def say_fallback(subject: str, instead: str, reason: str) -> None:
    """Say, once, what `subject` does instead of launching kernels, and why."""
    say_once(f"{subject}: {instead}, because {reason}")


# torch.compile runs them while tracing, where the choice they report is made, instead of breaking the graph. This is
# what torch.compiler.assume_constant_result does, without importing the compiler along with this package.
say_once._dynamo_marked_constant = say_fallback._dynamo_marked_constant = True
