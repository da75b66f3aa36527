"""Faults of the FFN."""

from __future__ import annotations

from ..places import argument, call, item, iterated, operand, value
from ..plant import Mutant

_FFN = "tests/kernels/ffn/test_values.py::test_"
_PRECISION = "tests/kernels/test_precision.py::test_"
_TRANSFORMS = "tests/kernels/test_transforms.py::test_"

MUTANTS = (
    # --- FFN ----------------------------------------------------------------------------------------------------------
    Mutant(
        "ffn-tanh-for-erf",
        "ffn.gelu",
        call("normal_cdf").becomes("logistic_of_cubic(x)[0]"),
        _FFN + "linear_gelu",
    ),
    Mutant(
        "ffn-density-dropped-from-the-derivative",
        "ffn.gelu_and_derivative",
        item("density").becomes("cdf"),
        _FFN + "linear_gelu",
    ),
    Mutant("ffn-bias-dropped", "ffn.up_kernel", value("pre", "bias").becomes("0.0 * it"), _FFN + "linear_gelu"),
    Mutant(
        "ffn-last-ragged-step-of-a-product-skipped",
        "ffn.matmul_tile",
        value("in_k").operand("K").becomes("K - K % BLOCK_K"),
        _FFN + "any_size",
    ),
    Mutant(
        "ffn-dropout-mask-differs-in-backward",
        "ffn.prepare_grad_kernel",
        argument(3, "offs_m").becomes("it + 1"),
        _FFN + "dropout_and_residual",
    ),
    Mutant("ffn-dropout-not-rescaled", "ffn.drop", operand("scale").dropped(), _FFN + "dropout_and_residual"),
    Mutant(
        "ffn-parts-of-a-sum-past-the-first-block-lost",
        "device.sum_partials_kernel",
        iterated("P").argument(2).becomes("tl.minimum(it, BLOCK_P)"),
        _FFN + "long_sums_and_chunks",
    ),
    # --- products in TF32 ---------------------------------------------------------------------------------------------
    Mutant(
        "ffn-tf32-second-operand-truncated",
        "ffn.matmul_tile",
        value("b", "dot_operand", nth=-1).unwrapped(),
        _PRECISION + "ffn",
    ),
    # --- between torch and the kernels --------------------------------------------------------------------------------
    Mutant(
        "ffn-backward-overwrites-for-all-of-vmap",
        "ffn._dies_with_this_backward",
        operand("dout").becomes("type(pre) is Tensor"),
        _TRANSFORMS + "batched_gradients_of_a_graph_that_dies",
    ),
)
