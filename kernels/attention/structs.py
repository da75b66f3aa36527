"""What attention's kernels hand on together: NamedTuples, made by the launch or at a kernel's head.

Q, K, V, Out and their gradients are (B, heads, T, head_dim) with any strides; K and V have H_kv = H / group heads.
TMA descriptors come as arguments of their own: Triton's launcher finds them nowhere else.
"""

from __future__ import annotations

from typing import Any, NamedTuple


class Config(NamedTuple):
    """What a kernel is compiled for, all of it as one constexpr. Plain Python numbers."""

    head_dim: int
    d_low: int  # columns of the two tiles that hold a row of head_dim numbers,
    d_high: int  # powers of two; 0: one tile is enough
    block_m: int  # queries of a tile
    block_n: int  # keys of a tile
    edge: int  # queries or keys of a streamed tile that a mask cuts,
    edge_stages: int  # unless it comes by TMA and whole: then, how many of these are on their way; 0: it does not
    group: int  # query heads that share a key head, where a loop divides by it (dK/dV); 0: an argument
    is_wide: bool  # offsets inside a tile need int64
    has_row_maps: bool  # RowStreams of whole tiles are read by descriptors, not only those of the edge
    precision: str  # of products: tl.dot's input_precision


class Matrix(NamedTuple):
    """A tensor (B, heads, T, head_dim) in memory; once advanced to a head, its (T, head_dim) matrix."""

    Base: Any  # pointer to its first element
    stride: Any  # its four strides, in elements


class ForwardTensors(NamedTuple):
    """What the forward reads and writes: pointers, or the strides of each.

    Kernels take all their pointers and then all their strides. Each pointer followed by its strides, ptxas may spill.
    """

    Q: Any  # (B, H, T_q, head_dim)
    K: Any  # (B, H_kv, T_k, head_dim)
    V: Any  # (B, H_kv, T_k, head_dim)
    Out: Any  # (B, H, T_q, head_dim)


class DKDVTensors(NamedTuple):
    """What the kernel of dK and dV reads and writes: pointers, or the strides of each."""

    Q: Any  # the shapes of the forward
    K: Any
    V: Any
    DOut: Any  # (B, H, T_q, head_dim)
    DK: Any  # (B, H_kv, T_k, head_dim)
    DV: Any  # (B, H_kv, T_k, head_dim)


class DQTensors(NamedTuple):
    """What the kernel of dQ reads and writes: pointers, or the strides of each."""

    Q: Any  # the shapes of the forward
    K: Any
    V: Any
    DOut: Any  # (B, H, T_q, head_dim)
    DQ: Any  # (B, H, T_q, head_dim)


class Masks(NamedTuple):
    """Pointers to what hides keys beside the band; None: nothing does."""

    KeyStarts: Any  # (B,) any integer
    KeyLengths: Any  # (B,) any integer
    Documents: Any  # (B, T_k) any integer, contiguous
    Ranges: Any  # (B, tiles, 3) int32, what `document_ranges_kernel` found for the kernel's tiles


class HeadDropout(NamedTuple):
    """Dropout of one head's weights, in registers; `device/dropout.py: Dropout` is where it comes from."""

    seed: Any
    offset: Any
    head: Any  # b * H + h
    threshold: Any
    scale: Any


class Band(NamedTuple):
    """Row i of the score matrix meets the columns i + lower <= j <= i + upper; None: no bound."""

    lower: Any
    upper: Any


class Mask(NamedTuple):
    """Which keys the queries of one sequence see: first_key <= j < end_key inside the band, of the same document."""

    first_key: Any
    end_key: Any
    band: Band  # of queries i and keys j
    held: Any  # document ids (not indices) of the tile that is held, as a column; None: no documents
    Streamed: Any  # pointer to the document ids of the tokens that are streamed, or None


class Scores(NamedTuple):
    """How the scores of the tile that a program holds (of queries, or of keys in dK/dV) become weights."""

    held: Any  # (block,) indices of its queries or keys (`mask.held`: their document ids)
    num_streamed: Any  # how many keys or queries there are to stream
    qk_scale: Any  # softmax_scale · log2(e)
    mask: Mask
    dropout: Any  # HeadDropout or None


class Runs(NamedTuple):
    """The tiles to stream: three runs, a first column and a count of tiles each. Those of `full` need no mask."""

    left: Any
    num_left: Any
    full: Any
    num_full: Any
    right: Any
    num_right: Any


class Pair(NamedTuple):
    """Two tiles side by side that hold the columns [0, d_low) and [d_low, d_low + d_high) of head_dim.

    With d_high = 0, `high` is there and no one looks at it: what a loop carries may not be None.
    """

    low: Any
    high: Any


class Stream(NamedTuple):
    """The (T, head_dim) matrix of one head, read tile by tile: by descriptors, or by pointers where they are None."""

    Base: Any  # pointer to the head's first row
    stride: Any
    Low: Any  # descriptors of the whole tensor, one for each tile of a Pair
    High: Any
    b: Any
    h: Any


class RowStream(NamedTuple):
    """One number for each row of a head, read as a Stream is."""

    Base: Any  # pointer to the number of the head's first row
    Descriptor: Any  # of a tensor (several kinds of number, B * H, T_q)
    index: Any  # which kind
    head: Any  # b * H + h


class Softmax(NamedTuple):
    """The online softmax of a tile of queries."""

    acc: Pair  # sum of p v so far, each (block_m, columns) float32
    m: Any  # (block_m,) maximum of the scaled scores, in base 2
    l: Any  # (block_m,) sum of p


class KeyValue(NamedTuple):
    """What belongs to keys: Streams, the tiles that a program holds, or their gradients."""

    k: Any
    v: Any


class QueryRows(NamedTuple):
    """What the backward knows of queries: the tiles that a program holds, or Streams and RowStreams of them."""

    q: Any
    dout: Any
    lse2: Any  # lse / ln 2
    delta: Any  # Σ_d dout out - dlse
