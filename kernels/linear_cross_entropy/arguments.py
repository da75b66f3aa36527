"""What the public functions are given: tensors are checked and cast, settings checked and put together.

Operators take settings flat, because torch's schemas know no structure. Each NamedTuple here is a run of their
arguments, in this order, with its schema; where an operator needs only some of them, it unpacks them in that order.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeAlias

import torch
from torch import Tensor

from .._checks import check_dense, check_numbers, check_target, wrong_dtype
from .._runtime import autocast_dtype
from ..support import KERNEL_DTYPES

REDUCTIONS = ("mean", "sum", "none")
_INTEGERS = (int, torch.SymInt)
# The kernels take settings in float32, without subnormal numbers: outside of these a GPU sees 0 or infinity.
_FLOAT32 = torch.finfo(torch.float32)

Flat: TypeAlias = Any  # a setting among an operator's arguments, of the type that the schema says


class Formula(NamedTuple):
    """The numbers in the loss of a row, in the order in which its kernels take them."""

    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float | None

    @staticmethod
    def of(flat: Sequence[Flat]) -> Formula:
        """The formula with which an operator's arguments begin, once its tensors are taken off."""
        return Formula(*flat[:4])


class Settings(NamedTuple):
    """What both public functions are asked for: a Formula, and what becomes of the rows' losses."""

    ignore_index: int
    label_smoothing: float
    z_loss: float
    softcap: float | None
    reduction: str
    return_lse: bool

    @staticmethod
    def of(flat: Sequence[Flat]) -> Settings:
        """The settings with which an operator's arguments begin, once its tensors are taken off."""
        return Settings(*flat[:6])


class Work(NamedTuple):
    """What `linear_cross_entropy` has to do: into how many chunks it cuts the rows (0: by the rule), and which
    gradients it makes."""

    num_chunks: int
    need_dx: bool
    need_dweight: bool
    need_dbias: bool

    @staticmethod
    def of(flat: Sequence[Flat]) -> Work:
        """The work with which an operator's arguments end."""
        return Work(*flat[-4:])


FORMULA_SCHEMA = "int ignore_index, float label_smoothing, float z_loss, float? softcap"
SETTINGS_SCHEMA = f"{FORMULA_SCHEMA}, str reduction, bool return_lse"
WORK_SCHEMA = "int num_chunks, bool need_dx, bool need_dweight, bool need_dbias"


# ---- tensors ------------------------------------------------------------------------------------------------------


def check_linear(function: str, x: Tensor, weight: Tensor, target: Tensor, bias: Tensor | None) -> Tensor:
    """x in the dtype to compute in. Raise TypeError or ValueError unless `linear_cross_entropy` takes all these."""
    check_dense(function, 3, x=x, weight=weight, target=target, bias=bias)
    dtype = autocast_dtype(x)
    _check_floating(function, x=x, weight=weight, bias=bias)
    if dtype is None:
        _check_same_dtype(function, x, weight=weight, bias=bias)
    else:
        x = x.to(dtype)
        _check_floating(function, x=x)
    _check_shapes(function, x, weight, bias)
    check_target(function, target, x.shape[:-1], "x")
    return x


def check_logits(function: str, logits: Tensor, target: Tensor) -> None:
    """Raise TypeError or ValueError unless `cross_entropy` takes these."""
    check_dense(function, 2, logits=logits, target=target)
    _check_floating(function, logits=logits)
    if logits.dim() < 1 or logits.shape[-1] < 1:
        raise ValueError(f"{function}: logits has shape {tuple(logits.shape)}, expected (..., V) with V >= 1")
    check_target(function, target, logits.shape[:-1], "logits")


def _check_floating(function: str, **tensors: Tensor | None) -> None:
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in KERNEL_DTYPES:
            raise wrong_dtype(function, name, tensor.dtype)


def _check_same_dtype(function: str, x: Tensor, **others: Tensor | None) -> None:
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


def check_overwritable(function: str, logits: Tensor) -> None:
    """Raise ValueError where autograd must keep the logits, or where their elements share memory."""
    if logits.requires_grad and torch.is_grad_enabled():
        what = "a leaf" if logits.is_leaf else "a view of a leaf" if _is_view_of_leaf(logits) else None
        if what is not None:
            raise ValueError(
                f"{function}: inplace=True with logits that are {what} requiring a gradient: its values would be "
                "lost; pass inplace=False"
            )
    if may_overlap(logits):
        raise ValueError(
            f"{function}: inplace=True with logits whose elements share memory (expanded, or windows that overlap: "
            f"shape {tuple(logits.shape)}, strides {logits.stride()}); pass inplace=False or logits.contiguous()"
        )


def _is_view_of_leaf(x: Tensor) -> bool:
    if torch.compiler.is_compiling():  # which knows no bases, and plans memory itself
        return False
    base = x._base
    return base is not None and base.is_leaf and base.requires_grad


def may_overlap(x: Tensor) -> bool:
    """False where each dimension steps over all that the dimensions of smaller strides reach."""
    reach = 0
    for stride, size in sorted(zip(x.stride(), x.shape)):
        if size > 1 and stride <= reach:
            return True
        reach += (size - 1) * stride
    return False


# ---- settings -----------------------------------------------------------------------------------------------------


def checked_settings(
    function: str,
    ignore_index: int,
    reduction: str,
    label_smoothing: float,
    z_loss: float,
    softcap: float | None,
    return_lse: bool,
) -> Settings:
    """Raise ValueError or TypeError for a setting out of its range."""
    if reduction not in REDUCTIONS:
        raise ValueError(f'{function}: reduction is {reduction!r}, use "mean", "sum" or "none"')
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, _INTEGERS):
        raise TypeError(f"{function}: ignore_index is {ignore_index!r}, expected an int (-100 is torch's default)")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"{function}: ignore_index is {ignore_index}, use a number that fits in int64")
    if label_smoothing is None or z_loss is None:
        name = "label_smoothing" if label_smoothing is None else "z_loss"
        raise TypeError(f"{function}: {name} is None, expected a number; 0.0 switches it off")
    check_numbers(function, label_smoothing=label_smoothing, z_loss=z_loss, softcap=softcap)
    if not 0.0 <= label_smoothing <= 1.0:
        raise ValueError(f"{function}: label_smoothing is {label_smoothing}, use a value in [0, 1]")
    if not 0.0 <= z_loss <= _FLOAT32.max:
        raise ValueError(f"{function}: z_loss is {z_loss}, use a finite float32 weight >= 0 (0 switches it off)")
    if softcap is not None and not _FLOAT32.tiny <= softcap <= _FLOAT32.max:
        raise ValueError(
            f"{function}: softcap is {softcap}, use a finite value > 0 that float32 holds ({_FLOAT32.tiny:.3g} to "
            f"{_FLOAT32.max:.3g}), or None for no cap"
        )
    softcap = None if softcap is None else float(softcap)
    return Settings(ignore_index, float(label_smoothing), float(z_loss), softcap, reduction, return_lse)


def checked_num_chunks(function: str, num_chunks: int | None) -> int:
    """0 for None: the rule of `tiles.rows_per_chunk`."""
    if num_chunks is None:
        return 0
    if isinstance(num_chunks, bool) or not isinstance(num_chunks, _INTEGERS):
        raise TypeError(f"{function}: num_chunks is {num_chunks!r}, use an int, or None for the default rule")
    if num_chunks < 1:
        raise ValueError(f"{function}: num_chunks is {num_chunks}, use a number >= 1, or None for the default rule")
    return num_chunks
