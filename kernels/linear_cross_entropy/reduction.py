"""From the losses of rows to what a public function returns, and back from its gradient to theirs."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from .. import _views
from .arguments import Settings


def reduced(losses: Tensor, counts: Tensor, reduction: str) -> Tensor:
    """losses (N,), 0 where ignored -> their mean over rows that count (NaN if none does), their sum, or themselves."""
    if reduction == "none":
        return losses
    total = losses.sum()
    return total / counts[0] if reduction == "mean" else total


def fake_results(x: Tensor, settings: Settings) -> tuple[Tensor, Tensor]:
    """The loss and the lse of x (N, ...) as operators return them, without values; no lse where none is asked for."""
    N = x.shape[0]
    loss = x.new_empty((N,) if settings.reduction == "none" else (), dtype=torch.float32)
    return loss, x.new_empty(N if settings.return_lse else 0, dtype=torch.float32)


def in_shape_of(target: Tensor, loss: Tensor, lse: Tensor, settings: Settings) -> Tensor | Any:
    """What the public functions return, given an operator's loss, () or (N,), and lse."""
    loss = _views.in_shape(loss, target.shape) if settings.reduction == "none" else loss
    return (loss, _views.in_shape(lse, target.shape)) if settings.return_lse else loss


def upstream_rows(dloss: Tensor | None, counts: Tensor, reduction: str, N: int) -> Tensor:
    """(N,) float32, stride 0 where one value serves all rows: d(what is differentiated) / d(each row's loss)."""
    if dloss is None:
        return torch.zeros((), dtype=torch.float32, device=counts.device).expand(N)
    if reduction == "none":
        return dloss
    if reduction == "mean":
        dloss = dloss / counts[0]  # 1 / 0 reaches no row: where none counts, the kernel ignores them all
    return dloss.expand(N)
