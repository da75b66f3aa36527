"""Peak memory, counted rather than measured: exact, without a GPU, and without allocating when tensors are fake.

with FakeTensorMode(), PeakMemory() as memory:
    x = torch.empty(1 << 20, 1 << 20)
    y = x + 1
memory.peak  # bytes
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves


class PeakMemory(TorchDispatchMode):
    """Counts the storages that operators create inside the block: bytes alive now, and the most that ever were.

    Views and in-place results share a storage, which counts once, until its last tensor dies. Memory that an operator
    takes and gives back inside itself is not seen; an operator's outputs count while its inputs are still alive.
    """

    def __init__(self) -> None:
        super().__init__()
        self.peak = 0
        self._storages: dict[int, tuple[StorageWeakRef, int]] = {}

    @property
    def live(self) -> int:
        """Bytes of the storages that are alive."""
        self._storages = {key: (ref, size) for key, (ref, size) in self._storages.items() if not ref.expired()}
        return sum(size for _, size in self._storages.values())

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        inputs = {_storage_of(x)._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        out = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(out):
            if isinstance(tensor, torch.Tensor):
                storage = _storage_of(tensor)
                known = self._storages.get(storage._cdata)
                if (known is None or known[0].expired()) and storage._cdata not in inputs:
                    self._storages[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
        self.peak = max(self.peak, self.live)
        return out


def _storage_of(tensor: torch.Tensor) -> torch.UntypedStorage:
    return tensor.untyped_storage()


def growth(sizes: Sequence[int], amounts: Sequence[float]) -> float:
    """Slope of the least-squares line through (log size, log amount): 1 = linear, 2 = quadratic."""
    xs, ys = [math.log(s) for s in sizes], [math.log(a) for a in amounts]
    mean_x, mean_y = sum(xs) / len(xs), sum(ys) / len(ys)
    return sum((x - mean_x) * (y - mean_y) for x, y in zip(xs, ys)) / sum((x - mean_x) ** 2 for x in xs)
