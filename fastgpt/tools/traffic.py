"""Memory traffic of torch code: bytes that its operations read and write, one operation after the other."""

from __future__ import annotations

import math
from typing import Any

from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_MAKES_ONLY = {"empty", "new_empty", "empty_like", "empty_strided", "new_empty_strided"}  # writes nothing
_OVERWRITES = {"copy_", "fill_", "zero_"}  # what they change, they do not read


class OperationTraffic(TorchDispatchMode):
    """Adds up what every operation inside the block reads and writes: each of its tensors, once, whole.

    with OperationTraffic() as traffic:
        y = (x @ w).softmax(-1)
    traffic.read_bytes, traffic.written_bytes

    Views move nothing; numbers (tensors without dimensions) are not counted; of an expanded tensor its own elements
    are. What an operation reads again and again, or keeps on the way, it does with caches: that is not counted. Kernels
    launched by Triton are no operations (`fastgpt.kernels.interpreter.traffic` counts those).
    """

    def __init__(self) -> None:
        super().__init__()
        self.read_bytes = self.written_bytes = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: tuple = (), kwargs: dict | None = None) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.partition("::")[2]
        given = dict(zip((argument.name for argument in func._schema.arguments), args), **(kwargs or {}))
        changed = [
            t
            for argument in func._schema.arguments
            if argument.alias_info is not None and argument.alias_info.is_write
            for t in _tensors(given.get(argument.name))
        ]
        inputs = _tensors(list(given.values()))
        if changed:
            written = changed
        else:
            held = {t.untyped_storage()._cdata for t in inputs}
            written = [t for t in _tensors(out) if t.untyped_storage()._cdata not in held]
            if not written or name in _MAKES_ONLY:  # a view; what has no value yet
                return out
        not_read = {id(t) for t in changed} if name in _OVERWRITES else set()
        self.read_bytes += sum(_bytes(t) for t in inputs if id(t) not in not_read)
        self.written_bytes += sum(_bytes(t) for t in written)
        return out


def _tensors(tree: Any) -> list[Tensor]:
    return [leaf for leaf in tree_leaves(tree) if isinstance(leaf, Tensor)]


def _bytes(tensor: Tensor) -> int:
    """Of the elements that are there; a dimension of stride 0 repeats one. 0 of a number."""
    if tensor.ndim == 0:
        return 0
    sizes = (size if stride or size == 0 else 1 for size, stride in zip(tensor.shape, tensor.stride()))
    return math.prod(sizes) * tensor.element_size()
