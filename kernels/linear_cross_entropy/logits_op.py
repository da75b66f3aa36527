"""`cross_entropy` of logits that exist: the public function, its operators and its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from .._checks import check_dense, check_target
from ..support import check_launchable
from .checks import (
    check_floating,
    check_settings,
    reduced,
    upstream_rows,
)


def cross_entropy(
    logits: Tensor,
    target: Tensor,
    *,
    ignore_index: int = -100,
    reduction: str = "mean",
    label_smoothing: float = 0.0,
    z_loss: float = 0.0,
    softcap: float | None = None,
    return_lse: bool = False,
    inplace: bool = False,
) -> Tensor | tuple[Tensor, Tensor]:
    """F.cross_entropy of (..., V) logits, computed in float32: one read forward, one read and one write backward.

    Nothing of the size of the logits is allocated in the forward pass, and nothing but the gradient in the backward
    pass; with `inplace`, not even that.

    Args:
        logits: (..., V) float32, float16 or bfloat16. Rows of 16-byte multiples are read 16 bytes at a time; a copy is
            made only where the columns are not adjacent in memory.
        target: (...) int64 or int32 class indices in [0, V), or ignore_index.
        ignore_index, reduction, label_smoothing, z_loss, softcap, return_lse: as in `linear_cross_entropy`. The
            log-sum-exp is differentiable.
        inplace: the backward pass writes the gradient over the logits. From then on `logits`, and every view of it,
            holds its own gradient: read what you need (accuracy, samples) before. Autograd knows: a second backward
            through this loss raises, and so does the backward of any other function that has saved the logits. Inside
            torch.compile it is left to the compiler, which reuses the memory where it sees that it can.

    Returns:
        loss, float32: a scalar, or (...) with reduction="none". With return_lse: (loss, lse), lse (...) float32.

    Raises:
        TypeError: a dtype that the kernels do not take.
        ValueError: shapes that do not fit, a setting out of range, or `inplace` with logits that autograd must keep
            (a leaf that requires a gradient) or whose rows overlap (an expanded tensor).
        IndexError: on a CPU, a target outside [0, V) that is not ignore_index; on CUDA a device-side assertion.
        RuntimeError: Triton cannot run on the device of `logits`; the message says what to do.
    """
    function = "cross_entropy"
    check_dense(function, 2, logits=logits, target=target)
    check_floating(function, logits=logits)
    if logits.dim() < 1 or logits.shape[-1] < 1:
        raise ValueError(f"{function}: logits has shape {tuple(logits.shape)}, expected (..., V) with V >= 1")
    check_target(function, target, logits.shape[:-1], "logits")
    check_settings(function, ignore_index, reduction, label_smoothing, z_loss, softcap)
    if inplace:
        _check_overwritable(logits)
    check_launchable(function, logits=logits, target=target)

    loss, lse = _forward_op(
        logits.reshape(-1, logits.shape[-1]), target.reshape(-1), ignore_index, reduction, float(label_smoothing),
        float(z_loss), None if softcap is None else float(softcap), return_lse, inplace,
    )  # fmt: skip
    loss = loss.view(target.shape) if reduction == "none" else loss
    return (loss, lse.view(target.shape)) if return_lse else loss


def _check_overwritable(logits: Tensor) -> None:
    if logits.requires_grad and torch.is_grad_enabled():
        what = "a leaf" if logits.is_leaf else "a view of a leaf" if _is_view_of_leaf(logits) else None
        if what is not None:
            raise ValueError(
                f"cross_entropy: inplace=True with logits that are {what} requiring a gradient: its values would be "
                "lost; pass inplace=False"
            )
    if _may_overlap(logits):
        raise ValueError(
            f"cross_entropy: inplace=True with logits whose elements share memory (expanded, or windows that overlap: "
            f"shape {tuple(logits.shape)}, strides {logits.stride()}); pass inplace=False or logits.contiguous()"
        )


def _is_view_of_leaf(x: Tensor) -> bool:
    if torch.compiler.is_compiling():  # which knows no bases, and plans memory itself
        return False
    return x._is_view() and x._base.is_leaf and x._base.requires_grad


def _may_overlap(x: Tensor) -> bool:
    """False where each dimension steps over all that the dimensions of smaller strides reach."""
    reach = 0
    for stride, size in sorted(zip(x.stride(), x.shape)):
        if size > 1 and stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


# ---- operators ----------------------------------------------------------------------------------------------------


def _launch_with_stats(
    logits, target, ignore_index, reduction, label_smoothing, z_loss, softcap, return_lse, inplace
):  # fmt: skip
    from . import launch

    settings = launch.Settings(ignore_index, label_smoothing, z_loss, softcap)
    losses, stats, counts = launch.logits_forward(_unit_columns(logits), target.contiguous(), settings)
    lse = stats.sum(0) if return_lse else losses.new_empty(0)
    return reduced(losses, counts, reduction), lse, stats, counts


def _launch_forward(*args):
    return _launch_with_stats(*args)[:2]


def _fake_forward(logits, target, ignore_index, reduction, label_smoothing, z_loss, softcap, return_lse, inplace):
    N = logits.shape[0]
    loss = logits.new_empty((N,) if reduction == "none" else (), dtype=torch.float32)
    return loss, logits.new_empty(N if return_lse else 0, dtype=torch.float32)


def _fake_with_stats(logits, *args):
    stats = logits.new_empty(2, logits.shape[0], dtype=torch.float32)
    return (*_fake_forward(logits, *args), stats, logits.new_empty(2, dtype=torch.int64))


def _launch_backward(grad_losses, grad_lse, logits, target, stats, ignore_index, label_smoothing, z_loss, softcap):
    out = logits.new_empty(logits.shape)
    _write_gradient(out, grad_losses, grad_lse, logits, target, stats, ignore_index, label_smoothing, z_loss, softcap)
    return out


def _fake_backward(grad_losses, grad_lse, logits, *args):
    return logits.new_empty(logits.shape)


def _launch_backward_overwriting(grad_losses, grad_lse, logits, *args):
    _write_gradient(logits, grad_losses, grad_lse, logits, *args)
    if not logits.is_inference():  # whoever else has saved them for a backward pass must hear of it
        torch.autograd.graph.increment_version(logits)


def _fake_backward_overwriting(*args):
    return None


def _write_gradient(
    out, grad_losses, grad_lse, logits, target, stats, ignore_index, label_smoothing, z_loss, softcap
):  # fmt: skip
    from . import launch

    settings = launch.Settings(ignore_index, label_smoothing, z_loss, softcap)
    grad_lse = None if grad_lse is None else grad_lse.contiguous()
    launch.logits_backward(grad_losses, grad_lse, _unit_columns(logits), target.contiguous(), stats, settings, out)


def _unit_columns(logits: Tensor) -> Tensor:
    return logits if logits.stride(-1) == 1 or logits.shape[-1] == 1 else logits.contiguous()


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(*args):
        return _library.below_autograd(_with_stats_op, *args)

    @staticmethod
    def setup_context(ctx, inputs, outputs):
        logits, target, ignore_index, reduction, label_smoothing, z_loss, softcap, return_lse, inplace = inputs
        _, _, stats, counts = outputs
        ctx.save_for_backward(logits, target, stats, counts)
        ctx.reduction, ctx.inplace, ctx.overwritten = reduction, inplace, False
        ctx.settings = ignore_index, label_smoothing, z_loss, softcap
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*outputs[2:] if return_lse else outputs[1:])

    @staticmethod
    def backward(ctx: Any, grad_loss: Tensor | None, grad_lse: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        if grad_loss is None and grad_lse is None:
            return (None,) * 9
        if ctx.overwritten:
            raise RuntimeError(
                "cross_entropy: a second backward through a loss made with inplace=True: the first one has written the "
                "gradient over the logits; pass inplace=False"
            )
        logits, target, stats, counts = ctx.saved_tensors
        rows = upstream_rows(grad_loss, counts, ctx.reduction, logits.shape[0])
        inputs = rows, grad_lse, logits, target, stats
        if not ctx.inplace or torch.is_grad_enabled() or not _may_be_overwritten(*inputs):
            return (_backward_op(*inputs, *ctx.settings), *(None,) * 8)
        ctx.overwritten = True
        gradient = logits.detach()
        _overwriting_op(rows, grad_lse, gradient, target, stats, *ctx.settings)
        return (gradient, *(None,) * 8)


def _may_be_overwritten(rows: Tensor, grad_lse: Tensor | None, logits: Tensor, target: Tensor, stats: Tensor) -> bool:
    """Whether the backward pass that is running may leave the gradient in the logits' place.

    Hooks on saved tensors may hand back what they like, and the user's upstream gradients may be read from the logits.
    """
    plain = _library.plain((rows, grad_lse, logits, target, stats))
    if not plain or logits.stride(-1) != 1 or _may_overlap(logits):
        return False
    memory = logits.untyped_storage().data_ptr()
    return all(x is None or x.untyped_storage().data_ptr() != memory for x in (rows, grad_lse))


_SETTINGS = "int ignore_index, float label_smoothing, float z_loss, float? softcap"
_INPUTS = (
    "Tensor logits, Tensor target, int ignore_index, str reduction, float label_smoothing, float z_loss, "
    "float? softcap, bool return_lse, bool inplace"
)

_with_stats_op = _library.define(
    f"cross_entropy_with_stats({_INPUTS}) -> (Tensor loss, Tensor lse, Tensor stats, Tensor counts)",
    launch=_launch_with_stats,
    fake=_fake_with_stats,
    public="cross_entropy",
)
_backward_op = _library.define(
    f"cross_entropy_bwd(Tensor grad_losses, Tensor? grad_lse, Tensor logits, Tensor target, Tensor stats, {_SETTINGS})"
    " -> Tensor",
    launch=_launch_backward,
    fake=_fake_backward,
    public="cross_entropy",
)
# The same, but leaves the gradient in the logits' place; their columns are adjacent, and no two elements share memory.
_overwriting_op = _library.define(
    "cross_entropy_bwd_(Tensor grad_losses, Tensor? grad_lse, Tensor(a!) logits, Tensor target, Tensor stats, "
    f"{_SETTINGS}) -> ()",
    launch=_launch_backward_overwriting,
    fake=_fake_backward_overwriting,
    public="cross_entropy",
)
_forward_op = _library.define(
    f"cross_entropy({_INPUTS}) -> (Tensor loss, Tensor lse)",
    launch=_launch_forward,
    fake=_fake_forward,
    public="cross_entropy",
    autograd=_CrossEntropy,
    results=2,
    differentiable=(0,),
)
