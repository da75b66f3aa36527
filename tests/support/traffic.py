"""How often kernels read and write each element of a tensor: memory traffic, counted in the interpreter."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from fastgpt.kernels.interpreter.context import live_addresses


class Traffic:
    """Records every unmasked access of the kernels run inside the block; masked-out lanes move no memory.

    with interpret(), Traffic() as traffic:
        y = layer_norm(x)
    assert (traffic.reads(x) == 1).all()
    """

    def __enter__(self) -> Traffic:
        upstream = pytest.importorskip("triton.runtime.interpreter")
        builder = upstream.InterpreterBuilder
        load, store = builder.create_masked_load, builder.create_masked_store
        self._read: list[np.ndarray] = []
        self._written: list[np.ndarray] = []

        def counted_load(self_, pointers, mask, *args, **kwargs):
            self._read.append(live_addresses(pointers, mask))
            return load(self_, pointers, mask, *args, **kwargs)

        def counted_store(self_, pointers, value, mask, *args, **kwargs):
            self._written.append(live_addresses(pointers, mask))
            return store(self_, pointers, value, mask, *args, **kwargs)

        self._patch = pytest.MonkeyPatch()
        self._patch.setattr(builder, "create_masked_load", counted_load)
        self._patch.setattr(builder, "create_masked_store", counted_store)
        return self

    def __exit__(self, *exc: object) -> None:
        self._patch.undo()

    def reads(self, tensor: Tensor) -> Tensor:
        """Of a contiguous tensor's shape: how often each element was read."""
        return _per_element(self._read, tensor)

    def writes(self, tensor: Tensor) -> Tensor:
        """Of a contiguous tensor's shape: how often each element was written."""
        return _per_element(self._written, tensor)


def _per_element(accesses: list[np.ndarray], tensor: Tensor) -> Tensor:
    assert tensor.is_contiguous()
    counts = np.zeros(tensor.numel(), np.int64)
    for addresses in accesses:
        index = (addresses.astype(np.int64) - tensor.data_ptr()) // tensor.element_size()
        np.add.at(counts, index[(index >= 0) & (index < counts.size)], 1)
    return torch.from_numpy(counts).view(tensor.shape)
