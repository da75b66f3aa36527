"""Random weights where a model's parameters are parts of them: those of a whole model, parameter by parameter.

A model of ours draws its weights twice from torch's CPU generator: torch's own layers as they are made, then
`init_weights`. `on_meta` draws the first time for nobody, one parameter at a time; `fill_normal` the second time, and
keeps this rank's part. So a sharded model has the bits of one that a single process makes of the same seed, and no
process holds more than one whole parameter.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..nn._sharded import is_sharded, local
from .sharding import part_of

Module = TypeVar("Module", bound=nn.Module)


def on_meta(make: Callable[[], Module]) -> Module:
    """The module that `make` makes, without values, and torch's CPU generator where making it on a CPU leaves it but
    for its `init_weights`, which a meta parameter passes over."""
    with torch.device("meta"), _DrawnForNobody():
        return make()


def fill_normal(parameter: Tensor, std: float) -> None:
    """N(0, std) for a parameter, from torch's CPU generator where it is a DTensor; nothing for one on meta."""
    if parameter.is_meta:
        return
    if not is_sharded(parameter):
        parameter.normal_(0.0, std)
        return
    whole = torch.empty(parameter.shape, dtype=parameter.dtype, device="cpu").normal_(0.0, std)
    keep_part(parameter, whole)


def filled_from(folder: str | os.PathLike[str]) -> Callable[[nn.Module], None]:
    """What gives a model of that folder's config its weights: each parameter is read, and this rank's part kept.

    Raises:
        ValueError: weights of other names or shapes, or not finite.
    """

    @torch.no_grad()
    def fill(model: nn.Module) -> None:
        from .formats.folder import check_finite, compare_names, in_words, load

        config, state = load(folder)
        own = model.state_dict()
        compare_names(own, state, source=str(folder), config=in_words(config))
        for name, parameter in model.named_parameters():
            check_finite(state[name], f"{folder}: {name}")
            whole = state.pop(name).to(parameter.dtype)
            if is_sharded(parameter):
                keep_part(parameter, whole)
            else:
                parameter.copy_(whole)

    return fill


def keep_part(parameter: Any, whole: Tensor) -> None:
    """Copy this rank's part of `whole`, which all ranks have alike, into a DTensor: nothing is sent."""
    local(parameter).copy_(local(part_of(whole, parameter)))


class _DrawnForNobody(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        is_init = getattr(func, "__module__", None) == "torch.nn.init"
        if not (is_init or func in (Tensor.normal_, Tensor.uniform_, Tensor.zero_, Tensor.fill_)):
            return func(*args, **kwargs)
        target, rest = (args[0], args[1:]) if args else (kwargs["tensor"], ())
        if target.is_meta and func not in (Tensor.zero_, Tensor.fill_):
            drawn = torch.empty(target.shape, dtype=target.dtype, device="cpu")
            func(drawn, *rest, **{name: value for name, value in kwargs.items() if name != "tensor"})
        return target
