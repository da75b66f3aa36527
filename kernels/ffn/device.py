"""Device code that the FFN's kernels share: GELU and its derivative, dropout, and the product of two matrices.

GELU is made of multiply-adds, one exp2 and (tanh form) one rsqrt. Hendrycks and Gimpel 2016, "Gaussian Error Linear
Units (GELUs)", arXiv 1606.08415:

    exact  gelu(x) = x · Φ(x),                  Φ the standard normal distribution function
    tanh   gelu(x) = x · σ(2 √(2/π) (x + 0.044715 x³)) = 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))

Everything computes in float32. As in torch, gelu(-inf) is NaN (-inf · 0), and so are the derivatives at ±inf.
"""

import triton
import triton.language as tl

from ..device.dropout import keep_mask
from ..device.tf32 import dot_operand

# ------------------------------------------------------------------------------------------------------------- GELU


@triton.jit
def gelu(x, IS_TANH: tl.constexpr):
    """gelu(x), elementwise; x float32 of any shape."""
    if IS_TANH:
        sigma, _ = logistic_of_cubic(x)
        return x * sigma
    else:
        return x * normal_cdf(x)


@triton.jit
def gelu_and_derivative(x, IS_TANH: tl.constexpr):
    """(gelu(x), gelu'(x)), elementwise; x float32 of any shape."""
    if IS_TANH:
        # gelu' = σ + x σ (1 - σ) k', k' = 2 √(2/π) (1 + 3 · 0.044715 x²); x² would overflow where σ (1 - σ) is 0
        sigma, slope = logistic_of_cubic(x)
        x_slope = x * slope
        return x * sigma, sigma + 1.5957691216 * x_slope + (x_slope * x) * (0.2140644488 * x)
    else:
        cdf = normal_cdf(x)
        density = 0.3989422804014327 * tl.exp2(-0.7213475204444817 * x * x)  # exp(-x²/2) / √(2π)
        return x * cdf, cdf + x * density


@triton.jit
def normal_cdf(x):
    """Φ(x), within 9e-8 of the truth for every float32 x: 1.8e-8 from the polynomial, the rest from rounding.

    A GPU's ex2.approx adds at most 2^-22 of Φ(-|x|) <= 1/2.

    Φ(-t) = 2^Q(t) for t >= 0, with Q(0) = -1 exactly, so that Φ(±0) = 1/2. Q is the polynomial of degree 8 that
    minimises the largest |2^Q(t) - Φ(-t)| · max(t, 1); `tests/kernels/ffn/fit_gelu.py` derives it. Its leading
    coefficient is negative and it falls for all t >= 0, hence 2^Q(t) vanishes in the tail without a clamp.
    """
    t = tl.abs(x)
    q = -2.334948931093095e-06
    q = q * t + 3.3737815101630986e-05
    q = q * t - 0.00016129383584484458
    q = q * t - 0.0001917035406222567
    q = q * t + 0.007126864977180958
    q = q * t - 0.05253361165523529
    q = q * t - 0.4591982960700989
    q = q * t - 1.1511059999465942
    lower = tl.exp2(q * t - 1.0)  # Φ(-|x|)
    return tl.where(x > 0, 1.0 - lower, lower)


@triton.jit
def logistic_of_cubic(x):
    """σ(k) and σ(k) (1 - σ(k)) for k = 2 √(2/π) (x + 0.044715 x³), without cancellation in either tail.

    E = exp(-|k|) is at most 1: nothing overflows, and 1 / (1 + E) is the square of an rsqrt of a number in [1, 2],
    with one step of Newton's method, which is shorter than a division.
    """
    # 2 √(2/π) log2(e) = 2.302208198, and times 0.044715: 0.1029432397
    e = tl.exp2(-tl.abs(x) * (2.302208198 + 0.1029432397 * x * x))
    root = tl.rsqrt(1.0 + e)
    upper = root * root
    upper += upper * (1.0 - (1.0 + e) * upper)  # σ(|k|)
    lower = e * upper  # σ(-|k|)
    return tl.where(x > 0, upper, lower), upper * lower


# ---------------------------------------------------------------------------------------------------------- dropout


@triton.jit
def drop(tile, dropout, row, column):
    """dropout of a tile: the elements that survive times 1 / (1 - p), 0 elsewhere; row (m, 1), column (1, n)."""
    keep = keep_mask(tl.load(dropout.Seed), tl.load(dropout.Seed + 1), row * 0, row, column, dropout.threshold)
    return tl.where(keep, tile * dropout.scale, 0.0)


# --------------------------------------------------------------------------------------------------------- products


@triton.jit
def tile_at(index, num_m, num_n, GROUP_M: tl.constexpr):
    """(tile row, tile column) of the index-th tile: down columns inside bands of GROUP_M tile rows.

    Programs that run together then share rows of A and columns of B, and find them in L2.
    """
    tiles_in_band = GROUP_M * num_n
    first_m = (index // tiles_in_band) * GROUP_M
    rows = tl.minimum(num_m - first_m, GROUP_M)
    return first_m + (index % tiles_in_band) % rows, (index % tiles_in_band) // rows


@triton.jit
def matmul_tile(A, B, stride, M, N, K, m0, n0, B_IS_NK: tl.constexpr, C: tl.constexpr):
    """(block_m, block_n) float32: rows m0.. and columns n0.. of A (M, K) · B (K, N).

    A, B come by pointers and `stride`, any layout and alignment; or as descriptors (sm_90 and newer) over the memory as
    it lies: B_IS_NK says that it holds B's transpose (N, K), whose tiles are turned on the way into the tensor cores.
    """
    BLOCK_M: tl.constexpr = C.block_m
    BLOCK_N: tl.constexpr = C.block_n
    BLOCK_K: tl.constexpr = C.block_k
    PRECISION: tl.constexpr = C.precision
    acc = tl.zeros((BLOCK_M, BLOCK_N), tl.float32)
    if C.is_tma:
        for k in tl.range(0, K, BLOCK_K):
            a = A.load([m0, k])  # (block_m, block_k)
            if B_IS_NK:
                b = B.load([n0, k]).T  # (block_k, block_n)
            else:
                b = B.load([k, n0])
            a, b = dot_operand(a, PRECISION), dot_operand(b, PRECISION)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
    else:
        offs_m = m0 + tl.arange(0, BLOCK_M)
        offs_n = n0 + tl.arange(0, BLOCK_N)
        offs_k = tl.arange(0, BLOCK_K)
        # int64: rows times stride passes 2^31 in large batches
        a_rows = A + offs_m.to(tl.int64)[:, None] * stride.am  # (block_m, 1)
        b_columns = B + offs_n.to(tl.int64)[None, :] * stride.bn  # (1, block_n)
        for k in tl.range(0, K, BLOCK_K):
            ks = k + offs_k
            in_k = ks < K
            ks = ks.to(tl.int64)
            a = tl.load(a_rows + ks[None, :] * stride.ak, mask=(offs_m < M)[:, None] & in_k[None, :], other=0.0)
            b = tl.load(b_columns + ks[:, None] * stride.bk, mask=in_k[:, None] & (offs_n < N)[None, :], other=0.0)
            a, b = dot_operand(a, PRECISION), dot_operand(b, PRECISION)
            acc = tl.dot(a, b, acc, input_precision=PRECISION)
    return acc


@triton.jit
def band_of(tile, PART: tl.constexpr, PARTS: tl.constexpr):
    """One of PARTS (1, 2, 4 or 8) equal bands of a tile's columns.

    Epilogues work on one band after the other: fewer values are alive at a time, and the staging buffers of the stores
    are smaller, which leaves room for a second program on the multiprocessor. No data moves between threads.
    """
    if PARTS == 1:
        return tile
    else:
        BLOCK_M: tl.constexpr = tile.shape[0]
        HALF: tl.constexpr = tile.shape[1] // 2
        left, right = tl.split(tl.permute(tl.reshape(tile, (BLOCK_M, 2, HALF)), (0, 2, 1)))
        return band_of(left if PART < PARTS // 2 else right, PART % (PARTS // 2), PARTS // 2)


@triton.jit
def load_band(Base, stride, M, N, m0, n0, C: tl.constexpr):
    """(block_m, block_n / parts) float32 of a matrix (M, N) with contiguous rows, 0 outside of it."""
    BLOCK_M: tl.constexpr = C.block_m
    BAND: tl.constexpr = C.block_n // C.parts
    if C.is_tma_out:
        band = Base.load([m0, n0])
    else:
        offs_m = m0 + tl.arange(0, BLOCK_M)[:, None]
        offs_n = n0 + tl.arange(0, BAND)[None, :]
        band = tl.load(Base + offs_m.to(tl.int64) * stride + offs_n, mask=(offs_m < M) & (offs_n < N), other=0.0)
    return band.to(tl.float32)


@triton.jit
def store_band(Base, stride, M, N, m0, n0, band, C: tl.constexpr):
    """Write what `load_band` would read."""
    BLOCK_M: tl.constexpr = C.block_m
    BAND: tl.constexpr = C.block_n // C.parts
    if C.is_tma_out:
        Base.store([m0, n0], band.to(Base.dtype))
    else:
        offs_m = m0 + tl.arange(0, BLOCK_M)[:, None]
        offs_n = n0 + tl.arange(0, BAND)[None, :]
        address = Base + offs_m.to(tl.int64) * stride + offs_n
        tl.store(address, band.to(Base.dtype.element_ty), mask=(offs_m < M) & (offs_n < N))
