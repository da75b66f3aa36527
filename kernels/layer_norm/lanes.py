"""Device code: mean and rstd of a row that arrives tile by tile.

Each of `block_n` lanes sees every block_n-th element, and keeps their mean and their sum of squared deviations up to
date (Welford, Technometrics 1962); at the end the lanes are merged (Chan, Golub and LeVeque 1979). Neither loses digits
at mean 1000 and variance 1, as E[h²] - E[h]² would.
"""

import triton
import triton.language as tl

from ..device.sums import sum_of_products


@triton.jit
def add_to_lanes(mean_lane, m2_lane, h, mask, inverse_count):
    """(mean_lane, m2_lane), each (1, block_n) float32, after one more element a lane; masked lanes stay as they are.

    inverse_count    1 / the number of elements that a lane has seen, h included: its tile's number, counted from 1
    """
    d = h - mean_lane
    mean_lane = tl.where(mask, mean_lane + d * inverse_count, mean_lane)
    m2_lane = tl.where(mask, m2_lane + d * (h - mean_lane), m2_lane)
    return mean_lane, m2_lane


@triton.jit
def merge_lanes(mean_lane, m2_lane, eps, N: tl.constexpr, block_n: tl.constexpr):
    """(mean, rstd) of the row of N elements, each (1, 1) float32."""
    lane = tl.arange(0, block_n)[None, :]  # (1, block_n)
    count = ((N + block_n - 1 - lane) // block_n).to(tl.float32)  # elements of each lane
    mean = sum_of_products(count, mean_lane, axis=1, keep_dims=True) / N
    # A second look takes back the rounding of the sum, so that a constant row gives exactly the bias.
    mean += sum_of_products(count, mean_lane - mean, axis=1, keep_dims=True) / N
    spread = mean_lane - mean
    m2 = tl.sum(m2_lane + count * spread * spread, axis=1, keep_dims=True)
    return mean, tl.rsqrt(m2 / N + eps)
