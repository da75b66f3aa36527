"""`linear_cross_entropy`: the public function, its operators and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from .._checks import check_dense, check_target
from .._runtime import autocast_dtype
from ..support import check_launchable
from .checks import (
    check_floating,
    check_settings,
    reduced,
    upstream_rows,
)


def linear_cross_entropy(
    x: Tensor,
    weight: Tensor,
    target: Tensor,
    bias: Tensor | None = None,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    return_lse: bool = False,
    *,
    num_chunks: int | None = None,
) -> Tensor | tuple[Tensor, Tensor]:
    """F.cross_entropy(F.linear(x, weight, bias).float(), target, ...), without ever holding all the logits.

    Rows go in a few large chunks. For each, a GEMM makes the logits, one kernel turns them into losses and, in place,
    into their gradients (online softmax, arXiv 1805.02867), and two GEMMs turn those into dx and dweight, which is
    accumulated in float32 and rounded once. Deterministic, without a host sync, and fit for CUDA graphs.

    Args:
        x: (..., d) float32, float16 or bfloat16, any strides. Under torch.autocast it is cast as F.linear would.
        weight: (V, d) in x's dtype (under autocast: any of the three dtypes; its gradient keeps its own dtype and
            is never rounded to the autocast dtype). V may be any number up to 2^31 - 2^15.
        target: (...) int64 or int32 class indices in [0, V), or ignore_index.
        bias: (V,) or None, added in float32.
        ignore_index: rows with this target have loss 0 and gradient 0, and do not count in the mean.
        reduction: "mean" over the rows that count (NaN if none does, with gradients 0, as in torch), "sum" or "none".
        label_smoothing: in [0, 1], as in F.cross_entropy.
        z_loss: adds z_loss · lse² to every row that counts (PaLM, arXiv 2204.02311 §5).
        softcap: c replaces the logits by c · tanh(logits / c) before everything else (Gemma 2, arXiv 2408.00118).
        return_lse: also return the log-sum-exp of each row's logits, ignored rows included. It is differentiable.
        num_chunks: how many chunks the rows are cut into. Default: 1 while all logits take at most 64 MiB, otherwise
            4 to 8, by `tiles.rows_per_chunk`. More chunks take less memory and, over few rows, more time.

    Returns:
        loss, float32: a scalar, or (...) with reduction="none". With return_lse: (loss, lse), lse (...) float32.

    Memory beyond inputs and gradients, with k chunks: rows · V / k logits in x's dtype; while x or weight requires a
    gradient, from forward to backward, dx in x's dtype and dweight in float32. With "mean" and "sum" the gradients are
    made in the forward pass, in which the logits exist once: 6 N V d FLOPs, as without fusion. With "none", and where
    a gradient flows into lse, the backward pass makes the logits again: 8 N V d FLOPs. A second backward through a
    retained graph gives the same gradients; double backward raises.

    Raises:
        TypeError: a dtype that the kernels do not take, or x and weight of different dtypes outside autocast.
        ValueError: shapes that do not fit, or a setting out of range.
        IndexError: on a CPU, a target outside [0, V) that is not ignore_index. On CUDA that trips a device-side
            assertion, as in torch, which surfaces as RuntimeError at the next synchronisation.
        RuntimeError: Triton cannot run on x's device; the message says what to do.
    """
    function = "linear_cross_entropy"
    check_dense(function, 3, x=x, weight=weight, target=target, bias=bias)
    dtype = autocast_dtype(x)
    if dtype is not None:
        check_floating(function, x=x, weight=weight, bias=bias)
        x = x.to(dtype)
    else:
        _check_same_dtype(function, x=x, weight=weight, bias=bias)
    check_floating(function, x=x)
    _check_shapes(function, x, weight, bias)
    check_target(function, target, x.shape[:-1], "x")
    check_settings(function, ignore_index, reduction, label_smoothing, z_loss, softcap)
    if num_chunks is not None and (isinstance(num_chunks, bool) or not isinstance(num_chunks, int | torch.SymInt)):
        raise TypeError(f"{function}: num_chunks is {num_chunks!r}, use an int, or None for the default rule")
    if num_chunks is not None and num_chunks < 1:
        raise ValueError(f"{function}: num_chunks is {num_chunks}, use a number >= 1, or None for the default rule")
    check_launchable(function, x=x, weight=weight, target=target, bias=bias)

    loss, lse = _forward_op(
        x.reshape(target.numel(), x.shape[-1]), weight, target.reshape(-1), bias, ignore_index, reduction,
        float(label_smoothing), float(z_loss), None if softcap is None else float(softcap), return_lse, num_chunks or 0,
    )  # fmt: skip
    loss = loss.view(target.shape) if reduction == "none" else loss
    return (loss, lse.view(target.shape)) if return_lse else loss


def _check_same_dtype(function: str, x: Tensor, **others: Tensor | None) -> None:
    check_floating(function, x=x, **others)
    for name, tensor in others.items():
        if tensor is not None and tensor.dtype != x.dtype:
            raise TypeError(
                f"{function}: {name} is {tensor.dtype} but x is {x.dtype}; convert one of them, or call it under "
                "torch.autocast"
            )


def _check_shapes(function: str, x: Tensor, weight: Tensor, bias: Tensor | None) -> None:
    if x.dim() < 1:
        raise ValueError(f"{function}: x is a scalar, expected (..., d)")
    if weight.dim() != 2 or weight.shape[1] != x.shape[-1]:
        raise ValueError(
            f"{function}: weight has shape {tuple(weight.shape)}, expected (V, {x.shape[-1]}) for x of shape "
            f"{tuple(x.shape)}; nn.Linear and nn.Embedding store it that way"
        )
    if weight.shape[0] < 1:
        raise ValueError(f"{function}: weight has shape {tuple(weight.shape)}, and a softmax needs at least one class")
    if bias is not None and bias.shape != weight.shape[:1]:
        raise ValueError(
            f"{function}: bias has shape {tuple(bias.shape)}, expected ({weight.shape[0]},), one per class"
        )


# ---- operators ----------------------------------------------------------------------------------------------------


def _launch_forward(
    x, weight, target, bias, ignore_index, reduction, label_smoothing, z_loss, softcap, return_lse, num_chunks
):
    outputs = _launch_with_gradients(
        x, weight, target, bias, ignore_index, reduction, label_smoothing, z_loss, softcap, return_lse, num_chunks,
        False, False, False,
    )  # fmt: skip
    return outputs[:2]


def _fake_forward(
    x, weight, target, bias, ignore_index, reduction, label_smoothing, z_loss, softcap, return_lse, num_chunks
):
    N = x.shape[0]
    loss = x.new_empty((N,) if reduction == "none" else (), dtype=torch.float32)
    return loss, x.new_empty(N if return_lse else 0, dtype=torch.float32)


def _launch_with_gradients(
    x, weight, target, bias, ignore_index, reduction, label_smoothing, z_loss, softcap, return_lse, num_chunks,
    need_dx, need_dweight, need_dbias,
):  # fmt: skip
    from . import launch

    settings = launch.Settings(ignore_index, label_smoothing, z_loss, softcap)
    r = launch.linear_forward(
        x, weight, target.contiguous(), bias, settings, num_chunks, need_dx, need_dweight, need_dbias
    )
    lse = r.stats.sum(0) if return_lse else r.losses.new_empty(0)
    return reduced(r.losses, r.counts, reduction), lse, r.stats, r.counts, r.dx, r.dweight, r.dbias


def _fake_with_gradients(
    x, weight, target, bias, ignore_index, reduction, label_smoothing, z_loss, softcap, return_lse, num_chunks,
    need_dx, need_dweight, need_dbias,
):  # fmt: skip
    loss, lse = _fake_forward(
        x, weight, target, bias, ignore_index, reduction, label_smoothing, z_loss, softcap, return_lse, num_chunks
    )
    return (
        loss,
        lse,
        x.new_empty(2, x.shape[0], dtype=torch.float32),
        x.new_empty(2, dtype=torch.int64),
        x.new_empty(x.shape if need_dx else (0,)),
        x.new_empty(weight.shape if need_dweight else (0,), dtype=torch.float32),
        x.new_empty(weight.shape[0] if need_dbias else 0, dtype=torch.float32),
    )


def _launch_backward(
    grad_losses, grad_lse, x, weight, target, bias, stats, ignore_index, label_smoothing, z_loss, softcap, num_chunks,
    need_dx, need_dweight, need_dbias,
):  # fmt: skip
    from . import launch

    settings = launch.Settings(ignore_index, label_smoothing, z_loss, softcap)
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    return launch.linear_backward(
        grad_losses, grad_lse, x, weight, target.contiguous(), bias, stats, settings, num_chunks,
        need_dx, need_dweight, need_dbias,
    )  # fmt: skip


def _fake_backward(
    grad_losses, grad_lse, x, weight, target, bias, stats, ignore_index, label_smoothing, z_loss, softcap, num_chunks,
    need_dx, need_dweight, need_dbias,
):  # fmt: skip
    return (
        x.new_empty(x.shape if need_dx else (0,)),
        weight.new_empty(weight.shape if need_dweight else (0,)),
        (weight if bias is None else bias).new_empty(weight.shape[0] if need_dbias else 0),
    )


def _launch_scale(grad, counts, gradient, dtype):
    from . import launch

    return launch.scale(grad, counts, gradient, dtype)


def _fake_scale(grad, counts, gradient, dtype):
    return gradient.new_empty(gradient.shape, dtype=dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    """ "mean" and "sum": the forward pass makes the gradients, the backward pass multiplies them by the upstream one.

    "none", and a gradient of lse: the backward pass makes the logits again, knowing every row's upstream gradient. So
    it does under torch.func's transforms, which do not tell a forward pass whose gradients will be wanted.
    """

    @staticmethod
    def forward(x, weight, target, bias, ignore_index, reduction, *settings):
        make = [reduction != "none" and t is not None and t.requires_grad for t in (x, weight, bias)]
        return _library.below_autograd(
            _with_gradients_op, x, weight, target, bias, ignore_index, reduction, *settings, *make
        )

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        x, weight, target, bias, ignore_index, reduction, label_smoothing, z_loss, softcap, return_lse, num_chunks = (
            inputs
        )
        _, lse, stats, counts, dx, dweight, dbias = outputs
        made = dx.dim() == 2, dweight.dim() == 2, dbias.shape[0] > 0  # x and weight are 2-D, and V >= 1
        all_made = not any(n and not m for n, m in zip(_needed(ctx), made))
        again = () if all_made and not return_lse else (x, weight, target, bias, stats)
        ctx.save_for_backward(counts, dx, dweight, dbias, *again)
        ctx.all_made, ctx.reduction, ctx.num_chunks, ctx.rows = all_made, reduction, num_chunks, x.shape[0]
        ctx.settings = ignore_index, label_smoothing, z_loss, softcap
        ctx.dtypes = x.dtype, weight.dtype, None if bias is None else bias.dtype
        ctx.set_materialize_grads(False)
        # The gradients stay differentiable outputs: by them alone a second derivative finds its way here, and raises.
        ctx.mark_non_differentiable(stats, counts, *(() if return_lse else (lse,)))

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, grad_lse: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        need = _needed(ctx)
        if grad_loss is None and grad_lse is None:
            return (None,) * 11
        counts, *made, x, weight, target, bias, stats = (*ctx.saved_tensors, *(None,) * 5)[:9]
        if not ctx.all_made or grad_lse is not None:
            rows = upstream_rows(grad_loss, counts, ctx.reduction, ctx.rows)
            grads = _backward_op(
                rows, grad_lse, x, weight, target, bias, stats, *ctx.settings, ctx.num_chunks, *need
            )  # fmt: skip
        else:
            divisor = counts if ctx.reduction == "mean" else None
            grads = [_scale_op(grad_loss, divisor, g, t) if n else None for g, t, n in zip(made, ctx.dtypes, need)]
        dx, dweight, dbias = (g if n else None for g, n in zip(grads, need))
        return dx, dweight, None, dbias, *(None,) * 7


def _needed(ctx: Any) -> tuple[bool, bool, bool]:
    """Which of x, weight and bias want a gradient."""
    return ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3]


_INPUTS = (
    "Tensor x, Tensor weight, Tensor target, Tensor? bias, int ignore_index, str reduction, float label_smoothing, "
    "float z_loss, float? softcap, bool return_lse, int num_chunks"
)
_NEED = "bool need_dx, bool need_dweight, bool need_dbias"

_with_gradients_op = _library.define(
    f"linear_cross_entropy_with_gradients({_INPUTS}, {_NEED}) -> "
    "(Tensor loss, Tensor lse, Tensor stats, Tensor counts, Tensor dx, Tensor dweight, Tensor dbias)",
    launch=_launch_with_gradients,
    fake=_fake_with_gradients,
    public="linear_cross_entropy",
)
_backward_op = _library.define(
    "linear_cross_entropy_bwd(Tensor grad_losses, Tensor? grad_lse, Tensor x, Tensor weight, Tensor target, "
    "Tensor? bias, Tensor stats, int ignore_index, float label_smoothing, float z_loss, float? softcap, "
    f"int num_chunks, {_NEED}) -> (Tensor dx, Tensor dweight, Tensor dbias)",
    launch=_launch_backward,
    fake=_fake_backward,
    public="linear_cross_entropy",
)
_scale_op = _library.define(
    "linear_cross_entropy_scale(Tensor grad, Tensor? counts, Tensor gradient, ScalarType dtype) -> Tensor",
    launch=_launch_scale,
    fake=_fake_scale,
    public="linear_cross_entropy",
)
_forward_op = _library.define(
    f"linear_cross_entropy({_INPUTS}) -> (Tensor loss, Tensor lse)",
    launch=_launch_forward,
    fake=_fake_forward,
    public="linear_cross_entropy",
    autograd=_LinearCrossEntropy,
    results=2,
    differentiable=(0, 1, 3),
)
