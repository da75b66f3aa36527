"""How many rows and warps a LayerNorm program gets. Rules, not tuning: the same on every run, and (except for the depth
of the pipeline) on every GPU, so that results are equal bit for bit."""

from __future__ import annotations

import functools
from dataclasses import dataclass

from .._runtime import Target


@dataclass(frozen=True)
class Tile:
    block_m: int  # rows
    block_n: int  # columns, a power of two; the whole row unless `long`
    num_warps: int
    stages: int = 1  # tiles in flight: the one in use, and those being fetched into shared memory
    programs: int = 0  # backward: upper limit of the grid
    long: bool = False  # the row is walked over in chunks of block_n


SHARED_MEMORY = {
    "sm_75": 64,
    "sm_80": 163,
    "sm_86": 99,
    "sm_89": 99,
    "sm_90": 227,
    "sm_100": 227,
    "sm_120": 99,
    "gfx942": 64,
    "gfx950": 160,
}


def power_of_two(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


@functools.cache
def forward_tile(n: int, itemsize: int) -> Tile:
    block_n = max(power_of_two(n), 16)
    if block_n > 65536 * 2 // itemsize:
        return Tile(1, 8192, 8, long=True)
    per_warp = 32 * 64 * 2 // itemsize
    return Tile(max(1, min(16, per_warp // block_n)), block_n, max(1, min(32, block_n // per_warp)))


@functools.cache
def backward_tile(n: int, itemsize: int, target: Target) -> Tile:
    block_n = max(power_of_two(n), 16)
    if block_n > 16384 * 2 // itemsize:
        return Tile(1, 4096, 8, long=True)
    tile = 4096 * 2 // itemsize
    block_m = max(1, min(16, tile // block_n))
    warps = 8 if block_n <= 4096 else 16
    stage = 2 * itemsize * block_m * block_n / 1024
    stages = int(min(3, SHARED_MEMORY.get(target.arch, 64) // stage))
    return Tile(block_m, block_n, warps, max(1, stages), programs=192 if block_n <= 4096 else 96)


DWEIGHT_LONG = Tile(64, 64, 8)
REDUCE = Tile(64, 32, 4)
