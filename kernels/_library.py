"""How every family registers its operators with torch: one place, one pattern.

`torch.library.custom_op` and `register_autograd` cost two to three times the Python time per call of registering the
kernels under their dispatch keys directly, which is what this module does. The result still passes
`torch.library.opcheck` in full and traces under `torch.compile(fullgraph=True)` and `torch.export`.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

_lib = torch.library.Library("fastgpt", "FRAGMENT")
launches: dict[str, Callable[..., Any]] = {}  # operator name -> its launch implementation, for counting memory


def define(
    schema: str,
    *,
    launch: Callable[..., Any],
    fake: Callable[..., Any],
    autograd: type[torch.autograd.Function] | None = None,
    differentiable: tuple[int, ...] = (),
) -> torch._ops.OpOverload:
    """Register `fastgpt::<schema>` and return the operator.

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

    function = autograd if autograd is not None else _not_differentiable(name, op)

    def dispatch(*args: Any) -> Any:
        if torch.is_grad_enabled() and (
            not differentiable or any(args[i] is not None and args[i].requires_grad for i in differentiable)
        ):
            return function.apply(*args)
        return below_autograd(op, *args)

    _lib.impl(name, dispatch, "Autograd")
    return op


def below_autograd(op: torch._ops.OpOverload, *args: Any) -> Any:
    """Call `op`'s launch (or fake) implementation from inside its autograd Function."""
    with torch._C._AutoDispatchBelowAutograd():
        return op(*args)


def _not_differentiable(name: str, op: torch._ops.OpOverload) -> type[torch.autograd.Function]:
    class NotDifferentiable(torch.autograd.Function):
        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            return below_autograd(op, *args)

        @staticmethod
        def backward(ctx: Any, *grads: torch.Tensor) -> Any:
            raise RuntimeError(
                f"fastgpt::{name} has no derivative: the fused kernels are differentiable once. For double backward "
                'use the reference implementation (fastgpt.kernels.reference, or attn_impl="reference").'
            )

    return NotDifferentiable
