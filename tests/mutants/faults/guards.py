"""Faults of what the host looks at before a launch: how far strides reach, which transforms of torch are active."""

from __future__ import annotations

from ..plant import Mutant

_WIDE = "tests/kernels/attention/test_extremes.py::test_every_wide_argument_makes_offsets_inside_a_tile_int64"
_CAPTURED = "tests/kernels/test_transforms.py::test_a_result_of_captured_tensors_may_be_written_into"
_TRANSFORMS = "tests/fastgpt/model/test_transforms.py::test_"

MUTANTS = (
    # --- offsets inside a tile that pass 2^31 -------------------------------------------------------------------------
    Mutant(
        "guard-of-wide-rows-off",
        "kernels/attention/launch.py",
        "x.stride(2) >= WIDE_STRIDE",
        "False",
        _WIDE,
    ),
    Mutant(
        "guard-of-wide-columns-off",
        "kernels/attention/launch.py",
        "x.stride(3) >= WIDE_STRIDE",
        "False",
        _WIDE,
    ),
    Mutant(
        "guard-of-wide-keys-off",
        "kernels/attention/launch.py",
        "has_wide_strides(q, k, v, out)",
        "has_wide_strides(q, out)",
        _WIDE,
    ),
    Mutant(
        "guard-of-wide-strides-off-in-the-backward",
        "kernels/attention/launch.py",
        "has_wide_strides(q, k, v, d_out, out)",
        "False",
        _WIDE,
    ),
    Mutant(
        "guard-of-wide-gradients-off",
        "kernels/attention/launch.py",
        "has_wide_strides(q, k, v, d_out, out)",
        "has_wide_strides(q, k, v, out)",
        _WIDE,
    ),
    Mutant(
        "guard-of-wide-gradients-of-lse-off",
        "kernels/attention/launch.py",
        "wide or (d_lse is not None and d_lse.stride(2) >= WIDE_STRIDE)",
        "wide",
        _WIDE,
    ),
    Mutant(
        "guard-of-strides-much-too-late",
        "kernels/attention/launch.py",
        "2**22",
        "2**24",
        _WIDE,
    ),
    # --- torch.func and forward mode ----------------------------------------------------------------------------------
    Mutant(
        "guard-of-transforms-off-at-a-launch",
        "kernels/_library.py",
        "torch._C._are_functorch_transforms_active()",
        "False",
        _CAPTURED,
    ),
    Mutant(
        "guard-of-transforms-off-for-torchs-attention",
        "kernels/_transforms.py",
        "torch._C._are_functorch_transforms_active()",
        "False",
        _TRANSFORMS + "second_derivatives",
    ),
    Mutant(
        "guard-of-transforms-off-in-a-gpt",
        "fastgpt/model/blocks.py",
        "_transforms.are_on()",
        "False",
        _TRANSFORMS + "forward_mode",
    ),
    Mutant(
        "guard-of-values-off-under-transforms",
        "kernels/support.py",
        "not torch._C._functorch.is_functorch_wrapped_tensor(tensor)",
        "True",
        _TRANSFORMS + "grad_and_per_sample_gradients",
    ),
    Mutant(
        "guard-of-logits-of-a-transform-that-is-over-off",
        "fastgpt/model/output.py",
        "torch._C._functorch.is_functorch_wrapped_tensor(tensor)",
        "False",
        "tests/fastgpt/model/test_output.py::test_inside_of_torch_func_and_after",
    ),
)
