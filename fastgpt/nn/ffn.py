"""`GELUFFN`: nn.Sequential(Linear, GELU, Linear[, Dropout]) on the fused kernels."""

from __future__ import annotations

from collections import OrderedDict
from typing import Any

import torch
from torch import Tensor, nn

from ..impl import check_constructible, choose
from ..kernels import gelu_ffn, reference
from ..kernels._notice import say_once

_CHILDREN = ((nn.Linear, nn.GELU, nn.Linear), (nn.Linear, nn.GELU, nn.Linear, nn.Dropout))


class GELUFFN(nn.Sequential):
    """dropout(gelu(x W1ᵀ + b1) W2ᵀ + b2), a transformer's feed-forward layer, on `fastgpt.kernels.gelu_ffn`.

    It is nn.Sequential(Linear, GELU, Linear[, Dropout]), with the same children and state dict: 0.weight, 0.bias,
    2.weight, 2.bias. A trained one is converted in place by `module.__class__ = GELUFFN`. In training it saves x and
    the pre-activation, one hidden-sized tensor less than the Sequential.

    torch's own children run instead, and the "fastgpt" log says why, once, where the kernels cannot (a CPU, float64,
    ...) and where a child has been replaced or hooked, by LoRA for example: the kernels would pass it over.

    Args:
        d_model: size of the input.
        d_hidden: size between the products; None is 4 * d_model.
        d_out: size of the output; None is d_model.
        bias: whether both products have one.
        approximate: "none" is the exact GELU, "tanh" is GPT-2's.
        dropout: probability of dropping an element of the output, in training.
        recompute: save x only, and compute the pre-activation again in backward.
        impl: "auto", "triton" (raises where it cannot run), "torch" or "reference".
        device, dtype: of the parameters.

    Raises:
        ValueError: an `impl`, an `approximate` or a dropout probability that does not exist.
    """

    fastgpt_part = "ffn"
    impl = "auto"  # of the class, so that modules converted by their __class__ have them
    recompute = False

    def __init__(
        self,
        d_model: int,
        d_hidden: int | None = None,
        d_out: int | None = None,
        *,
        bias: bool = True,
        approximate: str = "none",
        dropout: float = 0.0,
        recompute: bool = False,
        impl: str = "auto",
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        check_constructible("ffn", impl)
        if approximate not in ("none", "tanh"):
            raise ValueError(f"GELUFFN: approximate must be 'none' or 'tanh', got {approximate!r}")
        d_hidden = 4 * d_model if d_hidden is None else d_hidden
        d_out = d_model if d_out is None else d_out
        children: list[nn.Module] = [
            nn.Linear(d_model, d_hidden, bias, device, dtype),
            nn.GELU(approximate),
            nn.Linear(d_hidden, d_out, bias, device, dtype),
        ]
        super().__init__(*children, *([nn.Dropout(dropout)] if dropout else []))
        if impl != "auto":
            self.impl = impl
        if recompute:
            self.recompute = True

    def forward(self, x: Tensor, residual: Tensor | None = None) -> Tensor:
        """x (..., d_model) -> (..., d_out); `residual` (..., d_out) is added after dropout."""
        reason = self._why_not_fused(x)
        impl = "torch" if reason is not None else choose("ffn", self.impl, x.device, x.dtype)
        if impl == "torch":
            if reason is not None:
                say_once(f"GELUFFN: its children run one by one, because {reason}")
            y = super().forward(x)
            return y if residual is None else residual + y
        up, gelu, down = self[0], self[1], self[2]
        options: dict[str, Any] = {"residual": residual}
        if len(self) == 4 and self[3].training:
            options["dropout_p"] = self[3].p
        function = reference.gelu_ffn
        if impl == "triton":
            function, options["recompute"] = gelu_ffn, self.recompute
        return function(x, up.weight, up.bias, down.weight, down.bias, gelu.approximate, **options)

    def _why_not_fused(self, x: Tensor) -> str | None:
        """Why neither the kernels nor their reference may stand in for the children; None if they may."""
        if tuple(type(child) for child in self) not in _CHILDREN:
            return "they are no longer Linear, GELU, Linear[, Dropout]"
        if any(c._forward_hooks or c._forward_pre_hooks or c._backward_hooks or c._backward_pre_hooks for c in self):
            return "one of them has hooks"
        if len(self) == 4 and self[3].p == 1.0:
            return "dropout of everything is not supported"
        if x.is_nested:
            return "nested tensors are not supported"
        return None

    def __getitem__(self, index: slice | int) -> nn.Module:
        if isinstance(index, slice):  # part of an FFN is not an FFN
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)

    def extra_repr(self) -> str:
        return f"impl={self.impl!r}" + (", recompute=True" if self.recompute else "")
