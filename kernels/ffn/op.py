"""`gelu_ffn` and `linear_gelu`: argument checks, autocast, operators, autograd."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _runtime, support
from .._library import below_autograd, define, plain
from .._random import check_dropout, new_seed
from ..support import KERNEL_DTYPES

_PATHS = ("auto", "triton", "cublas")


def linear_gelu(
    x: Tensor, w: Tensor, b: Tensor | None = None, approximate: str = "none", *, path: str = "auto"
) -> Tensor:
    """gelu(x wᵀ + b): `torch.nn.functional.linear` and GELU, the GELU in the product's epilogue where that pays.

    Saves x and the pre-activation for backward, nothing else.

    Args:
        x: (..., d_in) float32, float16 or bfloat16; any strides.
        w: (d_out, d_in), as in nn.Linear; b: (d_out,) or None. Both in x's dtype.
        approximate: "none" is x · Φ(x) with the exact Φ (to float32); "tanh" is GPT-2's approximation.
        path: "auto" takes Triton or cuBLAS by a table (`tiles.runs_in_triton`); "triton" and "cublas" insist. The
            backward's products dX and dW are cuBLAS's.

    Returns:
        (..., d_out) in x's dtype (under autocast: in autocast's).

    Raises:
        ValueError: shapes that do not fit, tensors on different devices, an unknown `approximate` or `path`.
        TypeError: dtypes that are not supported or not the same.
        RuntimeError: no GPU that can run Triton kernels, and not inside `interpret()`; a second derivative.
    """
    _checks.check_dense("linear_gelu", 2, x=x, w=w, b=b)
    x, w, b = _autocast(x, w, b)
    _check_choice("linear_gelu", "approximate", approximate, ("none", "tanh"))
    _check_choice("linear_gelu", "path", path, _PATHS)
    _check_linear("linear_gelu", x, "x", w, "w", b, "b")
    support.check_launchable("linear_gelu", x=x, w=w, b=b)
    save_pre = _needs_grad(x, w, b)
    return _linear_gelu_fwd(x, w, b, approximate, save_pre, path)[0]


def gelu_ffn(
    x: Tensor,
    w1: Tensor,
    b1: Tensor | None,
    w2: Tensor,
    b2: Tensor | None,
    approximate: str = "none",
    *,
    recompute: bool = False,
    dropout_p: float = 0.0,
    residual: Tensor | None = None,
    path: str = "auto",
) -> Tensor:
    """residual + dropout(gelu(x w1ᵀ + b1) w2ᵀ + b2): a transformer's feed-forward layer.

    Saves x and the pre-activation for backward, and nothing else: the activation is rebuilt on the way.

    Args:
        x: (..., d_in) float32, float16 or bfloat16; any strides.
        w1: (d_hidden, d_in), w2: (d_out, d_hidden), as in nn.Linear; b1: (d_hidden,), b2: (d_out,), each may be None.
            All in x's dtype.
        approximate: "none" is x · Φ(x) with the exact Φ (to float32); "tanh" is GPT-2's approximation.
        recompute: save x only, and compute the pre-activation again in backward (one more product of the five).
        dropout_p: probability of dropping an element of the output, in [0, 1).
        residual: (..., d_out), in x's dtype or float32; added at the end, and the output has its dtype.
        path: "triton" takes Triton for both products that have GELU beside them, x W1ᵀ and dY W2, "cublas" for none,
            "auto" where a table says that it pays (`tiles.runs_in_triton`). The others are cuBLAS's.

    Returns:
        (..., d_out) in x's dtype (under autocast: in autocast's), or in the residual's.

    Raises:
        ValueError: shapes that do not fit, tensors on different devices, an unknown `approximate` or `path`, dropout_p
            outside of [0, 1).
        TypeError: dtypes that are not supported or not the same.
        RuntimeError: no GPU that can run Triton kernels, and not inside `interpret()`; a second derivative.
    """
    _checks.check_dense("gelu_ffn", 3, x=x, w1=w1, w2=w2, b1=b1, b2=b2, residual=residual)
    x, w1, b1, w2, b2 = _autocast(x, w1, b1, w2, b2)
    _check_choice("gelu_ffn", "approximate", approximate, ("none", "tanh"))
    _check_choice("gelu_ffn", "path", path, _PATHS)
    check_dropout("gelu_ffn", dropout_p)
    _check_linear("gelu_ffn", x, "x", w1, "w1", b1, "b1")
    _check_linear("gelu_ffn", w1.t(), "w1ᵀ", w2, "w2", b2, "b2")
    if residual is not None:
        expected = (*x.shape[:-1], w2.shape[0])
        if residual.shape != expected:
            raise ValueError(
                f"gelu_ffn: residual has shape {tuple(residual.shape)}, expected {expected}, the output's; expand it"
            )
        if residual.dtype not in (x.dtype, torch.float32):
            raise TypeError(f"gelu_ffn: residual is {residual.dtype}; give it in x's {x.dtype} or in float32")
    support.check_launchable("gelu_ffn", x=x, w1=w1, b1=b1, w2=w2, b2=b2, residual=residual)
    save_pre = not recompute and _needs_grad(x, w1, b1, w2)
    seed = new_seed(x.device) if dropout_p > 0.0 else None
    return _gelu_ffn_fwd(x, w1, b1, w2, b2, residual, seed, float(dropout_p), approximate, save_pre, True, path)[0]


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


def _autocast(*tensors: Tensor | None) -> tuple[Tensor | None, ...]:
    """Under autocast, cast to its dtype what F.linear would: all but float64."""
    dtype = _runtime.autocast_dtype(tensors[0])
    if dtype is None:
        return tensors
    cast = (t is not None and t.is_floating_point() and t.dtype != torch.float64 for t in tensors)
    return tuple(t.to(dtype) if wanted else t for t, wanted in zip(tensors, cast))


def _check_choice(function: str, name: str, value: str, choices: tuple[str, ...]) -> None:
    if value not in choices:
        raise ValueError(f"{function}: {name} must be one of {', '.join(map(repr, choices))}, got {value!r}")


def _check_linear(function: str, x: Tensor, x_name: str, w: Tensor, w_name: str, b: Tensor | None, b_name: str) -> None:
    """Raise unless w is a matrix that multiplies x's last dimension, b fits it, and all have one supported dtype."""
    if x.dtype not in KERNEL_DTYPES:
        raise TypeError(
            f"{function}: {x_name} is {x.dtype}; supported are float32, float16 and bfloat16. For float64 use "
            f"fastgpt.kernels.reference.{function}"
        )
    if x.dim() == 0 or w.dim() != 2 or w.shape[1] != x.shape[-1]:
        raise ValueError(
            f"{function}: {w_name} has shape {tuple(w.shape)}, but {x_name} of shape {tuple(x.shape)} wants (any, "
            f"{x.shape[-1] if x.dim() else '?'}); weights are laid out as in nn.Linear, (out, in)"
        )
    if b is not None and b.shape != w.shape[:1]:
        raise ValueError(f"{function}: {b_name} has shape {tuple(b.shape)}, expected ({w.shape[0]},), {w_name}'s rows")
    for name, tensor in ((w_name, w), (b_name, b)):
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(
                f"{function}: {name} is {tensor.dtype} but {x_name} is {x.dtype}; cast one of them, or use autocast"
            )


# ------------------------------------------------------------------------------------------------------ linear_gelu


class _LinearGelu(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any):
        return below_autograd(_linear_gelu_fwd, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs, outputs):
        (x, w, b, approximate, save_pre, path), (_, pre) = inputs, outputs
        ctx.mark_non_differentiable(pre)
        ctx.set_materialize_grads(False)  # else pre's "gradient" is as many zeros
        ctx.save_for_backward(x, w, b, pre if save_pre else None)
        ctx.options = approximate, path

    @staticmethod
    def backward(ctx: Any, dact, _dpre):
        if dact is None:
            return (None,) * 6
        x, w, b, pre = ctx.saved_tensors
        approximate, path = ctx.options
        grads = list(ctx.needs_input_grad[:3])
        out = _linear_gelu_bwd(dact, x, w, b, pre, approximate, grads, path)
        return *(g if want else None for g, want in zip(out, grads)), None, None, None


def _launch_linear_gelu_fwd(*args: Any) -> Any:
    from .launch import linear_gelu_forward

    return linear_gelu_forward(*args)


def _launch_linear_gelu_bwd(*args: Any) -> Any:
    from .launch import linear_gelu_backward

    return linear_gelu_backward(*args)


def _fake_linear_gelu_fwd(x, w, b, approximate, save_pre, path):
    rows = math.prod(x.shape[:-1])
    return x.new_empty(*x.shape[:-1], w.shape[0]), x.new_empty(rows, w.shape[0]) if save_pre else x.new_empty(0)


def _fake_linear_gelu_bwd(dact, x, w, b, pre, approximate, grads, path):
    shapes = x.shape, w.shape, w.shape[:1]
    return tuple(x.new_empty(shape if want else (0,)) for shape, want in zip(shapes, grads))


_linear_gelu_fwd = define(
    "linear_gelu_fwd(Tensor x, Tensor w, Tensor? b, str approximate, bool save_pre, str path) -> (Tensor, Tensor)",
    launch=_launch_linear_gelu_fwd, fake=_fake_linear_gelu_fwd, public="linear_gelu", autograd=_LinearGelu,
    differentiable=(0, 1, 2),
)  # fmt: skip
_linear_gelu_bwd = define(
    "linear_gelu_bwd(Tensor dact, Tensor x, Tensor w, Tensor? b, Tensor? pre, str approximate, bool[] grads, "
    "str path) -> (Tensor, Tensor, Tensor)",
    launch=_launch_linear_gelu_bwd, fake=_fake_linear_gelu_bwd, public="linear_gelu",
)  # fmt: skip


# --------------------------------------------------------------------------------------------------------- gelu_ffn


class _GeluFFN(torch.autograd.Function):
    """Returns (y, pre, nothing); with overwrite_pre (y, nothing, pre), of which the operator hands out (y, nothing)."""

    @staticmethod
    def forward(*args: Any):
        *others, save_pre, overwrite_pre, path = args
        y, pre = below_autograd(_gelu_ffn_fwd, *others, save_pre, False, path)
        nothing = others[0].new_empty(0)
        return (y, nothing, pre) if overwrite_pre else (y, pre, nothing)

    @staticmethod
    def setup_context(ctx: Any, inputs, outputs):
        x, w1, b1, w2, _, _, seed, dropout_p, approximate, save_pre, overwrite_pre, path = inputs
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.set_materialize_grads(False)  # else pre's "gradient" is as many zeros
        ctx.save_for_backward(x, w1, b1, w2, outputs[1 + overwrite_pre] if save_pre else None, seed)
        ctx.options = dropout_p, approximate, overwrite_pre, path

    @staticmethod
    def backward(ctx: Any, dout, *_):
        if dout is None:
            return (None,) * 12
        x, w1, b1, w2, pre, seed = ctx.saved_tensors
        dropout_p, approximate, overwrite_pre, path = ctx.options
        grads = list(ctx.needs_input_grad[:5])
        dresidual = dout if ctx.needs_input_grad[5] else None
        op = _gelu_ffn_bwd_ if overwrite_pre and _dies_with_this_backward(pre, dout) else _gelu_ffn_bwd
        out = op(dout, x, w1, b1, w2, pre, seed, dropout_p, approximate, grads, path)
        return *(g if want else None for g, want in zip(out, grads)), dresidual, *(None,) * 6


def _dies_with_this_backward(pre: Tensor | None, dout: Tensor) -> bool:
    """Whether the graph, and the pre-activation that it saved, ends with the backward pass that is running.

    Not with retain_graph=True or create_graph=True, not while torch.compile or export traces (they plan memory
    themselves), and not where vmap makes several of one backward (`is_grads_batched`).
    """
    return (
        pre is not None
        and plain((pre, dout))
        and not torch.is_grad_enabled()
        and not torch._C._autograd._get_current_graph_task_keep_graph()
    )


def _launch_gelu_ffn_fwd(*args: Any) -> Any:
    from .launch import gelu_ffn_forward

    *others, save_pre, overwrite_pre, path = args
    return gelu_ffn_forward(*others, save_pre and not overwrite_pre, path)


def _launch_gelu_ffn_bwd(*args: Any) -> Any:
    from .launch import gelu_ffn_backward

    return gelu_ffn_backward(*args)


def _launch_gelu_ffn_bwd_overwriting(*args: Any) -> Any:
    from .launch import gelu_ffn_backward

    grads, pre = gelu_ffn_backward(*args, overwrite_pre=True), args[5]
    if not pre.is_inference():
        torch.autograd.graph.increment_version(pre)  # whoever else has saved it for a backward pass must hear of this
    return grads


def _fake_gelu_ffn_fwd(x, w1, b1, w2, b2, residual, seed, dropout_p, approximate, save_pre, overwrite_pre, path):
    rows, dtype = math.prod(x.shape[:-1]), x.dtype if residual is None else residual.dtype
    y = x.new_empty(*x.shape[:-1], w2.shape[0], dtype=dtype)
    return y, x.new_empty(rows, w1.shape[0]) if save_pre and not overwrite_pre else x.new_empty(0)


def _fake_gelu_ffn_bwd(dout, x, w1, b1, w2, pre, seed, dropout_p, approximate, grads, path):
    shapes = x.shape, w1.shape, w1.shape[:1], w2.shape, w2.shape[:1]
    return tuple(x.new_empty(shape if want else (0,)) for shape, want in zip(shapes, grads))


# With `overwrite_pre` nobody but backward gets the pre-activation, which then may write over it: the second result, the
# pre-activation otherwise, is empty.
_gelu_ffn_fwd = define(
    "gelu_ffn_fwd(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? residual, Tensor? seed, "
    "float dropout_p, str approximate, bool save_pre, bool overwrite_pre, str path) -> (Tensor, Tensor)",
    launch=_launch_gelu_ffn_fwd, fake=_fake_gelu_ffn_fwd, public="gelu_ffn", autograd=_GeluFFN, results=2,
    differentiable=(0, 1, 2, 3, 4, 5),
)  # fmt: skip
_gelu_ffn_bwd = define(
    "gelu_ffn_bwd(Tensor dout, Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? pre, Tensor? seed, "
    "float dropout_p, str approximate, bool[] grads, str path) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    launch=_launch_gelu_ffn_bwd, fake=_fake_gelu_ffn_bwd, public="gelu_ffn",
)  # fmt: skip
# The same, but leaves the gradient of the pre-activation in the pre-activation's place.
_gelu_ffn_bwd_ = define(
    "gelu_ffn_bwd_(Tensor dout, Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor(a!) pre, Tensor? seed, "
    "float dropout_p, str approximate, bool[] grads, str path) -> (Tensor, Tensor, Tensor, Tensor, Tensor)",
    launch=_launch_gelu_ffn_bwd_overwriting, fake=_fake_gelu_ffn_bwd, public="gelu_ffn",
)  # fmt: skip
