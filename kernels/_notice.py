"""Say what runs another way than it was asked to: once per message and process, in the "fastgpt" log."""

from __future__ import annotations

import logging

from ._runtime import constant_when_traced

logger = logging.getLogger("fastgpt")
_said: set[str] = set()


@constant_when_traced  # where the choice that they report is made
def say_once(message: str, level: int = logging.WARNING) -> None:
    """Log `message`, unless this process has logged it before."""
    if message not in _said:
        _said.add(message)
        logger.log(level, message)


@constant_when_traced
def say_fallback(subject: str, instead: str, reason: str) -> None:
    """Say, once, what `subject` does instead of launching kernels, and why."""
    say_once(f"{subject}: {instead}, because {reason}")
