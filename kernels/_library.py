"""How every family registers its operators with torch: one place, one pattern.

`torch.library.custom_op` and `register_autograd` cost two to three times the Python time per call of registering the
kernels under their dispatch keys directly, which is what this module does. The result still passes
`torch.library.opcheck` in full and traces under `torch.compile(fullgraph=True)` and `torch.export`. Where nobody traces
or watches, a call does not pass through torch's dispatcher at all: `takes_detour` decides, and has the switch.

Kernels read a tensor's storage. Whatever has no storage, or says one thing and stores another (lazily negated and
conjugated views, zero tensors, subclasses, fake and functional tensors), is left to the dispatcher, which resolves it;
so that no family and no launch has to think of it. What torch.func does with an operator is in `_transforms.py`.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn import Parameter

from . import _transforms, support

_lib = torch.library.Library("fastgpt", "FRAGMENT")
launches: dict[str, Callable[..., Any]] = {}  # operator name -> its launch implementation, for counting memory


def define(
    schema: str,
    *,
    launch: Callable[..., Any],
    fake: Callable[..., Any],
    public: str,
    autograd: type[torch.autograd.Function] | None = None,
    results: int | None = None,
    differentiable: tuple[int, ...] = (),
) -> Operator:
    """Register `fastgpt::<schema>` and return what calls it.

    Args:
        schema: e.g. ``"layer_norm_fwd(Tensor x, Tensor? weight, float eps) -> (Tensor, Tensor)"``
        launch: computes it on CUDA tensors, and on CPU tensors under the interpreter. Must return new tensors, never
            its inputs, and an empty tensor in place of a gradient that was not asked for.
        fake: returns tensors of the right shape, dtype and strides without computing (meta tensors, tracing).
        public: the public function that it serves; messages name the reference of that name as the way out.
        autograd: a Function with ``forward(*args)``, which calls `below_autograd(op, *args)`, ``setup_context`` and
            ``backward``. What the backward needs must be an input or an output of forward (torch.func wraps them one
            by one). None for an operator without a derivative of its own (every backward operator): differentiating it
            raises.
        results: how many of that Function's outputs the operator returns; the rest is for its backward. None: all.
        differentiable: positions of the arguments that may require a gradient.
    """
    name = schema.split("(")[0]
    launches[name] = launch
    _lib.define(schema)
    _lib.impl(name, launch, "CUDA")
    _lib.impl(name, launch, "CPU")
    torch.library.register_fake(f"fastgpt::{name}", fake, lib=_lib)
    op = getattr(torch.ops.fastgpt, name).default

    operator = Operator(op, launch, differentiable, results)
    way_out = _transforms.way_out(public)
    function = _not_differentiable(name, operator, way_out) if autograd is None else autograd
    operator.function = _transforms.transformable(function, operator, name, way_out)
    # What torch.autograd.Function.apply does before this is for torch.func only, and takes as long as all the rest.
    operator.record = super(torch.autograd.Function, operator.function).apply  # type: ignore[misc]

    def dispatch(*args: Any) -> Any:
        if forward_ad._current_level >= 0:
            _transforms.refuse_tangents(name, way_out, args)
        return operator.recorded(args) if operator.records(args) else below_autograd(operator, *args)

    def transform(*args: Any) -> Any:
        outputs = _transforms.apply(operator, name, way_out, args)
        return outputs if results is None else outputs[:results]

    _lib.impl(name, dispatch, "Autograd")
    _lib.impl(name, transform, "FuncTorchDynamicLayerFrontMode")
    return operator


class Operator:
    """A registered operator, called as a function of its schema's arguments.

    op              torch's handle on it
    launch          its implementation on tensors that hold data
    differentiable  positions of the arguments that may require a gradient; none given: any
    results         how many outputs of its autograd.Function are its own; None: all
    function        its autograd.Function
    record          calls it, outside of torch.func's transforms
    """

    __slots__ = ("differentiable", "function", "launch", "op", "record", "results")
    function: type[torch.autograd.Function]
    record: Callable[..., Any]

    def __init__(
        self,
        op: torch._ops.OpOverload,
        launch: Callable[..., Any],
        differentiable: tuple[int, ...],
        results: int | None,
    ) -> None:
        self.op, self.launch, self.differentiable, self.results = op, launch, differentiable, results

    def __call__(self, *args: Any) -> Any:
        if not takes_detour(args):
            return self.op(*args) if torch.compiler.is_compiling() else self._dispatched(args)
        if self.records(args):
            return self.recorded(args)
        with torch._C._AutoDispatchBelowAutograd():
            return self.launch(*args)

    def _dispatched(self, args: tuple[Any, ...]) -> Any:
        """By torch's dispatcher, which knows no way for a DTensor unless somebody has registered one."""
        try:
            return self.op(*args)
        except RuntimeError as error:
            if not any(isinstance(arg, Tensor) and support.is_distributed(arg) for arg in args):
                raise
            raise TypeError(f"{self.op.name()}: {support.DISTRIBUTED}") from error

    def records(self, args: tuple[Any, ...]) -> bool:
        """True if autograd records this call."""
        if not torch.is_grad_enabled():
            return False
        for i in self.differentiable:
            if args[i] is not None and args[i].requires_grad:
                return True
        return not self.differentiable

    def recorded(self, args: tuple[Any, ...]) -> Any:
        """Call it, and let autograd record the call."""
        outputs = self.record(*args)
        return outputs if self.results is None else outputs[: self.results]


def below_autograd(operator: Operator, *args: Any) -> Any:
    """Call the launch (or fake) implementation of `operator` from inside its autograd Function."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator.launch(*args) if takes_detour(args) else operator.op(*args)


# The switch: FASTGPT_DETOUR=0, or this flag, sends every call through torch's dispatcher. What the detour saves a call
# is in benchmarks/results/call_cost.md, by `python -m benchmarks.call_cost`; no GPU has confirmed it.
detour = os.environ.get("FASTGPT_DETOUR", "1") != "0"


def takes_detour(args: tuple[Any, ...]) -> bool:
    """True if a call with these arguments may pass by torch's dispatcher: plain tensors with data, and nobody watches.

    Who sees operator calls: torch.compile, export and jit.trace; modes (fake tensors, FLOP counters, selective
    checkpointing); torch.func's transforms; forward-mode AD; the profiler; tensor subclasses (DTensor). Which tensors
    are not plain: all but dense ones whose storage holds what they say.
    """
    if (
        not detour
        or torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or forward_ad._current_level >= 0
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    ):
        return False
    for arg in args:  # as `plain`, whose call would take a tenth of all this
        kind = type(arg)
        if kind is Tensor or kind is Parameter:
            if _dispatch_keys(arg).raw_repr() not in _PLAIN:
                return False
        elif kind not in _NO_TENSORS and isinstance(arg, Tensor):
            return False
    return True


def plain(args: tuple[Any, ...]) -> bool:
    """True if a launch may read (and write) the storages of these arguments, whoever watches."""
    return forward_ad._current_level < 0 and all(
        type(arg) in (Tensor, Parameter) and _dispatch_keys(arg).raw_repr() in _PLAIN
        for arg in args
        if isinstance(arg, Tensor)
    )


_NO_TENSORS = frozenset((type(None), bool, int, float, str, list, tuple, torch.dtype))
_dispatch_keys = torch._C._dispatch_keys


def _plain_dispatch_keys() -> frozenset[int]:
    """The dispatch keys of a dense tensor on a CPU or a CUDA GPU, and of the same made in inference mode.

    They are listed, and all others left to the dispatcher, because there is no list of what else a tensor may be.
    """
    key, sets = torch._C.DispatchKey, set()
    for device in ("CPU", "CUDA"):
        inference = torch._C.DispatchKeySet(getattr(key, device)).add(getattr(key, f"Autocast{device}"))
        normal = inference.add(key.ADInplaceOrView).add(getattr(key, f"Autograd{device}"))
        sets |= {inference.raw_repr(), normal.raw_repr()}
    return frozenset(sets)


_PLAIN = _plain_dispatch_keys()


@contextlib.contextmanager
def plain_too(*tensors: Tensor) -> Iterator[None]:
    """Inside, tensors of the same kind as these are plain: memory is counted on meta tensors as a GPU would need it."""
    global _PLAIN
    saved, _PLAIN = _PLAIN, _PLAIN | {_dispatch_keys(x).raw_repr() for x in tensors}
    try:
        yield
    finally:
        _PLAIN = saved


def _not_differentiable(name: str, operator: Operator, way_out: str) -> type[torch.autograd.Function]:
    class NotDifferentiable(torch.autograd.Function):
        @staticmethod
        def forward(*args: Any) -> Any:
            return below_autograd(operator, *args)

        @staticmethod
        def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Any) -> None:
            ctx.set_materialize_grads(False)

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            raise RuntimeError(
                f"fastgpt::{name} has no derivative: the fused kernels are differentiable once. For double backward "
                f"use the reference implementation: {way_out}."
            )

    return NotDifferentiable
