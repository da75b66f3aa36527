"""`layer_norm` and `add_layer_norm` as torch sees them: the public functions, their operators, fakes and autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from .. import _checks, _library, support
from .._random import check_dropout, new_seed
from . import arguments


def layer_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int] | None = None,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    out_dtype: torch.dtype | None = None,
) -> Tensor:
    """(x - mean) / sqrt(var + eps) · weight + bias over the trailing dimensions, as `torch.nn.functional.layer_norm`.

    Ba, Kiros and Hinton 2016, arXiv 1607.06450. Statistics are float32, taken in two passes. Differentiable once in x,
    weight and bias; saves x and two float32 numbers a row. One kernel forward, two backward, deterministic.

    Args:
        x: (..., *normalized_shape) float32, float16 or bfloat16, of any strides. Read without a copy where its rows
            lie at equal distances, each in one piece.
        normalized_shape: the trailing dimensions to normalise over. Default: weight's or bias's shape, else the last.
        weight, bias: of shape normalized_shape, of any of the three dtypes, or None.
        eps: added to the variance, >= 0.
        out_dtype: dtype of the result. Default: as torch does, x's dtype, or float32 under CUDA autocast.

    Returns:
        The normalised tensor, contiguous, of x's shape.

    Raises:
        TypeError: a dtype that the kernels do not take, a normalized_shape that is not made of integers.
        ValueError: shapes that do not fit, eps < 0, tensors on different devices.
        RuntimeError: Triton cannot run on x's device.
    """
    _checks.check_dense("layer_norm", 1, x=x, weight=weight, bias=bias)
    d = arguments.check_norm("layer_norm", x, normalized_shape, weight, bias, eps, out_dtype)
    support.check_launchable("layer_norm", x=x, weight=weight, bias=bias)
    return _layer_norm_fwd(x, weight, bias, d, float(eps), out_dtype or arguments.torch_out_dtype(x))[0]


def add_layer_norm(
    x: Tensor,
    residual: Tensor,
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    dropout_p: float = 0.0,
    *,
    out_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    """residual + dropout(x) and its LayerNorm in one kernel: what a pre-LN block does between two sub-layers.

    The residual stream is read once and written once. Backward is one kernel (and the sum of weight gradients); it
    draws the dropout mask again (Philox4x32-10, seeded from torch's generator) instead of storing it.

    Args:
        x: (..., N) the sub-layer's output: float32, float16 or bfloat16, of any strides.
        residual: of x's shape, of any of the three dtypes; float32 keeps the stream exact in low-precision training.
        weight, bias: of the shape of x's trailing dimensions, which are normalised over, or None. Default: the last.
        eps: added to the variance, >= 0.
        dropout_p: probability of dropping an element of x, in [0, 1); those kept are divided by 1 - dropout_p.
        out_dtype: dtype of `normed`. Default: x's, or float32 under CUDA autocast.

    Returns:
        (normed, new_residual): contiguous, of x's shape; normed in out_dtype, new_residual in residual's dtype.

    Raises:
        As `layer_norm`; ValueError also for dropout_p outside [0, 1) and a residual of another shape.
    """
    _checks.check_dense("add_layer_norm", 2, x=x, residual=residual, weight=weight, bias=bias)
    d = arguments.check_norm("add_layer_norm", x, None, weight, bias, eps, out_dtype)
    arguments.check_residual("add_layer_norm", residual, x)
    check_dropout("add_layer_norm", dropout_p)
    support.check_launchable("add_layer_norm", x=x, residual=residual, weight=weight, bias=bias)
    seed = new_seed(x.device) if dropout_p > 0.0 else None
    return _add_layer_norm_fwd(
        x, residual, weight, bias, seed, d, float(eps), float(dropout_p), out_dtype or arguments.torch_out_dtype(x)
    )[:2]


# -------------------------------------------------------------------------------------- layer_norm, as torch sees it


def _launch_layer_norm_fwd(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, d: int, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    from . import launch

    y, _, stats = launch.forward(x, None, weight, bias, None, d, eps, 0.0, out_dtype)
    return y, stats


def _launch_layer_norm_bwd(
    dy: Tensor, x: Tensor, weight: Tensor | None, stats: Tensor, d: int, need_dx: bool, need_dweight: bool,
    dbias_dtype: torch.dtype | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    from . import launch

    dh, _, dweight, dbias = launch.backward(
        dy, None, x, weight, stats, None, d, 0.0,
        x.dtype if need_dx else None, None, _dtype_of(weight, need_dweight), dbias_dtype,
    )  # fmt: skip
    return _or_empty(x, dh, dweight, dbias)


def _fake_layer_norm_fwd(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, d: int, eps: float, out_dtype: torch.dtype
) -> tuple[Tensor, Tensor]:
    stats = torch.empty((2, math.prod(x.shape[: x.dim() - d])), dtype=torch.float32, device=x.device)
    return torch.empty(x.shape, dtype=out_dtype, device=x.device), stats


def _fake_layer_norm_bwd(
    dy: Tensor, x: Tensor, weight: Tensor | None, stats: Tensor, d: int, need_dx: bool, need_dweight: bool,
    dbias_dtype: torch.dtype | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    normalized = x.shape[x.dim() - d :]
    return (
        _fake_gradient(x, x.shape, x.dtype if need_dx else None),
        _fake_gradient(x, normalized, _dtype_of(weight, need_dweight)),
        _fake_gradient(x, normalized, dbias_dtype),
    )


def _dtype_of(weight: Tensor | None, needed: bool) -> torch.dtype | None:
    """The dtype of the weight's gradient; None where nobody asks for it."""
    return weight.dtype if needed and weight is not None else None


def _or_empty(like: Tensor, *gradients: Tensor | None) -> tuple[Tensor, ...]:
    """An operator must return tensors: an empty one in the place of a gradient that was not asked for."""
    return tuple([torch.empty((0,), device=like.device, dtype=torch.float32) if g is None else g for g in gradients])


def _fake_gradient(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None) -> Tensor:
    """What `_or_empty` makes of a gradient of this shape and dtype, or of none."""
    return torch.empty(shape if dtype is not None else (0,), dtype=dtype or torch.float32, device=like.device)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor]:
        return _library.below_autograd(_layer_norm_fwd, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor]) -> None:
        (x, weight, bias, d, _, _), (_, stats) = inputs, outputs
        ctx.save_for_backward(x, weight, stats)
        ctx.d, ctx.bias_dtype = d, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor, _dstats: None) -> tuple[Tensor | None, ...]:
        x, weight, stats = ctx.saved_tensors
        need_dx, need_dweight, need_dbias = ctx.needs_input_grad[:3]
        dx, dweight, dbias = _layer_norm_bwd(
            dy, x, weight, stats, ctx.d, need_dx, need_dweight, ctx.bias_dtype if need_dbias else None
        )
        return _wanted((need_dx, dx), (need_dweight, dweight), (need_dbias, dbias)) + (None,) * 3


def _wanted(*gradients: tuple[bool, Tensor]) -> tuple[Tensor | None, ...]:
    return tuple(gradient if wanted else None for wanted, gradient in gradients)


_layer_norm_fwd = _library.define(
    "layer_norm_fwd(Tensor x, Tensor? weight, Tensor? bias, int d, float eps, ScalarType out_dtype)"
    " -> (Tensor y, Tensor stats)",
    launch=_launch_layer_norm_fwd,
    fake=_fake_layer_norm_fwd,
    public="layer_norm",
    autograd=_LayerNorm,
    differentiable=(0, 1, 2),
)
_layer_norm_bwd = _library.define(
    "layer_norm_bwd(Tensor dy, Tensor x, Tensor? weight, Tensor stats, int d, bool need_dx, bool need_dweight,"
    " ScalarType? dbias_dtype) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    launch=_launch_layer_norm_bwd,
    fake=_fake_layer_norm_bwd,
    public="layer_norm",
    differentiable=(0, 1, 2),
)


# ---------------------------------------------------------------------------------- add_layer_norm, as torch sees it


def _launch_add_layer_norm_fwd(
    x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, seed: Tensor | None, d: int, eps: float,
    dropout_p: float, out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor | None, Tensor]:  # fmt: skip
    from . import launch

    return launch.forward(x, residual, weight, bias, seed, d, eps, dropout_p, out_dtype)


def _launch_add_layer_norm_bwd(
    dy: Tensor, dnew_residual: Tensor | None, new_residual: Tensor, weight: Tensor | None, seed: Tensor | None,
    stats: Tensor, d: int, dropout_p: float, dx_dtype: torch.dtype | None, need_dresidual: bool, need_dweight: bool,
    dbias_dtype: torch.dtype | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    from . import launch

    dresidual, dx, dweight, dbias = launch.backward(
        dy, dnew_residual, new_residual, weight, stats, seed, d, dropout_p,
        new_residual.dtype if need_dresidual else None, dx_dtype, _dtype_of(weight, need_dweight), dbias_dtype,
    )  # fmt: skip
    return _or_empty(new_residual, dx, dresidual, dweight, dbias)


def _fake_add_layer_norm_fwd(
    x: Tensor, residual: Tensor, weight: Tensor | None, bias: Tensor | None, seed: Tensor | None, d: int, eps: float,
    dropout_p: float, out_dtype: torch.dtype,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    y, stats = _fake_layer_norm_fwd(x, weight, bias, d, eps, out_dtype)
    return y, torch.empty(x.shape, dtype=residual.dtype, device=x.device), stats


def _fake_add_layer_norm_bwd(
    dy: Tensor, dnew_residual: Tensor | None, new_residual: Tensor, weight: Tensor | None, seed: Tensor | None,
    stats: Tensor, d: int, dropout_p: float, dx_dtype: torch.dtype | None, need_dresidual: bool, need_dweight: bool,
    dbias_dtype: torch.dtype | None,
) -> tuple[Tensor, ...]:  # fmt: skip
    like, normalized = new_residual, new_residual.shape[new_residual.dim() - d :]
    return (
        _fake_gradient(like, like.shape, dx_dtype),
        _fake_gradient(like, like.shape, like.dtype if need_dresidual else None),
        _fake_gradient(like, normalized, _dtype_of(weight, need_dweight)),
        _fake_gradient(like, normalized, dbias_dtype),
    )


class _AddLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(*args: Any) -> tuple[Tensor, Tensor, Tensor]:
        return _library.below_autograd(_add_layer_norm_fwd, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, Tensor, Tensor]) -> None:
        x, _, weight, bias, seed, d, _, dropout_p, _ = inputs
        _, new_residual, stats = outputs
        ctx.save_for_backward(new_residual, weight, seed, stats)
        ctx.d, ctx.dropout_p, ctx.x_dtype = d, dropout_p, x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dnew_residual: Tensor | None, _dstats: None) -> tuple[Tensor | None, ...]:
        new_residual, weight, seed, stats = ctx.saved_tensors
        if dy is None and dnew_residual is None:
            return (None,) * 9
        if dy is None:  # only the residual stream was used
            dy = torch.zeros_like(new_residual)
        need_dx, need_dresidual, need_dweight, need_dbias = ctx.needs_input_grad[:4]
        # Without dropout, x and residual have one gradient: written once, handed out twice.
        shared = need_dx and seed is None and ctx.x_dtype == new_residual.dtype
        dx, dresidual, dweight, dbias = _add_layer_norm_bwd(
            dy, dnew_residual, new_residual, weight, seed, stats, ctx.d, ctx.dropout_p,
            ctx.x_dtype if need_dx and not shared else None, need_dresidual or shared, need_dweight,
            ctx.bias_dtype if need_dbias else None,
        )  # fmt: skip
        dx = dresidual if shared else dx
        wanted = (need_dx, dx), (need_dresidual, dresidual), (need_dweight, dweight), (need_dbias, dbias)
        return _wanted(*wanted) + (None,) * 5


_add_layer_norm_fwd = _library.define(
    "add_layer_norm_fwd(Tensor x, Tensor residual, Tensor? weight, Tensor? bias, Tensor? seed, int d, float eps,"
    " float dropout_p, ScalarType out_dtype) -> (Tensor y, Tensor new_residual, Tensor stats)",
    launch=_launch_add_layer_norm_fwd,
    fake=_fake_add_layer_norm_fwd,
    public="add_layer_norm",
    autograd=_AddLayerNorm,
    differentiable=(0, 1, 2, 3),
)
_add_layer_norm_bwd = _library.define(
    "add_layer_norm_bwd(Tensor dy, Tensor? dnew_residual, Tensor new_residual, Tensor? weight, Tensor? seed,"
    " Tensor stats, int d, float dropout_p, ScalarType? dx_dtype, bool need_dresidual, bool need_dweight,"
    " ScalarType? dbias_dtype) -> (Tensor dx, Tensor dresidual, Tensor dweight, Tensor dbias)",
    launch=_launch_add_layer_norm_bwd,
    fake=_fake_add_layer_norm_bwd,
    public="add_layer_norm",
    differentiable=(0, 1, 2, 3),
)
