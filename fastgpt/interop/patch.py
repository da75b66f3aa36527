"""`fastgpt.patch(model)`: the fused modules in place of torch's and transformers', in a model that already exists.

Modules are converted where they stand, by their class: parameters, buffers, hooks, names and the state dict stay what
they were, so optimizers, wrappers and checkpoints notice nothing.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass

from torch import nn


@dataclass(frozen=True)
class Change:
    """One module that `patch` converted: its path in the model ("" is the model itself), and what it was and is."""

    path: str
    before: str
    after: str


class PatchReport(tuple[Change, ...]):
    """What `patch` changed; prints one line for each kind of change."""

    def __str__(self) -> str:
        kinds: dict[tuple[str, str], list[str]] = {}
        for change in self:
            kinds.setdefault((change.before, change.after), []).append(change.path or "(the model)")
        return "\n".join(
            f"{len(paths)} x {before} -> {after}: {', '.join(paths[:3])}{', ...' if len(paths) > 3 else ''}"
            for (before, after), paths in kinds.items()
        )


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

    Raises:
        ValueError: nothing in the model matched, or was asked for.
    """
    changes: list[Change] = []
    if attention:
        changes += _attention(model)
    for path, module in model.named_modules():
        for after in _classes_for(module, attention, layer_norm, ffn, loss):
            before = type(module)
            module.__class__ = after
            changes.append(Change(path, before.__qualname__, f"{after.__module__}.{after.__qualname__}"))
    if not changes:
        parts = {"attention": attention, "layer_norm": layer_norm, "ffn": ffn, "loss": loss}
        wanted = [name for name, on in parts.items() if on]
        raise ValueError(
            f"patch: nothing in {type(model).__name__} matched {wanted}. It converts "
            "nn.MultiheadAttention, nn.LayerNorm, nn.Sequential(Linear, GELU, Linear[, Dropout]) and transformers' "
            "models, and no subclass of them; a fastgpt.GPT needs no patch (see fastgpt.implementations)"
        )
    return PatchReport(changes)


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
    elif ffn and kind is nn.Sequential and is_gelu_ffn(module):
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


def _attention(model: nn.Module) -> Iterator[Change]:
    """transformers models inside `model` (or itself) name our attention from now on."""
    transformers = sys.modules.get("transformers")  # a model of it exists only if it has been imported
    if transformers is None:
        return
    from . import attention_registry

    for path, module in model.named_modules():
        if not isinstance(module, transformers.PreTrainedModel):
            continue
        before = module.config._attn_implementation
        if before == attention_registry.NAME:
            continue
        attention_registry.register()
        module.set_attn_implementation(attention_registry.NAME)
        if module.config._attn_implementation == attention_registry.NAME:
            yield Change(path, f'attn_implementation="{before}"', f'"{attention_registry.NAME}"')
