"""layer_norm and add_layer_norm: argument checks, autocast, registration with torch, autograd."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from .. import _checks, _library, _runtime, support
from .._random import check_dropout, new_seed
from ..support import KERNEL_DTYPES


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
    d = _check("layer_norm", x, normalized_shape, weight, bias, eps, out_dtype)
    support.check_launchable("layer_norm", x=x, weight=weight, bias=bias)
    return _layer_norm_fwd(x, weight, bias, d, float(eps), out_dtype or _torch_out_dtype(x))[0]


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
    shape = weight.shape if weight is not None else None
    d = _check("add_layer_norm", x, shape, weight, bias, eps, out_dtype)
    if residual.dtype not in KERNEL_DTYPES:
        raise TypeError(
            f"add_layer_norm: residual has dtype {residual.dtype}; cast it to one of {_names(KERNEL_DTYPES)}"
        )
    if residual.shape != x.shape:
        raise ValueError(
            f"add_layer_norm: residual has shape {tuple(residual.shape)}, x {tuple(x.shape)}; expand one to the other"
        )
    check_dropout("add_layer_norm", dropout_p)
    support.check_launchable("add_layer_norm", x=x, residual=residual, weight=weight, bias=bias)
    seed = new_seed(x.device) if dropout_p > 0.0 else None
    return _add_layer_norm_fwd(
        x, residual, weight, bias, seed, d, float(eps), float(dropout_p), out_dtype or _torch_out_dtype(x)
    )[:2]


def _torch_out_dtype(x: Tensor) -> torch.dtype:
    """layer_norm is on the float32 list of CUDA's autocast, and on no list of the CPU's."""
    on_list = x.device.type in ("cuda", "meta")
    return torch.float32 if on_list and _runtime.autocast_dtype(x) is not None else x.dtype


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype).removeprefix("torch.") for dtype in dtypes)


def _check(
    function: str,
    x: Tensor,
    normalized_shape: int | Sequence[int] | None,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    out_dtype: torch.dtype | None,
) -> int:
    """Number of normalised dimensions, once all arguments have been found right."""
    if normalized_shape is None:
        given = weight if weight is not None else bias
        shape = tuple(x.shape[-1:] if given is None else given.shape)
    else:
        shape = _checks.check_sizes(function, "normalized_shape", normalized_shape)
    d = len(shape)
    if d == 0 or d > x.dim() or tuple(x.shape[x.dim() - d :]) != shape:
        raise ValueError(
            f"{function}: normalized_shape {shape} must be the last dimensions, at least one, of x, whose shape is "
            f"{tuple(x.shape)}"
        )
    for name, tensor in (("x", x), ("weight", weight), ("bias", bias)):
        if tensor is not None and tensor.dtype not in KERNEL_DTYPES:
            raise TypeError(
                f"{function}: {name} has dtype {tensor.dtype}; cast it to one of {_names(KERNEL_DTYPES)}, or use "
                f"fastgpt.kernels.reference.{function}"
            )
        if tensor is not None and tensor is not x and tuple(tensor.shape) != shape:
            raise ValueError(f"{function}: {name} has shape {tuple(tensor.shape)}, normalized_shape is {shape}")
    if out_dtype is not None and out_dtype not in KERNEL_DTYPES:
        raise TypeError(f"{function}: out_dtype is {out_dtype}; choose one of {_names(KERNEL_DTYPES)}")
    if eps is None:
        raise TypeError(f"{function}: eps is None, expected a number; torch's default is 1e-5")
    _checks.check_numbers(function, eps=eps)
    if not eps >= 0.0:
        raise ValueError(f"{function}: eps must be >= 0, got {eps}")
    return d


def _rows(x: Tensor, d: int) -> int:
    return math.prod(x.shape[: x.dim() - d])


def _wanted(*gradients: tuple[bool, Tensor]) -> tuple[Tensor | None, ...]:
    return tuple(gradient if wanted else None for wanted, gradient in gradients)


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(*args):
        return _library.below_autograd(_layer_norm_fwd, *args)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        (x, weight, bias, d, _, _), (_, stats) = inputs, outputs
        ctx.save_for_backward(x, weight, stats)
        ctx.d, ctx.bias_dtype = d, None if bias is None else bias.dtype
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dy, _):
        x, weight, stats = ctx.saved_tensors
        need_dx, need_dweight, need_dbias = ctx.needs_input_grad[:3]
        dx, dweight, dbias = _layer_norm_bwd(
            dy, x, weight, stats, ctx.d, need_dx, need_dweight, ctx.bias_dtype if need_dbias else None
        )
        return _wanted((need_dx, dx), (need_dweight, dweight), (need_dbias, dbias)) + (None,) * 3


class _AddLayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(*args):
        return _library.below_autograd(_add_layer_norm_fwd, *args)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        x, _, weight, bias, seed, d, _, dropout_p, _ = inputs
        _, new_residual, stats = outputs
        ctx.save_for_backward(new_residual, weight, seed, stats)
        ctx.d, ctx.dropout_p, ctx.x_dtype = d, dropout_p, x.dtype
        ctx.bias_dtype = None if bias is None else bias.dtype
        ctx.mark_non_differentiable(stats)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx, dy, dnew_residual, _):
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


# Operators: launches, and what they return for tensors that hold no data.


def _launch_layer_norm_fwd(x, weight, bias, d, eps, out_dtype):
    from . import launch

    y, _, stats = launch.forward(x, None, weight, bias, None, d, eps, 0.0, out_dtype)
    return y, stats


def _fake_layer_norm_fwd(x, weight, bias, d, eps, out_dtype):
    y = torch.empty(x.shape, dtype=out_dtype, device=x.device)
    return y, torch.empty((2, _rows(x, d)), dtype=torch.float32, device=x.device)


def _launch_layer_norm_bwd(dy, x, weight, stats, d, need_dx, need_dweight, dbias_dtype):
    from . import launch

    dh, _, dweight, dbias = launch.backward(
        dy, None, x, weight, stats, None, d, 0.0,
        x.dtype if need_dx else None, None, weight.dtype if need_dweight else None, dbias_dtype,
    )  # fmt: skip
    return _or_empty(x, dh, dweight, dbias)


def _fake_layer_norm_bwd(dy, x, weight, stats, d, need_dx, need_dweight, dbias_dtype):
    return (
        _fake_gradient(x, x.shape, x.dtype if need_dx else None),
        _fake_gradient(x, x.shape[x.dim() - d :], weight.dtype if need_dweight else None),
        _fake_gradient(x, x.shape[x.dim() - d :], dbias_dtype),
    )


def _launch_add_layer_norm_fwd(x, residual, weight, bias, seed, d, eps, dropout_p, out_dtype):
    from . import launch

    return launch.forward(x, residual, weight, bias, seed, d, eps, dropout_p, out_dtype)


def _fake_add_layer_norm_fwd(x, residual, weight, bias, seed, d, eps, dropout_p, out_dtype):
    y, stats = _fake_layer_norm_fwd(x, weight, bias, d, eps, out_dtype)
    return y, torch.empty(x.shape, dtype=residual.dtype, device=x.device), stats


def _launch_add_layer_norm_bwd(
    dy, dnew_residual, new_residual, weight, seed, stats, d, dropout_p, dx_dtype, need_dresidual, need_dweight,
    dbias_dtype,
):  # fmt: skip
    from . import launch

    dresidual, dx, dweight, dbias = launch.backward(
        dy, dnew_residual, new_residual, weight, stats, seed, d, dropout_p,
        new_residual.dtype if need_dresidual else None, dx_dtype, weight.dtype if need_dweight else None, dbias_dtype,
    )  # fmt: skip
    return _or_empty(new_residual, dx, dresidual, dweight, dbias)


def _fake_add_layer_norm_bwd(
    dy, dnew_residual, new_residual, weight, seed, stats, d, dropout_p, dx_dtype, need_dresidual, need_dweight,
    dbias_dtype,
):  # fmt: skip
    like = new_residual
    return (
        _fake_gradient(like, like.shape, dx_dtype),
        _fake_gradient(like, like.shape, like.dtype if need_dresidual else None),
        _fake_gradient(like, like.shape[like.dim() - d :], weight.dtype if need_dweight else None),
        _fake_gradient(like, like.shape[like.dim() - d :], dbias_dtype),
    )


def _or_empty(like: Tensor, *gradients: Tensor | None) -> tuple[Tensor, ...]:
    """An operator must return tensors: an empty one in the place of a gradient that was not asked for."""
    return tuple([torch.empty((0,), device=like.device, dtype=torch.float32) if g is None else g for g in gradients])


def _fake_gradient(like: Tensor, shape: Sequence[int], dtype: torch.dtype | None) -> Tensor:
    """What `_or_empty` makes of a gradient of this shape and dtype, or of none."""
    return torch.empty(shape if dtype is not None else (0,), dtype=dtype or torch.float32, device=like.device)


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
