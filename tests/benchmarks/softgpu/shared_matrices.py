"""Matrices as wgmma and tcgen05 want them in shared memory: by a table of swizzles, as the ISA draws it."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np

THREADS, STEPS = 128, 4  # of a CTA; products along k, of 32 bytes each

# Where the 16-byte chunks of each of a pattern's 8 rows lie in the row: as the ISA draws them.
SWIZZLES = {
    16: ["0"] * 8,
    32: ["01", "01", "01", "01", "10", "10", "10", "10"],
    64: ["0123", "0123", "1032", "1032", "2301", "2301", "3210", "3210"],
    128: ["01234567", "10325476", "23016745", "32107654", "45670123", "54761032", "67452301", "76543210"],
}
MODES = {16: 0, 128: 1, 64: 2, 32: 3}


class Layout(NamedTuple):
    width: int  # bytes of a pattern's row; 16: no swizzle
    mn_major: bool = False


class Tile(NamedTuple):
    """A matrix in shared memory: its bytes, and what the descriptor of each step along k says."""

    image: np.ndarray
    starts: list[int]
    lead: int
    stride: int
    width: int

    def descriptor(self, step: int, base: int) -> int:
        aligned = self.width == 16 or base % (8 * self.width) == 0
        base_offset = 0 if aligned else base >> 7 & 7
        return describe(base + self.starts[step], self.lead, self.stride, MODES[self.width], base_offset)


def describe(start: int, lead: int, stride: int, mode: int, base_offset: int = 0) -> int:
    return start >> 4 | lead >> 4 << 16 | stride >> 4 << 32 | base_offset << 49 | mode << 62


def tile(x: np.ndarray, layout: Layout) -> Tile:
    """`x` (m or n, k), whose k is STEPS times 32 bytes."""
    width, chunks = layout.width, layout.width // 16
    if layout.mn_major:
        x = x.T
    raw = np.ascontiguousarray(x).view(np.uint8).reshape(len(x), -1, 16)  # (row, chunk, byte)
    num_rows, num_chunks = raw.shape[:2]
    if layout.mn_major:  # rows are k; patterns of 8 k, then those along k, then those along m or n
        next_row_block, next_tile = 8 * width, num_rows * width
        starts = [2 * step * next_row_block for step in range(STEPS)]
        lead, stride = (next_row_block, next_tile) if width == 16 else (next_tile, next_row_block)
    else:  # rows are m or n; patterns of 8 rows, then those along m or n, then those along k
        next_row_block, next_tile = 8 * width, num_rows * width
        starts = [32 * step // width * next_tile + 32 * step % width for step in range(STEPS)]
        lead, stride = (next_tile if width == 16 else 16), next_row_block
    image = np.zeros(-(-num_chunks // chunks) * next_tile, np.uint8)
    for row in range(num_rows):
        for chunk in range(num_chunks):
            place = int(SWIZZLES[width][row % 8][chunk % chunks])
            at = chunk // chunks * next_tile + row // 8 * next_row_block + row % 8 * width + 16 * place
            image[at : at + 16] = raw[row, chunk]
    return Tile(image, starts, lead, stride, width)


def padded(image: np.ndarray) -> np.ndarray:
    return np.concatenate([image, np.zeros(-len(image) % 2048, np.uint8)])


def fill(image: np.ndarray) -> str:
    """PTX that copies array g0 to shared memory, all threads together."""
    lines = ["mov.b64 %smem, smem; mad.wide.u32 %to, %tid, 16, %smem; mad.wide.u32 %from, %tid, 16, %g0;"]
    for at in range(0, len(image), 16 * THREADS):
        lines.append(f"ld.global.v4.b32 {{%x0, %x1, %x2, %x3}}, [%from + {at}];")
        lines.append(f"st.shared.v4.b32 [%to + {at}], {{%x0, %x1, %x2, %x3}};")
    return "\n".join(lines)
