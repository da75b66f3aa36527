"""`GELUFFN`: nn.Sequential(Linear, GELU, Linear[, Dropout]) on the fused kernels."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..kernels import _checks, _views, gelu_ffn, reference, support
from ..kernels._notice import say_fallback
from . import _exact
from .impl import Choice, check_constructible, children_run, choose, explain

# Where torch defines them: what torch.nn calls Linear may be anybody's by the time that this is imported.
_LAYERS = nn.modules.linear.Linear, nn.modules.activation.GELU, nn.modules.linear.Linear


class SequentialFFN(nn.Sequential):
    """nn.Sequential(Linear, GELU, Linear[, Dropout]), for which kernels may stand in while that is what it holds."""

    _expected: ClassVar = {3: _exact.exactly(*_LAYERS)}  # by their number
    fastgpt_part = "ffn"
    impl = "auto"  # of the class, so that modules converted by their __class__ have it

    def why_children(self) -> str | None:
        """Why the children run, and neither the kernels nor their reference stand in for them; None if these may."""
        children = self._modules
        expected = self._expected.get(len(children))
        if expected is None:
            return f"there are {len(children)} of them"
        reason = _exact.why_children_run(children.values(), expected)
        if reason is None and len(children) == 4:
            dropout: Any = [*children.values()][3]
            return support.dropout_why_not(dropout.p)
        return reason

    def choice(self, device: torch.device, dtype: torch.dtype) -> Choice:
        """For `fastgpt.implementations`: what computes inputs of this kind, and why."""
        reason = self.why_children()
        return explain("ffn", self.impl, device, dtype) if reason is None else children_run(reason)

    def __getitem__(self, index: slice | int) -> nn.Module:
        if isinstance(index, slice):  # part of an FFN is not an FFN
            return nn.Sequential(OrderedDict(list(self._modules.items())[index]))
        return super().__getitem__(index)


class GELUFFN(SequentialFFN):
    """dropout(gelu(x W1ᵀ + b1) W2ᵀ + b2), a transformer's feed-forward layer, on `fastgpt.kernels.gelu_ffn`.

    It is nn.Sequential(Linear, GELU, Linear[, Dropout]), with the same children and state dict: 0.weight, 0.bias,
    2.weight, 2.bias. A trained one is converted in place by `module.__class__ = GELUFFN`. In training it saves x and
    the pre-activation, one hidden-sized tensor less than the Sequential.

    torch's own children run instead, and the "fastgpt" log says why, once, where the kernels cannot (a CPU, float64,
    ...) and, whatever `impl` says, where a child has been replaced or hooked, by LoRA or pruning for example: the
    kernels would pass it over.

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

    _expected: ClassVar = SequentialFFN._expected | {4: _exact.exactly(*_LAYERS, nn.modules.dropout.Dropout)}
    recompute = False  # of the class, as `impl`

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
        _checks.check_tensors("GELUFFN", 1, x=x, residual=residual)
        reason = self.why_children()
        if reason is None and x.is_nested:
            reason = "nested tensors are not supported"
        impl = "torch" if reason is not None else choose("ffn", self.impl, x.device, x.dtype)
        if impl == "torch":
            if reason is not None:
                say_fallback("GELUFFN", "its children run one by one", reason)
            y = super().forward(x)
            if residual is None:
                return y if reason is not None else _views.own(y)
            return residual + y
        up, gelu, down, *dropout = self._modules.values()
        options: dict[str, Any] = {"residual": residual}
        if dropout and dropout[0].training:
            options["dropout_p"] = dropout[0].p
        function: Callable[..., Tensor] = reference.gelu_ffn
        if impl == "triton":
            function, options["recompute"] = gelu_ffn, self.recompute
        return _views.own(function(x, up.weight, up.bias, down.weight, down.bias, gelu.approximate, **options))

    def extra_repr(self) -> str:
        return f"impl={self.impl!r}" + (", recompute=True" if self.recompute else "")
