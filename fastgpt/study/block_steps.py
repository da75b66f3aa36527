"""Every number of a GPT's blocks on a text: the residual stream, what each sub-layer reads from it and adds to it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from ..model.blocks import CausalSelfAttention
from ..model.gpt import GPT, Block
from ..model.modes import evaluating
from .one_head_steps import statistics_of


class BlockSteps(NamedTuple):
    """One block on one sequence of T tokens: d wide, H query heads and H_kv key heads of D, f wide in the FFN.

    On the CPU, in float32.

    before      (T, d) the residual stream that comes in
    statistics1 (T, 2) of its rows: mean, √(variance + eps)
    h1          (T, d) ln1(before)
    q           (H, T, D); k, v (H_kv, T, D)
    scores      (H, T, T) q·k / √D, before the mask
    weights     (H, T, T) attention weights
    mixed       (H, T, D) weights @ v
    attended    (T, d) output projection of all heads side by side
    middle      (T, d) before + attended
    statistics2 (T, 2); h2 (T, d) ln2(middle)
    hidden      (T, f) before GELU; activated (T, f) after it
    fed         (T, d) the FFN's output
    after       (T, d) middle + fed
    """

    before: Tensor
    statistics1: Tensor
    h1: Tensor
    q: Tensor
    k: Tensor
    v: Tensor
    scores: Tensor
    weights: Tensor
    mixed: Tensor
    attended: Tensor
    middle: Tensor
    statistics2: Tensor
    h2: Tensor
    hidden: Tensor
    activated: Tensor
    fed: Tensor
    after: Tensor


class Norms(NamedTuple):
    """Of one layer, means over the tokens of Euclidean norms: of the stream that comes in, of what the two sub-layers
    add, and of the stream that leaves."""

    before: float
    attended: float
    fed: float
    after: float


class GPTSteps(NamedTuple):
    """blocks: layer -> its steps, of the layers asked for; norms and lens of every layer; logits (T, V), the model's.

    lens: the logits (T, V) that ln_f and the head make of the stream after each layer: the logit lens (nostalgebraist
    2020, "interpreting GPT: the logit lens"). After the last layer they are the model's own.
    """

    blocks: dict[int, BlockSteps]
    norms: list[Norms]
    lens: dict[int, Tensor]
    logits: Tensor


@torch.no_grad()
def gpt_steps(model: GPT, ids: Tensor, layers: Sequence[int]) -> GPTSteps:
    """What happens to `ids` (1, T) in the model's blocks, by its own parts one after the other, as `forward` has them.

    Raises:
        ValueError: more than one sequence, or T > max_len. IndexError: an id outside the vocabulary.
        TypeError: a block that is none of ours.
    """
    if ids.dim() != 2 or ids.shape[0] != 1:
        raise ValueError(f"gpt_steps: ids has shape {tuple(ids.shape)}; give one sequence, (1, T)")
    ids = model._checked(ids)
    blocks, norms, lens = {}, [], {}
    with evaluating(model):
        stream = model.token_emb(ids) + model.pos_emb(torch.arange(ids.shape[1], device=ids.device))
        for layer, block in enumerate(model.blocks):
            if not (isinstance(block, Block) and isinstance(block.attn, CausalSelfAttention)):
                raise TypeError(
                    f"gpt_steps: layer {layer} is a {type(block).__name__}, no Block with its own attention"
                )
            steps, stream = _block(block, stream, keep=layer in layers)
            before, attended, fed, after = (
                float(x.float().norm(dim=-1).mean()) for x in (steps.before, steps.attended, steps.fed, steps.after)
            )
            norms.append(Norms(before, attended, fed, after))
            if layer in layers:
                blocks[layer] = steps
                lens[layer] = _foretold(model, stream)
        logits = _foretold(model, stream)
    return GPTSteps(blocks, norms, lens, logits)


def _foretold(model: GPT, stream: Tensor) -> Tensor:
    """The logits (T, V) that the model's end makes of a stream (1, T, d)."""
    hidden, _ = model.ln_f(None, stream)
    return model.head(hidden)[0].float().cpu()


def _block(block: Block, stream: Tensor, *, keep: bool) -> tuple[BlockSteps, Tensor]:
    """The steps of one block, and the stream (1, T, d) that leaves it. Not keep: what is large is left out."""
    attn: CausalSelfAttention = block.attn
    none = stream.new_empty(0)
    h1, before = block.ln1(None, stream)
    q, k, v = attn.project(h1)
    mixed = attn.attend(q, k, v)
    attended = attn.out_proj(mixed.transpose(1, 2).flatten(2))
    h2, middle = block.ln2(attended, before)
    fed = block.ffn(h2)
    after = middle + fed
    scores = weights = hidden = activated = none
    if keep:
        keys = k.repeat_interleave(attn.n_heads // attn.n_kv_heads, dim=1)
        scores = q @ keys.transpose(-2, -1) / math.sqrt(attn.head_dim)
        weights = attn.weights(h1)
        hidden = block.ffn[0](h2)
        activated = block.ffn[1](hidden)

    def own(x: Tensor) -> Tensor:
        return x[0].float().cpu() if x.numel() else none

    steps = BlockSteps(
        before=own(before), statistics1=statistics_of(own(before), block.ln1.eps), h1=own(h1), q=own(q), k=own(k),
        v=own(v), scores=own(scores), weights=own(weights), mixed=own(mixed), attended=own(attended),
        middle=own(middle), statistics2=statistics_of(own(middle), block.ln2.eps), h2=own(h2), hidden=own(hidden),
        activated=own(activated), fed=own(fed), after=own(after),
    )  # fmt: skip
    return steps, after
