"""What torch.func does with a registered operator: grad, vjp, jacrev and vmap work, forward mode raises.

grad   the operator's own autograd.Function, level by level (`torch.func`'s rule for Functions with setup_context).
vmap   the kernels see one sample at a time, and the results are stacked: as many launches as there are samples. The
       kernels batch already where a batch belongs (B, tokens, rows), so that this is for per-sample gradients and
       Jacobians, which have no fused form.
jvp    is refused: a kernel reads primals only, and would lose the tangents silently.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor
from torch.autograd import forward_ad

from . import support

_PARTS = {
    "flash_attention": "attn", "attention_weights": "attn", "layer_norm": "norm", "add_layer_norm": "norm",
    "linear_gelu": "ffn", "gelu_ffn": "ffn", "cross_entropy": "loss", "linear_cross_entropy": "loss",
}  # fmt: skip


def way_out(public: str) -> str:
    """Where to go instead of the public function `public`, for a message."""
    return f'fastgpt.kernels.reference.{public}, or {_PARTS[public]}_impl="reference" in a GPT'


def refuse_tangents(name: str, way_out: str, args: tuple[Any, ...]) -> None:
    """Raise if an argument carries a tangent of forward-mode AD."""
    if not torch._C._is_fwd_grad_enabled():
        return
    for arg in args:
        if isinstance(arg, Tensor) and forward_ad.unpack_dual(arg).tangent is not None:
            raise _no_forward_mode(name, way_out)


def _no_forward_mode(name: str, way_out: str) -> NotImplementedError:
    return NotImplementedError(
        f"fastgpt::{name} has no forward-mode derivative (jvp, jacfwd, forward_ad): the fused kernels would lose the "
        f"tangents. Use the reference implementation: {way_out}; or reverse mode (grad, vjp, jacrev)."
    )


def are_on() -> bool:
    """True inside of torch.func's transforms, and where forward-mode AD is on."""
    return torch._C._are_functorch_transforms_active() or support.forward_mode_is_on()


@contextlib.contextmanager
def torch_attention() -> Iterator[None]:
    """For where transforms are on: torch's own attention keeps to operators that know them.

    Its fused ones, and the fast path of its modules, know neither forward mode nor second derivatives, and cannot tell
    that they are wanted.
    """
    fast = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with torch.nn.attention.sdpa_kernel(torch.nn.attention.SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fast)


def transformable(
    function: type[torch.autograd.Function], operator: Any, name: str, way_out: str
) -> type[torch.autograd.Function]:
    """`function` with the rules that all operators share: vmap sample by sample, and no jvp."""

    def vmap(info: Any, in_dims: tuple[Any, ...], *args: Any) -> tuple[Any, Any]:
        # At least one call: where there is no sample, one of zeros tells the shapes of the results.
        samples = [operator.function.apply(*_sample(args, in_dims, i)) for i in range(max(info.batch_size, 1))]
        if isinstance(samples[0], Tensor):
            return torch.stack(samples)[: info.batch_size], 0
        stacked = tuple(torch.stack(outputs)[: info.batch_size] for outputs in zip(*samples))
        return stacked, (0,) * len(stacked)

    def jvp(ctx: Any, *tangents: Any) -> Any:
        raise _no_forward_mode(name, way_out)

    rules = {"vmap": staticmethod(vmap), "jvp": staticmethod(jvp), "__module__": function.__module__}
    return type(function.__name__, (function,), rules)


def _sample(args: tuple[Any, ...], in_dims: tuple[Any, ...], i: int) -> list[Any]:
    def of(a: Any, d: int | None) -> Any:
        if not isinstance(a, Tensor) or d is None:
            return a
        return a.select(d, i) if a.shape[d] else a.new_zeros([*a.shape[:d], *a.shape[d + 1 :]])

    return [of(a, d) for a, d in zip(args, in_dims)]


def apply(operator: Any, name: str, way_out: str, args: tuple[Any, ...]) -> Any:
    """Run the innermost of torch.func's transforms that are active on the call of an operator."""
    refuse_tangents(name, way_out, args)
    functionalize = torch._C._functorch.TransformType.Functionalize
    transforms = [t.key() for t in torch._C._functorch.get_interpreter_stack() or ()]
    if transforms[-1:] == [functionalize]:
        from torch._functorch.pyfunctorch import retrieve_current_functorch_interpreter
        from torch._subclasses.functional_tensor import FunctorchFunctionalizeAPI

        interpreter: Any = retrieve_current_functorch_interpreter()
        api = FunctorchFunctionalizeAPI(interpreter)
        with api.redispatch_to_next():
            return api.wrap_tensors(operator.op(*api.unwrap_tensors(args)))
    if functionalize in transforms:
        raise NotImplementedError(
            f"fastgpt::{name}: torch.func.functionalize knows no autograd.Function, which grad and vmap inside of it "
            "make of every fused operator. Put functionalize inside, as in grad(functionalize(f)), or use the "
            f"reference implementation: {way_out}"
        )
    return operator.function.apply(*args)
