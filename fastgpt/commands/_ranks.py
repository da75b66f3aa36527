"""Of the processes of one job (torchrun), one speaks."""

from __future__ import annotations

import contextlib
import logging
import os
import warnings
from collections.abc import Iterator

from ..parallel.world import World


@contextlib.contextmanager
def quiet(world: World) -> Iterator[None]:
    """Around the work of a rank that is not the first: nothing is printed, logged or warned of. (Tracebacks are.)"""
    if world.is_first:
        yield
        return
    before = logging.root.manager.disable
    with contextlib.ExitStack() as stack:
        stack.enter_context(warnings.catch_warnings())
        nowhere = stack.enter_context(open(os.devnull, "w", encoding="utf-8"))
        stack.enter_context(contextlib.redirect_stdout(nowhere))
        stack.callback(logging.disable, before)
        warnings.simplefilter("ignore")
        logging.disable(logging.CRITICAL)  # torch's loggers too, which print a line for each rank
        yield
