"""Block shapes, and how many chunks the rows are cut into. Plain tables and rules, no tuning at run time."""

from __future__ import annotations

from dataclasses import dataclass

from .._runtime import Target

MiB = 1 << 20
ALIGNMENT = 128  # bytes: rows of the logits buffer start on a cache line

SMALL = 64 * MiB  # logits up to this are made in one go
WANTED = 256 * MiB  # of logits at a time, by cutting the rows into FEWEST ... MOST chunks
FEWEST, MOST = 4, 8
LARGEST = 2048 * MiB  # beyond MOST chunks, a chunk's logits still stay below this
ROW_MULTIPLE = 128  # rows of a chunk, so that the GEMMs' tiles are full


@dataclass(frozen=True)
class RowTile:
    """How a program goes through its row: block_v columns at a time, `in_registers` when that is the whole row."""

    block_v: int
    num_warps: int
    in_registers: bool = False


# Rows that one program can hold: bytes of the row up to the first entry -> warps. 64 bytes a thread stay in registers.
_IN_REGISTERS = ((8 * 1024, 4), (16 * 1024, 8), (32 * 1024, 16), (64 * 1024, 32))


def whole_row(columns: int, itemsize: int, target: Target) -> RowTile:
    """For `loss_and_gradient_kernel`: the whole row in registers where it fits, else `part_of_row`."""
    block_v = max(128, 1 << (columns - 1).bit_length())
    for limit, warps in _IN_REGISTERS:
        if block_v * itemsize <= limit and (warps <= 16 or target.backend == "cuda"):  # a wave of AMD is 64 lanes wide
            return RowTile(block_v, warps, in_registers=True)
    return part_of_row(columns, itemsize)


def part_of_row(columns: int, itemsize: int) -> RowTile:
    """8 warps read 16 KiB at a time: 64 bytes a thread, four 16-byte loads."""
    return RowTile(min(16 * 1024 // itemsize, max(128, 1 << (columns - 1).bit_length())), 8)


def padded_columns(V: int, itemsize: int) -> int:
    """V rounded up to whole cache lines: the width of a row of the logits buffer."""
    multiple = ALIGNMENT // itemsize
    return -(-V // multiple) * multiple


def rows_per_chunk(N: int, V: int, itemsize: int, num_chunks: int) -> int:
    """Rows whose logits exist at one time. num_chunks 0 asks for the rule, which needs no more than the shapes.

    The rule: one chunk if all logits fit in SMALL; else as many chunks as make a chunk's logits WANTED, but no fewer
    than FEWEST and no more than MOST, because GEMMs over few rows are slow; more than MOST only to stay below LARGEST.
    The extra memory is then at most

        max(SMALL, N V itemsize / FEWEST)  for N V itemsize <= FEWEST * WANTED
        max(WANTED, N V itemsize / MOST)   up to MOST * LARGEST, and LARGEST beyond    (each plus ROW_MULTIPLE rows)
    """
    if num_chunks:
        return max(1, -(-N // num_chunks))
    total = N * padded_columns(V, itemsize) * itemsize
    if total <= SMALL:
        return max(1, N)
    chunks = max(min(max(-(-total // WANTED), FEWEST), MOST), -(-total // LARGEST))
    rows = -(-N // chunks)
    return min(N, -(-rows // ROW_MULTIPLE) * ROW_MULTIPLE)
