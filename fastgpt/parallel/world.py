"""`World`: the processes that train one model together, as torch.distributed has them; or this one alone."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

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
    """

    rank: int = 0
    size: int = 1
    local_rank: int = 0
    local_size: int = 1
    device: torch.device = field(default_factory=lambda: torch.device("cpu"))

    @property
    def is_first(self) -> bool:
        """Whether this is the rank that prints and writes."""
        return self.rank == 0

    def gathered(self, values: Tensor) -> Tensor:
        """values (n,) of every rank -> (size, n), the same bits on all. One collective; does not wait for a GPU."""
        if self.size == 1:
            return values[None]
        found = values.new_empty(self.size * values.numel())
        dist.all_gather_into_tensor(found, values.contiguous())
        return found.view(self.size, -1)

    def objects(self, value: T) -> list[T]:
        """`value` of every rank, by rank; what pickle takes. Waits for all."""
        if self.size == 1:
            return [value]
        found: list[Any] = [None] * self.size
        dist.all_gather_object(found, value)
        return found

    def from_first(self, value: T) -> T:
        """Rank 0's `value`, on all ranks. Waits for it."""
        if self.size == 1:
            return value
        found = [value]
        dist.broadcast_object_list(found, src=0)
        return found[0]

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
