"""`World`: the processes that train one model together, as torch.distributed has them; or this one alone."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

if TYPE_CHECKING:
    from .watch import Watch

T = TypeVar("T")


class OtherRankError(RuntimeError):
    """An error of another rank, which ends this one too. rank, message: whose, and what it says."""

    def __init__(self, rank: int, message: str) -> None:
        super().__init__(rank, message)
        self.rank, self.message = rank, message

    def __str__(self) -> str:
        return f"rank {self.rank}: {self.message}"


@dataclass(frozen=True)
class World:
    """This process's place among all; `World()` is alone, and needs no torch.distributed.

    rank, size              of all processes
    local_rank, local_size  of those on this machine
    device                  the one that this process computes on, which collectives take tensors of
    watch                   tells a rank that waits in vain whom it waits for; None: alone, or nobody has set one up
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))
    watch: Watch | None = field(default=None, compare=False, repr=False)

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank == 0

    def mark(self, step: int | None = None) -> None:
        """This rank has come to the next place that all come to, of this step (None: the same as before)."""
        if self.watch is not None:
            self.watch.mark(step)

    def gathered(self, values: Tensor) -> Tensor:
        """values (n,) of every rank -> (size, n), the same bits on all. One collective; does not wait for a GPU."""
        if self.size == 1:
            return values[None]
        self.mark()
        found = values.new_empty(self.size * values.numel())
        _all_gather(found, values.contiguous())
        return found.view(self.size, -1)

    def objects(self, value: T) -> list[T]:
        """`value` of every rank, by rank; what pickle takes. Waits for all."""
        if self.size == 1:
            return [value]
        self.mark()
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def from_first(self, value: T) -> T:
        """Rank 0's `value`, on all ranks. Waits for it."""
        if self.size == 1:
            return value
        self.mark()
        found = [value]
        dist.broadcast_object_list(found, src=0)
        return found[0]

    def by_first(self, make: Callable[[], T]) -> T:
        """What `make` gives on rank 0, which alone calls it; its error is raised on all ranks (see `together`)."""
        made = None
        with self.together():
            if self.is_first:
                made = make()
        return self.from_first(made)  # type: ignore[return-value]  # rank 0's, everywhere

    def wait(self) -> None:
        """Until all ranks are here."""
        if self.size > 1:
            self.objects(None)

    @contextlib.contextmanager
    def together(self) -> Iterator[None]:
        """A block that all ranks leave together: an error in one is raised there, and as `OtherRankError` elsewhere.

        Without collectives inside: the rank that failed would be missing from them.
        """
        error: Exception | None = None
        try:
            yield
        except Exception as raised:
            error = raised
        told = self.objects(None if error is None else (str(error) or type(error).__name__))
        if error is not None:
            raise error
        failed = next((rank for rank, message in enumerate(told) if message is not None), None)
        if failed is not None:
            raise OtherRankError(failed, str(told[failed]))


# torch 2.13 has renamed it, and warns of the old name.
_all_gather = getattr(dist, "all_gather_single", None) or dist.all_gather_into_tensor


def is_lost(error: BaseException | None) -> bool:
    """Whether another rank is the reason of this error: it failed, is gone, or did not come in time; so that nothing
    that needs all ranks can be done any more."""
    if error is None:
        return False
    if isinstance(error, (OtherRankError, dist.DistError)):
        return True
    text = str(error)
    return isinstance(error, RuntimeError) and any(words in text for words in _LOST)


# Of gloo, which has no class of its own for them: its errors are RuntimeErrors of "[<file>.cc:<line>] <what>".
_LOST = (
    "Connection closed by peer", "Connection reset by peer", "Timed out waiting", "Broken pipe", "gloo/transport",
    "Application timeout caused pair closure", "Socket closed", "Connection refused", "Read error", "Write error",
)  # fmt: skip
