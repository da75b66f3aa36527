"""Derives the polynomial of `fastgpt.kernels.ffn.device.normal_cdf`: `python -m tests.kernels.ffn.fit_gelu`.

For t >= 0, Φ(-t) = 2^Q(t) with Q(0) = -1. We look for Q(t) = -1 + t P(t), P of degree 7, that minimises

    max over t of  |2^Q(t) - Φ(-t)| · max(t, 1)

so that Φ and x Φ(x) are both right in the absolute sense. To first order 2^Q - Φ = ln 2 · Φ · (Q - log2 Φ), which makes
it a weighted linear minimax problem. Lawson's algorithm (1961) solves it: least squares whose weights are multiplied,
again and again, by the errors they leave. Beyond t = 7, Φ(-t) < 2e-12 and only the sign of the leading coefficient
matters, which for an even degree of Q comes out negative.
"""

import math

import numpy as np

DEGREE, END, POINTS, ROUNDS = 8, 7.0, 1000, 1500


def coefficients() -> np.ndarray:
    """Of Q, lowest power first: (-1, q1, ..., q8), float64."""
    t = END / 2 * (1 - np.cos(np.pi * (np.arange(POINTS) + 0.5) / POINTS))  # Chebyshev nodes of [0, END]
    tail = np.array([0.5 * math.erfc(x / math.sqrt(2)) for x in t])  # Φ(-t)
    goal = np.log2(tail) + 1
    basis = t[:, None] * np.polynomial.chebyshev.chebvander(2 * t / END - 1, DEGREE - 1)
    scale = math.log(2) * tail * np.maximum(t, 1)

    weights, best, least = np.full(POINTS, 1 / POINTS), None, np.inf
    for _ in range(ROUNDS):
        root = np.sqrt(weights) * scale
        solution = np.linalg.lstsq(basis * root[:, None], goal * root, rcond=None)[0]
        error = np.abs(scale * (basis @ solution - goal))
        if error.max() < least:
            best, least = solution, error.max()
        weights = weights * (error + 1e-4 * error.max())
        weights /= weights.sum()
    p = np.polynomial.Chebyshev(best, domain=[0, END]).convert(kind=np.polynomial.Polynomial).coef
    return np.concatenate([[-1.0], p])


if __name__ == "__main__":
    for power, q in enumerate(coefficients()):
        print(power, repr(float(np.float32(q))))
