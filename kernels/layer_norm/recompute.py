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

from .. import _library


@dataclass(frozen=True)
class Recipe:
    """y from what LayerNorm keeps anyway: h (M rows of the `d` trailing dimensions), stats, weight and bias.

    names, versions   of h, weight and bias: what the caller calls them, and torch's counter of changes in place
    """

    function: str
    names: tuple[str, ...]
    h: Tensor
    stats: Tensor
    weight: Tensor | None
    bias: Tensor | None
    d: int
    dtype: torch.dtype
    versions: tuple[int | None, ...]

    def changed(self) -> str | None:
        """Which of h, weight and bias was modified in place since y was written from it."""
        for name, tensor, version in zip(self.names, (self.h, self.weight, self.bias), self.versions):
            if tensor is not None and tensor._version != version:
                return name
        return None

    def cook(self) -> Tensor:
        changed = self.changed()
        if changed is not None:
            raise RuntimeError(
                f"recompute_normed: {changed} of {self.function} was modified in place after the call, and the output "
                f"cannot be written again from it; clone {changed} first, or call {self.function} with recompute=False"
            )
        return _layer_norm_again(self.h, self.stats, self.weight, self.bias, self.d, self.dtype)


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
        if entry[2].changed() is not None:  # y is right as it is, and could not be written again
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
    best. Write nothing into the output behind torch's back (`.data`, numpy): what is written again is what LayerNorm
    made, and only torch's own counter tells that it was changed. It works with eager autograd, under
    `torch.utils.checkpoint` too; compiled graphs decide for themselves.
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
    function: str,
    names: tuple[str, str, str],
    y: Tensor,
    h: Tensor,
    stats: Tensor,
    weight: Tensor | None,
    bias: Tensor | None,
    d: int,
) -> None:
    """Enter y into the book of the `recompute_normed` around this call, if there is one.

    `names` are those of h, weight and bias in `function`.
    """
    book = getattr(_thread, "book", None)
    if book is None or torch.compiler.is_compiling() or not torch.is_grad_enabled():
        return
    if torch._C._are_functorch_transforms_active():  # its tensors have no storage of their own
        return
    if any(t is not None and t.is_inference() for t in (y, h, weight, bias)):  # no counter says if these change
        return
    versions = tuple(None if t is None else t._version for t in (h, weight, bias))
    weight, bias = (None if t is None else t.detach() for t in (weight, bias))
    book.add(y, Recipe(function, names, h.detach(), stats, weight, bias, d, y.dtype, versions))


def _launch_layer_norm_again(h, stats, weight, bias, d, dtype):
    from . import launch

    return launch.normalise_again(h, stats, weight, bias, d, dtype)


def _fake_layer_norm_again(h, stats, weight, bias, d, dtype):
    return torch.empty(h.shape, dtype=dtype, device=h.device)


_layer_norm_again = _library.define(
    "layer_norm_again(Tensor h, Tensor stats, Tensor? weight, Tensor? bias, int d, ScalarType dtype) -> Tensor y",
    launch=_launch_layer_norm_again,
    fake=_fake_layer_norm_again,
    public="layer_norm",
    differentiable=(0, 2, 3),
)
