"""Device code: what LayerNorm's forward and backward kernels have in common.

Tiles, loads and stores of rows; the residual addition with dropout and its gradient; mean and rstd of a row that
arrives tile by tile. A tile is (block_m, block_n), or (1, block_n) where a row is taken in several.
"""

import triton
import triton.language as tl

from ..device.dropout import keep_mask
from ..device.sums import sum_of_products
from ..device.tiles import load_tile, store_tile
from .structs import Lanes, Place, Rows

# ---- Where a tile lies ----


@triton.jit
def row_indices(tile, BLOCK_M: tl.constexpr):
    """Rows of the `tile`-th group of BLOCK_M: (BLOCK_M,) int64."""
    return (tl.zeros((BLOCK_M,), tl.int64) + tile) * BLOCK_M + tl.arange(0, BLOCK_M)


@triton.jit
def whole_rows(tile, M, C: tl.constexpr):
    """The `tile`-th group of block_m rows, each whole."""
    BLOCK_M: tl.constexpr = C.block_m
    BLOCK_N: tl.constexpr = C.block_n
    rows, cols = row_indices(tile, BLOCK_M), tl.arange(0, BLOCK_N)
    return Place(rows, cols, rows < M, cols < C.n)


@triton.jit
def part_of_row(row, start, C: tl.constexpr):
    """Columns [start, start + block_n) of one row, (1,) int64."""
    BLOCK_N: tl.constexpr = C.block_n
    cols = start + tl.arange(0, BLOCK_N)
    return Place(row, cols, tl.full((1,), True, tl.int1), cols < C.n)


@triton.jit
def matrix_of(X, stride, C: tl.constexpr):
    """The matrix that X points to, with the stride of its rows in units of `C.aligned` elements.

    In int64 elements it is visibly a multiple of `aligned`, so that loads of 16 bytes are seen to be possible.
    """
    return Rows(X, tl.cast(stride, tl.int64) * C.aligned)


# ---- Loads and stores ----


@triton.jit
def load_rows(x, at):
    """The tile of Rows x, in its dtype, 0 outside the matrix."""
    return load_tile(x.Base, at.rows, at.cols, x.stride, 1, at.row_ok, at.col_ok)


@triton.jit
def store_rows(Out, tile, at, N: tl.constexpr):
    """Store into a contiguous (M, N) matrix, rounded to its dtype."""
    store_tile(Out, tile, at.rows, at.cols, N, 1, at.row_ok, at.col_ok)


@triton.jit
def load_affine(Vector, at):
    """Weight or bias, (1, block_n) float32."""
    return tl.load(Vector + at.cols[None, :], mask=at.col_ok[None, :], other=0.0).to(tl.float32)


@triton.jit
def load_weight(Weight, at):
    """(1, block_n) float32, or 1 where there is no weight. Loaded wherever it is needed: L1 has the room to hold it."""
    weight = 1.0
    if Weight is not None:
        weight = load_affine(Weight, at)
    return weight


@triton.jit
def load_stats(Stats, at, M):
    """mean and rstd of the tile's rows, (block_m, 1) float32 each, 0 outside the matrix."""
    rows, row_ok = at.rows[:, None], at.row_ok[:, None]
    return tl.load(Stats + rows, mask=row_ok, other=0.0), tl.load(Stats + M + rows, mask=row_ok, other=0.0)


@triton.jit
def store_stats(Stats, mean, rstd, at, M):
    """Write what `load_stats` reads."""
    rows, row_ok = at.rows[:, None], at.row_ok[:, None]
    tl.store(Stats + rows, mean, mask=row_ok)
    tl.store(Stats + M + rows, rstd, mask=row_ok)


@triton.jit
def store_y(Y, Weight, Bias, xhat, at, N: tl.constexpr):
    """y = xhat · weight + bias, rounded to Y's dtype. xhat in float32."""
    y = xhat
    if Weight is not None:
        y *= load_affine(Weight, at)
    if Bias is not None:
        y += load_affine(Bias, at)
    store_rows(Y, y, at, N)


@triton.jit
def convert_again(h, zero):
    """h in float32; for an h that was converted before, whose float32 copy would otherwise be kept in registers.

    The compiler cannot know that `zero` is one, and so takes these bits for new ones.
    """
    if h.dtype.primitive_bitwidth == 16:
        h = (h.to(tl.int16, bitcast=True) ^ zero.to(tl.int16)).to(h.dtype, bitcast=True)
    return h.to(tl.float32)


# ---- The residual addition ----


@triton.jit
def dropout_factor(dropout, at):
    """What dropout multiplies each element by: `scale` = 1 / (1 - p) where it is kept, else 0."""
    plane = tl.full((1, 1), 0, tl.int32)
    seed, offset = tl.load(dropout.Seed), tl.load(dropout.Seed + 1)
    keep = keep_mask(seed, offset, plane, at.rows[:, None], at.cols[None, :], dropout.threshold)
    return tl.where(keep, dropout.scale, 0.0)


@triton.jit
def load_h(X, Residual, dropout, at):
    """What is normalised, in float32, 0 outside the matrix: x, or residual + dropout(x)."""
    h = load_rows(X, at).to(tl.float32)
    if Residual is not None:
        if dropout.Seed is not None:
            h *= dropout_factor(dropout, at)
        h += load_rows(Residual, at).to(tl.float32)
        # The backward normalises the stored residual, so that the statistics must be those of the rounded one.
        h = h.to(Residual.Base.dtype.element_ty).to(tl.float32)
    return h


@triton.jit
def store_input_gradients(dh, DHOut, DH, DX, dropout, at, N: tl.constexpr):
    """Add the gradient that reaches h directly, and store the gradients of residual and x. dh in float32."""
    if DHOut is not None:
        dh += load_rows(DHOut, at).to(tl.float32)
    if DH is not None:
        store_rows(DH, dh, at, N)
    if DX is not None:
        if dropout.Seed is not None:
            dh *= dropout_factor(dropout, at)
        store_rows(DX, dh, at, N)


# ---- Statistics of a row that arrives tile by tile ----
#
# Each of block_n lanes sees every block_n-th element, and keeps their mean and their sum of squared deviations up to
# date (Welford, Technometrics 1962); at the end the lanes are merged (Chan, Golub and LeVeque 1979). Neither loses
# digits at mean 1000 and variance 1, as E[h²] - E[h]² would.


@triton.jit
def empty_lanes(BLOCK_N: tl.constexpr):
    """Lanes that have seen nothing."""
    return Lanes(tl.zeros((1, BLOCK_N), tl.float32), tl.zeros((1, BLOCK_N), tl.float32))


@triton.jit
def add_to_lanes(lanes, h, col_ok, inverse_count):
    """`lanes` after one more element each, h (1, block_n); those outside the matrix stay as they are.

    inverse_count    1 / the number of elements that a lane has seen, h included: its tile's number, counted from 1
    """
    inside = col_ok[None, :]
    d = h - lanes.mean
    mean = tl.where(inside, lanes.mean + d * inverse_count, lanes.mean)
    m2 = tl.where(inside, lanes.m2 + d * (h - mean), lanes.m2)
    return Lanes(mean, m2)


@triton.jit
def merge_lanes(lanes, eps, C: tl.constexpr):
    """(mean, rstd) of the row of n elements, each (1, 1) float32."""
    N: tl.constexpr = C.n
    BLOCK_N: tl.constexpr = C.block_n
    lane = tl.arange(0, BLOCK_N)[None, :]  # (1, block_n)
    count = ((N + BLOCK_N - 1 - lane) // BLOCK_N).to(tl.float32)  # elements of each lane
    mean = sum_of_products(count, lanes.mean, axis=1, keep_dims=True) / N
    # A second look takes back the rounding of the sum, so that a constant row gives exactly the bias.
    mean += sum_of_products(count, lanes.mean - mean, axis=1, keep_dims=True) / N
    spread = lanes.mean - mean
    m2 = tl.sum(lanes.m2 + count * spread * spread, axis=1, keep_dims=True)
    return mean, tl.rsqrt(m2 / N + eps)
