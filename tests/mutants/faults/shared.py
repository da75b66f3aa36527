"""Faults of what the families share."""

from __future__ import annotations

from ..plant import Mutant

_PRECISION = "tests/kernels/test_precision.py::test_"
_SPECIAL = "tests/kernels/test_special_tensors.py::test_"
_TRANSFORMS = "tests/kernels/test_transforms.py::test_"

MUTANTS = (
    # --- dropout ------------------------------------------------------------------------------------------------------
    Mutant(
        "dropout-keeps-what-it-should-drop",
        "kernels/device/dropout.py",
        "return word >= threshold",
        "return word < threshold",
        "tests/kernels/test_dropout.py::test_mask_is_philox",
    ),
    # --- products in TF32 ---------------------------------------------------------------------------------------------
    Mutant(
        "tf32-operands-truncated",
        "kernels/device/tf32.py",
        "return x + power * 0.00048828125",
        "return x",
        _PRECISION + "one_product",
    ),
    Mutant(
        "tf32-rounds-a-quarter-of-a-unit",
        "kernels/device/tf32.py",
        "power * 0.00048828125",
        "power * 0.000244140625",
        _PRECISION + "rounding_of_every_kind_of_number",
    ),
    Mutant(
        "tf32-rounding-by-integers-loses-nan",
        "kernels/device/tf32.py",
        "return x + power * 0.00048828125",
        "return (x.to(tl.uint32, bitcast=True) + 0x1000).to(tl.float32, bitcast=True)",
        _PRECISION + "rounding_keeps_what_is_not_a_number",
    ),
    Mutant(
        "tf32-rounds-ieee-products-too",
        "kernels/device/tf32.py",
        'PRECISION == "tf32"',
        'PRECISION == "tf32" or PRECISION == "ieee"',
        _PRECISION + "one_product",
        where="dot_operand",
    ),
    Mutant(
        "tf32-asked-by-the-getter-that-raises",
        "kernels/_runtime.py",
        'torch.backends.cuda.matmul.fp32_precision != "tf32"',
        "not torch.backends.cuda.matmul.allow_tf32",
        _PRECISION + "every_way_to_set_torchs_switch",
    ),
    Mutant(
        "tf32-on-turing",
        "kernels/_runtime.py",
        "target_of(tensor).capability >= 80",
        "target_of(tensor).capability >= 75",
        _PRECISION + "gpus_without_tf32",
        where="dot_precision",
    ),
    # --- between torch and the kernels --------------------------------------------------------------------------------
    Mutant(
        "operator-reads-the-storage-of-lazy-views",
        "kernels/_library.py",
        "if _dispatch_keys(arg).raw_repr() not in _PLAIN:\n    return False",
        "if arg.is_meta:\n    return False",
        _SPECIAL + "one_negated_argument",
    ),
    Mutant(
        "operator-loses-tangents",
        "kernels/_transforms.py",
        "isinstance(arg, Tensor) and forward_ad.unpack_dual(arg).tangent is not None",
        "isinstance(arg, Tensor) and arg.requires_grad and forward_ad.unpack_dual(arg).tangent is not None",
        _TRANSFORMS + "forward_mode_is_refused",
        where="refuse_tangents",
    ),
    Mutant(
        "operator-not-told-of-forward-mode",
        "kernels/_library.py",
        "torch._C._are_functorch_transforms_active() or forward_ad._current_level >= 0",
        "torch._C._are_functorch_transforms_active()",
        _TRANSFORMS + "forward_mode_is_refused",
        where="takes_detour",
    ),
    Mutant(
        "operator-detours-though-switched-off",
        "kernels/_library.py",
        "not detour",
        "False",
        "tests/kernels/test_library.py::test_the_switch_sends_every_call_through_torch",
        where="takes_detour",
    ),
    Mutant(
        "operator-batches-along-the-wrong-dimension",
        "kernels/_transforms.py",
        "a.select(d, i)",
        "a.transpose(0, d).select(0, i)",
        _TRANSFORMS + "vmap_is_a_loop",
    ),
)
