"""Device code: which keys a query sees, for single elements, for tiles, and for whole documents.

Row i of the score matrix is a query and column j a key. Query i stands at key i + T_k - T_q (bottom-right alignment),
so causality and sliding windows are a band, `i + lower <= j <= i + upper`, with both bounds computed by the launch:

    causal          upper = T_k - T_q
    window w        lower = T_k - T_q - (w - 1)
    (left, right)   lower = T_k - T_q - left,  upper = T_k - T_q + right

Padding bounds the keys of one sequence, first_key <= j < end_key. Documents must be equal: document[i] == document[j].
A tile that no element of which passes is never visited; a tile that every element of which passes is not masked.

Positions, bounds and their sums are int32. The launch sees to it that they fit: T_q + T_k stays below 2^31 by more than
a tile, and a bound beyond every key is no bound. What comes from a tensor is clamped here, before it is narrowed.
"""

import triton
import triton.language as tl

from .structs import Runs


@triton.jit
def program_tile(num_tiles, heads_per_section):
    """(tile, head) of this program. head = b * H + h. Programs start in order of their id."""
    return tile_of(tl.program_id(0), tl.num_programs(0) // num_tiles, num_tiles, heads_per_section)


@triton.jit
def tile_of(item, num_heads, num_tiles, heads_per_section):
    """(tile, head) of the item-th of num_tiles · num_heads pieces of work.

    Heads run fastest, so that the longest tiles of all heads go first and the short ones fill the gaps at the end; but
    only `heads_per_section` heads at a time, so that K and V of the heads in flight stay in L2.
    """
    section = item // (heads_per_section * num_tiles)
    first_head = section * heads_per_section
    size = tl.minimum(heads_per_section, num_heads - first_head)  # the last section may be smaller
    within = item - first_head * num_tiles
    return within // size, first_head + within % size


@triton.jit
def key_bounds(masks, b, T_k):
    """first_key, end_key of sequence b, inside [0, T_k] whatever the tensors of any integer type hold."""
    first_key = 0
    end_key = T_k
    if masks.KeyStarts is not None:
        first_key = clamped(tl.load(masks.KeyStarts + b), T_k)
    if masks.KeyLengths is not None:
        end_key = clamped(tl.load(masks.KeyLengths + b), T_k)
    return first_key, end_key


@triton.jit
def clamped(x, end):
    """int32: x inside [0, end]. The larger type decides, so that no value is narrowed before it is compared."""
    return tl.minimum(tl.maximum(x, 0), end).to(tl.int32)


@triton.jit
def documents_of_sequence(masks, b, T_k):
    """Pointer to the document ids of the keys of sequence b."""
    return masks.Documents + b.to(tl.int64) * T_k


@triton.jit
def load_documents(Documents, tokens, tokens_ok):
    """Document ids of `tokens`, of their shape."""
    return tl.load(Documents + tokens, mask=tokens_ok, other=0)


@triton.jit
def visible(i, j, mask, documents):
    """bool tile: query i sees key j. i and j are index vectors that broadcast against each other, in either order.

    `documents` are the ids of those of them that are streamed; they broadcast against mask.held.
    """
    sees = (i == i) & (j == j)  # all of them, in their common shape
    if mask.first_key is not None:
        sees = (j >= mask.first_key) & (j < mask.end_key)
    if mask.band.upper is not None:
        sees = sees & (j <= i + mask.band.upper)
    if mask.band.lower is not None:
        sees = sees & (j >= i + mask.band.lower)
    if documents is not None:
        sees = sees & (mask.held == documents)
    return sees


@triton.jit
def tile_runs(row, last_row, band, start, end, Ranges, range_index, BLOCK: tl.constexpr, EDGE: tl.constexpr):
    """The column tiles that rows [row, last_row] meet, as Runs.

    `full` tiles, of BLOCK columns, are seen by every one of these rows and need no mask; `left` and `right` tiles, of
    EDGE columns, before and after them, need one. start <= column < end holds for every row; Ranges, unless it is None,
    holds what `document_ranges_kernel` found.
    """
    full_start, full_end = start, end
    if band.lower is not None:
        start = tl.maximum(start, row + band.lower)
        full_start = tl.maximum(full_start, last_row + band.lower)
    if band.upper is not None:
        end = tl.minimum(end, last_row + band.upper + 1)
        full_end = tl.minimum(full_end, row + band.upper + 1)
    if Ranges is not None:
        Ranges += range_index.to(tl.int64) * 3
        documents_start = tl.load(Ranges)
        documents_end = tl.load(Ranges + 1)
        start = tl.maximum(start, documents_start)
        end = tl.minimum(end, documents_end)
        full_start = tl.maximum(full_start, documents_start)
        full_end = tl.where(tl.load(Ranges + 2) != 0, tl.minimum(full_end, documents_end), 0)
    left = tl.maximum(start, 0) // EDGE * EDGE
    full = tl.cdiv(tl.maximum(full_start, 0), BLOCK) * BLOCK
    right = tl.maximum(full_end, 0) // BLOCK * BLOCK
    num_full = tl.maximum(right - full, 0) // BLOCK
    # Without a full tile the two masked runs are one.
    full = tl.where(num_full > 0, full, left)
    right = full + num_full * BLOCK
    num_left = (full - left) // EDGE
    num_right = tl.maximum(tl.cdiv(end - right, EDGE), 0)
    return Runs(left, num_left, full, num_full, right, num_right)


@triton.jit
def all_cut(runs, BLOCK: tl.constexpr, EDGE: tl.constexpr):
    """The same columns, all of them in tiles of EDGE to mask; those of `runs` to mask are of BLOCK."""
    num_tiles = runs.num_left + runs.num_full + runs.num_right
    return Runs(runs.left, num_tiles * (BLOCK // EDGE), runs.full, 0, runs.right, 0)


@triton.jit
def num_steps(runs, IS_MASKED: tl.constexpr):
    """How many tiles are full, or (IS_MASKED) left and right of those."""
    if IS_MASKED:
        return runs.num_left + runs.num_right
    else:
        return runs.num_full


@triton.constexpr_function
def stages(is_masked, is_careful, edge_stages):
    """How many tiles of a loop are on their way at a time: tl.range's num_stages; None: as the launch asked."""
    if not is_masked:
        return None
    return 1 if is_careful else edge_stages


@triton.jit
def tile_start(step, runs, BLOCK: tl.constexpr, EDGE: tl.constexpr, IS_MASKED: tl.constexpr):
    """First column of the step-th tile among the full ones, or (IS_MASKED) among those left and right of them."""
    if IS_MASKED:
        return tl.where(step < runs.num_left, runs.left + step * EDGE, runs.right + (step - runs.num_left) * EDGE)
    else:
        return runs.full + step * BLOCK


@triton.jit
def document_ranges_kernel(Documents, Ranges, T, row_offset, num_rows, column_offset, num_columns,
                    ROWS: tl.constexpr, BLOCK: tl.constexpr, CHUNK: tl.constexpr):  # fmt: skip
    """For each tile of ROWS rows: the range of columns whose document lies between the tile's least and greatest.

    Ranges (B, num_tiles, 3) int32: first column, one past the last column, and 1 if the tile and all of that range are
    one document; num_columns, 0, 0 where no column is inside. Documents (B, T) any integer, contiguous; row i is token
    row_offset + i and column j is token column_offset + j. Right for ids in any order; tight when each document is
    contiguous. `host.document_ranges` calls it, before the kernel whose tiles they are.

    T^2 / ROWS comparisons, shared by all heads. Grid (B * num_tiles,): a second dimension ends at 65535. BLOCK: the
    power of two that is at least ROWS.
    """
    num_tiles = tl.cdiv(num_rows, ROWS)
    tile, b = tl.program_id(0) % num_tiles, tl.program_id(0) // num_tiles
    Documents += b.to(tl.int64) * T
    i = tile * ROWS + tl.arange(0, BLOCK)
    i = tl.minimum(i, tl.minimum((tile + 1) * ROWS, num_rows) - 1)  # a tile repeats its last row
    ids = tl.load(Documents + row_offset + i)
    least, greatest = tl.min(ids, 0), tl.max(ids, 0)
    first = tl.zeros((CHUNK,), tl.int32) + num_columns
    end = tl.zeros((CHUNK,), tl.int32)
    count = tl.zeros((CHUNK,), tl.int32)
    for j0 in tl.range(0, num_columns, CHUNK):
        j = j0 + tl.arange(0, CHUNK)
        id_j = tl.load(Documents + column_offset + j, mask=j < num_columns, other=0)
        inside = (j < num_columns) & (id_j >= least) & (id_j <= greatest)
        first = tl.where(inside, tl.minimum(first, j), first)
        end = tl.where(inside, tl.maximum(end, j + 1), end)
        count += inside.to(tl.int32)
    first_column, end_column = tl.min(first, 0), tl.max(end, 0)
    same = (least == greatest) & (tl.sum(count, 0) == end_column - first_column)
    Range = Ranges + tl.program_id(0).to(tl.int64) * 3
    tl.store(Range, first_column)
    tl.store(Range + 1, end_column)
    tl.store(Range + 2, same.to(tl.int32))
