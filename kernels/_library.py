"""How every family registers its operators with torch: one place, one pattern.

`torch.library.custom_op` and `register_autograd` cost two to three times the Python time per call of registering the
kernels under their dispatch keys directly, which is what this module does. The result still passes
`torch.library.opcheck` in full and traces under `torch.compile(fullgraph=True)` and `torch.export`. Where nobody traces
or watches, a call does not pass through torch's dispatcher at all: the way through it and back, twice where gradients
are wanted, takes as long as everything else that Python does for a launch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

_lib = torch.library.Library("fastgpt", "FRAGMENT")
launches: dict[str, Callable[..., Any]] = {}  # operator name -> its launch implementation, for counting memory


def define(
    schema: str,
    *,
    launch: Callable[..., Any],
    fake: Callable[..., Any],
    autograd: type[torch.autograd.Function] | None = None,
    differentiable: tuple[int, ...] = (),
) -> Operator:
    """Register `fastgpt::<schema>` and return what calls it.

    Args:
        schema: e.g. ``"layer_norm_fwd(Tensor x, Tensor? weight, float eps) -> (Tensor, Tensor)"``
        launch: computes it on CUDA tensors, and on CPU tensors under the interpreter. Must return new tensors, never
            its inputs, and an empty tensor in place of a gradient that was not asked for.
        fake: returns tensors of the right shape, dtype and strides without computing (meta tensors, tracing).
        autograd: a Function with ``forward(ctx, *args)``, which calls `below_autograd(op, *args)` and saves what the
            backward needs, and ``backward(ctx, *grads)``. None for an operator without a derivative of its own (every
            backward operator): differentiating it raises, naming the reference implementation.
        differentiable: positions of the arguments that may require a gradient.
    """
    name = schema.split("(")[0]
    launches[name] = launch
    _lib.define(schema)
    _lib.impl(name, launch, "CUDA")
    _lib.impl(name, launch, "CPU")
    torch.library.register_fake(f"fastgpt::{name}", fake, lib=_lib)
    op = getattr(torch.ops.fastgpt, name).default

    operator = Operator(op, launch, differentiable)
    operator.function = autograd if autograd is not None else _not_differentiable(name, operator)

    def dispatch(*args: Any) -> Any:
        return operator.function.apply(*args) if operator.records(args) else below_autograd(operator, *args)

    _lib.impl(name, dispatch, "Autograd")
    return operator


class Operator:
    """A registered operator, called as a function of its schema's arguments.

    op              torch's handle on it
    launch          its implementation on tensors that hold data
    differentiable  positions of the arguments that may require a gradient; none given: any
    function        its autograd.Function
    """

    __slots__ = ("differentiable", "function", "launch", "op")
    function: type[torch.autograd.Function]

    def __init__(
        self, op: torch._ops.OpOverload, launch: Callable[..., Any], differentiable: tuple[int, ...]
    ) -> None:  # fmt: skip
        self.op, self.launch, self.differentiable = op, launch, differentiable

    def __call__(self, *args: Any) -> Any:
        if not unwatched(args):
            return self.op(*args)
        if self.records(args):
            return self.function.apply(*args)
        with torch._C._AutoDispatchBelowAutograd():
            return self.launch(*args)

    def records(self, args: tuple[Any, ...]) -> bool:
        """True if autograd records this call."""
        if not torch.is_grad_enabled():
            return False
        for i in self.differentiable:
            if args[i] is not None and args[i].requires_grad:
                return True
        return not self.differentiable


def below_autograd(operator: Operator, *args: Any) -> Any:
    """Call the launch (or fake) implementation of `operator` from inside its autograd Function."""
    with torch._C._AutoDispatchBelowAutograd():
        return operator.launch(*args) if unwatched(args) else operator.op(*args)


def unwatched(args: tuple[Any, ...]) -> bool:
    """True if these arguments are plain tensors with data and nobody sees operator calls.

    Who sees them: torch.compile, export and jit.trace; modes (fake tensors, FLOP counters, selective checkpointing);
    torch.func's transforms; the profiler; tensor subclasses (DTensor).
    """
    if (
        torch.compiler.is_compiling()
        or torch._C._len_torch_dispatch_stack()
        or torch._C._len_torch_function_stack()
        or torch._C._are_functorch_transforms_active()
        or torch._C._get_tracing_state() is not None
        or torch._C._autograd._profiler_enabled()
    ):
        return False
    for arg in args:
        kind = type(arg)
        if kind is Tensor or kind is Parameter:
            if arg.is_meta:
                return False
        elif isinstance(arg, Tensor):
            return False
    return True


def _not_differentiable(name: str, operator: Operator) -> type[torch.autograd.Function]:
    class NotDifferentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            return below_autograd(operator, *args)

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> Any:
            raise RuntimeError(
                f"fastgpt::{name} has no derivative: the fused kernels are differentiable once. For double backward "
                'use the reference implementation (fastgpt.kernels.reference, or attn_impl="reference").'
            )

    return NotDifferentiable
