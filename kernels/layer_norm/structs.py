"""What LayerNorm's kernels hand on together: NamedTuples, made by the launch (Config) or at a kernel's head."""

from __future__ import annotations

from typing import Any, NamedTuple


class Config(NamedTuple):
    """What a kernel is compiled for, all of it as one constexpr. Plain Python numbers."""

    n: int  # columns of the matrix
    aligned: int  # elements that every row's start is a multiple of: loads of 16 bytes need 16 bytes, others 1 element
    block_m: int  # rows of a tile
    block_n: int  # columns of a tile, a power of two
    stages: int = 1  # tiles in shared memory, one in use and the others on their way
    need_dweight: bool = False
    need_dbias: bool = False


class Rows(NamedTuple):
    """A matrix (M, N) that is read: rows of neighbouring elements, at equal distances. Made by `matrix_of`."""

    Base: Any  # pointer to its first element
    stride: Any  # from row to row, in int64 elements


class Place(NamedTuple):
    """Where the tile at hand lies in its matrix."""

    rows: Any  # (block_m,) int64: row · stride may pass 2^31
    cols: Any  # (block_n,) int32
    row_ok: Any  # (block_m,) bool: which lie inside the matrix
    col_ok: Any  # (block_n,) bool


class Lanes(NamedTuple):
    """Statistics of the elements that each lane has seen of a row, each (1, block_n) float32."""

    mean: Any
    m2: Any  # sum of squared deviations from the mean
