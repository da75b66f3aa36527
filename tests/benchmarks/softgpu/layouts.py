"""Where the ISA puts a matrix's elements: fragments of mma and wgmma. Written from its formulas of rows and columns."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch

Place = tuple[int, int]
LANES = 32


def _a(k: int, bits: int, group: int, t: int, i: int) -> Place:
    """Row and column of element i of A, in mma with 16 rows, or one warp's part of wgmma."""
    match bits, k:
        case 16, 8:
            return (group if i < 2 else group + 8), t * 2 + (i & 1)
        case 16, 16:
            return (group if i < 2 or 4 <= i < 6 else group + 8), t * 2 + (i & 1) + (0 if i < 4 else 8)
        case 32, 4:
            return (group if i == 0 else group + 8), t
        case 32, 8:
            return (group if i in (0, 2) else group + 8), (t if i in (0, 1) else t + 4)
        case 8, 16:
            return (group if i < 4 else group + 8), t * 4 + (i & 3)
        case 8, 32:
            return (group if i < 4 or 8 <= i < 12 else group + 8), t * 4 + (i & 3) + (0 if i < 8 else 16)
        case 64, 4:
            return (group if i == 0 else group + 8), t
        case 64, 8:
            return (group if i in (0, 2) else group + 8), (t if i in (0, 1) else t + 4)
        case 64, 16:
            return (group if i % 2 == 0 else group + 8), (i * 2 + t if i % 2 == 0 else i * 2 - 2 + t)
    raise ValueError(f"no mma has {bits} bits and k {k}")


def _a8(k: int, bits: int, group: int, t: int, i: int) -> Place:
    """The same with 8 rows."""
    return group, {8: t * 4 + i, 64: t}[bits]


def _b(k: int, bits: int, group: int, t: int, i: int) -> Place:
    match bits, k:
        case 16, (8 | 16):
            return t * 2 + (i & 1) + (0 if i < 2 else 8), group
        case 32, (4 | 8):
            return t + 4 * i, group
        case 8, (16 | 32):
            return t * 4 + (i & 3) + (0 if i < 4 else 16), group
        case 64, _:
            return t + 4 * i, group
    raise ValueError(f"no mma has {bits} bits and k {k}")


def _c(group: int, t: int, i: int) -> Place:
    return (group if i < 2 else group + 8), t * 2 + (i & 1)


def _places(count: int, place: Callable[[int, int, int], Place]) -> tuple[np.ndarray, np.ndarray]:
    """(32, count) each: row and column of the elements of each lane."""
    both = np.array([[place(lane >> 2, lane % 4, i) for i in range(count)] for lane in range(LANES)])
    return both[..., 0], both[..., 1]


def place_a(rows: int, k: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    formula = _a if rows == 16 else _a8
    return _places(rows * k // LANES, lambda group, t, i: formula(k, bits, group, t, i))


def place_b(k: int, bits: int) -> tuple[np.ndarray, np.ndarray]:
    return _places(8 * k // LANES, lambda group, t, i: _b(k, bits, group, t, i))


def place_c(rows: int) -> tuple[np.ndarray, np.ndarray]:
    return _places(rows * 8 // LANES, _c)


def place_d(columns: int) -> tuple[np.ndarray, np.ndarray]:
    """Of a warp's 16 rows of a wgmma: as many pairs of columns as there are, each as `place_c` has it."""

    def place(group: int, t: int, i: int) -> Place:
        row, column = _c(group, t, i % 4)
        return row, column + 8 * (i // 4)

    return _places(columns // 2, place)


def registers(matrix: np.ndarray, place: tuple[np.ndarray, np.ndarray]) -> list[np.ndarray]:
    """The registers of 32 lanes that hold a matrix of bits (the lowest element in the lowest bits)."""
    elements = np.ascontiguousarray(matrix[place])  # (32, count)
    word = np.uint64 if matrix.itemsize == 8 else np.uint32
    words = elements.view(word)
    return [np.ascontiguousarray(words[:, r]) for r in range(words.shape[1])]


def matrix(words: list[np.ndarray], place: tuple[np.ndarray, np.ndarray], dtype: type) -> np.ndarray:
    """The matrix that registers of 32 lanes hold."""
    elements = np.ascontiguousarray(np.stack(words, axis=1)).view(dtype)
    result = np.zeros((place[0].max() + 1, place[1].max() + 1), dtype)
    result[place] = elements
    return result


# ---- formats ---------------------------------------------------------------------------------------------------------

_TORCH = {
    "f16": torch.float16, "bf16": torch.bfloat16, "e4m3": torch.float8_e4m3fn, "e5m2": torch.float8_e5m2,
}  # fmt: skip
_NUMPY = {
    "tf32": np.float32, "f32": np.float32, "f64": np.float64, "s8": np.int8, "u8": np.uint8, "s32": np.int32,
}  # fmt: skip
BITS = {"f16": 16, "bf16": 16, "tf32": 32, "e4m3": 8, "e5m2": 8, "s8": 8, "u8": 8, "f64": 64, "f32": 32, "s32": 32}


def bits_of(values: np.ndarray, kind: str) -> np.ndarray:
    """Numbers that the format has, as its bits."""
    if kind in _TORCH:
        there = torch.from_numpy(values.astype(np.float32)).to(_TORCH[kind])
        return there.view(torch.int16 if BITS[kind] == 16 else torch.uint8).numpy().view(f"u{BITS[kind] // 8}")
    return values.astype(_NUMPY[kind]).view(f"u{BITS[kind] // 8}")


def values_of(bits: np.ndarray, kind: str) -> np.ndarray:
    """Bits as numbers, float64."""
    if kind in _TORCH:
        there = torch.from_numpy(np.ascontiguousarray(bits).view(np.int16 if BITS[kind] == 16 else np.uint8))
        return there.view(_TORCH[kind]).double().numpy()
    if kind == "tf32":
        bits = bits & np.uint32(0xFFFFE000)
    with np.errstate(invalid="ignore"):  # a NaN's form changes
        return bits.view(_NUMPY[kind]).astype(np.float64)
