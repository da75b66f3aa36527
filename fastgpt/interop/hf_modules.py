"""transformers' GPT-2 modules with fused forwards. They add no state: `patch` converts modules by their class.

The class names stay transformers' own, so that a patched model saves the same config.json.
"""

from __future__ import annotations

import functools
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import activations
from transformers.modeling_outputs import CausalLMOutputWithCrossAttentions
from transformers.models.gpt2 import modeling_gpt2
from transformers.pytorch_utils import Conv1D

from ..kernels import gelu_ffn, linear_cross_entropy, support
from ..kernels._notice import say_fallback
from ..nn import _exact
from ..nn.impl import Choice, children_run, decided

# By name: transformers 5 renamed PytorchGELUTanh to GELUTanh.
_NAMES = {
    "NewGELUActivation": "tanh",
    "GELUTanh": "tanh",
    "PytorchGELUTanh": "tanh",
    "GELUActivation": "none",
}
_APPROXIMATE = {getattr(activations, name): how for name, how in _NAMES.items() if hasattr(activations, name)}
_CHILDREN = {
    kind: _exact.exactly(Conv1D, kind, Conv1D, nn.modules.dropout.Dropout) for kind in (*_APPROXIMATE, nn.GELU)
}  # by their activation
_LM_HEAD = _exact.exactly(nn.modules.linear.Linear)


def approximate_of(activation: object) -> str | None:
    """ "tanh" or "none" for the GELUs that the kernel computes; None for any other activation."""
    return activation.approximate if type(activation) is nn.GELU else _APPROXIMATE.get(type(activation))


class GPT2MLP(modeling_gpt2.GPT2MLP):
    """c_proj(gelu(c_fc(x))) with dropout, in `gelu_ffn`. Conv1D keeps weights as (in, out): a transpose, not a copy."""

    fastgpt_part = "ffn"

    # transformers says that it takes a tuple, and gives and takes a tensor.
    def forward(self, hidden_states: Tensor) -> Tensor:  # type: ignore[override]
        reason = self.why_children() or support.why_not(hidden_states, self.c_fc.weight, self.c_proj.weight)
        if reason is not None:
            say_fallback("GPT2MLP", "transformers' own is used", reason)
            return super().forward(hidden_states)  # type: ignore[arg-type]
        approximate = approximate_of(self.act)
        assert approximate is not None, "the children run where there is none"
        return gelu_ffn(
            hidden_states, self.c_fc.weight.t(), self.c_fc.bias, self.c_proj.weight.t(), self.c_proj.bias,
            approximate=approximate, dropout_p=self.dropout.p if self.dropout.training else 0.0,
        )  # fmt: skip

    def choice(self, device: torch.device, dtype: torch.dtype) -> Choice:
        """For `fastgpt.implementations`: what computes inputs of this kind, and why."""
        reason = self.why_children()
        if reason is not None:
            return children_run(reason)
        obstacle = support.kinds_why_not(device, dtype, self.c_fc.weight.dtype, self.c_proj.weight.dtype)
        return decided("auto", obstacle, device, dtype, fallback="torch")

    def why_children(self) -> str | None:
        """Why the children run, and no kernel stands in for them; None if one may."""
        children: dict[str, Any] = self._modules
        fc, act, proj, dropout = children["c_fc"], children["act"], children["c_proj"], children["dropout"]
        expected = _CHILDREN.get(type(act))
        if expected is None:
            return f"its activation, a {type(act).__name__}, is not a GELU"
        return _exact.why_children_run((fc, act, proj, dropout), expected) or support.dropout_why_not(dropout.p)


class GPT2LMHeadModel(modeling_gpt2.GPT2LMHeadModel):
    """In training with labels: the loss without the logits, which are then None. Otherwise transformers' own."""

    fastgpt_part = "loss"

    # generate() and Trainer read the signature. (To mypy, what is wrapped is no method.)
    @functools.wraps(modeling_gpt2.GPT2LMHeadModel.forward)
    def forward(self, *args: Any, labels: Tensor | None = None, **kwargs: Any) -> Any:  # type: ignore[override]
        if labels is None or labels.is_floating_point() or not self.training or not self._loss_is_plain(kwargs):
            return super().forward(*args, labels=labels, **kwargs)
        weight: Any = getattr(self.lm_head, "weight", None)  # a tensor, if `why_children` has no reason
        reason = self.why_children() or support.why_not(weight)
        if reason is not None:
            say_fallback("GPT2LMHeadModel", "transformers' own loss is used", reason)
            return super().forward(*args, labels=labels, **kwargs)
        shifted = kwargs.pop("shift_labels", None)
        tokens = kwargs.pop("num_items_in_batch", None)
        ignore_index = kwargs.pop("ignore_index", -100)
        return_dict = kwargs.pop("return_dict", None)
        outputs = self.transformer(*args, **kwargs)
        if shifted is None:  # tokens before n predict token n
            shifted = F.pad(labels.long(), (0, 1), value=ignore_index)[..., 1:]
        loss = linear_cross_entropy(
            outputs.last_hidden_state, weight, shifted.to(outputs.last_hidden_state.device), self.lm_head.bias,
            ignore_index=ignore_index, reduction="mean" if tokens is None else "sum",
        )  # fmt: skip
        loss = loss if tokens is None else loss / tokens
        output = CausalLMOutputWithCrossAttentions(
            loss=loss,
            logits=None,
            past_key_values=outputs.past_key_values,
            hidden_states=outputs.hidden_states,
            attentions=outputs.attentions,
            cross_attentions=outputs.cross_attentions,
        )
        use_dict = getattr(self.config, "return_dict", True) if return_dict is None else return_dict
        return output if use_dict else output.to_tuple()

    def choice(self, device: torch.device, dtype: torch.dtype) -> Choice:
        """For `fastgpt.implementations`: what computes the loss of hidden states of this kind, and why."""
        if not self.training:
            return Choice("torch", "the fused loss is for training, and transformers' own gives logits")
        if not self._loss_is_plain({}):
            return Choice("torch", "its loss_function is another than transformers' causal loss")
        reason = self.why_children()
        if reason is not None:
            return children_run(reason)
        obstacle = support.kinds_why_not(device, self.lm_head.weight.dtype)
        return decided("auto", obstacle, device, dtype, fallback="torch")

    def why_children(self) -> str | None:
        """Why lm_head runs, and no kernel stands in for it; None if one may."""
        children: dict[str, Any] = self._modules
        return _exact.why_children_run((children["lm_head"],), _LM_HEAD)

    def _loss_is_plain(self, kwargs: dict[str, Any]) -> bool:
        """The stock causal loss over all positions, which the fused function computes."""
        plain = getattr(self.loss_function, "__name__", "") == "ForCausalLMLoss"
        keep = kwargs.get("logits_to_keep", 0)
        return plain and isinstance(keep, int) and keep == 0
