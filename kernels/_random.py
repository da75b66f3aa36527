"""Seeds for the kernels' counter-based dropout, drawn from torch's generator so that torch.manual_seed rules them."""

from __future__ import annotations

import torch
from torch import Tensor

from ._checks import check_numbers


def new_seed(device: torch.device) -> Tensor:
    """(2,) int64 (seed, offset) on `device`: a fresh Philox key, without a host sync.

    Drawn on the device, so CUDA graphs draw anew at each replay, and activation checkpointing, which restores the
    generator's state, draws the same again.
    """
    return torch.randint(0, 2**31 - 1, (2,), device=device, dtype=torch.int64)


def drop_threshold(dropout_p: float) -> int:
    """round(p · 2³²), the uint32 below which a random word drops its element. The keep rate is exact to 2⁻³²."""
    return min(round(dropout_p * 2**32), 2**32 - 1)


def threshold_and_scale(dropout_p: float) -> tuple[int, float]:
    """What a `Dropout` holds beside its seed: the `drop_threshold`, and 1 / (1 - p), which multiplies what is kept."""
    return drop_threshold(dropout_p), 1.0 / (1.0 - dropout_p)


def check_dropout(function: str, dropout_p: float) -> None:
    """Raise TypeError or ValueError unless dropout_p is a number and 0 <= dropout_p < 1."""
    if dropout_p is None:
        raise TypeError(f"{function}: dropout_p is None, expected a number; 0.0 drops nothing")
    check_numbers(function, dropout_p=dropout_p)
    if not 0.0 <= dropout_p < 1.0:
        raise ValueError(f"{function}: dropout_p must be in [0, 1), got {dropout_p}")


def materialised_mask(seed: Tensor, dropout_p: float, planes: int, rows: int, columns: int) -> Tensor:
    """(planes, rows, columns) bool on seed's device, True = kept: the mask that kernels draw from a `new_seed`.

    Philox4x32-10 in plain torch, for the self-check: it waits for the device, and kernels never hold a mask.
    """
    key, offset = seed.tolist()
    plane = torch.arange(planes, device=seed.device)[:, None, None]
    row = torch.arange(rows, device=seed.device)[:, None]
    column = torch.arange(columns, device=seed.device)
    zero = (plane + row + column) * 0
    c0, c1, c2, c3 = column + zero, row + zero, plane + zero, zero + (offset & _WORD)
    k0, k1 = key & _WORD, key >> 32 & _WORD
    for _ in range(10):
        (high0, low0), (high1, low1) = _wide_product(0xD2511F53, c0), _wide_product(0xCD9E8D57, c2)
        c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
        k0, k1 = k0 + 0x9E3779B9 & _WORD, k1 + 0xBB67AE85 & _WORD
    return c0 >= drop_threshold(dropout_p)


_WORD = 2**32 - 1


def _wide_product(a: int, b: Tensor) -> tuple[Tensor, Tensor]:
    """High and low word of a · b, of 32-bit words held in int64: in halves, as the whole would not fit."""
    upper, lower = a * (b >> 16), a * (b & 0xFFFF)
    return upper + (lower >> 16) >> 16, (upper << 16) + lower & _WORD
