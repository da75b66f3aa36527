"""Arrays that are mapped from files: safe to read when a file was cut, and sent to other processes as a path."""

from __future__ import annotations

import hashlib
import mmap
import os
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .shards import REDO, ShardError, unreadable


def check_whole(array: np.ndarray | np.memmap) -> None:
    """Raise ShardError where reading a mapped `array` would end the process: SIGBUS, beyond the end of a file that was
    cut since. (The file that was mapped counts, also when another one has taken its name.)"""
    mapped = getattr(array, "_mmap", None)  # numpy's name for it; what has none is no map
    if mapped is not None and isinstance(array, np.memmap) and mapped.size() < _begin(array) + len(mapped):
        raise ShardError(
            f"{array.filename}: cut to {mapped.size()} bytes while it was in use, {_begin(array) + len(mapped)} "
            f"were there when it was opened; {REDO}, or restore the file"
        )


def _begin(array: np.memmap) -> int:
    """Where in the file the map begins, which is a page's begin."""
    return array.offset - array.offset % mmap.ALLOCATIONGRANULARITY


@dataclass(frozen=True)
class Place:
    """Where a one-dimensional array lies: bytes [offset, offset + n * itemsize) of a file that has `size`. `ends`: hash
    of the array's first and last elements, which a file that took the name of the mapped one has not."""

    path: str
    offset: int
    n: int
    dtype: str
    size: int
    ends: bytes

    @staticmethod
    def of(array: np.ndarray) -> Place | np.ndarray:
        """The place of a mapped array or of a slice of one; `array` itself if it is in memory.

        Raises:
            ShardError: the file was cut since it was mapped.
        """
        mapped, path = getattr(array, "_mmap", None), getattr(array, "filename", None)
        if mapped is None or path is None or not isinstance(array, np.memmap):
            return array
        if array.mode not in ("r", "r+") or not array.size or not array.flags.forc:
            return array
        check_whole(array)
        first = np.frombuffer(mapped, np.uint8).ctypes.data
        offset = _begin(array) + array.ctypes.data - first
        return Place(os.path.abspath(path), offset, len(array), array.dtype.str, mapped.size(), _ends(array))

    def open(self) -> np.memmap:
        """Map it again.

        Raises:
            ShardError: it is another file, or cannot be read.
        """
        try:
            size = os.stat(self.path).st_size
            if size != self.size:
                raise ShardError(f"{self.path}: {size} bytes, {self.size} in the process that sent it: another file")
            array = np.memmap(self.path, self.dtype, "r", self.offset, (self.n,))
        except OSError as error:
            raise unreadable(Path(self.path), error) from error
        if _ends(array) != self.ends:
            raise ShardError(f"{self.path}: another file than in the process that sent it; open the folder anew")
        return array


def _ends(array: np.ndarray) -> bytes:
    return hashlib.sha256(array[:1024].tobytes() + array[-1024:].tobytes()).digest()
