"""Device code: LayerNorm forward of rows that fit into a program's registers only as they are stored.

A program has 65536 registers: as float32, a row of 65536 elements would fill them all. Kept in its own dtype it takes
half of that in bfloat16 and float16, and each tile is converted twice, for the statistics and for the result. So x is
read once. A float32 row leaves no room for the computation beyond about 50000 elements; the compiler then moves up to an
eighth of the row to the L1 cache and back.
"""

import triton
import triton.language as tl

from .forward import elements, row_indices, store_y
from .lanes import add_to_lanes, merge_lanes


@triton.jit
def convert_again(h, zero):
    """h in float32; for an h that was converted before, whose float32 copy would otherwise be kept in registers.

    The compiler cannot know that `zero` is one, and so takes these bits for new ones.
    """
    if h.dtype.primitive_bitwidth == 16:
        h = (h.to(tl.int16, bitcast=True) ^ zero.to(tl.int16)).to(h.dtype, bitcast=True)
    return h.to(tl.float32)


@triton.jit(do_not_specialize=["M", "zero"])
def layer_norm_forward_held(
    X, Weight, Bias, Y, Stats, M, stride_xm, eps, zero,
    N: tl.constexpr, aligned: tl.constexpr, block_n: tl.constexpr, tiles: tl.constexpr,
):  # fmt: skip
    """Arguments of `layer_norm_forward`; one program a row, which it holds as `tiles` tiles of block_n elements."""
    row = row_indices(tl.program_id(0), 1)  # (1, 1)
    stride_xm = elements(stride_xm, aligned)
    lane = tl.arange(0, block_n)[None, :]  # (1, block_n)
    mean_lane = tl.zeros((1, block_n), tl.float32)
    m2_lane = tl.zeros((1, block_n), tl.float32)
    held = ()  # tiles x (1, block_n), in x's dtype
    for i in tl.static_range(tiles):
        cols = i * block_n + lane
        h = tl.load(X + row * stride_xm + cols, mask=cols < N, other=0.0)
        held = held + (h,)
        mean_lane, m2_lane = add_to_lanes(mean_lane, m2_lane, h.to(tl.float32), cols < N, 1.0 / (i + 1))
    mean, rstd = merge_lanes(mean_lane, m2_lane, eps, N, block_n)
    tl.store(Stats + row, mean)
    tl.store(Stats + M + row, rstd)
    for i in tl.static_range(tiles):
        cols = i * block_n + lane
        xhat = (convert_again(held[i], zero) - mean) * rstd  # (1, block_n)
        store_y(Y, Weight, Bias, row * N + cols, cols, xhat, cols < N, N)
