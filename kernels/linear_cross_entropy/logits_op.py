"""`cross_entropy` of logits that exist: the public function, its operators and its gradient."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from ..support import check_launchable
from .arguments import (
    FORMULA_SCHEMA,
    SETTINGS_SCHEMA,
    Flat,
    Formula,
    Settings,
    check_logits,
    check_overwritable,
    checked_settings,
    may_overlap,
)
from .reduction import fake_results, in_shape_of, reduced, upstream_rows


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
) -> Tensor | Any:
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
    check_logits(function, logits, target)
    settings = checked_settings(function, ignore_index, reduction, label_smoothing, z_loss, softcap, return_lse)
    if inplace:
        check_overwritable(function, logits)
    check_launchable(function, logits=logits, target=target)

    rows = logits.reshape(-1, logits.shape[-1])
    loss, lse = _forward_op(rows, target.reshape(-1), *settings, inplace)
    return in_shape_of(target, loss, lse, settings)


# ---- The operators. Their settings come flat, in the order of the schemas below, which arguments.py explains. ------


def _launch_forward(logits: Tensor, target: Tensor, *flat: Flat) -> tuple[Tensor, ...]:
    return _launch_with_stats(logits, target, *flat)[:2]


def _launch_with_stats(logits: Tensor, target: Tensor, *flat: Flat) -> tuple[Tensor, ...]:
    from . import launch

    *formula, reduction, return_lse, _ = flat
    losses, stats, counts = launch.logits_forward(_unit_columns(logits), target.contiguous(), Formula(*formula))
    lse = stats.sum(0) if return_lse else losses.new_empty(0)
    return reduced(losses, counts, reduction), lse, stats, counts


def _launch_backward(
    dlosses: Tensor, dlse: Tensor | None, logits: Tensor, target: Tensor, stats: Tensor, *formula: Flat
) -> Tensor:
    out = logits.new_empty(logits.shape)
    _write_gradient(out, dlosses, dlse, logits, target, stats, Formula(*formula))
    return out


def _launch_backward_overwriting(
    dlosses: Tensor, dlse: Tensor | None, logits: Tensor, target: Tensor, stats: Tensor, *formula: Flat
) -> None:
    _write_gradient(logits, dlosses, dlse, logits, target, stats, Formula(*formula))
    if not logits.is_inference():  # whoever else has saved them for a backward pass must hear of it
        torch.autograd.graph.increment_version(logits)


def _write_gradient(
    out: Tensor, dlosses: Tensor, dlse: Tensor | None, logits: Tensor, target: Tensor, stats: Tensor, formula: Formula
) -> None:
    from . import launch

    dlse = None if dlse is None else dlse.contiguous()
    launch.logits_backward(dlosses, dlse, _unit_columns(logits), target.contiguous(), stats, formula, out)


def _unit_columns(logits: Tensor) -> Tensor:
    return logits if logits.stride(-1) == 1 or logits.shape[-1] == 1 else logits.contiguous()


def _fake_forward(logits: Tensor, target: Tensor, *flat: Flat) -> tuple[Tensor, ...]:
    return fake_results(logits, Settings.of(flat))


def _fake_with_stats(logits: Tensor, target: Tensor, *flat: Flat) -> tuple[Tensor, ...]:
    stats = logits.new_empty(2, logits.shape[0], dtype=torch.float32)
    return (*_fake_forward(logits, target, *flat), stats, logits.new_empty(2, dtype=torch.int64))


def _fake_backward(
    dlosses: Tensor, dlse: Tensor | None, logits: Tensor, target: Tensor, stats: Tensor, *formula: Flat
) -> Tensor:
    return logits.new_empty(logits.shape)


def _fake_backward_overwriting(*args: Tensor | Flat) -> None:
    return None


class _CrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(*args: Tensor | Flat) -> tuple[Tensor, ...]:
        return _library.below_autograd(_with_stats_op, *args)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        logits, target, *flat = inputs
        _, _, stats, counts = outputs
        ctx.save_for_backward(logits, target, stats, counts)
        *ctx.formula, ctx.reduction, return_lse, ctx.inplace = flat
        ctx.overwritten = False
        ctx.set_materialize_grads(False)
        ctx.mark_non_differentiable(*outputs[2:] if return_lse else outputs[1:])

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, dlse: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        none_else = (None,) * (len(ctx.needs_input_grad) - 1)
        if dloss is None and dlse is None:
            return None, *none_else
        if ctx.overwritten:
            raise RuntimeError(
                "cross_entropy: a second backward through a loss made with inplace=True: the first one has written the "
                "gradient over the logits; pass inplace=False"
            )
        logits, target, stats, counts = ctx.saved_tensors
        dlosses = upstream_rows(dloss, counts, ctx.reduction, logits.shape[0])
        inputs = dlosses, dlse, logits, target, stats
        if not ctx.inplace or torch.is_grad_enabled() or not _may_be_overwritten(*inputs):
            return _backward_op(*inputs, *ctx.formula), *none_else
        ctx.overwritten = True
        dlogits = logits.detach()
        _overwriting_op(dlosses, dlse, dlogits, target, stats, *ctx.formula)
        return dlogits, *none_else


def _may_be_overwritten(dlosses: Tensor, dlse: Tensor | None, logits: Tensor, target: Tensor, stats: Tensor) -> bool:
    """Whether the backward pass that is running may leave the gradient in the logits' place.

    Hooks on saved tensors may hand back what they like, and the user's upstream gradients may be read from the logits.
    """
    plain = _library.plain((dlosses, dlse, logits, target, stats))
    if not plain or logits.stride(-1) != 1 or may_overlap(logits):
        return False
    memory = logits.untyped_storage().data_ptr()
    return all(x is None or x.untyped_storage().data_ptr() != memory for x in (dlosses, dlse))


_INPUTS = f"Tensor logits, Tensor target, {SETTINGS_SCHEMA}, bool inplace"

_with_stats_op = _library.define(
    f"cross_entropy_with_stats({_INPUTS}) -> (Tensor loss, Tensor lse, Tensor stats, Tensor counts)",
    launch=_launch_with_stats,
    fake=_fake_with_stats,
    public="cross_entropy",
)
_backward_op = _library.define(
    "cross_entropy_bwd(Tensor dlosses, Tensor? dlse, Tensor logits, Tensor target, Tensor stats, "
    f"{FORMULA_SCHEMA}) -> Tensor",
    launch=_launch_backward,
    fake=_fake_backward,
    public="cross_entropy",
)
# The same, but leaves the gradient in the logits' place; their columns are adjacent, and no two elements share memory.
_overwriting_op = _library.define(
    "cross_entropy_bwd_(Tensor dlosses, Tensor? dlse, Tensor(a!) logits, Tensor target, Tensor stats, "
    f"{FORMULA_SCHEMA}) -> ()",
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
