"""How often kernels read and write each element of a tensor: memory traffic, counted in the interpreter."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from .context import live_addresses


class Traffic:
    """Records every access of the kernels run inside the block; lanes that are masked out move no memory.

    with interpret(), Traffic() as traffic:
        y = layer_norm(x)
    assert (traffic.reads(x) == 1).all()
    traffic.read_bytes, traffic.written_bytes           # of all loads and stores: what the kernels ask caches for
    """

    def __enter__(self) -> Traffic:
        from triton.runtime.interpreter import InterpreterBuilder as Builder

        self.read_bytes = self.written_bytes = 0
        self._read: list[np.ndarray] = []
        self._written: list[np.ndarray] = []
        load, store = Builder.create_masked_load, Builder.create_masked_store

        def counted_load(builder: Any, pointers: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
            live = live_addresses(pointers, mask)
            self._read.append(live)
            self.read_bytes += live.size * _element_size(pointers)
            return load(builder, pointers, mask, *args, **kwargs)

        def counted_store(builder: Any, pointers: Any, value: Any, mask: Any, *args: Any, **kwargs: Any) -> Any:
            live = live_addresses(pointers, mask)
            self._written.append(live)
            self.written_bytes += live.size * _element_size(pointers)
            return store(builder, pointers, value, mask, *args, **kwargs)

        self._restore = Builder, load, store
        Builder.create_masked_load, Builder.create_masked_store = counted_load, counted_store
        return self

    def __exit__(self, *exc: object) -> None:
        builder, load, store = self._restore
        builder.create_masked_load, builder.create_masked_store = load, store

    def reads(self, tensor: Tensor) -> Tensor:
        """Of a contiguous tensor's shape, int64: how often each element was read."""
        return _per_element(self._read, tensor)

    def writes(self, tensor: Tensor) -> Tensor:
        """Of a contiguous tensor's shape, int64: how often each element was written."""
        return _per_element(self._written, tensor)


def _element_size(pointers: Any) -> int:
    return max(1, pointers.get_element_ty().primitive_bitwidth // 8)


def _per_element(accesses: list[np.ndarray], tensor: Tensor) -> Tensor:
    assert tensor.is_contiguous()
    counts = np.zeros(tensor.numel(), np.int64)
    for addresses in accesses:
        index = (addresses.astype(np.int64) - tensor.data_ptr()) // tensor.element_size()
        np.add.at(counts, index[(index >= 0) & (index < counts.size)], 1)
    return torch.from_numpy(counts).view(tensor.shape)
