"""Device code that every product of the FFN shares: the order of the tiles, the main loop, loads and stores of tiles.

A product is C (M, N) = A (M, K) · B (K, N), accumulated in float32. Each operand comes in one of two ways (`tma`):

- a pointer and two strides: any layout, any alignment;
- a TMA descriptor (sm_90 and newer) over the memory as it lies. `b_is_nk` says that memory holds B's transpose (N, K),
  whose tiles are turned on the way into the tensor cores.
"""

import triton
import triton.language as tl

from ..device.tf32 import dot_operand


@triton.jit
def tile_at(index, num_m, num_n, group_m: tl.constexpr):
    """(tile row, tile column) of the index-th tile: down columns inside bands of `group_m` tile rows.

    Programs that run together then share rows of A and columns of B, and find them in L2.
    """
    tiles_in_band = group_m * num_n
    first_m = (index // tiles_in_band) * group_m
    rows = tl.minimum(num_m - first_m, group_m)
    return first_m + (index % tiles_in_band) % rows, (index % tiles_in_band) // rows


@triton.jit
def product_tile(
    A, B, stride_am, stride_ak, stride_bk, stride_bn, M, N, K, m0, n0,
    block_m: tl.constexpr, block_n: tl.constexpr, block_k: tl.constexpr,
    b_is_nk: tl.constexpr, tma: tl.constexpr, precision: tl.constexpr,
):  # fmt: skip
    """(block_m, block_n) float32: rows m0.. and columns n0.. of A · B, summed over K."""
    acc = tl.zeros((block_m, block_n), tl.float32)
    if tma:
        for k in tl.range(0, K, block_k):
            a = A.load([m0, k])  # (block_m, block_k)
            if b_is_nk:
                b = B.load([n0, k]).T  # (block_k, block_n)
            else:
                b = B.load([k, n0])
            a, b = dot_operand(a, precision), dot_operand(b, precision)
            acc = tl.dot(a, b, acc, input_precision=precision)
    else:
        offs_m = m0 + tl.arange(0, block_m)
        offs_n = n0 + tl.arange(0, block_n)
        offs_k = tl.arange(0, block_k)
        # int64: rows times stride passes 2^31 in large batches
        a_rows = A + offs_m.to(tl.int64)[:, None] * stride_am  # (block_m, 1)
        b_columns = B + offs_n.to(tl.int64)[None, :] * stride_bn  # (1, block_n)
        for k in tl.range(0, K, block_k):
            ks = k + offs_k
            in_k = ks < K
            ks = ks.to(tl.int64)
            a = tl.load(a_rows + ks[None, :] * stride_ak, mask=(offs_m < M)[:, None] & in_k[None, :], other=0.0)
            b = tl.load(b_columns + ks[:, None] * stride_bk, mask=in_k[:, None] & (offs_n < N)[None, :], other=0.0)
            a, b = dot_operand(a, precision), dot_operand(b, precision)
            acc = tl.dot(a, b, acc, input_precision=precision)
    return acc


@triton.jit
def load_tile(C, stride_cm, M, N, m0, n0, block_m: tl.constexpr, block_n: tl.constexpr, tma: tl.constexpr):
    """(block_m, block_n) tile of a matrix with contiguous rows, 0 outside of it, as float32."""
    if tma:
        tile = C.load([m0, n0])
    else:
        offs_m = m0 + tl.arange(0, block_m)[:, None]
        offs_n = n0 + tl.arange(0, block_n)[None, :]
        tile = tl.load(C + offs_m.to(tl.int64) * stride_cm + offs_n, mask=(offs_m < M) & (offs_n < N), other=0.0)
    return tile.to(tl.float32)


@triton.jit
def store_tile(C, stride_cm, M, N, m0, n0, tile, block_m: tl.constexpr, block_n: tl.constexpr, tma: tl.constexpr):
    """Write the part of a (block_m, block_n) tile that lies inside a matrix with contiguous rows."""
    if tma:
        C.store([m0, n0], tile.to(C.dtype))
    else:
        offs_m = m0 + tl.arange(0, block_m)[:, None]
        offs_n = n0 + tl.arange(0, block_n)[None, :]
        address = C + offs_m.to(tl.int64) * stride_cm + offs_n
        tl.store(address, tile.to(C.dtype.element_ty), mask=(offs_m < M) & (offs_n < N))


@triton.jit
def columns_of(tile, index: tl.constexpr, parts: tl.constexpr):
    """The index-th of `parts` (1, 2, 4 or 8) equal bands of a tile's columns.

    Epilogues work on one band after the other: fewer values are alive at a time, and the staging buffers of the stores
    are smaller, which leaves room for a second program on the multiprocessor. No data moves between threads.
    """
    if parts == 1:
        return tile
    else:
        block_m: tl.constexpr = tile.shape[0]
        half: tl.constexpr = tile.shape[1] // 2
        left, right = tl.split(tl.permute(tl.reshape(tile, (block_m, 2, half)), (0, 2, 1)))
        return columns_of(left if index < parts // 2 else right, index % (parts // 2), parts // 2)
