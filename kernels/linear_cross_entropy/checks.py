"""Argument checks and reductions that both public functions share."""

from __future__ import annotations

import torch
from torch import Tensor

from .._checks import check_numbers
from ..support import KERNEL_DTYPES

REDUCTIONS = ("mean", "sum", "none")
# The kernels take settings in float32, without subnormal numbers: outside of these a GPU sees 0 or infinity.
_FLOAT32 = torch.finfo(torch.float32)


def check_floating(function: str, **tensors: Tensor | None) -> None:
    """Raise TypeError unless every tensor has a dtype that the kernels take."""
    for name, tensor in tensors.items():
        if tensor is not None and tensor.dtype not in KERNEL_DTYPES:
            raise TypeError(
                f"{function}: {name} is {tensor.dtype}, and the kernels take float32, float16 and bfloat16; convert "
                f"it, or use fastgpt.kernels.reference.{function}"
            )


def check_settings(
    function: str, ignore_index: int, reduction: str, label_smoothing: float, z_loss: float, softcap: float | None
) -> None:
    """Raise ValueError or TypeError for a setting out of its range."""
    if reduction not in REDUCTIONS:
        raise ValueError(f'{function}: reduction is {reduction!r}, use "mean", "sum" or "none"')
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int | torch.SymInt):
        raise TypeError(f"{function}: ignore_index is {ignore_index!r}, expected an int (-100 is torch's default)")
    if not -(2**63) <= ignore_index < 2**63:
        raise ValueError(f"{function}: ignore_index is {ignore_index}, use a number that fits in int64")
    for name, value in (("label_smoothing", label_smoothing), ("z_loss", z_loss)):
        if value is None:
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


def reduced(losses: Tensor, counts: Tensor, reduction: str) -> Tensor:
    """losses (N,), 0 where ignored -> their mean over rows that count (NaN if none does), their sum, or themselves."""
    if reduction == "none":
        return losses
    total = losses.sum()
    return total / counts[0] if reduction == "mean" else total


def upstream_rows(grad_loss: Tensor | None, counts: Tensor, reduction: str, N: int) -> Tensor:
    """(N,) float32, stride 0 where one value serves all rows: d(what is differentiated) / d(each row's loss)."""
    if grad_loss is None:
        return torch.zeros((), dtype=torch.float32, device=counts.device).expand(N)
    if reduction == "none":
        return grad_loss
    if reduction == "mean":
        grad_loss = grad_loss / counts[0]  # 1 / 0 reaches no row: where none counts, the kernel ignores them all
    return grad_loss.expand(N)
