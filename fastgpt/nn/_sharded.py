"""Models that torch's `fully_shard` (FSDP2) has dealt out to ranks: which, and what their forward computes with.

Between two passes a parameter is a DTensor, of which this rank holds a part; hooks of FSDP2 gather it before the
forward of the module that was sharded, in the dtype of its MixedPrecisionPolicy, and put the part back afterwards.

Nothing here imports torch.distributed.tensor or .fsdp: where nobody has, nothing is sharded.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import support


def is_sharded(tensor: Any) -> bool:
    """Whether this is a part of a tensor that several ranks hold: a DTensor."""
    return isinstance(tensor, Tensor) and support.is_distributed(tensor)


def local(tensor: Tensor) -> Tensor:
    """This rank's part of it, detached; all of a tensor that lies on one device."""
    part: Any = tensor.detach()
    return part.to_local() if is_sharded(part) else part


def is_fsdp(module: nn.Module) -> bool:
    """Whether `fully_shard` was called on this very module."""
    fsdp: Any = sys.modules.get("torch.distributed.fsdp")
    return fsdp is not None and isinstance(module, fsdp.FSDPModule)


def fsdp_modules(model: nn.Module) -> list[Any]:
    """The modules in `model`, itself included, on which `fully_shard` was called; parents first."""
    return [module for module in model.modules() if is_fsdp(module)] if "torch.distributed.fsdp" in sys.modules else []


def gathered(model: nn.Module) -> Iterator[tuple[Tensor, torch.dtype | None]]:
    """The parameters that FSDP2 gathers before they are used, and the dtype in which it does; None: their own.

    One may come twice: what counts is what comes last, which is the innermost module's.
    """
    for module in fsdp_modules(model):
        # What torch keeps to itself: without it, the table of implementations says the shards' dtype.
        policy = getattr(module._get_fsdp_state(), "_mp_policy", None)
        for parameter in module.parameters():
            yield parameter, getattr(policy, "param_dtype", None)
