"""Faults of what the host looks at before a launch: how far strides reach, which transforms of torch are active."""

from __future__ import annotations

from ..places import call, comparison, condition, literal, operand, operation, value
from ..plant import Mutant

_WIDE = "tests/kernels/attention/test_extremes.py::test_every_wide_argument_makes_offsets_inside_a_tile_int64"
_CAPTURED = "tests/kernels/test_transforms.py::test_a_result_of_captured_tensors_may_be_written_into"
_TRANSFORMS = "tests/fastgpt/model/test_transforms.py::test_"

MUTANTS = (
    # --- offsets inside a tile that pass 2^31 -------------------------------------------------------------------------
    Mutant("guard-of-wide-rows-off", "attention.has_wide_strides", comparison(nth=1).never(), _WIDE),
    Mutant("guard-of-wide-columns-off", "attention.has_wide_strides", comparison(nth=-1).never(), _WIDE),
    Mutant(
        "guard-of-wide-keys-off",
        "attention.launch.forward",
        call("has_wide_strides").becomes("has_wide_strides(q)"),
        _WIDE,
    ),
    Mutant(
        "guard-of-wide-strides-off-in-the-backward",
        "attention.backward",
        value("is_wide").never(),
        _WIDE,
    ),
    Mutant(
        "guard-of-wide-gradients-off",
        "attention.backward",
        value("is_wide").argument(4).dropped(),
        _WIDE,
    ),
    Mutant(
        "guard-of-wide-gradients-of-lse-off",
        "attention.backward",
        value("is_wide_dlse").never(),
        _WIDE,
    ),
    Mutant("guard-of-strides-much-too-late", "attention.WIDE_STRIDE", literal(22).becomes("24"), _WIDE),
    # --- torch.func and forward mode ----------------------------------------------------------------------------------
    Mutant("guard-of-transforms-off-at-a-launch", "kernels.takes_detour", operand(5).never(), _CAPTURED),
    Mutant(
        "guard-of-transforms-off-for-torchs-attention",
        "kernels.are_on",
        operand("_C").never(),
        _TRANSFORMS + "second_derivatives",
    ),
    Mutant("guard-of-transforms-off-in-a-gpt", "model._sdpa", call("are_on").never(), _TRANSFORMS + "forward_mode"),
    Mutant(
        "guard-of-values-off-under-transforms",
        "kernels.can_be_read",
        operation("not", "torch._C").always(),
        _TRANSFORMS + "grad_and_per_sample_gradients",
    ),
    Mutant(
        "guard-of-logits-of-a-transform-that-is-over-off",
        "model._outside_of_transforms",
        condition("tensor").never(),
        "tests/fastgpt/model/test_output.py::test_inside_of_torch_func_and_after",
    ),
)
