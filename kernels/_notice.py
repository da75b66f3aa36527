"""Say why something runs another way than it was asked to: once per reason and process, in the "fastgpt" log."""

from __future__ import annotations

import logging

logger = logging.getLogger("fastgpt")
_said: set[str] = set()


def say_once(message: str) -> None:
    """Log `message` as a warning, unless this process has said it before."""
    if message not in _said:
        _said.add(message)
        logger.warning(message)


# torch.compile runs it while tracing, where the choice it reports is made, instead of breaking the graph. This is what
# torch.compiler.assume_constant_result does, without importing the compiler along with this package.
say_once._dynamo_marked_constant = True
