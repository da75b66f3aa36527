"""Device code: loads and stores of a tile by pointers, with masks only where the tile may reach past its matrix."""

import triton
import triton.language as tl


@triton.jit
def load_tile(Base, rows, columns, stride_row, stride_column, row_ok, column_ok):
    """The (rows, columns) tile of the matrix at Base; what is masked out reads as 0.

    rows, columns      (m,) and (n,) indices, int64 where an index times its stride may pass 2^31
    row_ok, column_ok  (m,) and (n,) bool: which of them lie inside the matrix; None: all do
    """
    pointers = Base + rows[:, None] * stride_row + columns[None, :] * stride_column
    if row_ok is not None and column_ok is not None:
        return tl.load(pointers, mask=row_ok[:, None] & column_ok[None, :], other=0.0)
    if row_ok is not None:
        return tl.load(pointers, mask=row_ok[:, None], other=0.0)
    if column_ok is not None:
        return tl.load(pointers, mask=column_ok[None, :], other=0.0)
    return tl.load(pointers)


@triton.jit
def store_tile(Base, tile, rows, columns, stride_row, stride_column, row_ok, column_ok):
    """Write `tile` where `load_tile` would read it, in the type that Base points to."""
    pointers = Base + rows[:, None] * stride_row + columns[None, :] * stride_column
    tile = tile.to(Base.dtype.element_ty)
    if row_ok is not None and column_ok is not None:
        tl.store(pointers, tile, mask=row_ok[:, None] & column_ok[None, :])
    elif row_ok is not None:
        tl.store(pointers, tile, mask=row_ok[:, None])
    elif column_ok is not None:
        tl.store(pointers, tile, mask=column_ok[None, :])
    else:
        tl.store(pointers, tile)
