"""Where a step is no longer finite: a second pass over it, with hooks on every module, which names the first place."""

from __future__ import annotations

import contextlib
import functools
import sys
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from ..model.blocks import Head
from ..nn._sharded import local
from ..parallel.world import World


class Place(NamedTuple):
    """The first thing that is not finite, of those that one rank has looked at.

    number  how many it had looked at before: ranks do the same in the same order
    words   what it is
    """

    number: int
    words: str


def explain(model: nn.Module, again: Callable[[], object], world: World) -> str:
    """What was not finite first, in words: the same on all ranks, which call this together.

    Looked at in the order in which they come to be: what each module returns, up to the loss; from there backwards the
    gradient of each of these; last the gradient of each parameter.

    Args:
        again: makes forward and backward, as they were.
    """
    watch = Watch(model)
    try:
        with watch, _without_compiling():
            again()
        watch.look_at_gradients()
        mine: tuple[Place | None, tuple[float, str], str] = watch.first, watch.largest(), ""
    except Exception as error:  # a run that could go on does not end because of an explanation
        mine = None, (0.0, ""), f"{type(error).__name__}: {error}".splitlines()[0]
    of_all = world.objects(mine)
    places = [place for place, _, _ in of_all if place is not None]
    if places:
        return f"the first that is not finite is {min(places).words}"
    if failed := next((message for _, _, message in of_all if message), ""):
        return f"a second pass over it failed ({failed})"
    largest, name = max(value for _, value, _ in of_all)
    return (
        "a second pass finds the outputs and the gradients of all modules finite; the largest gradient is "
        f"{largest:.3g}, of {name}"
    )


class Watch:
    """Inside of the `with`, looks at all that the model's modules return and at the gradients of it.

    first   that is not finite; None before there is one
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.first: Place | None = None
        self._number = 0

    def __enter__(self) -> Watch:
        self._stack = contextlib.ExitStack()
        for name, module in _watchable(self.model):
            handle = module.register_forward_hook(functools.partial(self._returned, name))
            self._stack.callback(handle.remove)
        return self

    def __exit__(self, *_: object) -> None:
        self._stack.close()

    def look_at_gradients(self) -> None:
        """Those of the parameters, which have come together over the micro-batches."""
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None:
                self._look(parameter.grad, f"the gradient of {name}")

    def largest(self) -> tuple[float, str]:
        """The largest absolute value of a gradient in this rank's part of the parameters, and whose it is."""
        found = [(0.0, "none")]
        for name, parameter in self.model.named_parameters():
            if parameter.grad is not None and (mine := local(parameter.grad)).numel():
                found.append((float(mine.abs().max()), name))
        return max(found)

    def _returned(self, name: str, module: nn.Module, inputs: object, output: object) -> None:
        if isinstance(loss := getattr(output, "loss", None), Tensor):
            said, output = "the loss", loss
        else:
            said = f"the output of {name or 'the model'}"
        for tensor in _tensors(output):
            if self._look(tensor, said):
                for own, parameter in module.named_parameters():
                    if self.first is not None and not _is_finite(parameter):
                        self.first = Place(self.first.number, f"{self.first.words}, whose {own} is not finite")
                        break
            if tensor.requires_grad:
                tensor.register_hook(functools.partial(self._gradient, said))

    def _gradient(self, name: str, gradient: Tensor) -> None:
        self._look(gradient, f"the gradient of {name}")

    def _look(self, tensor: Tensor, words: str) -> bool:
        """Whether it is the first that is not finite."""
        self._number += 1
        if self.first is not None or _is_finite(tensor):
            return False
        self.first = Place(self._number, words)
        return True


def _watchable(model: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """The modules on which a hook changes nothing of what is computed. Those of ours that choose an implementation run
    their children one by one where these have hooks, and a head's loss is then another's (`nn/_exact.py`): what is
    looked for might not come again."""
    choosing = [name for name, module in model.named_modules() if hasattr(module, "choice")]
    for name, module in model.named_modules():
        if not isinstance(module, Head) and not any(name.startswith(f"{above}.") for above in choosing if above):
            yield name, module


def _without_compiling() -> contextlib.AbstractContextManager[object]:
    """A compiled module calls no hooks. Nothing is, where torch has not loaded what compiles: it takes seconds."""
    return torch.compiler.set_stance("force_eager") if "torch._dynamo" in sys.modules else contextlib.nullcontext()


def _is_finite(tensor: Tensor) -> bool:
    return bool(local(tensor).isfinite().all())


def _tensors(output: Any) -> Iterator[Tensor]:
    """Those of floating point in what a module returns: a tensor, or what holds some."""
    if isinstance(output, Tensor):
        if output.is_floating_point():
            yield output
    elif isinstance(output, (Mapping, tuple, list)):
        for part in output.values() if isinstance(output, Mapping) else output:
            yield from _tensors(part)
