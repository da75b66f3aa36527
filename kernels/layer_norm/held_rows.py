"""Device code: LayerNorm of rows that fit into a program's registers only as they are stored.

A program has 65536 registers: as float32, a row of 65536 elements would fill them all. Kept in its own dtype it takes
half of that in bfloat16 and float16, and each tile is converted twice, for the sums and for the result. So it is read
once. Forward: x; a float32 row leaves no room for the computation beyond about 50000 elements, and the compiler then
moves up to an eighth of the row to the L1 cache and back. Backward: h and dy, beside the sums for dweight and dbias.
"""

import triton
import triton.language as tl

from .backward import store_input_gradients
from .forward import in_elements, row_indices, store_y
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
    stride_xm = in_elements(stride_xm, aligned)
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


@triton.jit
def load_weight(Weight, cols, mask):
    """float32 (1, block_n), or 1 where there is no weight. Loaded wherever it is needed: L1 has the room to hold it."""
    weight = 1.0
    if Weight is not None:
        weight = tl.load(Weight + cols, mask=mask, other=0.0).to(tl.float32)
    return weight


@triton.jit(do_not_specialize=["M", "threshold", "zero"])
def layer_norm_backward_held(
    DY, DHout, H, Weight, Stats, Seed, DH, DX, Partials,
    M, stride_dym, stride_dhm, stride_hm, threshold, scale, zero,
    N: tl.constexpr, need_dweight: tl.constexpr, need_dbias: tl.constexpr, aligned: tl.constexpr,
    block_n: tl.constexpr, tiles: tl.constexpr, stages: tl.constexpr,
):  # fmt: skip
    """Arguments of `layer_norm_backward`; the programs walk over single rows, each held as `tiles` tiles of block_n."""
    program, programs = tl.program_id(0), tl.num_programs(0)
    lane = tl.arange(0, block_n)[None, :]  # (1, block_n)
    stride_dym, stride_hm = in_elements(stride_dym, aligned), in_elements(stride_hm, aligned)
    stride_dhm = in_elements(stride_dhm, aligned)
    dweight, dbias = (), ()  # tiles x (1, block_n) float32, over all rows of this program
    for _ in tl.static_range(tiles):
        dweight = dweight + (tl.zeros((1, block_n), tl.float32),)
        dbias = dbias + (tl.zeros((1, block_n), tl.float32),)

    for m in tl.range(program, M, programs, num_stages=stages):
        row = row_indices(m, 1)  # (1, 1)
        mean = tl.load(Stats + row)
        rstd = tl.load(Stats + M + row)
        h, dy = (), ()  # tiles x (1, block_n), in their own dtypes
        sum_gx = tl.zeros((1, block_n), tl.float32)
        sum_g = tl.zeros((1, block_n), tl.float32)
        for i in tl.static_range(tiles):
            cols = i * block_n + lane
            h = h + (tl.load(H + row * stride_hm + cols, mask=cols < N, other=0.0),)
            dy = dy + (tl.load(DY + row * stride_dym + cols, mask=cols < N, other=0.0),)
            g = dy[i].to(tl.float32) * load_weight(Weight, cols, cols < N)  # 0 past the last column
            sum_gx += g * ((h[i].to(tl.float32) - mean) * rstd)
            sum_g += g
        mean_gx = tl.sum(sum_gx, axis=1, keep_dims=True) / N  # (1, 1)
        mean_g = tl.sum(sum_g, axis=1, keep_dims=True) / N
        dweight_before, dbias_before = dweight, dbias
        dweight, dbias = (), ()
        for i in tl.static_range(tiles):
            cols = i * block_n + lane
            mask = cols < N
            xhat = tl.where(mask, (convert_again(h[i], zero) - mean) * rstd, 0.0)  # (1, block_n)
            g = convert_again(dy[i], zero)
            dweight = dweight + (dweight_before[i] + g * xhat,)
            dbias = dbias + (dbias_before[i] + g,)
            if (DH is not None) or (DX is not None):
                g *= load_weight(Weight, cols, mask)
                dh = (g - mean_g - xhat * mean_gx) * rstd
                store_input_gradients(dh, DHout, Seed, DH, DX, row, cols, mask, stride_dhm, threshold, scale, N)

    for i in tl.static_range(tiles):
        cols = i * block_n + lane
        if need_dweight:
            tl.store(Partials + program * N + cols, dweight[i], mask=cols < N)
        if need_dbias:
            which = need_dweight * programs + program  # dbias lies behind dweight, if that is there
            tl.store(Partials + which * N + cols, dbias[i], mask=cols < N)
