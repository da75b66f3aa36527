"""Tables: the tile of each product by GPU and dtype, and which products run in Triton and which in cuBLAS.

No choice is made by timing at run time. See VARIANTS.md for what the tables are based on.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from .._runtime import Target


@dataclass(frozen=True)
class Tile:
    """One program computes block_m x block_n of the output, block_k deep at a time.

    parts            the epilogue handles the tile's columns in so many bands (`device.band_of`)
    programs_per_sm  how many programs share a multiprocessor: the kernels are persistent, and start no more than
                     programs_per_sm * num_sms programs
    """

    block_m: int
    block_n: int
    block_k: int
    num_warps: int
    num_stages: int
    parts: int = 2
    programs_per_sm: int = 1
    group_m: int = 8


# (GPU, kind of operands[, role]) -> tile; the role where it matters. Both products have GELU in their epilogue and are
# shallow (K = d_model): where two small programs fit on a multiprocessor, on sm_90, they share it, so that the epilogue
# of one runs under the main loop of the other.
_TILES = {
    ("sm_90", "half-tma", "up"): Tile(128, 128, 64, num_warps=4, num_stages=3, parts=4, programs_per_sm=2),
    ("sm_90", "half-tma", "dgelu"): Tile(128, 128, 64, num_warps=4, num_stages=3, parts=4, programs_per_sm=2),
    ("sm_90", "half"): Tile(128, 128, 32, num_warps=8, num_stages=3, parts=4),
    ("sm_90", "tf32"): Tile(128, 128, 32, num_warps=8, num_stages=3, parts=4),
    ("sm_120", "half-tma"): Tile(128, 128, 32, num_warps=8, num_stages=3, parts=4),
    ("sm_80", "half"): Tile(128, 128, 32, num_warps=8, num_stages=3, parts=4),
    ("sm_80", "tf32"): Tile(128, 128, 32, num_warps=8, num_stages=2, parts=4),
    ("amd", "half"): Tile(128, 128, 32, num_warps=8, num_stages=2, parts=4),
}
# float32 without tensor cores: multiply-adds, and few registers to hold a tile in.
_IEEE = Tile(64, 32, 16, num_warps=4, num_stages=3)


def kind_of(dtype: torch.dtype, precision: str, tma: bool) -> str:
    """What the main loop multiplies: "half-tma", "half" (fp16, bf16), "tf32" or "ieee" (float32)."""
    if dtype == torch.float32:
        return precision
    return "half-tma" if tma else "half"


def product_tile(target: Target, kind: str, role: str) -> Tile:
    """The tile of the product `role`: "up" (x W1ᵀ, bias, GELU) or "dgelu" (dY W2, gelu')."""
    if kind == "ieee":
        return _IEEE
    gpu = "amd" if target.backend == "hip" else "sm_80"
    if target.capability >= 120:
        gpu = "sm_120" if kind == "half-tma" else "sm_80"
    elif target.capability >= 90:
        gpu = "sm_90"
    return _TILES.get((gpu, kind, role)) or _TILES[gpu, kind]


def runs_in_triton(path: str, target: Target, kind: str, role: str, depth: int) -> bool:
    """Whether the product `role`, `depth` = K deep, is Triton's; cuBLAS and a pass over memory compute it otherwise.

    "auto" is an estimate (VARIANTS.md), not yet a measurement, and errs on cuBLAS's side: it fuses one product only,
    dY W2 with gelu' in its epilogue on an H100 or H200, through TMA and at most 1024 deep. There, saving a pass of 8
    bytes an element outweighs a main loop at 88 % of cuBLAS's even if only half of the epilogue overlaps. x W1ᵀ with
    GELU in its epilogue saves half as much: even or better up to 768, worse above. The other products (a W2ᵀ, dX, dW1,
    dW2) have no kernel: an epilogue would save them little or nothing.
    """
    if path != "auto":
        return path == "triton"
    return target.capability == 90 and kind == "half-tma" and role == "dgelu" and depth <= 1024


_WORTH_HALVING = 1 << 25  # elements of a hidden-sized matrix


def token_chunks(M: int, d_hidden: int) -> list[tuple[int, int]]:
    """[begin, end) ranges of tokens that forward takes through both products one after another.

    Only one chunk's activation is in memory at a time. Halves of a large layer still fill a GPU; those of a small
    one are not worth the launches.
    """
    return _halves(M) if M * d_hidden >= _WORTH_HALVING else [(0, M)]


def hidden_chunks(M: int, d_hidden: int) -> list[tuple[int, int]]:
    """[begin, end) ranges of hidden columns that backward handles one after another, for the same reason.

    Columns, not tokens: then every weight's gradient is one sum over all tokens.
    """
    return _halves(d_hidden) if M * d_hidden >= _WORTH_HALVING else [(0, d_hidden)]


def _halves(n: int) -> list[tuple[int, int]]:
    middle = (n // 2 + 127) // 128 * 128  # whole tiles, and TMA's alignment survives
    return [(0, middle), (middle, n)] if middle < n else [(0, n)]
