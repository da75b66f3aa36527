"""The dropout mask materialised with numpy: an independent Philox4x32-10, to check the kernels' own exactly."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

_M0, _M1 = np.uint64(0xD2511F53), np.uint64(0xCD9E8D57)
_W0, _W1 = np.uint32(0x9E3779B9), np.uint32(0xBB67AE85)


def philox_word(seed: int, c0: np.ndarray, c1: np.ndarray, c2: np.ndarray, c3: np.ndarray) -> np.ndarray:
    """First word of Philox4x32-10 with a 64-bit key (Salmon et al. 2011); counters broadcast to uint32."""
    c0, c1, c2, c3 = (np.asarray(c).astype(np.uint32) for c in np.broadcast_arrays(c0, c1, c2, c3))
    k0, k1 = np.uint32(seed & 0xFFFFFFFF), np.uint32((seed >> 32) & 0xFFFFFFFF)
    with np.errstate(over="ignore"):
        for _ in range(10):
            p0, p1 = _M0 * c0.astype(np.uint64), _M1 * c2.astype(np.uint64)
            high0, low0 = (p0 >> np.uint64(32)).astype(np.uint32), p0.astype(np.uint32)
            high1, low1 = (p1 >> np.uint64(32)).astype(np.uint32), p1.astype(np.uint32)
            c0, c1, c2, c3 = high1 ^ c1 ^ k0, low1, high0 ^ c3 ^ k1, low0
            k0, k1 = k0 + _W0, k1 + _W1
    return c0


def keep_mask(seed: Tensor, dropout_p: float, planes: int, rows: int, columns: int) -> Tensor:
    """(planes, rows, columns) bool, True = kept, for the (2,) int64 `seed` of `fastgpt.kernels._random.new_seed`."""
    key, offset = (int(s) for s in seed.cpu())
    plane, row, column = np.ogrid[:planes, :rows, :columns]
    word = philox_word(key, column, row, plane, np.uint32(offset & 0xFFFFFFFF))
    return torch.from_numpy(word >= np.uint32(min(round(dropout_p * 2**32), 2**32 - 1)))
