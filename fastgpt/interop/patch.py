"""`fastgpt.patch(model)`: the fused modules in place of torch's and transformers', in a model that already exists.

Modules are converted where they stand, by their class: parameters, buffers, hooks, names and the state dict stay what
they were, so optimizers, wrappers and checkpoints notice nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import nn

from ..base.settings import check_flag
from ..nn.implementations import check_is_module

if TYPE_CHECKING:
    from transformers import PreTrainedModel


@dataclass(frozen=True)
class Change:
    """One module that `patch` converted: its path in the model ("" is the model itself), and what it was and is."""

    path: str
    before: str
    after: str


class PatchReport(tuple[Change, ...]):
    """What `patch` changed; prints one line for each kind of change, and what it left and why.

    left     {path: why this transformers model keeps its own attention, or this module its own forward}
    already  paths of modules that an earlier `patch` converted
    """

    left: dict[str, str]
    already: tuple[str, ...]

    def __new__(
        cls, changes: Iterable[Change], left: dict[str, str] | None = None, already: Sequence[str] = ()
    ) -> PatchReport:
        self = super().__new__(cls, changes)
        self.left, self.already = dict(left or {}), tuple(already)
        return self

    def __str__(self) -> str:
        kinds: dict[tuple[str, str], list[str]] = {}
        for change in self:
            kinds.setdefault((change.before, change.after), []).append(change.path)
        lines = [f"{len(paths)} x {before} -> {after}: {_some(paths)}" for (before, after), paths in kinds.items()]
        lines += [f"left as it was: {path or '(the model)'}: {reason}" for path, reason in self.left.items()]
        if self.already:
            lines.append(f"{len(self.already)} converted already: {_some(self.already)}")
        return "\n".join(lines)


def _some(paths: Sequence[str]) -> str:
    return ", ".join(path or "(the model)" for path in paths[:3]) + (", ..." if len(paths) > 3 else "")


def patch(
    model: nn.Module, attention: bool = True, layer_norm: bool = True, ffn: bool = True, loss: bool = True
) -> PatchReport:
    """Convert the parts of `model` that this package computes, in place, and report which.

    attention   nn.MultiheadAttention; the attention of any transformers model, by its own interface
    layer_norm  nn.LayerNorm
    ffn         nn.Sequential(Linear, GELU, Linear[, Dropout]); transformers' GPT-2 MLP
    loss        transformers' GPT2LMHeadModel: in training with `labels`, the loss without logits (`.logits` is None)

    Exactly these classes are converted, subclasses are not: they may compute something else. Converted modules fall
    back to the original where the kernels cannot run (a CPU, float64), and say so once in the "fastgpt" log.

    Models inside of wrappers (torch.compile, DDP, PEFT) are found there. A transformers model whose attention has more
    than the kernels (capped scores, sinks, keys chosen by index) keeps its own, and a module its forward where somebody
    has set one: the report's `left` says so. What is converted already is left alone, and a second call says so.

    Raises:
        TypeError: `model` is no module: None, a name, a class, a state dict; or a part is neither True nor False.
        ValueError: nothing in the model matched, or was asked for.
    """
    check_is_module("patch", model)
    asked = {"attn": attention, "norm": layer_norm, "ffn": ffn, "loss": loss}  # by the modules' own names
    parts = {"attention": attention, "layer_norm": layer_norm, "ffn": ffn, "loss": loss}
    for name, on in parts.items():
        check_flag("patch", name, on)
    changes: list[Change] = []
    left: dict[str, str] = {}
    already: list[str] = []
    if attention:
        _attention(model, changes, left, already)
    for path, module in model.named_modules():
        if _is_drop_in(type(module)) and asked.get(module.fastgpt_part):
            already.append(path)
        for after in _classes_for(module, attention, layer_norm, ffn, loss):
            if "forward" in vars(module):  # which another class would not change
                left.setdefault(path, "somebody has replaced its forward (accelerate, for example); call patch first")
                continue
            before = type(module)
            module.__class__ = after
            changes.append(Change(path, before.__qualname__, f"{after.__module__}.{after.__qualname__}"))
    if not changes and (not already or _is_ours(model)):
        wanted = [name for name, on in parts.items() if on]
        kept = "".join(f". {path or 'The model'}: {reason}" for path, reason in left.items())
        raise ValueError(
            f"patch: nothing in {type(model).__name__} matched {wanted}. It converts "
            "nn.MultiheadAttention, nn.LayerNorm, nn.Sequential(Linear, GELU, Linear[, Dropout]) and transformers' "
            f"models, and no subclass of them; a fastgpt.GPT needs no patch (see fastgpt.implementations){kept}"
        )
    return PatchReport(changes, left, already)


def _is_ours(model: nn.Module) -> bool:
    """Whether this is a model of this package, whose parts are ours from the start."""
    package = __name__.partition(".")[0]
    return type(model).__module__.startswith(f"{package}.") and not _is_drop_in(type(model))


def _is_drop_in(kind: type) -> bool:
    """Whether this is a class that `patch` converts to."""
    package = __name__.partition(".")[0]
    return kind.__module__.startswith((f"{package}.nn.", f"{package}.interop.")) and hasattr(kind, "fastgpt_part")


def _classes_for(
    module: nn.Module, attention: bool, layer_norm: bool, ffn: bool, loss: bool
) -> Iterator[type[nn.Module]]:
    """The class that takes this very module's place, if there is one."""
    from .. import nn as drop_in

    kind = type(module)
    if attention and kind is nn.MultiheadAttention:
        yield drop_in.FlashMultiheadAttention
    elif layer_norm and kind is nn.LayerNorm:
        yield drop_in.LayerNorm
    elif ffn and type(module) is nn.Sequential and is_gelu_ffn(module):
        yield drop_in.GELUFFN
    elif kind.__module__ == "transformers.models.gpt2.modeling_gpt2":
        from . import hf_modules

        if ffn and kind.__name__ == "GPT2MLP" and hf_modules.approximate_of(module.act) is not None:
            yield hf_modules.GPT2MLP
        elif loss and kind.__name__ == "GPT2LMHeadModel":
            yield hf_modules.GPT2LMHeadModel


def is_gelu_ffn(module: nn.Sequential) -> bool:
    """Whether this is Linear, GELU, Linear and perhaps Dropout, each exactly torch's."""
    kinds = tuple(type(child) for child in module)
    return kinds in ((nn.Linear, nn.GELU, nn.Linear), (nn.Linear, nn.GELU, nn.Linear, nn.Dropout))


def _attention(model: nn.Module, changes: list[Change], left: dict[str, str], already: list[str]) -> None:
    """transformers models inside `model` (or itself) name our attention from now on."""
    transformers = sys.modules.get("transformers")  # a model of it exists only if it has been imported
    if transformers is None:
        return
    from . import attention_registry

    models = [(path, part) for path, part in model.named_modules() if isinstance(part, transformers.PreTrainedModel)]
    if not models:
        return
    try:
        name, too_old = attention_registry.register(), None
    except ImportError as error:
        name, too_old = "", str(error)
    before = {id(part.config): part.config._attn_implementation for _, part in models}
    reasons: dict[int, str] = {}  # a config stands for all models that share it: with a head and without
    for _, part in models:
        reason = too_old or _why_own_attention(part)
        if reason is not None:
            reasons.setdefault(id(part.config), reason)
    seen: set[int] = set()
    for path, part in models:
        if id(part.config) in seen:
            continue
        seen.add(id(part.config))
        was = before[id(part.config)]
        if was == attention_registry.NAME:
            already.append(path)
        elif id(part.config) in reasons:
            left[path] = reasons[id(part.config)]
            if part.config._attn_implementation != was:  # a model around it handed its own on
                part.set_attn_implementation(was)
        else:
            part.set_attn_implementation(name)
            changes.append(Change(path, f'attn_implementation="{was}"', f'"{name}"'))


def _why_own_attention(model: PreTrainedModel) -> str | None:
    """Why a transformers model keeps its own attention; None if ours computes the same."""
    if not model._can_set_attn_implementation():
        return "its attention does not go through transformers' AttentionInterface"
    from .attention_registry import why_scores_differ

    different = why_scores_differ(model)
    if different is not None:
        return different
    if any(hasattr(part, "indexer") for part in model.modules() if part is not model):
        return "its attention chooses keys by index"
    if not model._supports_sdpa:
        return "transformers computes its attention by its eager implementation only"
    if getattr(model.config, "output_attentions", False):
        return "config.output_attentions is set, which transformers keeps to eager attention; ask in the call instead"
    return None
