"""Seeds for the kernels' counter-based dropout, drawn from torch's generator so that torch.manual_seed rules them."""

from __future__ import annotations

import torch
from torch import Tensor

from ._runtime import check_numbers


def new_seed(device: torch.device) -> Tensor:
    """(2,) int64 (seed, offset) on `device`: a fresh Philox key, without a host sync.

    Drawn on the device, so CUDA graphs draw anew at each replay, and activation checkpointing, which restores the
    generator's state, draws the same again.
    """
    return torch.randint(0, 2**31 - 1, (2,), device=device, dtype=torch.int64)


def drop_threshold(dropout_p: float) -> int:
    """round(p · 2³²), the uint32 below which a random word drops its element. The keep rate is exact to 2⁻³²."""
    return min(round(dropout_p * 2**32), 2**32 - 1)


def check_dropout(function: str, dropout_p: float) -> None:
    """Raise TypeError or ValueError unless dropout_p is a number and 0 <= dropout_p < 1."""
    if dropout_p is None:
        raise TypeError(f"{function}: dropout_p is None, expected a number; 0.0 drops nothing")
    check_numbers(function, dropout_p=dropout_p)
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"{function}: dropout_p must be in [0, 1), got {dropout_p}")
