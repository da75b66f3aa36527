"""Results that are no views to torch, though they share memory with what they were made of.

FSDP2 and DDP put hooks on what a module returns. On a view such a hook is lost as soon as somebody writes into it
(`out += y`), and FSDP2 warns of each one at every forward. A view of what nobody else has is none to its user.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


def in_shape(result: Tensor, shape: Sequence[int]) -> Tensor:
    """`result` in a shape of as many elements, without a copy. Nobody may have it in another way: neither the caller's
    caller, nor a backward pass that has saved it, which would not hear of a later write."""
    if torch.compiler.is_compiling():
        return result.view(shape)
    return result if result.shape == shape else torch.ops.aten._unsafe_view(result, shape)


def own(result: Tensor) -> Tensor:
    """`result`, no longer a view, if it is one that hooks may be put on. Nobody may have it, as for `in_shape`."""
    if torch.compiler.is_compiling() or not result.requires_grad or result._base is None:
        return result
    return torch.ops.aten._unsafe_view(result, result.shape)
