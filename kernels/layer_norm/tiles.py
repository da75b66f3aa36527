"""How many rows, columns and warps a LayerNorm program gets: rules that follow from the hardware, without tuning.

LayerNorm does nothing but move bytes, and a GPU moves them at full speed only while enough are on their way: latency x
bandwidth, which is 800 ns x 4.8 TB/s = 3.8 MB on an H200, 29 KB for each of its 132 multiprocessors (A100: 11 KB, B200:
43 KB). Every rule below is a way to have 35 to 75 KB of a multiprocessor's loads under way, in 16-byte instructions.

Forward. Each thread holds 128 bytes of the row (64 2-byte or 32 4-byte elements): 8 loads of 16 bytes follow one
another without waiting, in 60 to 128 registers, with no spills. One *warp* therefore holds 4 KB, which is 2 rows of
1024 bfloat16 columns (GPT-2's 768 rounded up), 4 rows of 512, or one of 2048. Up to there a program is a single warp:
its reductions are 5 shuffles, without shared memory or barriers, and rows that share a program share its one read of
weight and bias. From 4096 columns on a row is shared by 2, 4, ... 16 warps. In flight at 768 columns: 80 registers x 32
threads fit 25 programs on a multiprocessor, each waiting for 2 rows x 1536 bytes: 75 KB.

Backward. Programs walk over the rows, since each must carry its sums for dweight and dbias; what they carry (two
float32 registers an element) leaves no room for bytes in flight, so these wait in shared memory instead: `stages` - 1
tiles of h and dy, 12 to 64 KB a program, fetched asynchronously. The number of programs is fixed by the row length
alone, never by the GPU, so that dweight and dbias have the same bits on all of them; it is what 96 multiprocessors (any
data-centre GPU since the A100) hold at once: 4 programs each of 4 warps, 2 of 8 or 1 of 16. The partial sums are 3 MB
at most at GPT-2's widths (384 programs · 1024 columns · 8 bytes), and stay in the L2 cache until they are added up.

Longer rows are held in their own dtype, tile by tile, by as few warps as it takes (VARIANTS.md has what was compiled to
find them). The longest are walked over twice: many small programs, four tiles of 2048
columns on their way in each.

The ten rounds of Philox that decide over each dropped element take more registers than the element itself: with
dropout a thread holds half as much.
"""

from __future__ import annotations

import functools
from dataclasses import dataclass

from .._runtime import Target, cdiv, power_of_two

# Longest row that fits into a program's registers without spilling (compiled for sm_80, sm_90 and sm_100). A program
# has 65536 registers at most: 32768 float32 elements and what it takes to compute with them.
LONGEST_FORWARD = 32768
# Longest row that is read once all the same, because it is held in its own dtype. The fewest threads that can have all
# registers, 256 with 255 each, leave the most of them to the row: what a thread needs beside it is needed least often.
LONGEST_HELD = 65536
LONGEST_BACKWARD = 16384  # h and dy
LONGEST = 2**31 - 2**15  # columns are numbered in 32 bits, and the last tile looks past the end
LONGEST_SUMMED = 12288  # h, dy, dweight and dbias; held in their own dtypes beyond 8192, or 4096 of a residual stream

# Shared memory that one program can have, in KB (CUDA programming guide, compute capabilities; AMD's CDNA ISA guides).
_SHARED_MEMORY = {"sm_75": 64, "sm_80": 163, "sm_90": 227, "sm_100": 227, "gfx950": 160, "gfx942": 64}
_SHARED_MEMORY_ELSEWHERE = 99


@dataclass(frozen=True)
class Tile:
    """What one program works on.

    block_m    rows
    block_n    columns, a power of two: the whole row, or a part of it where `held` or `long`
    stages     tiles in shared memory, one in use and the others on their way; 1: none
    programs   upper limit of the grid; 0: as many as there are tiles
    held       the row fits only in its own dtype, and is read once, tile by tile
    long       the row does not fit, and is walked over twice, tile by tile
    """

    block_m: int
    block_n: int
    num_warps: int
    stages: int = 1
    programs: int = 0
    held: bool = False
    long: bool = False


DWEIGHT_LONG = Tile(64, 64, 8)  # rows x columns: 128 bytes of each row, so that whole cache lines are read


@functools.cache
def forward_tile(N: int, itemsizes: tuple[int, ...], dropout: bool, target: Target) -> Tile:
    """Tile for rows of N elements, of which each tensor read has as many bytes as `itemsizes` says."""
    longest = LONGEST_FORWARD // 2 if dropout else LONGEST_FORWARD
    if longest < N:
        # The same tiles for both, so that a row is summed in the same order.
        held = N <= LONGEST_HELD and len(itemsizes) == 1 and target.backend == "cuda"  # AMD's compiler spills
        return Tile(1, 2048, _warps(8, target), stages=1 if held else 4, held=held, long=not held)
    block_n = max(16, power_of_two(N))
    per_warp = 32 * (64 if dropout else 128) // max(itemsizes)  # elements; Philox needs registers too
    return Tile(between(1, per_warp // block_n, 16), block_n, _warps(between(1, block_n // per_warp, 32), target))


@functools.cache
def backward_tile(N: int, itemsizes: tuple[int, ...], dropout: bool, target: Target) -> Tile:
    """As `forward_tile`. Of NVIDIA's GPUs only `stages` depends on the target, and that does not change results."""
    added = len(itemsizes) > 2  # the new residual's gradient is read, too
    in_stream = added or dropout
    longest = LONGEST_SUMMED if in_stream else LONGEST_BACKWARD
    if longest < N:
        return Tile(1, 4096, _warps(8, target), long=True)
    shared_memory = _shared_memory_kb(target) * 1024
    if (4096 if in_stream else 8192) < N <= LONGEST_SUMMED:
        num_warps = 8 if dropout or N > 8192 else 16  # Philox needs registers; so does a longer row
        block_n = num_warps * 32 * 16 // max(itemsizes)
        # The weight, of 4 bytes at most, waits in shared memory too: once for each of the two passes over the row.
        waiting = cdiv(N, block_n) * block_n * (sum(itemsizes) + 2 * 4)
        stages = 2 if waiting <= shared_memory - 16 * 1024 and not (dropout and N > 8192) else 1
        return Tile(1, block_n, _warps(num_warps, target), stages, programs=96, held=True)
    block_n = max(16, power_of_two(N))
    if N <= 1024:
        num_warps, programs = 4, 384
    elif N <= 2048 or (N <= 4096 and not added):
        num_warps, programs = 8, 192
    else:
        num_warps, programs = 16, 96
    per_warp = 512 if dropout else 1024  # 32 bytes of each tensor a thread; half of it where Philox needs registers
    block_m = between(1, num_warps * per_warp // (block_n * max(itemsizes)), 16)
    stages = between(1, shared_memory // (block_m * block_n * sum(itemsizes)), 3)
    return Tile(block_m, block_n, _warps(num_warps, target), stages, programs)


def _warps(count: int, target: Target) -> int:
    """As many threads as `count` warps of NVIDIA's: AMD's have 64 threads, and 1024 is the limit of both."""
    return max(1, count // 2) if target.backend == "hip" else count


def _shared_memory_kb(target: Target) -> int:
    return _SHARED_MEMORY.get(target.arch, _SHARED_MEMORY_ELSEWHERE)


def between(low: int, value: int, high: int) -> int:
    return max(low, min(value, high))
