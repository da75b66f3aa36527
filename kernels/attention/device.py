"""Device code: how attention's kernels read, multiply and write the rows of a head, which are Pairs of tiles.

What may be None, or hold a None or a constexpr, is made where it is used: on Triton 3.6 device functions return tensors
only.
"""

import triton
import triton.language as tl

from ..device.dropout import keep_mask
from ..device.tf32 import dot_operand
from ..device.tiles import load_tile, store_tile
from .structs import HeadDropout, Pair


@triton.jit
def tile_index(N: tl.constexpr, IS_WIDE: tl.constexpr):
    """0 ... N - 1 for offsets inside a tile: int64 only when a stride is so large that 256 of it overflow int32."""
    if IS_WIDE:
        return tl.arange(0, N).to(tl.int64)
    else:
        return tl.arange(0, N)


@triton.jit
def zeros(ROWS: tl.constexpr, C: tl.constexpr):
    """A Pair of float32 accumulators, (ROWS, d_low) and (ROWS, d_high)."""
    D_LOW: tl.constexpr = C.d_low
    D_HIGH: tl.constexpr = C.d_high
    return Pair(tl.zeros((ROWS, D_LOW), tl.float32), tl.zeros((ROWS, max(D_HIGH, 16)), tl.float32))


@triton.jit
def at_row(x, b, h, row):
    """Pointer to row `row` of head h of sequence b of the Matrix x."""
    offset = b.to(tl.int64) * x.stride[0] + h.to(tl.int64) * x.stride[1]
    return x.Base + (offset + row.to(tl.int64) * x.stride[2])


@triton.jit
def at_head(x, b, h):
    """Pointer to head h of sequence b of the Matrix x."""
    return x.Base + (b.to(tl.int64) * x.stride[0] + h.to(tl.int64) * x.stride[1])


@triton.jit
def columns_of(PART: tl.constexpr, C: tl.constexpr):
    """The columns of head_dim that the low (0) or high (1) tile of a Pair holds."""
    D_LOW: tl.constexpr = C.d_low
    D_HIGH: tl.constexpr = C.d_high
    IS_WIDE: tl.constexpr = C.is_wide
    if PART == 0:
        return tile_index(D_LOW, IS_WIDE)
    else:
        return D_LOW + tile_index(D_HIGH, IS_WIDE)


@triton.jit
def load_pair(x, b, h, row, row_ok, C: tl.constexpr):
    """Rows row + 0, 1, ... of head h of sequence b, as operands of products; rows that are not `row_ok` read as 0."""
    Start = at_row(x, b, h, row)
    low = load_part(Start, x.stride, row_ok, 0, C)
    high = low
    if C.d_high > 0:
        high = load_part(Start, x.stride, row_ok, 1, C)
    return Pair(low, high)


@triton.jit
def load_two_pairs(x, y, b, h, row, row_ok, C: tl.constexpr):
    """`load_pair` of the Matrices x and y. Both low tiles come first: pair after pair, ptxas may spill."""
    XStart, YStart = at_row(x, b, h, row), at_row(y, b, h, row)
    x_low, y_low = load_part(XStart, x.stride, row_ok, 0, C), load_part(YStart, y.stride, row_ok, 0, C)
    x_high, y_high = x_low, y_low
    if C.d_high > 0:
        x_high, y_high = load_part(XStart, x.stride, row_ok, 1, C), load_part(YStart, y.stride, row_ok, 1, C)
    return Pair(x_low, x_high), Pair(y_low, y_high)


@triton.jit
def load_part(Start, stride, row_ok, PART: tl.constexpr, C: tl.constexpr):
    """One tile of `load_pair`."""
    IS_WIDE: tl.constexpr = C.is_wide
    PRECISION: tl.constexpr = C.precision
    HEAD_DIM: tl.constexpr = C.head_dim
    END: tl.constexpr = C.d_low + PART * C.d_high
    columns = columns_of(PART, C)
    column_ok = columns < HEAD_DIM if HEAD_DIM < END else None
    rows = tile_index(row_ok.shape[0], IS_WIDE)
    return dot_operand(load_tile(Start, rows, columns, stride[2], stride[3], row_ok, column_ok), PRECISION)


@triton.jit
def stream_pair(x, row, row_ok, IS_CAREFUL: tl.constexpr, C: tl.constexpr):
    """Rows row + 0, 1, ... of the Stream x, as operands of products: by TMA where it has descriptors.

    The copy engine computes addresses by itself, which frees 16 to 60 registers a thread; rows that do not exist read
    as 0. Careful steps read by pointers: they are narrower than the descriptors' boxes, and rows that are not `row_ok`
    read as 0.
    """
    low = stream_part(x, x.Low, row, row_ok, 0, IS_CAREFUL, C)
    high = low
    if C.d_high > 0:
        high = stream_part(x, x.High, row, row_ok, 1, IS_CAREFUL, C)
    return Pair(low, high)


@triton.jit
def stream_part(x, Descriptor, row, row_ok, PART: tl.constexpr, IS_CAREFUL: tl.constexpr, C: tl.constexpr):
    """One tile of `stream_pair`."""
    IS_WIDE: tl.constexpr = C.is_wide
    PRECISION: tl.constexpr = C.precision
    D_LOW: tl.constexpr = C.d_low
    HEAD_DIM: tl.constexpr = C.head_dim
    END: tl.constexpr = C.d_low + PART * C.d_high
    columns = columns_of(PART, C)
    column_ok = columns < HEAD_DIM if HEAD_DIM < END else None
    if Descriptor is not None and not IS_CAREFUL:
        tile = Descriptor.load([x.b, x.h, row, PART * D_LOW]).reshape(row_ok.shape[0], columns.shape[0])
    else:
        rows = tile_index(row_ok.shape[0], IS_WIDE)
        Start = x.Base + (tl.zeros([], tl.int64) + row) * x.stride[2]
        tile = load_tile(Start, rows, columns, x.stride[2], x.stride[3], row_ok if IS_CAREFUL else None, column_ok)
    return dot_operand(tile, PRECISION)


@triton.jit
def stream_rows(x, row, rows, IS_MASKED: tl.constexpr, C: tl.constexpr):
    """The numbers of `rows`, which are row + 0, 1, ..., of the RowStream x.

    Those that do not exist read as 0, where a mask needs it (IS_MASKED), and there it has a descriptor.
    """
    if IS_MASKED or C.has_row_maps:
        return x.Descriptor.load([x.index, x.head, row]).reshape(rows.shape[0])
    else:
        return tl.load(x.Base + rows)


@triton.jit
def store_pair(x, b, h, row, row_ok, pair, C: tl.constexpr):
    """Write `pair` to rows row + 0, 1, ... of head h of sequence b of the Matrix x, in its type."""
    Start = at_row(x, b, h, row)
    store_part(Start, x.stride, row_ok, pair.low, 0, C)
    if C.d_high > 0:
        store_part(Start, x.stride, row_ok, pair.high, 1, C)


@triton.jit
def store_part(Start, stride, row_ok, tile, PART: tl.constexpr, C: tl.constexpr):
    """One tile of `store_pair`."""
    IS_WIDE: tl.constexpr = C.is_wide
    HEAD_DIM: tl.constexpr = C.head_dim
    END: tl.constexpr = C.d_low + PART * C.d_high
    columns = columns_of(PART, C)
    column_ok = columns < HEAD_DIM if HEAD_DIM < END else None
    rows = tile_index(row_ok.shape[0], IS_WIDE)
    store_tile(Start, tile, rows, columns, stride[2], stride[3], row_ok, column_ok)


@triton.jit
def stream_product(held, x, row, row_ok, IS_CAREFUL: tl.constexpr, C: tl.constexpr):
    """held yᵀ, and the Pair y itself: rows row + 0, 1, ... of the Stream x.

    The low tile is multiplied before the high one is loaded: loaded together, they cost up to 85 registers more.
    """
    PRECISION: tl.constexpr = C.precision
    low = stream_part(x, x.Low, row, row_ok, 0, IS_CAREFUL, C)
    high = low
    s = tl.dot(held.low, tl.trans(low), input_precision=PRECISION)
    if C.d_high > 0:
        high = stream_part(x, x.High, row, row_ok, 1, IS_CAREFUL, C)
        s = tl.dot(held.high, tl.trans(high), s, input_precision=PRECISION)
    return s, Pair(low, high)


@triton.jit
def add_product(acc, weights, x, C: tl.constexpr):
    """acc + weights · x, tile by tile. `weights` (rows of acc, rows of x)."""
    PRECISION: tl.constexpr = C.precision
    low, high = tl.dot(weights, x.low, acc.low, input_precision=PRECISION), acc.high
    if C.d_high > 0:
        high = tl.dot(weights, x.high, acc.high, input_precision=PRECISION)
    return Pair(low, high)


@triton.jit
def scaled(pair, factor):
    """Both tiles times `factor`, which broadcasts."""
    return Pair(pair.low * factor, pair.high * factor)


@triton.jit
def where_pair(ok, pair):
    """Both tiles where `ok`, which broadcasts; 0 elsewhere."""
    return Pair(tl.where(ok, pair.low, 0.0), tl.where(ok, pair.high, 0.0))


@triton.jit
def without_nonfinite(tile):
    """0 in the place of inf and NaN. In a masked product 0 · NaN would carry them to rows that do not see them."""
    return tl.where(tl.abs(tile.to(tl.float32)) < float("inf"), tile, 0.0)


@triton.jit
def pair_without_nonfinite(pair, C: tl.constexpr):
    """Both tiles `without_nonfinite`."""
    low, high = without_nonfinite(pair.low), pair.high
    if C.d_high > 0:
        high = without_nonfinite(pair.high)
    return Pair(low, high)


@triton.jit
def all_finite(pair, C: tl.constexpr):
    """bool: no number of either tile is inf or NaN."""
    zero = tl.sum(pair.low * 0.0)
    if C.d_high > 0:
        zero += tl.sum(pair.high * 0.0)
    return zero == 0.0


@triton.jit
def load_dropout(dropout, head):
    """What decides which weights of head `head` = b * H + h are dropped."""
    return HeadDropout(tl.load(dropout.Seed), tl.load(dropout.Seed + 1), head, dropout.threshold, dropout.scale)


@triton.jit
def keeps(dropout, g, i, j):
    """bool tile: the weight of query i on key j survives, in the g-th head after that of `dropout`."""
    return keep_mask(dropout.seed, dropout.offset, dropout.head + g, i, j, dropout.threshold)
