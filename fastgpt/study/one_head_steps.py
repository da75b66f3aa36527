"""Every number between a text and `OneHeadLM`'s logits, taken from the model's own forward by hooks."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor

from ..model.modes import evaluating
from ..model.one_head import OneHeadLM


class OneHeadSteps(NamedTuple):
    """The steps of one sequence of T tokens, D wide, V the vocabulary; on the CPU, in float32 but for the ids.

    ids         (T,) int64
    token       (T, D) token embedding; position (T, D) position embedding; x (T, D) their sum
    statistics  (T, 2) of each row of x: mean, and standard deviation √(variance + eps), which LayerNorm divides by
    h           (T, D) LayerNorm(x)
    q, k, v     (T, D)
    scores      (T, T) q·k / √D, before the mask
    mask        (T, T) bool, True where query t must not see key s
    weights     (T, T) softmax of the masked scores
    mixed       (T, D) weights @ v; attended (T, D) that times W_0ᵀ; y (T, D) = x + attended
    logits      (T, V)
    """

    ids: Tensor
    token: Tensor
    position: Tensor
    x: Tensor
    statistics: Tensor
    h: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    scores: Tensor
    mask: Tensor
    weights: Tensor
    mixed: Tensor
    attended: Tensor
    y: Tensor
    logits: Tensor


@torch.no_grad()
def one_head_steps(model: OneHeadLM, ids: Tensor) -> OneHeadSteps:
    """What happens to `ids` (1, T) in the model.

    Raises:
        ValueError: T > max_len, or more than one sequence. IndexError: an id outside the vocabulary.
    """
    if ids.dim() != 2 or ids.shape[0] != 1:
        raise ValueError(f"one_head_steps: ids has shape {tuple(ids.shape)}; give one sequence, (1, T)")
    seen: dict[str, Tensor] = {}

    def keep(into: str | None, out: str) -> Any:
        def hook(module: Any, args: tuple[Tensor, ...], result: Tensor) -> None:
            if into is not None:
                seen[into] = args[0]
            seen[out] = result

        return hook

    watched = {
        model.token_emb: (None, "token"), model.pos_emb: (None, "position"), model.ln: ("x", "h"),
        model.W_Q: (None, "q"), model.W_K: (None, "k"), model.W_V: (None, "v"), model.W_0: ("mixed", "attended"),
    }  # fmt: skip
    hooks = [module.register_forward_hook(keep(*names)) for module, names in watched.items()]
    try:
        with evaluating(model):
            output = model(ids)
    finally:
        for hook in hooks:
            hook.remove()
    rows = {name: value.detach().float().cpu().reshape(ids.shape[1], -1) for name, value in seen.items()}
    return OneHeadSteps(
        ids=ids[0].cpu(), statistics=statistics_of(rows["x"], model.ln.eps), scores=output.qk_scaled[0].float().cpu(),
        mask=output.causal_mask.cpu(), weights=output.qk_softmax[0].float().cpu(), y=rows["x"] + rows["attended"],
        logits=output.logits[0].float().cpu(), **rows,
    )  # fmt: skip


def statistics_of(x: Tensor, eps: float) -> Tensor:
    """Of each row of x (T, D): (mean, √(variance + eps)), (T, 2), the variance without Bessel's correction.

    Ba et al. 2016, "Layer normalization", eq. 3.
    """
    return torch.stack([x.mean(-1), (x.var(-1, unbiased=False) + eps).sqrt()], dim=-1)
