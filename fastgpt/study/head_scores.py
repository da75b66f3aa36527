"""What each attention head looks for, as numbers between 0 and 1, and how widely it looks.

A (T, T) is a head's weights: A_tj is what query t gives to key j, 0 for j > t. Token t has the id x_t. A query counts
where it can do what is measured, so that a head that always does it scores 1.

entropy         mean over t of -Σ_j A_tj log A_tj, nats
normalised      mean over t >= 1 of (-Σ_j A_tj log A_tj) / log(t + 1): 0 for one key, 1 for all that are seen alike
previous_token  mean over t >= 1 of A_t,t-1 (Voita et al. 2019, "Analyzing multi-head self-attention")
first_token     mean over t >= 1 of A_t,0: an attention sink (Xiao et al. 2023, "Efficient streaming language models
                with attention sinks")
same_token      mean of Σ_j A_tj over keys j < t with x_j = x_t, over the t that have such a j
induction       mean of Σ_k A_tk over keys k with 1 <= k < t and x_k-1 = x_t, over the t that have such a k: what
                followed the same token earlier (Olsson et al. 2022, "In-context learning and induction heads")

A mean over no queries (a text of one token, or in which no token comes twice) is NaN. `chance_scores` is what a head
scores that attends to all it sees alike.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..base.settings import SettingError, SettingTypeError


class HeadScores(NamedTuple):
    """Of each head, (H,) float64; see the module for the formulas."""

    entropy: Tensor
    normalised: Tensor
    previous_token: Tensor
    first_token: Tensor
    same_token: Tensor
    induction: Tensor


NAMES = {
    "entropy": "entropy, nats",
    "normalised": "entropy / log seen",
    "previous_token": "previous token",
    "first_token": "first token",
    "same_token": "same token",
    "induction": "induction",
}  # as tables call them


def head_scores(weights: Tensor, ids: Tensor) -> HeadScores:
    """Scores of attention weights (H, T, T), of any floating dtype, for the token ids (T,); computed in float64.

    Raises:
        SettingTypeError: weights that are no floating-point tensor, ids that are no integers.
        SettingError: shapes that do not fit, weights that are not finite, or weight on a later key.
    """
    _check(weights, ids)
    ids = ids.to(weights.device)
    return HeadScores(*(torch.stack(column) for column in zip(*(_scores_of(head, ids) for head in weights))))


def chance_scores(ids: Tensor) -> HeadScores:
    """The scores of A_tj = 1 / (t + 1) for the token ids (T,): each (1,), see `head_scores`."""
    if not isinstance(ids, Tensor) or ids.dim() != 1:
        raise SettingTypeError("chance_scores", "ids", type(ids).__name__, "must be a tensor of token ids (T,)")
    even = torch.ones(1, len(ids), len(ids), dtype=torch.float64).tril()
    return head_scores(even / even.sum(-1, keepdim=True), ids)


def _scores_of(head: Tensor, ids: Tensor) -> list[Tensor]:
    """The scores of one head (T, T): a head at a time, for float64 of all would be many times the model's own."""
    a = head.detach().double()
    count = len(ids)
    seen = torch.arange(1, count + 1, dtype=torch.float64, device=a.device)
    entropy = -torch.special.xlogy(a, a).sum(-1)  # (T,)
    same = (ids[:, None] == ids[None, :]).tril(-1)  # [t, j]: j < t holds x_t
    after = torch.zeros_like(same)
    after[:, 1:] = same[:, :-1]  # [t, k]: k - 1 < t holds x_t
    after = after.tril(-1)  # the query itself is no key that followed
    return [
        entropy.mean(),
        (entropy[1:] / seen[1:].log()).mean(),
        a.diagonal(-1).mean(),
        a[1:, 0].mean(),
        _mean_weight(a, same),
        _mean_weight(a, after),
    ]


def _mean_weight(a: Tensor, wanted: Tensor) -> Tensor:
    """Mean over the queries that have a wanted key of their weight on all wanted keys."""
    return (a * wanted).sum(-1)[wanted.any(-1)].mean()


def _check(weights: Any, ids: Any) -> None:
    owner = "head_scores"
    if not isinstance(weights, Tensor) or not weights.is_floating_point():
        kind = weights.dtype if isinstance(weights, Tensor) else type(weights).__name__
        raise SettingTypeError(owner, "weights", kind, "must be a floating-point tensor (H, T, T)")
    if weights.dim() != 3 or weights.shape[1] != weights.shape[2] or 0 in weights.shape:
        raise SettingError(
            owner, "weights", tuple(weights.shape), "must be (H, T, T), none of them 0; give one sequence"
        )
    if not isinstance(ids, Tensor) or ids.is_floating_point() or ids.is_complex() or ids.dtype == torch.bool:
        kind = ids.dtype if isinstance(ids, Tensor) else type(ids).__name__
        raise SettingTypeError(owner, "ids", kind, "must be a tensor of token ids, integers (T,)")
    if tuple(ids.shape) != (weights.shape[1],):
        need = f"must be ({weights.shape[1]},), an id for each query; give those that the weights were computed on"
        raise SettingError(owner, "ids", tuple(ids.shape), need)
    for head in weights:
        if not bool(head.isfinite().all()):
            need = "must hold finite numbers alone; the model computes NaN or infinity: look at its weights"
            raise SettingError(owner, "weights", tuple(weights.shape), need)
        if bool(head.triu(1).any()):
            need = "must give no weight to later keys; give causal attention"
            raise SettingError(owner, "weights", tuple(weights.shape), need)
