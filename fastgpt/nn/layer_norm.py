"""`LayerNorm`: torch's nn.LayerNorm on the fused kernels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import kernels
from ..base.implementation_names import IMPLEMENTATIONS
from ..kernels import _checks, reference, support
from ..kernels._notice import say_fallback
from .impl import Choice, decided


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
        if impl not in IMPLEMENTATIONS["norm"]:
            raise ValueError(f"LayerNorm: impl must be one of {IMPLEMENTATIONS['norm']}, got {impl!r}")
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
            reason = support.why_not(input, self.weight, self.bias, alike=False)
            impl = "triton" if reason is None else "torch"
            if reason is not None:
                say_fallback("LayerNorm", "torch's own implementation is used", reason)
        if impl == "triton":
            return kernels.layer_norm(*arguments)
        return F.layer_norm(*arguments) if impl == "torch" else reference.layer_norm(*arguments)

    def choice(self, device: torch.device, dtype: torch.dtype) -> Choice:
        """For `fastgpt.implementations`: what computes inputs of this kind, and why."""
        obstacle = support.kinds_why_not(device, dtype, *(p.dtype for p in self.parameters()), alike=False)
        return decided(self.impl, obstacle, device, dtype, fallback="torch")
