"""Block shapes, and how many chunks the rows are cut into. Plain tables and rules, no tuning at run time."""

from __future__ import annotations

from typing import NamedTuple

from .._runtime import Target, cdiv, power_of_two

MiB = 1 << 20
ALIGNMENT = 128  # bytes: rows of the logits buffer start on a cache line

SMALL = 64 * MiB  # logits up to this are made in one go
WANTED = 256 * MiB  # of logits at a time, by cutting the rows into FEWEST ... MOST chunks
FEWEST, MOST = 4, 8
LARGEST = 2048 * MiB  # beyond MOST chunks, a chunk's logits still stay below this
ROW_MULTIPLE = 128  # rows of a chunk, so that the GEMMs' tiles are full


class RowTile(NamedTuple):
    """How a program goes through its row: (lanes, width) columns at a time; `in_registers` if that is the whole row."""

    lanes: int
    width: int
    num_warps: int
    in_registers: bool = False


COUNT = (4096, 8)  # (block_n, num_warps) of `count_targets_kernel`
SCALE = (2048, 4)  # (block, num_warps) of `scale_kernel`

# Bytes of a row (rounded up to a power of two) that one program keeps in registers, 64 a thread, and its warps.
_IN_REGISTERS = ((8 * 1024, 4), (16 * 1024, 8), (32 * 1024, 16))


def whole_row(columns: int, itemsize: int, target: Target) -> RowTile:
    """For `loss_and_gradient_kernel`: the whole row in registers where it fits, else `part_of_row`.

    Larger rows would fit into 32 warps, but those leave room for one program on a multiprocessor, whose loads, sums
    and stores nothing else would overlap.
    """
    size, width = max(128, power_of_two(columns)), 16 // itemsize
    for limit, warps in _IN_REGISTERS:
        if size * itemsize <= limit:
            return RowTile(size // width, width, warps, in_registers=True)
    return part_of_row(columns, itemsize, target)


def part_of_row(columns: int, itemsize: int, target: Target) -> RowTile:
    """For rows that are read twice: programs so wide that two of them fill a multiprocessor.

    Two rows of GPT-2's vocabulary in 16 bits (100 KB each) are then under way at a time, which its L1 cache of 192 to
    256 KB holds from the first read to the second. Rows of float32 are too long for that; and where a multiprocessor
    takes fewer threads, or a warp is 64 wide, 32 warps would leave room for one program: 16 warps.
    """
    width = 16 // itemsize
    num_warps = 32 if itemsize == 2 and target.capability in (80, 90, 100) else 16
    return RowTile(min(1024, max(128, power_of_two(columns)) // width), width, num_warps)


def part_of_gradient(columns: int, itemsize: int) -> tuple[int, int]:
    """(block_v, num_warps) of `gradient_kernel`: 64 bytes a thread."""
    return min(8 * 1024 // itemsize, max(128, power_of_two(columns))), 4


def padded_columns(V: int, itemsize: int) -> int:
    """V rounded up to whole cache lines: the width of a row of the logits buffer."""
    multiple = ALIGNMENT // itemsize
    return cdiv(V, multiple) * multiple


def rows_per_chunk(N: int, V: int, itemsize: int, num_chunks: int) -> int:
    """Rows whose logits exist at one time. num_chunks 0 asks for the rule, which needs no more than the shapes.

    The rule: one chunk if all logits fit in SMALL; else as many chunks as make a chunk's logits WANTED, but no fewer
    than FEWEST and no more than MOST, because GEMMs over few rows are slow; more than MOST only to stay below LARGEST.
    The extra memory is then at most

        max(SMALL, N V itemsize / FEWEST)  for N V itemsize <= FEWEST * WANTED
        max(WANTED, N V itemsize / MOST)   up to MOST * LARGEST, and LARGEST beyond    (each plus ROW_MULTIPLE rows)
    """
    if num_chunks:
        return max(1, cdiv(N, num_chunks))
    total = N * padded_columns(V, itemsize) * itemsize
    if total <= SMALL:
        return max(1, N)
    chunks = max(min(max(cdiv(total, WANTED), FEWEST), MOST), cdiv(total, LARGEST))
    return min(N, cdiv(cdiv(N, chunks), ROW_MULTIPLE) * ROW_MULTIPLE)
