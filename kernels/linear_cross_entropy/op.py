"""`linear_cross_entropy`: the public function, its operators and their gradients."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _library
from ..support import check_launchable
from .arguments import (
    FORMULA_SCHEMA,
    SETTINGS_SCHEMA,
    WORK_SCHEMA,
    Flat,
    Formula,
    Settings,
    Work,
    check_linear,
    checked_num_chunks,
    checked_settings,
)
from .reduction import fake_results, in_shape_of, reduced, upstream_rows


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
) -> Tensor | Any:
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
    x = check_linear(function, x, weight, target, bias)
    settings = checked_settings(function, ignore_index, reduction, label_smoothing, z_loss, softcap, return_lse)
    num_chunks = checked_num_chunks(function, num_chunks)
    check_launchable(function, x=x, weight=weight, target=target, bias=bias)

    x = x.reshape(target.numel(), x.shape[-1])
    loss, lse = _forward_op(x, weight, target.reshape(-1), bias, *settings, num_chunks)
    return in_shape_of(target, loss, lse, settings)


# ---- The operators. Their settings come flat, in the order of the schemas below, which arguments.py explains. ------


def _launch_forward(x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, *flat: Flat) -> tuple[Tensor, ...]:
    return _launch_with_gradients(x, weight, target, bias, *flat, False, False, False)[:2]


def _launch_with_gradients(
    x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, *flat: Flat
) -> tuple[Tensor, ...]:
    from . import launch

    *formula, reduction, return_lse = flat[:6]
    r = launch.linear_forward(x, weight, target.contiguous(), bias, Formula(*formula), Work.of(flat))
    lse = r.stats.sum(0) if return_lse else r.losses.new_empty(0)
    return reduced(r.losses, r.counts, reduction), lse, r.stats, r.counts, r.dx, r.dweight, r.dbias


def _launch_backward(
    dlosses: Tensor, dlse: Tensor | None, x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None,
    stats: Tensor, *flat: Flat,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    from . import launch

    formula, work = Formula.of(flat), Work.of(flat)
    dlse = None if dlse is None else dlse.contiguous()
    return launch.linear_backward(dlosses, dlse, x, weight, target.contiguous(), bias, stats, formula, work)


def _launch_scale(dloss: Tensor, counts: Tensor | None, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    from . import launch

    return launch.scale(dloss, counts, gradient, dtype)


def _fake_forward(x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, *flat: Flat) -> tuple[Tensor, ...]:
    return fake_results(x, Settings.of(flat))


def _fake_with_gradients(
    x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, *flat: Flat
) -> tuple[Tensor, ...]:
    settings, work = Settings.of(flat), Work.of(flat)
    return (
        *fake_results(x, settings),
        x.new_empty(2, x.shape[0], dtype=torch.float32),
        x.new_empty(2, dtype=torch.int64),
        x.new_empty(x.shape if work.need_dx else (0,)),
        x.new_empty(weight.shape if work.need_dweight else (0,), dtype=torch.float32),
        x.new_empty(weight.shape[0] if work.need_dbias else 0, dtype=torch.float32),
    )


def _fake_backward(
    dlosses: Tensor, dlse: Tensor | None, x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None,
    stats: Tensor, *flat: Flat,
) -> tuple[Tensor, Tensor, Tensor]:  # fmt: skip
    work = Work.of(flat)
    return (
        x.new_empty(x.shape if work.need_dx else (0,)),
        weight.new_empty(weight.shape if work.need_dweight else (0,)),
        (weight if bias is None else bias).new_empty(weight.shape[0] if work.need_dbias else 0),
    )


def _fake_scale(dloss: Tensor, counts: Tensor | None, gradient: Tensor, dtype: torch.dtype) -> Tensor:
    return gradient.new_empty(gradient.shape, dtype=dtype)


class _LinearCrossEntropy(torch.autograd.Function):
    """ "mean" and "sum": the forward pass makes the gradients, the backward pass multiplies them by the upstream one.

    "none", and a gradient of lse: the backward pass makes the logits again, knowing every row's upstream gradient. So
    it does under torch.func's transforms, which do not tell a forward pass whose gradients will be wanted.
    """

    @staticmethod
    def forward(x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None, *flat: Flat) -> tuple[Tensor, ...]:
        *_, reduction, _return_lse, _num_chunks = flat
        in_forward = reduction != "none"
        make = [in_forward and t is not None and t.requires_grad for t in (x, weight, bias)]
        return _library.below_autograd(_with_gradients_op, x, weight, target, bias, *flat, *make)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], outputs: tuple[Tensor, ...]) -> None:
        x, weight, target, bias, *flat = inputs
        _, lse, stats, counts, dx, dweight, dbias = outputs
        *ctx.formula, ctx.reduction, return_lse, ctx.num_chunks = flat
        made = dx.dim() == 2, dweight.dim() == 2, dbias.shape[0] > 0  # x and weight are 2-D, and V >= 1
        ctx.all_made = not any(n and not m for n, m in zip(_needed(ctx), made))
        again = () if ctx.all_made and not return_lse else (x, weight, target, bias, stats)
        ctx.save_for_backward(counts, dx, dweight, dbias, *again)
        ctx.rows, ctx.dtypes = x.shape[0], (x.dtype, weight.dtype, None if bias is None else bias.dtype)
        ctx.set_materialize_grads(False)
        # The gradients stay differentiable outputs: by them alone a second derivative finds its way here, and raises.
        ctx.mark_non_differentiable(stats, counts, *(() if return_lse else (lse,)))

    @staticmethod
    def backward(ctx: Any, dloss: Tensor | None, dlse: Tensor | None, *_: None) -> tuple[Tensor | None, ...]:
        need = _needed(ctx)
        no_settings = (None,) * (len(ctx.needs_input_grad) - 4)
        if dloss is None and dlse is None:
            return None, None, None, None, *no_settings
        counts, *made, x, weight, target, bias, stats = (*ctx.saved_tensors, *(None,) * 5)[:9]
        if not ctx.all_made or dlse is not None:
            dlosses, work = upstream_rows(dloss, counts, ctx.reduction, ctx.rows), Work(ctx.num_chunks, *need)
            grads = _backward_op(dlosses, dlse, x, weight, target, bias, stats, *ctx.formula, *work)
        else:
            divisor = counts if ctx.reduction == "mean" else None
            grads = [_scale_op(dloss, divisor, g, t) if n else None for g, t, n in zip(made, ctx.dtypes, need)]
        dx, dweight, dbias = (g if n else None for g, n in zip(grads, need))
        return dx, dweight, None, dbias, *no_settings


def _needed(ctx: Any) -> tuple[bool, bool, bool]:
    """Which of x, weight and bias want a gradient."""
    return ctx.needs_input_grad[0], ctx.needs_input_grad[1], ctx.needs_input_grad[3]


_INPUTS = "Tensor x, Tensor weight, Tensor target, Tensor? bias"

_with_gradients_op = _library.define(
    f"linear_cross_entropy_with_gradients({_INPUTS}, {SETTINGS_SCHEMA}, {WORK_SCHEMA}) -> "
    "(Tensor loss, Tensor lse, Tensor stats, Tensor counts, Tensor dx, Tensor dweight, Tensor dbias)",
    launch=_launch_with_gradients,
    fake=_fake_with_gradients,
    public="linear_cross_entropy",
)
_backward_op = _library.define(
    f"linear_cross_entropy_bwd(Tensor dlosses, Tensor? dlse, {_INPUTS}, Tensor stats, {FORMULA_SCHEMA}, {WORK_SCHEMA})"
    " -> (Tensor dx, Tensor dweight, Tensor dbias)",
    launch=_launch_backward,
    fake=_fake_backward,
    public="linear_cross_entropy",
)
_scale_op = _library.define(
    "linear_cross_entropy_scale(Tensor dloss, Tensor? counts, Tensor gradient, ScalarType dtype) -> Tensor",
    launch=_launch_scale,
    fake=_fake_scale,
    public="linear_cross_entropy",
)
_forward_op = _library.define(
    f"linear_cross_entropy({_INPUTS}, {SETTINGS_SCHEMA}, int num_chunks) -> (Tensor loss, Tensor lse)",
    launch=_launch_forward,
    fake=_fake_forward,
    public="linear_cross_entropy",
    autograd=_LinearCrossEntropy,
    results=2,
    differentiable=(0, 1, 3),
)
