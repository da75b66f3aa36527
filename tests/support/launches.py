"""Everything that the host does for a call, without running the kernels: allocations, checks, Python time."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import pytest

from fastgpt.kernels import support


@contextlib.contextmanager
def launches_skipped() -> Iterator[list[str]]:
    """Inside the block no kernel runs, and CPU tensors pass for GPU tensors; yields the names of what would have run.

    Outputs hold whatever torch.empty gave.
    """
    interpreter = pytest.importorskip("triton.runtime.interpreter")
    from triton.runtime.jit import JITFunction

    names: list[str] = []

    def run(kernel: Any, *args: Any, grid: Any, warmup: bool, **kwargs: Any) -> None:
        names.append(kernel.fn.__name__)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(JITFunction, "run", run)
        patch.setattr(interpreter.InterpretedFunction, "run", run)  # in a TRITON_INTERPRET=1 process
        patch.setattr(support, "machine_why_not", lambda device: None)
        yield names
