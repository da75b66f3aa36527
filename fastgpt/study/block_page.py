"""One block of a GPT on a text, step by step, as a page: residual stream, attention, FFN, and what each adds."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from ..data.tokenizer import Tokenizer
from ..kernels import reference
from ..model.blocks import CausalSelfAttention, FeedForward
from ..model.config import GPTConfig
from ..model.gpt import GPT, Block
from ..pages.charts import Chart
from ..pages.page import Page
from .attention_maps import token_labels
from .block_arrays import ROOM, Held, block_arrays, choose_held, key_head
from .block_steps import GPTSteps, gpt_steps
from .step_page import HOW_TO_READ, Matrix, Step, code_of, likeliest, shape_of, step_page

LIKELIEST = 10

_T, _S = "<sub>t</sub>", "<sub>s</sub>"
_L = "{layer}."


def block_page(
    model: GPT, tokenizer: Tokenizer, ids: Sequence[int], layer: int, head: int, *, about: str,
    provenance: Iterable[tuple[str, object]], room: int = ROOM,
) -> Page:  # fmt: skip
    """The page for the tokens `ids`. Every layer and head can be chosen on it if they fit into `room` bytes.

    layer, head: what is shown first. about: a sentence on the model; provenance: rows beside date, machine, versions.

    Raises:
        ValueError: more tokens than max_len, or none. TypeError: a model whose blocks are none of ours.
    """
    config = model.config
    held = choose_held(config, len(ids), layer, head, room)
    idx = torch.tensor([list(ids)], device=model.token_emb.weight.device)
    found = gpt_steps(model, idx, held.layers)
    tokens = token_labels(tokenizer, ids)
    page = Page("One block of a GPT, step by step", generator="fastgpt show block")
    page.paragraph(
        f"What a block of a GPT of {config.n_layers} layers does to the residual stream of {len(tokens)} tokens: two "
        f"sub-layers, attention and FFN, each of which reads the stream and adds to it. {about}"
    )
    page.paragraph(f"{HOW_TO_READ} {_on_page(config, held)}")

    def name(i: int) -> str:
        return token_labels(tokenizer, [i])[0]

    step_page(
        page, _attention(config, len(ids)) + _ffn(config, len(ids)), block_arrays(model, found.blocks, held), tokens,
        tops={f"{layer}.lens": likeliest(logits, name, LIKELIEST) for layer, logits in found.lens.items()},
        choices={"layer": held.layers, "head": held.heads}, chosen={"layer": layer, "head": head},
        groups={
            "next": ("layer", {layer: layer + 1 for layer in held.layers}),
            "kv": ("head", {head: key_head(config, head) for head in held.heads}),
        },
    )  # fmt: skip
    _add_norms(page, found)
    page.provenance(provenance)
    return page


def _on_page(config: GPTConfig, held: Held) -> str:
    numbers = "Numbers come from the model's own parts, in float32; 4 significant digits are shown."
    if len(held.layers) == config.n_layers and len(held.heads) == config.n_heads:
        what = "Layer and head are chosen above the steps."
    else:
        what = (
            f"Of {config.n_layers} layers with {config.n_heads} heads, layer {held.layers[0]} and head {held.heads[0]} "
            "are on this page: more would make it too large. Another one is drawn by --layer and --head."
        )
    left_out = "" if held.has_weights else " The weights are not on it, so that products with them are not spelled out."
    return f"{numbers} {what}{left_out}"


def _dot(left: str, weight: str, names: tuple[str, str], bias: bool) -> dict[str, Any]:
    return {"kind": "dot", "left": left, "right": weight, "names": list(names)} | (
        {"bias": f"{weight}.bias"} if bias else {}
    )


def _norm(of: str, number: int, bias: bool) -> dict[str, Any]:
    computed = {"kind": "norm", "of": of, "stats": f"{_L}statistics{number}", "weight": f"{_L}ln{number}", "name": "x"}
    return computed | ({"bias": f"{_L}ln{number}.bias"} if bias else {})


def _attention(config: GPTConfig, T: int) -> list[Step]:
    """The steps of the first sub-layer, up to its residual."""
    d, D, bias = config.d_model, config.head_dim, config.bias
    wide, narrow, square = (shape_of(("T", T), size) for size in (("d", d), ("D", D), ("T", T)))
    kv, q = "{layer}.{kv}.", "{layer}.{head}."
    plus = " + b" if bias else ""
    weights = Matrix(
        f"{q}weights", "A", "attention weights", columns="tokens", kind="weights", masked=True,
        computed={"kind": "softmax", "of": f"{q}scores"},
    )  # fmt: skip
    values = Matrix(f"{kv}v", "v", "values", path="seen", computed=_dot(f"{_L}h1", f"{kv}W_v", ("h", "Wv"), bias))
    project = code_of(CausalSelfAttention.project, "qkv = ", "q, k, v = ")
    return [
        Step(
            "The residual stream", f"x{_T} <small>{wide}</small>",
            "What comes into the block: a row of d numbers for each token, the sum of its embeddings and of what all "
            "sub-layers before have added.",
            matrices=(Matrix(f"{_L}stream", "x", "residual stream before the block"),),
        ),
        Step(
            "LayerNorm 1", f"h{_T} = (x{_T} − mean{_T}) / std{_T} · weight{plus and ' + bias'} <small>{wide}; std = "
            f"√(variance + {config.layer_norm_eps:g})</small>",
            "The attention reads the stream normalised: each token's row with mean 0 and variance 1, then a weight for "
            "each dimension.",
            code_of(Block.compute, "h, residual = self.ln1"),
            (
                Matrix(f"{_L}statistics1", "mean, std", "of each row of x", columns=("mean", "std")),
                Matrix(f"{_L}h1", "h", "normalised", computed=_norm(f"{_L}stream", 1, bias)),
            ),
        ),
        Step(
            "Queries, keys, values of the head",
            f"q{_T} = W<sub>q</sub> h{_T}{plus} &nbsp; k{_T} = W<sub>k</sub> h{_T}{plus} &nbsp; v{_T} = W<sub>v</sub> "
            f"h{_T}{plus} <small>{narrow}; each W: {shape_of(('D', D), ('d', d))}</small>",
            f"Each of the {config.n_heads} heads has projections of its own, D = d / heads wide"
            + (f"; {config.n_heads // (config.n_kv_heads or 1)} query heads share keys and values." if
               config.n_kv_heads != config.n_heads else "."),
            project,
            (
                Matrix(f"{q}q", "q", "queries", computed=_dot(f"{_L}h1", f"{q}W_q", ("h", "Wq"), bias)),
                Matrix(f"{kv}k", "k", "keys", path="seen", computed=_dot(f"{_L}h1", f"{kv}W_k", ("h", "Wk"), bias)),
                values,
            ),
        ),
        Step(
            "Scaled scores", f"scores{_T}{_S} = q{_T} · k{_S} / √D <small>{square}; √D = √{D} = {math.sqrt(D):.4g}"
            "</small>",
            "How well each query (row) fits each key (column). The fused kernel computes them tile by tile, and stores "
            "none.",
            code_of(reference._scores, "scale = ", "return (q @"),
            (Matrix(f"{q}scores", "scores", "q·k / √D", columns="tokens", computed={
                "kind": "dot", "left": f"{q}q", "right": f"{kv}k", "divisor": math.sqrt(D), "divisorName": f"√{D}",
                "names": ["q", "k"]}),),
        ),
        Step(
            "Mask", f"scores{_T}{_S} = −∞ where s &gt; t <small>{square}</small>",
            "A token may not see those that come after it.",
            matrices=(Matrix(f"{q}scores", "masked", "scores, later tokens not seen", columns="tokens", masked=True,
                             computed={"kind": "masked", "of": f"{q}scores"}),),
        ),
        Step(
            "Softmax", f"A{_T}{_S} = exp(scores{_T}{_S}) / Σ<sub>u ≤ t</sub> exp(scores{_T}<sub>u</sub>) <small>"
            f"{square}</small>", "Each row becomes weights that sum to 1.",
            code_of(CausalSelfAttention.attend, "return kernels.flash_attention(q, k, v, causal=True"), (weights,),
        ),
        Step(
            "Weighted sum of values", f"o{_T} = Σ<sub>s ≤ t</sub> A{_T}{_S} v{_S} <small>{narrow}</small>",
            "The values of the tokens seen, each times its weight.",
            matrices=(weights, values, Matrix(f"{q}mixed", "o", "weighted sum", computed={
                "kind": "mix", "left": f"{q}weights", "right": f"{kv}v", "names": ["A", "v"]})),
        ),
        Step(
            "Output projection of all heads", f"a{_T} = W<sub>O</sub> [o{_T} of head 0, o{_T} of head 1, …]{plus} "
            f"<small>{wide}; W<sub>O</sub>: {shape_of(('d', d), ('d', d))}</small>",
            "The sums of all heads stand side by side, and one product brings them back into the stream's width.",
            code_of(CausalSelfAttention.forward, "out = self.out_proj"),
            (
                Matrix(f"{_L}heads", "[o]", f"all heads side by side, {D} columns each"),
                Matrix(f"{_L}attended", "a", "attention's output", computed=_dot(
                    f"{_L}heads", f"{_L}W_O", ("o", "WO"), bias)),
            ),
        ),
        Step(
            "Residual: attention is added", f"x′{_T} = x{_T} + a{_T} <small>{wide}</small>",
            "The stream goes on with what attention has read.",
            code_of(Block.compute, "h, residual = self.ln2"),
            (Matrix(f"{_L}middle", "x′", "the stream between the sub-layers", computed={
                "kind": "sum", "of": [f"{_L}stream", f"{_L}attended"], "names": ["x", "a"]}),),
        ),
    ]  # fmt: skip


def _ffn(config: GPTConfig, T: int) -> list[Step]:
    """The steps of the second sub-layer, and what would be foretold after it."""
    d, f, bias = config.d_model, config.d_ff or 0, config.bias
    wide, hidden = shape_of(("T", T), ("d", d)), shape_of(("T", T), ("f", f))
    plus = " + b" if bias else ""
    gelu = "u · Φ(u), Φ the normal distribution's"
    if config.gelu == "tanh":
        gelu = "½ u (1 + tanh(√(2/π) (u + 0.044715 u³)))"
    return [
        Step(
            "LayerNorm 2", f"h{_T} = (x′{_T} − mean{_T}) / std{_T} · weight{plus and ' + bias'} <small>{wide}</small>",
            "The FFN reads the stream normalised, by weights of its own.",
            code_of(Block.compute, "h, residual = self.ln2"),
            (
                Matrix(f"{_L}statistics2", "mean, std", "of each row of x′", columns=("mean", "std")),
                Matrix(f"{_L}h2", "h", "normalised", computed=_norm(f"{_L}middle", 2, bias)),
            ),
        ),
        Step(
            "FFN: before GELU", f"u{_T} = W<sub>1</sub> h{_T}{plus} <small>{hidden}; W<sub>1</sub>: "
            f"{shape_of(('f', f), ('d', d))}</small>",
            "Each token for itself: a product with a wider matrix.",
            code_of(FeedForward.__init__, "nn.Linear(config.d_model, config.d_ff"),
            (Matrix(f"{_L}hidden", "u", "before GELU", computed=_dot(f"{_L}h2", f"{_L}W_1", ("h", "W1"), bias)),),
        ),
        Step(
            "GELU", f"g{_T} = GELU(u{_T}) = {gelu} <small>{hidden}</small>",
            "Number for number: what is negative becomes nearly 0 (Hendrycks and Gimpel 2016).",
            code_of(FeedForward.__init__, "nn.GELU"),
            (Matrix(f"{_L}activated", "g", "after GELU", computed={"kind": "gelu", "of": f"{_L}hidden"}),),
        ),
        Step(
            "FFN: output", f"m{_T} = W<sub>2</sub> g{_T}{plus} <small>{wide}; W<sub>2</sub>: "
            f"{shape_of(('d', d), ('f', f))}</small>",
            "Back to the width of the stream.",
            code_of(FeedForward.__init__, "nn.Linear(config.d_ff, config.d_model"),
            (Matrix(f"{_L}fed", "m", "FFN's output", computed=_dot(
                f"{_L}activated", f"{_L}W_2", ("g", "W2"), bias)),),
        ),
        Step(
            "Residual: the FFN is added", f"x″{_T} = x′{_T} + m{_T} <small>{wide}</small>",
            "The stream that leaves the block, and comes into the next one.",
            code_of(Block.compute, "x = self.ffn"),
            (Matrix("{next}.stream", "x″", "residual stream after the block", computed={
                "kind": "sum", "of": [f"{_L}middle", f"{_L}fed"], "names": ["x′", "m"]}),),
        ),
        Step(
            "Logit lens", f"logits{_T} = head(ln<sub>f</sub>(x″{_T})) <small>"
            f"{shape_of(('T', T), ('V', config.vocab_size))}</small>",
            "What the model would foretell if this block were its last one: the final LayerNorm and the head, read off "
            f"the stream (nostalgebraist 2020). The {LIKELIEST} likeliest tokens.",
            code_of(GPT.hidden_states, "hidden, _ = self.ln_f"), top="{layer}.lens",
        ),
    ]  # fmt: skip


def _add_norms(page: Page, found: GPTSteps) -> None:
    page.heading("How much each sub-layer adds")
    chart = Chart(
        {
            "stream before the layer": [(n, norm.before) for n, norm in enumerate(found.norms)],
            "attention adds": [(n, norm.attended) for n, norm in enumerate(found.norms)],
            "FFN adds": [(n, norm.fed) for n, norm in enumerate(found.norms)],
            "stream after the layer": [(n, norm.after) for n, norm in enumerate(found.norms)],
        },
        title="Norms of the residual stream and of what is added to it", x_label="layer",
        y_label="Euclidean norm, mean over tokens",
    )  # fmt: skip
    page.chart(chart, caption="Each point is a mean over the tokens of the text.")
