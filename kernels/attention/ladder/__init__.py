"""The kernel ladder: causal attention in six short files, each one step beyond the one before; docs/ladder/ teaches it.

Every file has the same function, `attention(q, k, v)`: q, k and v (B, H, T, D) of one dtype, out (B, H, T, D) of that
dtype, softmax(q kᵀ / √D) v where query i sees the keys j <= i. No gradients: the shipped kernel, at the top, has them.

    from fastgpt.kernels.attention.ladder import RUNGS, attention_of
    out = attention_of("tiled")(q, k, v)
"""

from __future__ import annotations

import importlib
from collections.abc import Callable

from torch import Tensor

# From the lowest up; each is a module here.
RUNGS = ("three_loops", "naive", "tiled", "online_softmax", "triton_forward", "tile_skipping")


def attention_of(rung: str) -> Callable[[Tensor, Tensor, Tensor], Tensor]:
    """The function `attention` of one of RUNGS.

    Raises:
        ValueError: there is no such rung.
    """
    if rung not in RUNGS:
        raise ValueError(f"attention_of: there is no rung {rung!r}; choose from {', '.join(RUNGS)}")
    function: Callable[[Tensor, Tensor, Tensor], Tensor] = importlib.import_module(f"{__name__}.{rung}").attention
    return function
