"""Device code: the online softmax of 64 queries over a tile of keys, its masks, and values that are not finite."""

from triton.experimental import gluon
from triton.experimental.gluon import language as gl

from ..masks import documents_of_sequence, key_bounds, load_documents
from .device import FEW, ROWS, contain, either, nonfinite_in
from .structs import Rows


@gluon.jit
def softmax(s, m, l, n, rows, IS_MASKED: gl.constexpr, S: gl.constexpr, C: gl.constexpr):
    """One step of the online softmax over the keys n, n + 1, ...: (p, the factor of what was summed before, m, l)."""
    BLOCK: gl.constexpr = C.block
    if IS_MASKED:
        sees = visible_tile(n, gl.arange(0, BLOCK, gl.SliceLayout(0, S)), rows)
        s = gl.where(sees, s, float("-inf"))  # times a scale that is not 0
    m_new = gl.maximum(m, gl.max(s, axis=1) * rows.qk_scale)
    m_safe = m_new
    if IS_MASKED:  # a row that has seen no key yet: its maximum is -inf, and -inf - -inf would be NaN
        m_safe = gl.where(m_new == float("-inf"), 0.0, m_new)
    p = gl.exp2(s * rows.qk_scale - gl.expand_dims(m_safe, 1))
    alpha = gl.exp2(m - m_safe)
    return p, alpha, m_new, l * alpha + gl.sum(p, axis=1)


@gluon.jit
def first_keys(i, masks, sizes, bounds, b):
    """The first key that each of the queries i (64,) of sequence b sees, but for documents."""
    first_key, _ = key_bounds(masks, b, sizes.T_k)
    first = gl.zeros_like(i) + first_key
    if bounds.lower is not None:
        first = gl.maximum(i + bounds.lower, first)
    return first


@gluon.jit
def last_keys(i, masks, sizes, bounds, b):
    """The last key that each of the queries i (64,) of sequence b sees, but for documents."""
    _, end_key = key_bounds(masks, b, sizes.T_k)
    last = gl.zeros_like(i) + end_key - 1
    if bounds.upper is not None:
        last = gl.minimum(last, i + bounds.upper)
    return last


@gluon.jit
def query_documents(i, masks, sizes, b):
    """(64, 1) document ids of the queries i (64,) of sequence b."""
    Documents = documents_of_sequence(masks, b, sizes.T_k)
    return gl.expand_dims(load_documents(Documents, sizes.T_k - sizes.T_q + i, i < sizes.T_q), 1)


@gluon.jit
def visible_tile(n, c, rows):
    """(64, columns) bool: which of the keys n + c, c (columns,), each row sees."""
    c_row = gl.expand_dims(c, 0)
    sees = c_row <= gl.expand_dims(rows.last - n, 1)
    if rows.first is not None:
        sees = sees & (c_row >= gl.expand_dims(rows.first - n, 1))
    if rows.documents is not None:
        j = n + c
        sees = sees & (rows.documents == gl.expand_dims(load_documents(rows.Documents, j, j < rows.T_k), 0))
    return sees


@gluon.jit
def contained(l, v, n, rows, poison, GROUP: gl.constexpr, S: gl.constexpr, C: gl.constexpr):
    """Make v, the values of a masked tile, fit for weights that are 0: inf and NaN must reach only rows that see them.

    They become 0; the sums l of the rows that see them become NaN, and so will their outputs and lse.
    """
    BLOCK: gl.constexpr = C.block
    if nonfinite_in(v, BLOCK, C):
        contain(v, poison.Marks, poison.together, BLOCK, GROUP, C)
        l = gl.where(sees_marked(n, rows, poison.Marks, S, C), float("nan"), l)
    return l


@gluon.jit
def contain_together(v, poison, GROUP: gl.constexpr, C: gl.constexpr):
    """`contained` of a consumer that no key of v concerns: the others wait for it."""
    if nonfinite_in(v, C.block, C):
        contain(v, poison.Marks, poison.together, C.block, GROUP, C)


@gluon.jit
def sees_marked(n, rows, Marks, S: gl.constexpr, C: gl.constexpr):
    """(64,) bool: which rows see one of the keys n, n + 1, ... that are marked. Few at a time: registers are held."""
    W: gl.constexpr = gl.NVMMADistributedLayout([3, 0], [4, 1], [16, FEW, 16])  # rows lie as in S
    few_rows = Rows(
        None if rows.first is None else gl.convert_layout(rows.first, gl.SliceLayout(1, W)),
        gl.convert_layout(rows.last, gl.SliceLayout(1, W)),
        None if rows.documents is None else gl.convert_layout(rows.documents, W),
        rows.Documents, rows.T_k, rows.qk_scale,
    )  # fmt: skip
    found = gl.zeros([ROWS], gl.int32, gl.SliceLayout(1, W))
    for c in range(C.block // FEW):
        marked = gl.expand_dims(Marks.index(c).load(gl.SliceLayout(0, W)), 0) != 0
        sees = visible_tile(n + c * FEW, gl.arange(0, FEW, gl.SliceLayout(0, W)), few_rows)
        found = found | gl.reduce((sees & marked).to(gl.int32), 1, either)
    return gl.convert_layout(found, gl.SliceLayout(1, S)) != 0
