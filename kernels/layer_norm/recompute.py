"""Rebuild normalised outputs in the backward instead of keeping them: one tensor less to hold per LayerNorm.

The output of a LayerNorm is kept only because the matrix product that reads it needs it for its weight's gradient. What
LayerNorm itself keeps (its input, mean and rstd) is enough to write it again, for one read and one write of memory.
"""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass(frozen=True)
class Recipe:
    """y from what LayerNorm keeps anyway: h (M rows of the `d` trailing dimensions), stats, weight and bias."""

    h: Tensor
    h_version: int
    stats: Tensor
    weight: Tensor | None
    bias: Tensor | None
    d: int
    dtype: torch.dtype

    def cook(self) -> Tensor:
        from . import launch

        if self.h._version != self.h_version:
            raise RuntimeError(
                "recompute_normed: the input of a layer_norm (or the residual of an add_layer_norm) was modified in "
                "place after it; clone it first, or call with recompute=False"
            )
        # The launch reads storages, which hold the opposite of what a lazily negated view says.
        h, weight, bias = (t if t is None else t.resolve_neg() for t in (self.h, self.weight, self.bias))
        return launch.normalise_again(h, self.stats, weight, bias, self.d, self.dtype)


@dataclass(frozen=True)
class Rebuilt:
    """Stands for a saved tensor that is a view of a rebuildable y."""

    recipe: Recipe
    size: torch.Size
    stride: tuple[int, ...]
    offset: int


class _Book:
    """Which storages hold a rebuildable y. A weak reference to each keeps its address from being given away."""

    def __init__(self) -> None:
        self.entries: dict[int, tuple[Any, int, Recipe]] = {}

    def add(self, y: Tensor, recipe: Recipe) -> None:
        from torch.multiprocessing.reductions import StorageWeakRef

        self.entries = {key: entry for key, entry in self.entries.items() if not entry[0].expired()}
        storage = y.untyped_storage()
        self.entries[storage._cdata] = (StorageWeakRef(storage), y._version, recipe)

    def pack(self, tensor: Tensor) -> Tensor | Rebuilt:
        if tensor.layout != torch.strided or tensor.is_neg() or torch._C._are_functorch_transforms_active():
            return tensor
        entry = self.entries.get(tensor.untyped_storage()._cdata)
        if entry is None or entry[0].expired() or tensor._version != entry[1] or tensor.dtype != entry[2].dtype:
            return tensor
        return Rebuilt(entry[2], tensor.size(), tensor.stride(), tensor.storage_offset())

    @staticmethod
    def unpack(saved: Tensor | Rebuilt) -> Tensor:
        if isinstance(saved, Tensor):
            return saved
        return saved.recipe.cook().as_strided(saved.size, saved.stride, saved.offset)


_thread = threading.local()


@contextlib.contextmanager
def recompute_normed() -> Iterator[None]:
    """Inside, nobody keeps the output of `layer_norm(..., recompute=True)` or `add_layer_norm(..., recompute=True)`.

        with recompute_normed():
            h, residual = add_layer_norm(x, residual, weight, bias, recompute=True)
            qkv = F.linear(h, w_qkv)       # saves nothing of h; its backward writes h again, bit for bit

    Enclose the operators that read the output. Each rebuilds its own copy, so that one reader (a packed projection) is
    best. It works with eager autograd, under `torch.utils.checkpoint` too; compiled graphs decide for themselves.
    """
    book, outer = _Book(), getattr(_thread, "book", None)
    _thread.book = book
    try:
        with torch.autograd.graph.saved_tensors_hooks(book.pack, book.unpack):
            yield
    finally:
        _thread.book = outer
        book.entries.clear()  # the graph keeps the book's methods alive, and needs nothing else of it


def offer(
    y: Tensor, h: Tensor, stats: Tensor, weight: Tensor | None, bias: Tensor | None, d: int
) -> None:  # fmt: skip
    """Enter y into the book of the `recompute_normed` around this call, if there is one."""
    book = getattr(_thread, "book", None)
    if book is None or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    if torch._C._are_functorch_transforms_active():  # its tensors have no storage of their own
        return
    weight, bias = (None if t is None else t.detach() for t in (weight, bias))
    book.add(y, Recipe(h.detach(), h._version, stats, weight, bias, d, y.dtype))
