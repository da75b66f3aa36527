"""Device code: GELU and its derivative, made of multiply-adds, one exp2 and (tanh form) one rsqrt.

Hendrycks and Gimpel 2016, "Gaussian Error Linear Units (GELUs)", arXiv 1606.08415:

    exact  gelu(x) = x · Φ(x),                  Φ the standard normal distribution function
    tanh   gelu(x) = x · σ(2 √(2/π) (x + 0.044715 x³)) = 0.5 x (1 + tanh(√(2/π) (x + 0.044715 x³)))

Everything computes in float32. As in torch, gelu(-inf) is NaN (-inf · 0), and so are the derivatives at ±inf.
"""

import triton
import triton.language as tl


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


@triton.jit
def gelu(x, tanh: tl.constexpr):
    """gelu(x), elementwise; x float32 of any shape."""
    if tanh:
        sigma, _ = logistic_of_cubic(x)
        return x * sigma
    else:
        return x * normal_cdf(x)


@triton.jit
def gelu_and_derivative(x, tanh: tl.constexpr):
    """(gelu(x), gelu'(x)), elementwise; x float32 of any shape."""
    if tanh:
        # gelu' = σ + x σ (1 - σ) k', k' = 2 √(2/π) (1 + 3 · 0.044715 x²); x² would overflow where σ (1 - σ) is 0
        sigma, slope = logistic_of_cubic(x)
        x_slope = x * slope
        return x * sigma, sigma + 1.5957691216 * x_slope + (x_slope * x) * (0.2140644488 * x)
    else:
        cdf = normal_cdf(x)
        density = 0.3989422804014327 * tl.exp2(-0.7213475204444817 * x * x)  # exp(-x²/2) / √(2π)
        return x * cdf, cdf + x * density
