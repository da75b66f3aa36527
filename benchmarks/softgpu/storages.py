"""Which of the process's memory is a GPU's: the storages of the tensors that a launch is given.

Memory of torch.empty and its kin is filled with 0xff bytes (NaN), so that what a kernel leaves unwritten shows in
values, and remembered, so that to read what nobody wrote is a finding. Large memory is remembered and not filled: its
pages stay untouched.
"""

from __future__ import annotations

import contextlib
import ctypes
import functools
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import torch
import torch.utils._device

from .engine import Memory

FILLED = 64 << 20  # bytes up to which memory is filled
ALLOCATING = (
    (torch, ("empty", "empty_like", "empty_strided", "empty_permuted")),
    (torch.Tensor, ("new_empty", "new_empty_strided")),
)


class Allocation:
    """A storage that the machine knows. It is an attribute of the storage, and the machine forgets it with it."""

    def __init__(self, memory: Memory, storage: torch.UntypedStorage, name: str, tracked: bool | str) -> None:
        self.memory, self.tracked = weakref.ref(memory), tracked
        self.start, self.nbytes = storage.data_ptr(), storage.nbytes()
        self.number = memory.register(self.start, self.nbytes, name, tracked)

    def is_of(self, memory: Memory, storage: torch.UntypedStorage) -> bool:
        same = (self.start, self.nbytes) == (storage.data_ptr(), storage.nbytes())
        return same and self.memory() is memory

    def forget(self) -> None:
        memory = self.memory()
        if memory is not None:
            memory.forget(self.number)
        self.memory = lambda: None

    def __del__(self) -> None:
        self.forget()


class Storages:
    """The global memory of a simulated GPU."""

    def __init__(self) -> None:
        self.memory = Memory()

    def allow(self, arguments: Iterable[tuple[str, torch.Tensor]]) -> list[int]:
        """The numbers of the allocations that a launch with these named tensors may touch."""
        numbers = []
        for name, tensor in arguments:
            storage = tensor.untyped_storage()
            if storage.nbytes():
                numbers.append(self._allocation(storage, name, _written_by_torch(tensor)).number)
        return sorted(set(numbers))

    def _allocation(self, storage: torch.UntypedStorage, name: str, written: bool) -> Allocation:
        known = getattr(storage, "softgpu", None)
        if known is not None:
            if known.is_of(self.memory, storage) and not (written and known.tracked):
                return known
            known.forget()
        tracked: bool | str = False
        if getattr(storage, "softgpu_fresh", False) and not written and known is None:
            tracked = "poison" if storage.nbytes() <= FILLED else True
        storage.softgpu = Allocation(self.memory, storage, name, tracked)
        return storage.softgpu


def _written_by_torch(tensor: torch.Tensor) -> bool:
    """Whether an operation of torch has written into this memory. (Of other writers, the engine sees bytes change.)"""
    return not tensor.is_inference() and tensor._version > 0


def tensors(name: str, value: Any) -> Iterator[tuple[str, torch.Tensor]]:
    """The tensors in a kernel's argument, with a name for each."""
    if isinstance(value, torch.Tensor):
        yield name, value
    elif isinstance(value, list | tuple):
        fields = getattr(value, "_fields", range(len(value)))
        for field, item in zip(fields, value):
            yield from tensors(f"{name}.{field}", item)
    elif isinstance(getattr(value, "base", None), torch.Tensor):  # a tensor descriptor, a reinterpreted tensor
        yield name, value.base


def _poisoned(allocate: Callable[..., torch.Tensor]) -> Callable[..., torch.Tensor]:
    @functools.wraps(allocate)
    def poisoned(*args: Any, **kwargs: Any) -> torch.Tensor:
        out = allocate(*args, **kwargs)
        if torch.compiler.is_compiling() or type(out) is not torch.Tensor or kwargs.get("out") is not None:
            return out
        try:
            storage = out.untyped_storage()
        except (NotImplementedError, RuntimeError):  # a tensor without a storage of its own
            return out
        if storage.device.type == "cpu" and storage.nbytes():
            if storage.nbytes() <= FILLED:
                ctypes.memset(storage.data_ptr(), 0xFF, storage.nbytes())
            storage.softgpu_fresh = True
        return out

    return poisoned


@contextlib.contextmanager
def poisoned_memory() -> Iterator[None]:
    """Inside, fresh memory is filled and remembered."""
    torch.utils._device._device_constructors()  # torch keeps a set of the real ones, made when it is first asked for
    with contextlib.ExitStack() as undo:
        for owner, names in ALLOCATING:
            for name in names:
                original = getattr(owner, name)
                undo.callback(setattr, owner, name, original)
                setattr(owner, name, _poisoned(original))
        yield
