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
        "kernels/ffn/gelu.py",
        "return x * normal_cdf(x)",
        "return x * logistic_of_cubic(x)[0]",
        _FFN + "linear_gelu",
    ),
    Mutant(
        "ffn-density-dropped-from-the-derivative",
        "kernels/ffn/gelu.py",
        "cdf + x * density",
        "cdf",
        _FFN + "linear_gelu",
    ),
    Mutant(
        "ffn-bias-dropped",
        "kernels/ffn/forward.py",
        "pre += bias.to(tl.float32)[None, :]",
        "pre += 0.0 * bias.to(tl.float32)[None, :]",
        _FFN + "linear_gelu",
    ),
    Mutant(
        "ffn-last-ragged-step-of-a-product-skipped",
        "kernels/ffn/gemm.py",
        "in_k = ks < k_end",
        "in_k = ks < k_end - k_end % block_k",
        _FFN + "any_size",
    ),
    Mutant(
        "ffn-dropout-mask-differs-in-backward",
        "kernels/ffn/elementwise.py",
        "dy = drop(dy, Seed, offs_m, offs_n, drop_threshold, keep_scale)",
        "dy = drop(dy, Seed, offs_m + 1, offs_n, drop_threshold, keep_scale)",
        _FFN + "dropout_and_residual",
    ),
    Mutant(
        "ffn-dropout-not-rescaled",
        "kernels/ffn/forward.py",
        "return tl.where(keep, tile * keep_scale, 0.0)",
        "return tl.where(keep, tile, 0.0)",
        _FFN + "dropout_and_residual",
    ),
    Mutant(
        "ffn-parts-of-a-sum-past-the-first-block-lost",
        "kernels/ffn/elementwise.py",
        "tl.range(0, count, block_p)",
        "tl.range(0, tl.minimum(count, block_p), block_p)",
        _FFN + "long_sums_and_chunks",
    ),
    # --- products in TF32 ---------------------------------------------------------------------------------------------
    Mutant(
        "ffn-tf32-second-operand-truncated",
        "kernels/ffn/gemm.py",
        "b = tl.load(b_columns + ks[:, None] * stride_bk, mask=in_k[:, None] & (offs_n < N)[None, :], other=0.0)\n"
        "a, b = dot_operand(a, precision), dot_operand(b, precision)",
        "b = tl.load(b_columns + ks[:, None] * stride_bk, mask=in_k[:, None] & (offs_n < N)[None, :], other=0.0)\n"
        "a = dot_operand(a, precision)",
        _PRECISION + "ffn",
        where="product_tile",
    ),
    # --- between torch and the kernels --------------------------------------------------------------------------------
    Mutant(
        "ffn-backward-overwrites-for-all-of-vmap",
        "kernels/ffn/op.py",
        "plain((pre, dout))",
        "type(pre) is Tensor",
        _TRANSFORMS + "batched_gradients_of_a_graph_that_dies",
        where="_dies_with_this_backward",
    ),
)
