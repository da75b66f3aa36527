"""`LayerNorm`: torch's nn.LayerNorm on the fused kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels
from ..kernels import _checks, _runtime, reference, support
from ..kernels._notice import say_once

IMPLEMENTATIONS = ("auto", "triton", "torch", "reference")


class LayerNorm(nn.LayerNorm):
    """nn.LayerNorm, argument for argument and parameter for parameter, on `fastgpt.kernels.layer_norm`.

    Constructor, parameters, state dict, repr and result dtypes (float32 under CUDA autocast) are those of the class it
    extends. A trained module is converted in place by `module.__class__ = LayerNorm`. It also takes inputs and
    parameters of different dtypes, such as bfloat16 and float32.

    Args:
        normalized_shape, eps, elementwise_affine, bias, device, dtype: as torch.nn.LayerNorm's.
        impl: "auto": the kernels where they can run; elsewhere (a CPU, float64, ...) torch, and the "fastgpt" log says
            why, once. "triton": the kernels, or an error that says what to do. "torch". "reference": plain PyTorch.

    Raises:
        TypeError: a normalized_shape that is not made of integers.
        ValueError: an `impl` that does not exist.
    """

    fastgpt_part = "norm"
    impl = "auto"  # of the class, so that modules converted by their __class__ have it

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        *,
        impl: str = "auto",
    ) -> None:
        if impl not in IMPLEMENTATIONS:
            raise ValueError(f"LayerNorm: impl must be one of {IMPLEMENTATIONS}, got {impl!r}")
        normalized_shape = _checks.check_sizes("LayerNorm", "normalized_shape", normalized_shape)
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        if impl != "auto":
            self.impl = impl

    def forward(self, input: Tensor) -> Tensor:
        """input (..., *normalized_shape) -> the same shape."""
        _checks.check_tensors("LayerNorm", 1, input=input)
        arguments: tuple[Any, ...] = (input, self.normalized_shape, self.weight, self.bias, self.eps)
        impl = self.impl
        if impl == "auto":
            reason = self._why_not(input)
            impl = "triton" if reason is None else "torch"
            if reason is not None:
                say_once(f"LayerNorm: torch's own implementation is used, because {reason}")
        if impl == "triton":
            return kernels.layer_norm(*arguments)
        return F.layer_norm(*arguments) if impl == "torch" else reference.layer_norm(*arguments)

    def _why_not(self, x: Tensor) -> str | None:
        """Why the kernels cannot take x and this module's parameters; None if they can."""
        if x.is_nested:
            return "nested tensors are not supported"
        if support.forward_mode_is_on():
            return "the kernels have no forward-mode derivative (jvp, jacfwd)"
        for tensor in (x, self.weight, self.bias):
            if tensor is not None and tensor.dtype not in support.KERNEL_DTYPES:
                return f"the kernels take float32, float16 and bfloat16, not {str(tensor.dtype).removeprefix('torch.')}"
        if torch.compiler.is_compiling():
            return _compiled_why_not(x.device.type)
        if x.device.type == "meta" or isinstance(x, torch._subclasses.FakeTensor):
            return None  # shapes only
        return support.why_not(x)


def _compiled_why_not(device_type: str) -> str | None:
    if device_type == "cpu" and not _runtime.is_interpreting():
        return support.why_not(torch.empty(0))
    return None


# Asked once, while tracing. This is torch.compiler.assume_constant_result, without importing the compiler for it.
_compiled_why_not._dynamo_marked_constant = True
