"""Launch: allocation, grid and tile look-up for the weights of attention."""

from __future__ import annotations

from torch import Tensor

from .. import _runtime
from .._runtime import cdiv
from ..attention.launch import band, check_positions, grid
from ..attention.structs import Masks, Matrix
from . import tiles
from .forward import attention_weights_kernel
from .structs import Config

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

    tile = tiles.forward(row_count, D, q.element_size())
    config = Config(D, tile.block_m, tile.block_n, tile.block_d, _runtime.dot_precision(q))
    num_tiles = cdiv(row_count, tile.block_m) * cdiv(T_k, tile.block_n)
    lower, upper = band(T_q, T_k, False, left, right)
    row_step = min(row_step, T_q)  # with a longer step there is one row

    weights, done = q.new_empty(shape), 0
    inputs = Matrix(q, q.stride()), Matrix(k, k.stride()), Matrix(lse, lse.stride())
    masks = Masks(key_starts, key_lengths, None if document_ids is None else document_ids.contiguous(), None)
    with _runtime.on_device_of(q):
        for head_start, head_step, count in progressions(heads):
            out = weights[:, done : done + count]
            done += count
            attention_weights_kernel[grid(NAME, B * count * num_tiles)](
                *inputs, Matrix(out, out.stride()), masks, count, row_count, T_q, T_k, H // H_kv,
                head_start, head_step, row_start, row_step, lower, upper, softmax_scale, config,
                num_warps=tile.num_warps, num_stages=tile.num_stages,
            )  # fmt: skip
    return weights


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
