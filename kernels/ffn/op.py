"""`linear_gelu` and `gelu_ffn` as torch sees them: the public functions, their operators, fakes and autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _library, _runtime, support
from .._random import check_dropout, new_seed
from . import arguments


def linear_gelu(
    x: Tensor, w: Tensor, b: Tensor | None = None, approximate: str = "none", *, path: str = "auto"
) -> Tensor:
    """gelu(x wᵀ + b): `torch.nn.functional.linear` and GELU, the GELU in the product's epilogue where that pays.

    Saves x and the pre-activation for backward, nothing else.

    Args:
        x: (..., d_in) float32, float16 or bfloat16; any strides.
        w: (d_out, d_in), as in nn.Linear; b: (d_out,) or None. Both in x's dtype.
        approximate: "none" is x · Φ(x) with the exact Φ (to float32); "tanh" is GPT-2's approximation.
        path: who computes x wᵀ: "auto" takes Triton or cuBLAS by a table (`tiles.runs_in_triton`); the others insist.

    Returns:
        (..., d_out) in x's dtype (under autocast: in autocast's).

    Raises:
        ValueError: shapes that do not fit, tensors on different devices, an unknown `approximate` or `path`.
        TypeError: dtypes that are not supported or not the same.
        RuntimeError: no GPU that can run Triton kernels, and not inside `interpret()`; a second derivative.
    """
    _checks.check_dense("linear_gelu", 2, x=x, w=w, b=b)
    if (dtype := _runtime.autocast_dtype(x)) is not None:
        x, w = (_checks.as_autocast_asks(t, dtype) for t in (x, w))
        b = _checks.as_autocast_asks(b, dtype)
    arguments.check_options("linear_gelu", approximate, path)
    arguments.check_linear("linear_gelu", x, "x", w, "w", b, "b")
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
    if (dtype := _runtime.autocast_dtype(x)) is not None:
        x, w1, w2 = (_checks.as_autocast_asks(t, dtype) for t in (x, w1, w2))
        b1, b2 = (_checks.as_autocast_asks(b, dtype) for b in (b1, b2))
    arguments.check_options("gelu_ffn", approximate, path)
    check_dropout("gelu_ffn", dropout_p)
    arguments.check_linear("gelu_ffn", x, "x", w1, "w1", b1, "b1")
    arguments.check_linear("gelu_ffn", w1.t(), "w1ᵀ", w2, "w2", b2, "b2")
    if residual is not None:
        arguments.check_residual("gelu_ffn", residual, x, w2.shape[0])
    support.check_launchable("gelu_ffn", x=x, w1=w1, b1=b1, w2=w2, b2=b2, residual=residual)
    save_pre = not recompute and _needs_grad(x, w1, b1, w2)
    seed = new_seed(x.device) if dropout_p > 0.0 else None
    return _gelu_ffn_fwd(x, w1, b1, w2, b2, residual, seed, float(dropout_p), approximate, save_pre, True, path)[0]


def _needs_grad(*tensors: Tensor | None) -> bool:
    return torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in tensors)


# ------------------------------------------------------------------------------------- linear_gelu, as torch sees it


def _launch_linear_gelu_fwd(
    x: Tensor, w: Tensor, b: Tensor | None, approximate: str, save_pre: bool, path: str
) -> tuple[Tensor, Tensor]:
    from . import launch

    return launch.linear_gelu_forward(x, w, b, approximate, save_pre, path)


def _launch_linear_gelu_bwd(
    dact: Tensor, x: Tensor, w: Tensor, b: Tensor | None, pre: Tensor | None, approximate: str, grads: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    from . import launch

    return launch.linear_gelu_backward(dact, x, w, b, pre, approximate, grads)


def _fake_linear_gelu_fwd(
    x: Tensor, w: Tensor, b: Tensor | None, approximate: str, save_pre: bool, path: str
) -> tuple[Tensor, Tensor]:
    return x.new_empty(*x.shape[:-1], w.shape[0]), _fake_pre(x, w, save_pre)


def _fake_linear_gelu_bwd(
    dact: Tensor, x: Tensor, w: Tensor, b: Tensor | None, pre: Tensor | None, approximate: str, grads: Sequence[bool]
) -> tuple[Tensor, ...]:
    return _fake_grads(x, grads, x.shape, w.shape, w.shape[:1])


def _fake_pre(x: Tensor, w: Tensor, save_pre: bool) -> Tensor:
    return x.new_empty(math.prod(x.shape[:-1]), w.shape[0]) if save_pre else x.new_empty(0)


def _fake_grads(x: Tensor, grads: Sequence[bool], *shapes: torch.Size) -> tuple[Tensor, ...]:
    return tuple(x.new_empty(shape if wanted else (0,)) for shape, wanted in zip(shapes, grads))


class _LinearGelu(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return _library.below_autograd(_linear_gelu_fwd, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
        (x, w, b, ctx.approximate, save_pre, _), (_, pre) = inputs, outputs
        ctx.mark_non_differentiable(pre)
        ctx.set_materialize_grads(False)  # else pre's "gradient" is as many zeros
        ctx.save_for_backward(x, w, b, pre if save_pre else None)

    @staticmethod
    def backward(ctx: Any, dact: Tensor | None, _dpre: None) -> tuple[Tensor | None, ...]:
        if dact is None:
            return (None,) * 6
        grads = list(ctx.needs_input_grad[:3])
        out = _linear_gelu_bwd(dact, *ctx.saved_tensors, ctx.approximate, grads)
        return *(g if wanted else None for g, wanted in zip(out, grads)), None, None, None


_linear_gelu_fwd = _library.define(
    "linear_gelu_fwd(Tensor x, Tensor w, Tensor? b, str approximate, bool save_pre, str path) -> (Tensor, Tensor)",
    launch=_launch_linear_gelu_fwd,
    fake=_fake_linear_gelu_fwd,
    public="linear_gelu",
    autograd=_LinearGelu,
    differentiable=(0, 1, 2),
)
_linear_gelu_bwd = _library.define(
    "linear_gelu_bwd(Tensor dact, Tensor x, Tensor w, Tensor? b, Tensor? pre, str approximate, bool[] grads) -> "
    "(Tensor, Tensor, Tensor)",
    launch=_launch_linear_gelu_bwd,
    fake=_fake_linear_gelu_bwd,
    public="linear_gelu",
)


# ---------------------------------------------------------------------------------------- gelu_ffn, as torch sees it


def _launch_gelu_ffn_fwd(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, residual: Tensor | None,
    seed: Tensor | None, dropout_p: float, approximate: str, save_pre: bool, overwrite_pre: bool, path: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    from . import launch

    save_pre = save_pre and not overwrite_pre
    return launch.gelu_ffn_forward(x, w1, b1, w2, b2, residual, seed, dropout_p, approximate, save_pre, path)


def _launch_gelu_ffn_bwd(
    dout: Tensor, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, pre: Tensor | None, seed: Tensor | None,
    dropout_p: float, approximate: str, grads: Sequence[bool], path: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    from . import launch

    return launch.gelu_ffn_backward(dout, x, w1, b1, w2, pre, seed, dropout_p, approximate, grads, path)


def _launch_gelu_ffn_bwd_overwriting(
    dout: Tensor, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, pre: Tensor, seed: Tensor | None,
    dropout_p: float, approximate: str, grads: Sequence[bool], path: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    from . import launch

    out = launch.gelu_ffn_backward(
        dout, x, w1, b1, w2, pre, seed, dropout_p, approximate, grads, path, overwrite_pre=True
    )
    if not pre.is_inference():
        torch.autograd.graph.increment_version(pre)  # whoever else has saved it for a backward pass must hear of this
    return out


def _fake_gelu_ffn_fwd(
    x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, b2: Tensor | None, residual: Tensor | None,
    seed: Tensor | None, dropout_p: float, approximate: str, save_pre: bool, overwrite_pre: bool, path: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    y = x.new_empty(*x.shape[:-1], w2.shape[0], dtype=x.dtype if residual is None else residual.dtype)
    return y, _fake_pre(x, w1, save_pre and not overwrite_pre)


def _fake_gelu_ffn_bwd(
    dout: Tensor, x: Tensor, w1: Tensor, b1: Tensor | None, w2: Tensor, pre: Tensor | None, seed: Tensor | None,
    dropout_p: float, approximate: str, grads: Sequence[bool], path: str,
) -> tuple[Tensor, ...]:  # fmt: skip
    return _fake_grads(x, grads, x.shape, w1.shape, w1.shape[:1], w2.shape, w2.shape[:1])


class _GeluFFN(torch.autograd.Function):
    """Returns (y, pre, nothing); with overwrite_pre (y, nothing, pre), of which the operator hands out (y, nothing)."""

    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        *others, save_pre, overwrite_pre, path = args
        y, pre = _library.below_autograd(_gelu_ffn_fwd, *others, save_pre, False, path)
        nothing = others[0].new_empty(0)
        return (y, nothing, pre) if overwrite_pre else (y, pre, nothing)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor, Tensor]) -> None:
        x, w1, b1, w2, _, _, seed, dropout_p, approximate, save_pre, overwrite_pre, path = inputs
        ctx.mark_non_differentiable(*outputs[1:])
        ctx.set_materialize_grads(False)  # else pre's "gradient" is as many zeros
        ctx.save_for_backward(x, w1, b1, w2, outputs[1 + overwrite_pre] if save_pre else None, seed)
        ctx.options = dropout_p, approximate, overwrite_pre, path

    @staticmethod
    def backward(ctx: Any, dout: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if dout is None:
            return (None,) * 12
        x, w1, b1, w2, pre, seed = ctx.saved_tensors
        dropout_p, approximate, overwrite_pre, path = ctx.options
        grads = list(ctx.needs_input_grad[:5])
        dresidual = dout if ctx.needs_input_grad[5] else None
        op = _gelu_ffn_bwd_ if overwrite_pre and _dies_with_this_backward(pre, dout) else _gelu_ffn_bwd
        out = op(dout, x, w1, b1, w2, pre, seed, dropout_p, approximate, grads, path)
        return *(g if wanted else None for g, wanted in zip(out, grads)), dresidual, *(None,) * 6


def _dies_with_this_backward(pre: Tensor | None, dout: Tensor) -> bool:
    """Whether the graph, and the pre-activation that it saved, ends with the backward pass that is running.

    Not with retain_graph=True or create_graph=True, not while torch.compile or export traces (they plan memory
    themselves), and not where vmap makes several of one backward (`is_grads_batched`).
    """
    return (
        pre is not None
        and _library.plain((pre, dout))
        and not torch.is_grad_enabled()
        and not torch._C._autograd._get_current_graph_task_keep_graph()
    )


# With `overwrite_pre` nobody but backward gets the pre-activation, which then may write over it: the second result, the
# pre-activation otherwise, is empty.
_gelu_ffn_fwd = _library.define(
    "gelu_ffn_fwd(Tensor x, Tensor w1, Tensor? b1, Tensor w2, Tensor? b2, Tensor? residual, Tensor? seed, "
    "float dropout_p, str approximate, bool save_pre, bool overwrite_pre, str path) -> (Tensor, Tensor)",
    launch=_launch_gelu_ffn_fwd,
    fake=_fake_gelu_ffn_fwd,
    public="gelu_ffn",
    autograd=_GeluFFN,
    results=2,
    differentiable=(0, 1, 2, 3, 4, 5),
)
_BACKWARD = (
    "(Tensor dout, Tensor x, Tensor w1, Tensor? b1, Tensor w2, {pre} pre, Tensor? seed, float dropout_p, "
    "str approximate, bool[] grads, str path) -> (Tensor, Tensor, Tensor, Tensor, Tensor)"
)
_gelu_ffn_bwd = _library.define(
    f"gelu_ffn_bwd{_BACKWARD.format(pre='Tensor?')}",
    launch=_launch_gelu_ffn_bwd,
    fake=_fake_gelu_ffn_bwd,
    public="gelu_ffn",
)
# The same, but leaves the gradient of the pre-activation in the pre-activation's place.
_gelu_ffn_bwd_ = _library.define(
    f"gelu_ffn_bwd_{_BACKWARD.format(pre='Tensor(a!)')}",
    launch=_launch_gelu_ffn_bwd_overwriting,
    fake=_fake_gelu_ffn_bwd,
    public="gelu_ffn",
)
