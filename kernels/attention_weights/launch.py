"""Launch: allocation, grid and tile look-up for the weights of attention."""

from __future__ import annotations

import functools
from typing import NamedTuple

from torch import Tensor

from .. import _runtime
from .._runtime import cdiv
from ..attention.host import band, check_positions, grid
from ..attention.structs import Masks
from . import tiles
from .forward import attention_weights_kernel
from .structs import Config, Tensors

NAME = "attention_weights"


def forward(
    q: Tensor, k: Tensor, lse: Tensor, heads: list[int], row_start: int, row_count: int, row_step: int,
    key_starts: Tensor | None, key_lengths: Tensor | None, document_ids: Tensor | None,
    softmax_scale: float, left: int, right: int,
) -> Tensor:  # fmt: skip
    """(B, len(heads), row_count, T_k) in q's dtype. left, right < 0: no bound."""
    B, H, T_q, D = q.shape
    H_kv, T_k = k.shape[1:3]
    check_positions(NAME, T_q, T_k)
    shape = (B, len(heads), row_count, T_k)
    if 0 in shape:
        return q.new_empty(shape)

    plan = _plan(row_count, T_q, T_k, D, q.element_size(), left, right, _runtime.dot_precision(q))
    row_step = min(row_step, T_q)  # with a longer step there is one row

    weights, done = q.new_empty(shape), 0
    strides = q.stride(), k.stride(), lse.stride()
    masks = Masks(key_starts, key_lengths, None if document_ids is None else document_ids.contiguous(), None)
    with _runtime.on_device_of(q):
        for head_start, head_step, count in progressions(heads):
            out = weights[:, done : done + count]
            done += count
            attention_weights_kernel[grid(NAME, B * count * plan.num_tiles)](
                Tensors(q, k, lse, out), Tensors(*strides, out.stride()), masks, count, row_count, T_q, T_k, H // H_kv,
                head_start, head_step, row_start, row_step, plan.lower, plan.upper, softmax_scale, plan.C,
                num_warps=plan.num_warps, num_stages=plan.num_stages,
            )  # fmt: skip
    return weights


class Plan(NamedTuple):
    """How the kernel is launched, but for its tensors, heads and rows."""

    num_tiles: int  # of one head
    lower: int | None  # the band, see attention's masks.py
    upper: int | None
    C: Config
    num_warps: int
    num_stages: int


@functools.lru_cache(maxsize=256)
def _plan(row_count: int, T_q: int, T_k: int, D: int, itemsize: int, left: int, right: int, precision: str) -> Plan:
    tile = tiles.forward(row_count, D, itemsize)
    num_tiles = cdiv(row_count, tile.block_m) * cdiv(T_k, tile.block_n)
    C = Config(D, tile.block_m, tile.block_n, tile.block_d, precision)
    return Plan(num_tiles, *band(T_q, T_k, False, left, right), C, tile.num_warps, tile.num_stages)


def progressions(heads: list[int]) -> list[tuple[int, int, int]]:
    """Split heads into (first, step, count) progressions: one launch each, and no copy of the list to the GPU."""
    found: list[tuple[int, int, int]] = []
    for head in heads:
        first, step, count = found[-1] if found else (0, 0, 0)
        if count == 1 or (count > 1 and head == first + step * count):
            found[-1] = (first, head - first if count == 1 else step, count + 1)
        else:
            found.append((head, 0, 1))
    return found
