"""A small model for the tests of over-smoothing, and what its measures must be, by formulas of their own."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import fastgpt

CONFIG = fastgpt.GPTConfig(vocab_size=31, max_len=12, n_layers=3, n_heads=2, d_model=16, dropout=0.3)


def small_model(seed: int = 0) -> fastgpt.GPT:
    """With weights large enough that every layer and head is another one."""
    torch.manual_seed(seed)
    model = fastgpt.GPT(CONFIG)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.4)
    return model


@torch.no_grad()
def expected_layers(model: fastgpt.GPT, idx: Tensor) -> list[dict[str, Any]]:
    """Of idx (B, T), in float64, with a loop over sequences, heads and pairs of tokens."""
    weights = {name: value.double() for name, value in model.state_dict().items()}
    found = [_of_sequence(model, weights, one) for one in idx]
    return [_mean(same) for same in zip(*found, strict=True)]


def _of_sequence(model: fastgpt.GPT, weights: dict[str, Tensor], idx: Tensor) -> list[dict[str, Any]]:
    heads, length = model.config.n_heads, len(idx)
    x = weights["token_emb.weight"][idx] + weights["pos_emb.weight"][:length]
    found = []
    for layer, block in enumerate(model.blocks):
        h = _norm(x, block.ln1)
        q, k, v = F.linear(h, block.attn.in_proj_weight.double(), block.attn.in_proj_bias.double()).chunk(3, -1)
        q, k, v = (part.view(length, heads, -1).transpose(0, 1) for part in (q, k, v))
        scores = q @ k.mT / math.sqrt(q.shape[-1])
        a = scores.masked_fill(torch.ones(length, length, dtype=torch.bool).triu(1), -math.inf).softmax(-1)
        found.append(_measures(layer, x, a))
        x = x + _linear((a @ v).transpose(0, 1).flatten(1), block.attn.out_proj)
        x = x + _ffn(_norm(x, block.ln2), block.ffn)
    return [*found, _measures(len(model.blocks), x, None)]


def _measures(layer: int, x: Tensor, a: Tensor | None) -> dict[str, Any]:
    count = len(x)
    pairs = [(i, j) for i in range(count) for j in range(count) if i != j]

    def cosine(x: Tensor) -> float:
        return sum(float(x[i] @ x[j] / (x[i].norm() * x[j].norm())) for i, j in pairs) / len(pairs)

    squares = torch.linalg.eigvalsh(x @ x.T).clamp_min(0)
    share = squares.sqrt() / squares.sqrt().sum()
    rank = math.exp(-sum(float(p * p.log()) for p in share if p > 0))
    energy = entropy = None
    if a is not None:
        distance = sum(a[:, i, j] * (x[i] - x[j]).square().sum() for i, j in pairs)
        energy = (0.5 * distance / x.square().sum()).tolist()
        entropy = [-sum(float(w * w.log()) for w in head.flatten() if w > 0) / count for head in a]
    return {
        "layer": layer, "cosine": cosine(x), "centred_cosine": cosine(x - x.mean(0)), "effective_rank": rank,
        "top_share": float(squares.max() / squares.sum()), "energy": energy, "entropy": entropy,
    }  # fmt: skip


def _mean(same: tuple[dict[str, Any], ...]) -> dict[str, Any]:
    found = {}
    for key, first in same[0].items():
        values = [one[key] for one in same]
        if first is None or key == "layer":
            found[key] = first
        elif isinstance(first, list):
            found[key] = [sum(head) / len(head) for head in zip(*values)]
        else:
            found[key] = sum(values) / len(values)
    return found


def _norm(x: Tensor, norm: torch.nn.Module) -> Tensor:
    return F.layer_norm(x, (x.shape[-1],), norm.weight.double(), norm.bias.double(), norm.eps)


def _ffn(x: Tensor, ffn: torch.nn.Module) -> Tensor:
    up, down = [module for module in ffn.modules() if isinstance(module, torch.nn.Linear)]
    return _linear(F.gelu(_linear(x, up)), down)


def _linear(x: Tensor, linear: torch.nn.Module) -> Tensor:
    return F.linear(x, linear.weight.double(), linear.bias.double())
