"""One benchmark body for every operator: make inputs, pick the peer, time forward or forward + backward."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import peers
from benchmarks.measure import Measure, Work, device


@contextlib.contextmanager
def able_to_run(impl: str) -> Iterator[None]:
    """Ours runs on a CPU through the interpreter, in smoke tests only; everything else runs as it is."""
    if impl == peers.OURS and not torch.cuda.is_available():
        from fastgpt.kernels import interpret

        with interpret():
            yield
    else:
        yield


def get_or_skip(op: str, impl: str, measuring: bool) -> tuple[peers.Peer, Callable[..., Any]]:
    """The peer and its function; skips the test with the reason where it cannot run."""
    if impl == peers.OURS and measuring and not torch.cuda.is_available():
        pytest.skip(f"{peers.INTERPRETED}: {impl}")
    peer = peers.PEERS[op][impl]
    try:
        return peer, peer.get()
    except peers.Unavailable as reason:
        pytest.skip(str(reason))


def bound(
    function: Callable[..., Any], inputs: Sequence[Tensor], options: dict[str, Any], mode: str
) -> Callable[[], None]:
    """The call of `function` with these; "forward" without gradients, "forward+backward" with that of every input."""
    leaves = [t.requires_grad_(mode != "forward") if t.is_floating_point() else t for t in inputs]
    wanted = [t for t in leaves if t.requires_grad]
    grads: list[Tensor] = []

    def forward() -> None:
        with torch.no_grad():
            function(*leaves, **options)

    def both() -> None:
        out = function(*leaves, **options)
        outputs = out if isinstance(out, tuple) else (out,)
        if not grads:
            grads.extend(torch.randn_like(o) for o in outputs)
        torch.autograd.grad(outputs, wanted, grads)

    return forward if mode == "forward" else both


def benchmark_op(
    measure: Measure,
    op: str,
    impl: str,
    inputs: Sequence[Tensor],
    *,
    mode: str,
    work: Work,
    shape: dict[str, int | float],
    measuring: bool,
    **options: Any,
) -> None:
    """Time one peer of `op` on `inputs`. mode "forward" runs without gradients; "forward+backward" with all of them.

    options: further arguments of the operator, the same for all peers. Of several outputs, each has a gradient.
    """
    peer, function = get_or_skip(op, impl, measuring)
    dtype, run = inputs[0].dtype, bound(function, inputs, options, mode)
    with able_to_run(impl), peer.during():
        try:
            measure(run, op=op, impl=impl, dtype=dtype, work=work, shape=shape, mode=mode, version=peer.version)
        except torch.cuda.OutOfMemoryError as error:
            at = " ".join(f"{k}={v}" for k, v in shape.items())
            pytest.skip(f"out of memory ({op} {mode} at {at}; {str(error).splitlines()[0]}): {impl}")


def randn(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.randn(*shape, device=device()).to(dtype)
