"""Over-smoothing: how alike the tokens of one sequence have become in a layer.

x_1 ... x_T are the rows of a representation X (T, D); each measure is averaged over the sequences of a batch.

cosine          mean of x_i·x_j / (|x_i| |x_j|) over the pairs i ≠ j (by layer: Dong et al. 2021, "Attention is not all
                you need"; Shi et al. 2022, "Revisiting over-smoothing in BERT")
centred_cosine  the same of x_i - mean(x): a large common part, as of most GPTs, counts in the first
effective_rank  exp(-Σ p_k log p_k) with p_k = σ_k / Σ σ, σ the singular values of X: from 1 to min(T, D) (Roy &
                Vetterli 2007, "The effective rank")
top_share       σ_1² / Σ σ²: what one direction holds of all

Dirichlet energy and attention entropy are of attention weights A (T, T), whose row t is what query t sees:

energy          ½ Σ_ij A_ij |x_i - x_j|² / Σ_i |x_i|² (Cai & Wang 2020, "A note on over-smoothing for graph neural
                networks", with attention for the graph): 0 where all that see each other are the same
entropy         -Σ_j A_tj log A_tj in nats, its mean over the queries; at query t at most log(t + 1)
"""

from __future__ import annotations

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base.settings import SettingError, SettingTypeError, check_integer


class SmoothingMeasures(NamedTuple):
    """Of one representation; see the module. Cosines of a single token are NaN, rank and share of zeros too."""

    cosine: float
    centred_cosine: float
    effective_rank: float
    top_share: float


def smoothing(hidden: Tensor) -> SmoothingMeasures:
    """How alike the tokens are in `hidden` (B, T, D), of any floating dtype and strides; computed in float64.

    A token that is zero has no direction: cosines with it count as 0, as torch's cosine_similarity has them. So
    centred_cosine of equal tokens, of which nothing is left, is 0.

    Raises:
        SettingTypeError: no floating-point tensor. SettingError: another number of dimensions, an empty one, or numbers
            that are not finite.
    """
    x = _checked("smoothing", "hidden", hidden, 3, "(B, T, D)")
    centred = x - x.mean(dim=1, keepdim=True)
    # What is left of equal tokens by rounding is no direction.
    centred = torch.where(_norm(centred) > 1e-12 * _norm(x), centred, 0.0)
    sigma = torch.linalg.svdvals(x)  # (B, min(T, D))
    share = sigma / sigma.sum(-1, keepdim=True)
    rank = torch.exp(-torch.special.xlogy(share, share).sum(-1))
    top = sigma[:, 0].square() / sigma.square().sum(-1)
    return SmoothingMeasures(_pairs(x), _pairs(centred), float(rank.mean()), float(top.mean()))


def dirichlet_energy(weights: Tensor, hidden: Tensor) -> Tensor:
    """½ Σ_ij A_ij |x_i - x_j|² / Σ_i |x_i|² of weights (B, H, T, T) and hidden (B, T, D): (H,) float64, mean over B.

    Raises:
        SettingTypeError, SettingError: tensors that are none of these, or of other sizes.
    """
    a, x = _checked_pair("dirichlet_energy", weights, hidden)
    squares = x.square().sum(-1)  # (B, T)
    # |x_i - x_j|² = |x_i|² + |x_j|² - 2 x_i·x_j, so that no (T, T, D) is made.
    distance = (squares[:, :, None] + squares[:, None, :] - 2 * x @ x.mT).clamp_min(0.0)  # (B, T, T)
    energy = 0.5 * (a * distance[:, None]).sum((-2, -1))  # (B, H)
    return (energy / squares.sum(-1)[:, None]).mean(0)


def attention_entropy(weights: Tensor) -> Tensor:
    """-Σ_j A_tj log A_tj of weights (B, H, T, T), nats: (H,) float64, its mean over queries and B.

    Raises:
        SettingTypeError, SettingError: no such tensor.
    """
    a = _checked("attention_entropy", "weights", weights, 4, "(B, H, T, T)")
    return -torch.special.xlogy(a, a).sum(-1).mean((0, 2))


def largest_entropy(count: int) -> float:
    """The attention entropy, nats, of `count` queries that each attend alike to all that they see: log(count!) / count.

    Raises:
        SettingTypeError, SettingError: no integer of at least 1.
    """
    count = check_integer("largest_entropy", "count", count, least=1)
    return math.lgamma(count + 1) / count


def _pairs(x: Tensor) -> float:
    """Mean cosine over the pairs of different tokens of x (B, T, D): |Σ u|² = Σ_i |u_i|² + Σ_{i≠j} u_i·u_j."""
    norm = _norm(x)
    unit = torch.where(norm > 0, x / norm, 0.0)
    count = x.shape[1]
    together = unit.sum(1).square().sum(-1) - unit.square().sum((1, 2))
    return float((together / (count * (count - 1))).mean()) if count > 1 else math.nan


def _norm(x: Tensor) -> Tensor:
    return torch.linalg.vector_norm(x, dim=-1, keepdim=True)


def _checked(owner: str, name: str, tensor: Any, dims: int, shape: str) -> Tensor:
    if not isinstance(tensor, Tensor) or not tensor.is_floating_point():
        kind = tensor.dtype if isinstance(tensor, Tensor) else type(tensor).__name__
        raise SettingTypeError(owner, name, kind, f"must be a floating-point tensor {shape}")
    if tensor.dim() != dims or 0 in tensor.shape:
        raise SettingError(owner, name, tuple(tensor.shape), f"must be {shape}, none of them 0")
    if not bool(tensor.isfinite().all()):
        raise SettingError(owner, name, tuple(tensor.shape), "must hold finite numbers alone; look at the loss")
    return tensor.detach().double()


def _checked_pair(owner: str, weights: Any, hidden: Any) -> tuple[Tensor, Tensor]:
    a, x = _checked(owner, "weights", weights, 4, "(B, H, T, T)"), _checked(owner, "hidden", hidden, 3, "(B, T, D)")
    if (a.shape[0], *a.shape[2:]) != (x.shape[0], x.shape[1], x.shape[1]):
        need = f"does not fit hidden's {tuple(x.shape)}: give weights (B, H, T, T) of the same B and T"
        raise SettingError(owner, "weights", tuple(a.shape), need)
    return a, x
