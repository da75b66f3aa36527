"""Device code: how the programs of dK and dV share their work, and how an item begins and ends."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..masks import key_bounds, tile_runs
from ..structs import Band, Pair
from .device import ROWS, item_of

# Of one warpgroup that holds dK and dV of 64 keys, the largest head_dim for which it has registers:
ONE_WARPGROUP = 128
LAGGING = 96  # and for dS of the step before


@gluon.constexpr_function
def is_wide(C):
    """Whether two warpgroups share 64 keys (dkdv_wide.py)."""
    return C.d_low + C.d_high > ONE_WARPGROUP


@gluon.constexpr_function
def num_warpgroups(C):
    """How many warpgroups read each slot of the ring."""
    return 2 if C.d_low + C.d_high > ONE_WARPGROUP else C.consumers


@gluon.constexpr_function
def dk_lags(C):
    """Whether a warpgroup has registers for dK to lag a step behind (dkdv_step.py)."""
    return C.d_low + C.d_high <= LAGGING


@gluon.constexpr_function
def num_sets(C):
    """How many items' keys there is room for, so that the next item's come early.

    With one, since addresses that change take registers, they come as soon as the last product has read this item's,
    whose gradients are then staged in memory of their own.
    """
    return 2 if C.d_low + C.d_high <= LAGGING else 1


@gluon.jit
def tile_and_head(r, sizes, bounds, C: gl.constexpr):
    """(tile, key head) of this CTA's r-th item; those that most queries see go first."""
    num_tiles = gl.cdiv(sizes.T_k, ROWS * C.consumers)
    tile, head = item_of(r, num_tiles, sizes)
    if bounds.lower is not None and bounds.upper is None:
        tile = num_tiles - 1 - tile
    return tile, head


@gluon.jit
def query_tiles(masks, sizes, bounds, tile, b, C: gl.constexpr):
    """The tiles of queries that see keys of an item, as Runs."""
    BLOCK: gl.constexpr = C.block
    TALL: gl.constexpr = ROWS * C.consumers
    num_tiles = gl.cdiv(sizes.T_k, TALL)
    column = tile * TALL
    first_key, end_key = key_bounds(masks, b, sizes.T_k)
    # A tile whose keys are all padding has nothing to do. Rows past the last query are zeros, which add nothing: the
    # tile that holds them needs no mask on their account.
    some_key = (column < end_key) & (column + TALL > first_key)
    end = gl.where(some_key, gl.cdiv(sizes.T_q, BLOCK) * BLOCK, 0)
    # Key j is seen by the queries j - upper <= i <= j - lower.
    band = Band(None if bounds.upper is None else -bounds.upper, None if bounds.lower is None else -bounds.lower)
    return tile_runs(
        column, gl.minimum(column + TALL, sizes.T_k) - 1, band, 0, end, masks.Ranges, b * num_tiles + tile, BLOCK, BLOCK
    )


@gluon.jit
def zeros(LOW: gl.constexpr, HIGH: gl.constexpr):
    """A Pair of accumulators of 64 rows, in these layouts."""
    WIDTH_LOW: gl.constexpr = LOW.instr_shape[1]
    WIDTH_HIGH: gl.constexpr = HIGH.instr_shape[1]
    return Pair(gl.zeros([ROWS, WIDTH_LOW], gl.float32, LOW), gl.zeros([ROWS, WIDTH_HIGH], gl.float32, HIGH))


@gluon.jit
def store_rows(tiles, acc, factor, first, first_key, end_key, LOW: gl.constexpr, HIGH: gl.constexpr, C: gl.constexpr):
    """acc · factor into the Pair `tiles` in shared memory, 0 for padding keys."""
    store_part(tiles.low, acc.low, factor, first, first_key, end_key, LOW)
    if C.d_high > 0:
        store_part(tiles.high, acc.high, factor, first, first_key, end_key, HIGH)


@gluon.jit
def store_part(tile, acc, factor, first, first_key, end_key, LAYOUT: gl.constexpr):
    """One tile of `store_rows`."""
    j = first + gl.arange(0, ROWS, gl.SliceLayout(1, LAYOUT))
    is_key = gl.expand_dims((j >= first_key) & (j < end_key), 1)
    tile.store(gl.where(is_key, acc * factor, 0.0).to(tile.dtype))
