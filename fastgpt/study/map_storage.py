"""Attention maps as text that a page carries: deflated bytes in base64, which the browser inflates one by one.

Of a head only the lower triangle is kept, row after row: row t has t + 1 weights. Up to `EXACT` tokens they are
float32, little-endian, and exact. Beyond, they are uint8: c = round(255 √w), read as (c / 255)², which is off by at
most (2c / 255 + 1/510) / 510: 0.004 of a weight of 1, 4e-6 of a weight of 0.
"""

from __future__ import annotations

import base64
import zlib
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from .attention_maps import pooled

EXACT = 128  # tokens, at most, whose weights are kept as float32

THUMBNAIL = 64  # rows, at most, of a small map


def stored_as(n_tokens: int) -> str:
    """ "float32" or "uint8": how the weights of so many tokens are kept."""
    return "float32" if n_tokens <= EXACT else "uint8"


def packed(weights: Tensor) -> str:
    """The lower triangle of weights (T, T), float32 on the CPU, of which none is below 0 or above 1."""
    count = weights.shape[0]
    triangle = weights.numpy()[np.tri(count, dtype=bool)]
    if stored_as(count) == "uint8":
        return _text(_codes(triangle).tobytes())
    return _text(triangle.astype("<f4").tobytes())


def packed_thumbnails(small: Sequence[Tensor]) -> str:
    """All small maps (n, n), one after the other, as c = round(255 √w), uint8."""
    return _text(_codes(torch.stack(list(small)).numpy()).tobytes())


def thumbnail(weights: Tensor) -> tuple[Tensor, int]:
    """(the small map (n, n) of weights (T, T), k): each number the largest weight of k x k."""
    return pooled(weights, THUMBNAIL)


def _codes(weights: np.ndarray) -> np.ndarray:
    return np.round(255.0 * np.sqrt(np.clip(weights, 0.0, 1.0))).astype(np.uint8)


def _text(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 6)).decode("ascii")
