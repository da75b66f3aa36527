"""`LinearCrossEntropyLoss`: torch.nn.LinearCrossEntropyLoss on the fused kernels, with weights of its own or not."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..kernels import _checks, _views, cross_entropy, linear_cross_entropy, reference
from ..kernels._notice import say_fallback
from . import _exact
from ._sharded import is_sharded
from .impl import Choice, check_constructible, children_run, choose, explain

_LINEAR = _exact.exactly(nn.modules.linear.Linear)
_SETTINGS = "ignore_index", "reduction", "label_smoothing", "z_loss", "softcap"


class LinearCrossEntropyLoss(nn.Module):
    """Cross-entropy of a linear layer's output, without ever holding all the logits.

    With sizes it owns the layer, `self.linear`, as torch.nn.LinearCrossEntropyLoss (torch >= 2.13) does: the same
    constructor and state dict. Without sizes it owns nothing and takes the weight at each call, for heads that exist
    already or are tied to an embedding:

        criterion = LinearCrossEntropyLoss(768, 50257)                criterion(hidden, target)
        criterion.linear.weight = embedding.weight                    # tied
        criterion = LinearCrossEntropyLoss()                          criterion(hidden, target, head.weight, head.bias)

    Coming from Liger's LigerFusedLinearCrossEntropyLoss, the order of the arguments differs (there the weight is
    first), and lse_square_scale is z_loss here.

    Where the kernels cannot run (no GPU, no triton, float64), impl="auto" computes the same with torch, which does hold
    the logits, and the "fastgpt" log says why, once. With any impl, where `self.linear` has been replaced or hooked (by
    LoRA or pruning, for example) it is called, and the loss is that of its logits: the fused loss would pass it over.
    torch's class weights, class probabilities as targets, `out_features` and `options` are not taken.

    Args:
        in_features: d, the size of each input; None with num_classes None: no weights of its own.
        num_classes: V.
        bias: whether `self.linear` has one (as in torch: no).
        device, dtype: of the parameters.
        reduction: "mean" (over targets that are not ignored), "sum" or "none".
        ignore_index: targets that do not count; None is -100, as in torch.
        label_smoothing, z_loss, softcap: see `fastgpt.kernels.linear_cross_entropy`.
        num_chunks: how many chunks the rows are cut into; None chooses by memory.
        impl: "auto", "triton" (raises where it cannot run), "torch" or "reference".

    Shape:
        input (..., d), target (...) int64 class indices, weight (V, d), bias (V,); loss scalar, or (...) with "none".

    Raises:
        ValueError: only one of in_features and num_classes, or an implementation that does not exist. At the call:
            no weight where the module owns none, or one where it owns one; otherwise as `linear_cross_entropy`.
    """

    fastgpt_part = "loss"

    def __init__(
        self,
        in_features: int | None = None,
        num_classes: int | None = None,
        *,
        bias: bool = False,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
        reduction: str = "mean",
        ignore_index: int | None = None,
        label_smoothing: float = 0.0,
        z_loss: float = 0.0,
        softcap: float | None = None,
        num_chunks: int | None = None,
        impl: str = "auto",
    ) -> None:
        super().__init__()
        check_constructible("loss", impl)
        if (in_features is None) != (num_classes is None):
            raise ValueError(
                f"LinearCrossEntropyLoss: in_features is {in_features} and num_classes is {num_classes}; give both, or "
                "neither to pass the weight at each call"
            )
        if in_features is None or num_classes is None:
            self.linear = None
        else:
            self.linear = nn.Linear(in_features, num_classes, bias, device, dtype)
        self.reduction = reduction
        self.ignore_index = -100 if ignore_index is None else ignore_index
        self.label_smoothing, self.z_loss, self.softcap = label_smoothing, z_loss, softcap
        self.num_chunks, self.impl = num_chunks, impl

    def forward(
        self, input: Tensor, target: Tensor, weight: Tensor | None = None, bias: Tensor | None = None
    ) -> Tensor:
        """Loss of input (..., d) against target (...); weight and bias only where the module owns no layer."""
        _checks.check_tensors("LinearCrossEntropyLoss", 2, input=input, target=target, weight=weight, bias=bias)
        settings = (self.ignore_index, self.reduction, self.label_smoothing, self.z_loss, self.softcap)
        if self.linear is not None:
            if weight is not None or bias is not None:
                raise ValueError(
                    "LinearCrossEntropyLoss: the module has its own weight; build it without sizes to pass one"
                )
            reason = self.why_children()
            if reason is not None:
                say_fallback("LinearCrossEntropyLoss", "the loss is that of its linear's output", reason)
                possible = explain("loss", self.impl, input.device, input.dtype).name == "triton"
                of_logits = cross_entropy if possible else reference.cross_entropy
                named: dict[str, Any] = dict(zip(_SETTINGS, settings))
                loss = of_logits(self.linear(input), target, **named)
                return _views.own(loss) if self.reduction == "none" else loss
            weight, bias = self.linear.weight, self.linear.bias
        elif weight is None:
            raise ValueError(
                "LinearCrossEntropyLoss: built without sizes, it needs a weight: criterion(input, target, head.weight)"
            )
        elif is_sharded(weight) and not is_sharded(input):
            raise TypeError(
                "LinearCrossEntropyLoss: the weight is a part of one (DTensor); call the loss in the forward of the "
                "module that FSDP2 has sharded, which gathers it, or pass weight.full_tensor()"
            )
        use_kernels = choose("loss", self.impl, input.device, input.dtype) == "triton"
        function = linear_cross_entropy if use_kernels else reference.linear_cross_entropy
        loss = function(input, weight, target, bias, *settings, num_chunks=self.num_chunks)
        return _views.own(loss) if self.reduction == "none" else loss

    def choice(self, device: torch.device, dtype: torch.dtype) -> Choice:
        """For `fastgpt.implementations`: what computes inputs of this kind, and why."""
        choice, reason = explain("loss", self.impl, device, dtype), self.why_children()
        if reason is None:
            return choice
        return children_run(reason)._replace(name="triton" if choice.name == "triton" else "torch")

    def why_children(self) -> str | None:
        """Why `self.linear` runs, and no kernel stands in for it; None if one may."""
        linear = self._modules.get("linear")
        return None if linear is None else _exact.why_children_run((linear,), _LINEAR)

    def extra_repr(self) -> str:
        shown = {
            "reduction": (self.reduction, "mean"),
            "ignore_index": (self.ignore_index, -100),
            "label_smoothing": (self.label_smoothing, 0.0),
            "z_loss": (self.z_loss, 0.0),
            "softcap": (self.softcap, None),
            "num_chunks": (self.num_chunks, None),
            "impl": (self.impl, "auto"),
        }
        return ", ".join(f"{name}={value!r}" for name, (value, default) in shown.items() if value != default)
