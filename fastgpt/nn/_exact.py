"""The one rule for computing what other modules are there to compute.

A kernel that takes a child's weight passes by whatever was done to the child: an adapter around it (LoRA), a hook on it
(pruning, spectral norm, offloading, somebody's probe), a forward of its own, a quantised weight. So a module of ours
stands in for its children only where each is exactly the class whose formula the kernel has, and nothing was done to
it. Otherwise the children run, one by one, as torch's would.

A child that was compiled (`child.compile()`) is no other: the same formula, so that kernels may stand in for it.
torch.compile guards on classes and forwards; hooks that are added after a graph was compiled it notices for modules of
ours as little as for any (see torch._dynamo.config.skip_nnmodule_hook_guards).
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from types import CodeType

import torch
from torch import Tensor, nn
from torch.nn.modules import module as _registry

# Hooks on all modules of the process (`torch.nn.modules.module.register_module_forward_hook` and its kin).
_forward, _forward_pre = _registry._global_forward_hooks, _registry._global_forward_pre_hooks
_backward, _backward_pre = _registry._global_backward_hooks, _registry._global_backward_pre_hooks

_CALL, _CALL_IMPL = nn.Module.__call__, nn.Module._call_impl  # tracers and profilers put their own in the class

_PLAIN = (nn.Parameter, Tensor, type(None))  # other weights know how to multiply: quantised or sharded ones

_gathered: frozenset[int] = frozenset()  # ids of sharded parameters that will be plain by the time they are used

Expected = tuple[tuple[type[nn.Module], CodeType | None], ...]


def exactly(*classes: type[nn.Module]) -> Expected:
    """What `why_children_run` compares with: each class, and the code of its forward, which somebody may replace."""
    return tuple((kind, _code(kind)) for kind in classes)


def _code(kind: type[nn.Module]) -> CodeType | None:
    """The code of the forward that the class was written with; None if it has been replaced already."""
    home = next(base for base in kind.__mro__ if "forward" in vars(base))
    module = getattr(kind.forward, "__globals__", {}).get("__name__")  # of a wrapper it is the wrapper's
    return kind.forward.__code__ if module == home.__module__ else None


def why_children_run(children: Iterable[nn.Module], expected: Expected) -> str | None:
    """Why these children, which should be exactly as expected, have to run; None if a kernel may stand in for them."""
    if _forward or _forward_pre or _backward or _backward_pre:
        return "all modules have hooks (torch.nn.modules.module)"
    replaced = nn.Module.__call__ is not _CALL or nn.Module._call_impl is not _CALL_IMPL
    if replaced and not torch.compiler.is_compiling():  # torch.export does, to follow what it traces
        return "the call of all modules has been replaced (torch.nn.Module)"
    for child, (kind, code) in zip(children, expected):
        if type(child) is not kind:
            return f"a {kind.__name__} has become a {_full_name(type(child))}"
        if child._forward_hooks or child._forward_pre_hooks or child._backward_hooks or child._backward_pre_hooks:
            return f"a {kind.__name__} has hooks"
        own = child.__dict__
        if "forward" in own or "_call_impl" in own or getattr(child.forward, "__code__", None) is not code:
            return f"a {kind.__name__} has a forward of its own"
        for parameter in child._parameters.values():
            held = type(parameter)
            if held not in _PLAIN and not held.__module__.startswith("torch._subclasses"):  # tensors without data
                if id(parameter) in _gathered:
                    continue
                name = next(name for name, value in child._parameters.items() if value is parameter)
                return f"the {name} of a {kind.__name__} is a {held.__name__}"
    return None


@contextlib.contextmanager
def gathering(parameters: Iterable[Tensor]) -> Iterator[None]:
    """Inside, `why_children_run` answers for a forward pass, before which these parameters are gathered (FSDP2)."""
    global _gathered
    saved, _gathered = _gathered, _gathered | {id(parameter) for parameter in parameters}
    try:
        yield
    finally:
        _gathered = saved


def _full_name(kind: type) -> str:
    """peft's Linear is a Linear by its last name too."""
    return kind.__name__ if kind.__module__.startswith("torch.nn.") else f"{kind.__module__}.{kind.__qualname__}"
