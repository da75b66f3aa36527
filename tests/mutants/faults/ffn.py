"""Faults of the FFN."""

from __future__ import annotations

from ..plant import Mutant

_FFN = "tests/kernels/ffn/test_values.py::test_"
_PRECISION = "tests/kernels/test_precision.py::test_"
_TRANSFORMS = "tests/kernels/test_transforms.py::test_"

MUTANTS = (
    # --- FFN ----------------------------------------------------------------------------------------------------------
    Mutant(
        "ffn-tanh-for-erf",
        "ffn/gelu.py",
        "return x * normal_cdf(x)",
        "return x * logistic_of_cubic(x)[0]",
        _FFN + "linear_gelu",
    ),
    Mutant(
        "ffn-density-dropped-from-the-derivative",
        "ffn/gelu.py",
        "cdf + x * density",
        "cdf",
        _FFN + "linear_gelu",
    ),
    Mutant(
        "ffn-bias-dropped",
        "ffn/forward.py",
        "pre += bias.to(tl.float32)[None, :]",
        "pre += 0.0 * bias.to(tl.float32)[None, :]",
        _FFN + "linear_gelu",
    ),
    Mutant(
        "ffn-last-ragged-step-of-a-product-skipped",
        "ffn/gemm.py",
        "in_k = ks < k_end",
        "in_k = ks < k_end - k_end % block_k",
        _FFN + "any_size",
    ),
    Mutant(
        "ffn-dropout-mask-differs-in-backward",
        "ffn/elementwise.py",
        "dy = drop(dy, Seed, offs_m, offs_n, drop_threshold, keep_scale)",
        "dy = drop(dy, Seed, offs_m + 1, offs_n, drop_threshold, keep_scale)",
        _FFN + "dropout_and_residual",
    ),
    Mutant(
        "ffn-dropout-not-rescaled",
        "ffn/forward.py",
        "return tl.where(keep, tile * keep_scale, 0.0)",
        "return tl.where(keep, tile, 0.0)",
        _FFN + "dropout_and_residual",
    ),
    Mutant(
        "ffn-parts-of-a-sum-past-the-first-block-lost",
        "ffn/elementwise.py",
        "for p0 in tl.range(0, count, block_p):",
        "for p0 in tl.range(0, tl.minimum(count, block_p), block_p):",
        _FFN + "long_sums_and_chunks",
    ),
    # --- products in TF32 ---------------------------------------------------------------------------------------------
    Mutant(
        "ffn-tf32-second-operand-truncated",
        "ffn/gemm.py",
        "other=0.0)\n            a, b = dot_operand(a, precision), dot_operand(b, precision)",
        "other=0.0)\n            a = dot_operand(a, precision)",
        _PRECISION + "ffn",
    ),
    # --- between torch and the kernels --------------------------------------------------------------------------------
    Mutant(
        "ffn-backward-overwrites-for-all-of-vmap",
        "ffn/op.py",
        "and plain((pre, dout))",
        "and type(pre) is Tensor",
        _TRANSFORMS + "batched_gradients_of_a_graph_that_dies",
    ),
)
