"""What the launches of attention's kernels, the portable ones and Hopper's, decide alike: bounds, grids and masks."""

from __future__ import annotations

import torch
from torch import Tensor

from .._runtime import cdiv, power_of_two
from . import masks, structs

# Positions and bounds are int32 in the kernels, which add at most a tile (1024 columns of document ids) to T_q + T_k.
MAX_POSITIONS = 2**31 - 2**11
MAX_PROGRAMS = 2**31 - 1  # CUDA's limit of a grid's first dimension, and what an int32 program id can tell apart


def band(T_q: int, T_k: int, causal: bool, left: int, right: int) -> tuple[int | None, int | None]:
    """(lower, upper): query i sees the keys i + lower <= j <= i + upper; None = no bound."""
    diagonal = T_k - T_q
    # A bound that no pair of indices reaches is no bound; leaving it out also keeps the sums inside int32.
    lower = diagonal - left if left >= 0 and diagonal - left > -T_q else None
    upper = diagonal + right if right >= 0 and diagonal + right < T_k - 1 else None
    if causal:
        upper = diagonal
    return lower, upper


def check_positions(name: str, T_q: int, T_k: int) -> None:
    """Raise ValueError where positions would not fit the kernels' int32."""
    if T_q + T_k > MAX_POSITIONS:
        raise ValueError(
            f"{name}: positions are int32 numbers, so T_q + T_k may be {MAX_POSITIONS} at most; got T_q = {T_q} and "
            f"T_k = {T_k}: attend to the keys in parts, and combine them by their lse (return_lse=True)"
        )


def check_steps(name: str, T_q: int, group: int, step: int) -> None:
    """A program of dK/dV counts its steps, over the queries of a whole group of heads, in int32."""
    if (cdiv(T_q, step) + 2) * group >= 2**31:
        raise ValueError(
            f"{name}: {group} query heads of T_q = {T_q} share one key head, which is too many steps of {step} queries "
            "to count in int32; pass the query heads in several calls"
        )


def grid(name: str, programs: int) -> tuple[int]:
    """The grid of a launch of so many programs."""
    if programs > MAX_PROGRAMS:
        raise ValueError(
            f"{name}: {programs} tiles of batch rows, heads and tokens, and one launch takes {MAX_PROGRAMS} at most; "
            "split the batch"
        )
    return (programs,)


def hidden_keys(
    key_starts: Tensor | None, key_lengths: Tensor | None, document_ids: Tensor | None, T_q: int, T_k: int,
    block: int, *, of_keys: bool = False,
) -> structs.Masks:  # fmt: skip
    """The masks of a kernel whose programs hold tiles of `block` queries, or keys."""
    if document_ids is None:
        return structs.Masks(key_starts, key_lengths, None, None)
    document_ids = document_ids.contiguous()
    ranges = document_ranges(document_ids, T_q, T_k, block, of_keys=of_keys)
    return structs.Masks(key_starts, key_lengths, document_ids, ranges)


def document_ranges(document_ids: Tensor, T_q: int, T_k: int, block: int, *, of_keys: bool) -> Tensor:
    """For each tile of `block` queries, the keys that may share a document with it; of keys, the queries."""
    rows, columns = (T_k, T_q) if of_keys else (T_q, T_k)
    num_tiles, B = cdiv(rows, block), document_ids.shape[0]

    ranges = document_ids.new_empty((B, num_tiles, 3), dtype=torch.int32)
    masks.document_ranges_kernel[grid("flash_attention", num_tiles * B)](
        document_ids, ranges, T_k, T_k - rows, rows, T_k - columns, columns,
        ROWS=block, BLOCK=power_of_two(block), CHUNK=1024, num_warps=4,
    )  # fmt: skip
    return ranges
