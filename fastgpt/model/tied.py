"""The tie of head and token embedding: one parameter in two places, through moves and loading.

torch keeps a tie by chance only: `to_empty` and `load_state_dict(assign=True)` make a new parameter for each place.
Nothing is tied here that was not before: a head that somebody has swapped, quantised or untied stays as it is.
"""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator
from types import FrameType
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor, nn

from ..nn._sharded import is_sharded, local
from .config import GPTConfig

_BEFORE = "_tied_before_loading"


class Tying(Protocol):
    """A model whose head may be its token embedding."""

    config: GPTConfig

    @property
    def token_emb(self) -> nn.Module: ...
    @property
    def head(self) -> nn.Module: ...


class Place(NamedTuple):
    """`module`'s parameter `name`; `path` is its name in the model's state dict."""

    path: str
    module: nn.Module
    name: str

    @property
    def parameter(self) -> nn.Parameter:
        parameter = self.module._parameters[self.name]
        assert parameter is not None  # else it is no place
        return parameter


def places(model: Tying) -> list[Place]:
    """Where the weight lies that embedding and head share, adapters around them included; [] if they share none."""
    found: dict[int, list[Place]] = {}
    for part in ("token_emb", "head"):
        for path, module in getattr(model, part).named_modules(prefix=part):
            for name, parameter in module._parameters.items():
                if parameter is not None:
                    found.setdefault(id(parameter), []).append(Place(f"{path}.{name}", module, name))
    return next((shared for shared in found.values() if len(shared) > 1), _to_be_tied(model))


def _to_be_tied(model: Tying) -> list[Place]:
    """Both places of a model without values, which Accelerate's init_empty_weights has untied as it was made."""
    both = [Place(f"{part}.weight", getattr(model, part), "weight") for part in ("token_emb", "head")]
    weights = [place.module._parameters.get("weight") for place in both]
    shapes = {w.shape for w in weights if w is not None and w.is_meta}
    return both if model.config.tie_weights and None not in weights and len(shapes) == 1 else []


@contextlib.contextmanager
def kept(model: Tying) -> Iterator[None]:
    """What was tied before is tied afterwards, by the first place's parameter."""
    shared = places(model)
    yield
    _tie(shared, shared[0].parameter if shared else None)


def before_loading(
    model: Tying, state: dict[str, Tensor], prefix: str, metadata: dict[str, Any], _: bool, missing: list[str],
    unexpected: list[str], errors: list[str],
) -> None:  # fmt: skip
    """A load_state_dict pre-hook. A state dict that holds the shared weight under one of its names is complete; two
    that differ are an error.

    With strict=False the other name stays missing, as torch says it of any tied module: safetensors' load_model and
    Accelerate count on that.
    """
    shared = places(model)
    model.__dict__[_BEFORE] = [(place, place.parameter) for place in shared]
    names = {prefix + place.path: place.parameter for place in shared if prefix + place.path in state}
    if not names:
        return
    given = [name for name, parameter in names.items() if not _is_filler(state[name], parameter)] or list(names)
    for other in given[1:]:
        if not _same(state[given[0]], state[other]):
            errors.append(f"{other} differs from {given[0]}, and this model ties them; make it with tie_weights=False")
    state.update((name, state[given[0]]) for name in names if name not in given)
    if _loading_is_strict() or _in_trainers_checkpoint():
        for place in shared:
            state.setdefault(prefix + place.path, state[given[0]])


def _is_filler(tensor: Any, parameter: Tensor) -> bool:
    """Whether this is the model's present weight, or has no values: set_model_state_dict of torch.distributed (and so
    Accelerate's load_checkpoint_in_model) puts the model's own wherever a file has nothing."""
    return tensor is parameter or getattr(tensor, "is_meta", False)


def after_loading(model: Tying, incompatible: Any) -> None:
    """A load_state_dict post-hook: where assign=True has put a new parameter in one place, it is in all of them."""
    before = model.__dict__.pop(_BEFORE)
    new = [place.parameter for place, parameter in before if place.parameter is not parameter]
    if new:
        _tie([place for place, _ in before], new[0])


def after_state_dict(model: Tying, state: dict[str, Tensor], prefix: str, metadata: dict[str, Any]) -> None:
    """A state_dict post-hook: transformers' Trainer gets the shared weight under its first name only.

    It hands the state dict to safetensors as it is, which refuses to write a tensor twice.
    """
    if _in_trainers_checkpoint():
        for place in places(model)[1:]:
            state.pop(prefix + place.path, None)


def _in_trainers_checkpoint() -> bool:
    """Whether transformers' Trainer is saving or loading one now. It asks with nothing that would tell it from others,
    and fails at its last step, the training lost, if it gets a state dict as everybody else does."""
    if "transformers.trainer" not in sys.modules:
        return False
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name in _CHECKPOINTS and frame.f_globals.get("__name__") == "transformers.trainer":
            return True
        frame = frame.f_back
    return False


_CHECKPOINTS = ("_save", "save_model", "_load_from_checkpoint", "_load_best_model")


def _loading_is_strict() -> bool:
    """What the load_state_dict that runs now was asked for: torch tells a module's hooks "strict" in either case."""
    frame: FrameType | None = sys._getframe()
    while frame is not None:
        if frame.f_code.co_name == "load_state_dict" and "strict" in frame.f_locals:
            return bool(frame.f_locals["strict"])
        frame = frame.f_back
    return True


def check_saveable(config: GPTConfig, state: dict[str, Tensor]) -> None:
    """Raise ValueError if a config that ties head and embedding comes with two different weights."""
    if config.tie_weights and not _same(state["token_emb.weight"], state["head.weight"]):
        raise ValueError(
            "save_pretrained: head.weight is no longer token_emb.weight, and the config ties them, so that a file "
            "would hold one of the two; set model.config = model.config.replace(tie_weights=False), or tie them again: "
            "model.head.weight = model.token_emb.weight"
        )


def _tie(shared: list[Place], parameter: nn.Parameter | None) -> None:
    for place in shared:
        if place.parameter is not parameter:
            setattr(place.module, place.name, parameter)


def _same(a: Tensor, b: Tensor) -> bool:
    if a is b or a.is_meta or b.is_meta:
        return True
    if is_sharded(a) and is_sharded(b):
        a, b = local(a), local(b)
    if a.shape != b.shape or a.dtype != b.dtype:
        return False
    if a.data_ptr() == b.data_ptr() and a.stride() == b.stride():
        return True  # one memory under two names, which comparing would make four copies of
    return torch.allclose(a, b.to(a.device), rtol=0.0, atol=0.0, equal_nan=True)
