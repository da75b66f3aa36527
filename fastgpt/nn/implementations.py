"""`fastgpt.implementations(model)`: the table of what computes each part of a model, and why.

A module that this package implements says so itself. It has

    fastgpt_part            "attn", "norm", "ffn" or "loss"
    choice(device, dtype)   what its forward would take for inputs of that kind: the same questions, of the same judge
    parts_read()            where it computes children itself: {their name: (part, choice)}

The attention of transformers' models is no module of ours: the name that their config gives it has the first two.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..base.settings import SettingError
from . import _exact, _sharded
from .impl import Choice


@dataclass(frozen=True)
class Row:
    """One part of a model: `used` is the implementation that a call would take now ("" if it would raise)."""

    part: str
    layers: str
    requested: str
    used: str
    why: str


class Implementations(tuple[Row, ...]):
    """The rows of `fastgpt.implementations`; prints as a table."""

    def __str__(self) -> str:
        table = [("part", "layers", "requested", "used", "why")]
        table += [(r.part, r.layers, r.requested, r.used or "cannot run", r.why) for r in self]
        widths = [max(len(row[i]) for row in table) for i in range(4)]
        return "\n".join("  ".join(c.ljust(w) for c, w in zip(row, widths)) + f"  {row[4]}" for row in table)


def implementations(model: nn.Module, device: torch.device | str | None = None) -> Implementations:
    """Which implementation each part of `model` uses, and why: print it.

    The answer is for a call now: in the mode (training or not) that the model is in, with gradients or without as they
    are enabled here, and with inputs of the parameters' dtype and no mask but a causal one. Layers with the same answer
    share a row. `device` (default: where the parameters are) asks what would be used there. Parameters that FSDP2 has
    sharded are those that it gathers for a forward pass, in the param_dtype of its MixedPrecisionPolicy.

    Raises:
        TypeError: `model` is no module.
        ValueError: `model` has no part that this package implements, or `device` is none.
    """
    check_is_module("implementations", model)
    there = None if device is None else _as_device(device)
    asked: dict[Row, list[str]] = {}
    dtypes = {id(parameter): dtype for parameter, dtype in _sharded.gathered(model)}
    with _exact.gathering(parameter for parameter in model.parameters() if id(parameter) in dtypes):
        for part, layer, module, choose in _parts(model):
            like = _parameter(module, model)
            name, why = choose(like.device if there is None else there, dtypes.get(id(like)) or like.dtype)
            asked.setdefault(Row(part, "", getattr(module, "impl", "auto"), name, why), []).append(layer)
    if not asked:
        raise ValueError(
            f"implementations: {type(model).__name__} has no part that fastgpt implements; pass a fastgpt.GPT, or "
            "call fastgpt.patch(model) first"
        )
    return Implementations(Row(r.part, _spans(layers), r.requested, r.used, r.why) for r, layers in asked.items())


def check_is_module(function: str, model: Any) -> None:
    """Raise a TypeError that says what to pass to `function`, unless `model` is a module."""
    if isinstance(model, nn.Module):
        return
    if isinstance(model, type):
        got, fix = f"the class {model.__name__}", "make an instance of it first"
    elif isinstance(model, str):
        got, fix = repr(model), "load the model first, for example by transformers' from_pretrained"
    elif isinstance(model, Mapping):
        got, fix = f"a {type(model).__name__}", "load a state dict into its model first"
    elif isinstance(getattr(model, "model", None), nn.Module):
        got, fix = f"a {type(model).__name__}", "pass its .model"
    else:
        got, fix = "None" if model is None else f"a {type(model).__name__}", "pass the model itself"
    raise TypeError(f"{function}: model must be a torch.nn.Module, got {got}; {fix}")


def _as_device(device: Any) -> torch.device:
    try:
        return torch.device(device)
    except (RuntimeError, TypeError):
        raise SettingError("implementations", "device", device, 'must be a device, e.g. "cuda" or "cpu"') from None


Choose = Callable[[torch.device, torch.dtype], Choice]


def _parameter(module: nn.Module, model: nn.Module) -> Tensor:
    """What inputs of `module` are like: its parameters, or the model's where it has none, or whatever torch makes."""
    for holder in (module, model):
        for parameter in holder.parameters():
            return parameter
    return torch.empty(0)


def _parts(model: nn.Module) -> Iterator[tuple[str, str, nn.Module, Choose]]:
    """(part, layer, module, what it would choose) of every module that says what it implements."""
    named: set[int] = set()  # configs, which a model and the one inside it share
    read: dict[nn.Module, tuple[str, str, Choose]] = {}
    passed: set[nn.Module] = set()
    bypassed: set[nn.Module] = set()
    for path, module in model.named_modules():
        attention: Any = getattr(getattr(module, "config", None), "_attn_implementation", None)
        if hasattr(attention, "fastgpt_part") and id(module.config) not in named:
            named.add(id(module.config))
            yield attention.fastgpt_part, path or "model", module, attention.choice_for(module)
        for name, (part, choose) in getattr(module, "parts_read", dict)().items():
            read[getattr(module, name)] = part, name, choose
        bypassed.update(_bypassed(module))
        if module in passed:
            continue
        if module in read:
            yield read[module][0], read[module][1], module, read[module][2]
            passed.update(module.modules())
        elif hasattr(type(module), "fastgpt_part"):  # what torch.compile put around a module has its attributes too
            names = [name for name in path.split(".") if name not in ("", "_orig_mod")]
            layer = next(filter(str.isdigit, names), ".".join(names) or "model")
            yield module.fastgpt_part, layer, module, _torchs if module in bypassed else module.choice


def _torchs(*_: Any) -> Choice:
    return Choice("torch", "nn.TransformerEncoderLayer has a fast path of its own, in evaluation without gradients")


def _bypassed(layer: nn.Module) -> tuple[nn.Module, ...]:
    """The children that torch's nn.TransformerEncoderLayer computes without calling them, if a call now would.

    Its own conditions, as far as they are not about the call's arguments.
    """
    torchs = nn.TransformerEncoderLayer
    if not isinstance(layer, torchs) or type(layer).forward is not torchs.forward:
        return ()
    attention, norms = layer.self_attn, (layer.norm1, layer.norm2)
    able = (
        attention.batch_first
        and attention.in_proj_bias is not None
        and attention._qkv_same_embed_dim
        and attention.num_heads % 2 == 0
        and layer.activation_relu_or_gelu
        and norms[0].eps == norms[1].eps
        and not any(module._forward_hooks or module._forward_pre_hooks for module in layer.modules())
    )
    now = torch.backends.mha.get_fastpath_enabled() and not layer.training and not torch.is_autocast_enabled()
    differentiated = torch.is_grad_enabled() and any(parameter.requires_grad for parameter in layer.parameters())
    return (attention, *norms) if able and now and not differentiated else ()


def _spans(layers: list[str]) -> str:
    """["0", "1", "2", "5", "ln_f"] -> "0-2, 5, ln_f"."""
    numbers = sorted({int(l) for l in layers if l.isdigit()})
    spans: list[list[int]] = []
    for n in numbers:
        if spans and n == spans[-1][1] + 1:
            spans[-1][1] = n
        else:
            spans.append([n, n])
    words = [str(a) if a == b else f"{a}-{b}" for a, b in spans]
    return ", ".join(words + list(dict.fromkeys(l for l in layers if not l.isdigit())))
