"""`OneHeadLM` on a short text, step by step, as a page: every matrix, its formula, its line of code."""

from __future__ import annotations

import html
import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

from ..data.tokenizer import Tokenizer
from ..model.one_head import OneHeadLM
from ..pages.page import Page
from .attention_maps import token_labels
from .one_head_steps import OneHeadSteps, one_head_steps
from .step_page import HOW_TO_READ, Matrix, Step, code_of, likeliest, shape_of, step_page

LIKELIEST = 10
COLUMNS = 32  # of the V columns of the logits

_ROW, _COLUMN, _SUM = "<sub>t</sub>", "<sub>s</sub>", "Σ"


def one_head_page(
    model: OneHeadLM, tokenizer: Tokenizer, ids: Sequence[int], *, about: str, provenance: Iterable[tuple[str, object]]
) -> Page:
    """The page for the tokens `ids`. about: a sentence on the model; provenance: rows beside date, machine, versions.

    Raises:
        ValueError: more tokens than max_len, or none.
    """
    steps = one_head_steps(model, torch.tensor([list(ids)], device=model.token_emb.weight.device))
    tokens = token_labels(tokenizer, ids)
    page = Page("One attention head, step by step", generator="fastgpt show one-head")
    page.paragraph(
        f"What OneHeadLM computes for a text of {len(tokens)} tokens, from their ids to the logits of the next one. "
        f"{about}"
    )
    page.paragraph(
        f"{HOW_TO_READ} Numbers come from the model's own forward pass, in float32; 4 significant digits are shown."
    )

    def name(i: int) -> str:
        return token_labels(tokenizer, [i])[0]

    shown = likely_anywhere(steps.logits)
    arrays = arrays_of(model, steps)
    arrays |= {"logits": steps.logits[:, shown], "E": model.token_emb.weight[shown.to(model.token_emb.weight.device)]}
    tops = {"next": likeliest(steps.logits, name, LIKELIEST)}
    step_page(page, _steps(model, steps, tokens, [name(i) for i in shown.tolist()]), arrays, tokens, tops=tops)
    page.provenance(provenance)
    return page


def likely_anywhere(logits: Tensor, count: int = COLUMNS) -> Tensor:
    """The tokens of logits (T, V) that are likeliest after some token, the likeliest first: ids (count,)."""
    return logits.softmax(dim=-1).amax(dim=0).topk(min(count, logits.shape[-1])).indices


def arrays_of(model: OneHeadLM, steps: OneHeadSteps) -> dict[str, Tensor]:
    """The page's arrays by name: the steps but for ids, mask and logits, and the parameters that make them."""
    left_out = ("ids", "mask", "logits")
    arrays = {name: value for name, value in steps._asdict().items() if name not in left_out}
    arrays |= {name: getattr(model, name).weight for name in ("W_Q", "W_K", "W_V", "W_0")}
    return arrays | {"ln.weight": model.ln.weight[None], "ln.bias": model.ln.bias[None]}


def _steps(model: OneHeadLM, steps: OneHeadSteps, tokens: Sequence[str], columns: Sequence[str]) -> list[Step]:
    T, D = steps.x.shape
    V = steps.logits.shape[1]
    wide, square = shape_of(("T", T), ("D", D)), shape_of(("T", T), ("T", T))
    weights_shape = shape_of(("D", D), ("D", D))

    def code(*starts: str) -> list[str]:
        return code_of(OneHeadLM.forward, *starts)

    def product(name: str, symbol: str, what: str, matrix: str, path: str) -> Matrix:
        computed = {"kind": "dot", "left": "h", "right": matrix, "names": ["h", matrix.replace("_", "")]}
        return Matrix(name, symbol, what, path=path, computed=computed)

    return [
        Step(
            "Token ids", f"ids <small>(T,) = ({T},), each from 0 to V − 1 = {V - 1:,}</small>",
            "The tokenizer cuts the text into tokens and gives each its number in the vocabulary.",
            markup=_ids_table(steps.ids, tokens),
        ),
        Step(
            "Embedding: token + position", f"x{_ROW} = E[id{_ROW}] + P[t] <small>{wide}</small>",
            "Each token's row of the token embedding, plus the row of the position embedding that its place has.",
            code("x_BxTxD"),
            (
                Matrix("token", "E[id]", "token embedding", computed={
                    "kind": "row", "of": "token embedding", "ids": steps.ids.tolist()}),
                Matrix("position", "P", "position embedding", computed={"kind": "row", "of": "position embedding"}),
                Matrix("x", "x", "their sum", computed={
                    "kind": "sum", "of": ["token", "position"], "names": ["E", "P"]}),
            ),
        ),
        Step(
            "LayerNorm", f"h{_ROW} = (x{_ROW} − mean{_ROW}) / std{_ROW} · weight + bias <small>{wide}; "
            f"std = √(variance + {model.ln.eps:g}), over the D numbers of one token</small>",
            "Each token's row gets mean 0 and variance 1, and then a weight and a bias for each dimension.",
            code("h_BxTxD"),
            (
                Matrix("statistics", "mean, std", "of each row of x", columns=("mean", "std")),
                Matrix("h", "h", "normalised", computed={
                    "kind": "norm", "of": "x", "stats": "statistics", "weight": "ln.weight", "bias": "ln.bias",
                    "name": "x"}),
            ),
        ),
        Step(
            "Queries, keys, values", f"q{_ROW} = W<sub>Q</sub> h{_ROW} &nbsp; k{_ROW} = W<sub>K</sub> h{_ROW} &nbsp; "
            f"v{_ROW} = W<sub>V</sub> h{_ROW} <small>{wide}; each W: {weights_shape}</small>",
            "Three products of the same rows: what a token looks for, what it is found by, what it hands on. The "
            "query token uses its own query, and the keys and values of all tokens up to itself.",
            code("q_BxTxD", "k_BxTxD", "v_BxTxD"),
            (
                product("q", "q", "queries", "W_Q", "row"),
                product("k", "k", "keys", "W_K", "seen"),
                product("v", "v", "values", "W_V", "seen"),
            ),
        ),
        Step(
            "Scaled scores", f"scores{_ROW}{_COLUMN} = q{_ROW} · k{_COLUMN} / √D <small>{square}; √D = "
            f"√{D} = {math.sqrt(D):.4g}</small>",
            "How well each query (row) fits each key (column): a product of two rows, over √D, so that its spread does "
            "not grow with the width (Vaswani et al. 2017).",
            code("qk_scaled_BxTxT"),
            (Matrix("scores", "scores", "q·k / √D", columns="tokens", computed={
                "kind": "dot", "left": "q", "right": "k", "divisor": math.sqrt(D), "divisorName": f"√{D}",
                "names": ["q", "k"]}),),
        ),
        Step(
            "Mask", f"scores{_ROW}{_COLUMN} = −∞ where s &gt; t <small>{square}</small>",
            "A token may not see those that come after it, for it is to foretell them. Their scores become −∞.",
            code("causal_mask_TxT", "qk_masked_BxTxT"),
            (Matrix("scores", "masked", "scores, later tokens not seen", columns="tokens", masked=True, computed={
                "kind": "masked", "of": "scores"}),),
        ),
        Step(
            "Softmax", f"A{_ROW}{_COLUMN} = exp(scores{_ROW}{_COLUMN}) / {_SUM}<sub>u ≤ t</sub> exp(scores{_ROW}"
            f"<sub>u</sub>) <small>{square}</small>",
            "Each row becomes weights from 0 to 1 that sum to 1: the shares in which the query token reads the others.",
            code("qk_softmax_BxTxT"),
            (Matrix("weights", "A", "attention weights", columns="tokens", kind="weights", masked=True, computed={
                "kind": "softmax", "of": "scores"}),),
        ),
        Step(
            "Weighted sum of values", f"o{_ROW} = {_SUM}<sub>s ≤ t</sub> A{_ROW}{_COLUMN} v{_COLUMN} <small>{wide}"
            "</small>",
            "The values of the tokens seen, each times its weight.",
            code("attended_BxTxD"),
            (
                Matrix("weights", "A", "attention weights", columns="tokens", kind="weights", masked=True, computed={
                    "kind": "softmax", "of": "scores"}),
                Matrix("v", "v", "values", path="seen", computed={
                    "kind": "dot", "left": "h", "right": "W_V", "names": ["h", "WV"]}),
                Matrix("mixed", "o", "weighted sum", computed={
                    "kind": "mix", "left": "weights", "right": "v", "names": ["A", "v"]}),
            ),
        ),
        Step(
            "Output matrix", f"a{_ROW} = W<sub>0</sub> o{_ROW} <small>{wide}; W<sub>0</sub>: {weights_shape}</small>",
            "One more product brings what was read into the form in which it is added to the stream.",
            code("attended_BxTxD"),
            (Matrix("attended", "a", "attended", computed={
                "kind": "dot", "left": "mixed", "right": "W_0", "names": ["o", "W0"]}),),
        ),
        Step(
            "Residual", f"y{_ROW} = x{_ROW} + a{_ROW} <small>{wide}</small>",
            "What the token was stays, and what it read is added.",
            code("y_BxTxD"),
            (Matrix("y", "y", "x + attended", computed={"kind": "sum", "of": ["x", "attended"], "names": ["x", "a"]}),),
        ),
        Step(
            "Logits of the next token", f"logits{_ROW} = E y{_ROW} <small>{shape_of(('T', T), ('V', V))}; probability "
            "= softmax of a row</small>",
            f"The product with every row of the token embedding: {V:,} scores for each token. Listed are the "
            f"{min(LIKELIEST, V)} highest of the query token, with their softmax over all {V:,}; drawn are "
            f"{len(columns)} of the {V:,} columns: the tokens that are likeliest anywhere in the text.",
            code("logits_BxTxV"),
            (Matrix("logits", "logits", f"{len(columns)} of {V:,} columns", columns=tuple(columns), computed={
                "kind": "dot", "left": "y", "right": "E", "names": ["y", "E"]}),),
            top="next",
        ),
    ]  # fmt: skip


def _ids_table(ids: Tensor, tokens: Sequence[str]) -> str:
    rows = "".join(
        f"<tr><td class=number>{n}</td><td class=token>{html.escape(token)}</td><td class=number>{i}</td></tr>"
        for n, (token, i) in enumerate(zip(tokens, ids.tolist()))
    )
    head = "<tr><th class=number>t</th><th>token</th><th class=number>id</th></tr>"
    return f'<div class="scroll top"><table class=ids><thead>{head}</thead><tbody>{rows}</tbody></table></div>'
