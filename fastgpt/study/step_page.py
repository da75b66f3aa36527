"""A computation as a page of steps: formula, code, and matrices whose every number can be pointed at.

arrays = {"q": q, "k": k, "scores": q @ k.T / D**0.5}                      # 2-D, by name
scores = Matrix("scores", "S", rows="tokens", columns="tokens", computed=dot("q", "k", divisor=D**0.5, ...))
page = step_page(Page("Scores"), [Step("Scaled scores", formula="...", says="...", matrices=(scores,))], arrays, tokens)

The page's scripts are matrix.js (a matrix: pointer, touch, arrow keys), explain.js (the arithmetic of one cell in its
numbers) and steps.js (stepping, the chosen query token, the chosen layer and head).
"""

from __future__ import annotations

import base64
import html
import inspect
import json
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..pages.page import Page, asset, inside_a_script
from .palette import PALETTE

PACKAGE = __package__

HOW_TO_READ = (
    "← and → step, as the buttons do. Point at a cell, tap it, or focus a matrix and move by the arrow keys: its value "
    "and how it was computed are written below. A click, or Enter, makes its row the query token, whose path is framed "
    "in every step."
)

# Of each row: (token, probability, logit), the likeliest first; None: NaN or infinite, which JSON cannot say.
Top = list[list[tuple[str, float | None, float | None]]]


@dataclass(frozen=True)
class Matrix:
    """One matrix of a step.

    source    name of its array; {layer} and {head} in it are those that the reader has chosen
    symbol    what it is called, HTML: "q", "W<sub>0</sub>"
    name      the same in words
    rows      "tokens", "dimensions" or the names themselves; columns likewise
    kind      "signed": colours around 0; "weights": from 0 to 1
    masked    True: cells right of the diagonal are not seen
    path      which rows the chosen query token uses: "row", its own; "seen", all up to it; "": none
    computed  what makes a cell out of other arrays, see explain.js
    note      said below it
    """

    source: str
    symbol: str
    name: str
    rows: str | Sequence[str] = "tokens"
    columns: str | Sequence[str] = "dimensions"
    kind: str = "signed"
    masked: bool = False
    path: str = "row"
    computed: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""


@dataclass(frozen=True)
class Step:
    """One step. formula: HTML; says: sentences; code: lines of source; top: name of a list of likeliest tokens."""

    title: str
    formula: str
    says: str
    code: Sequence[str] = ()
    matrices: Sequence[Matrix] = ()
    top: str = ""
    markup: str = ""


def step_page(
    page: Page, steps: Sequence[Step], arrays: Mapping[str, Tensor], tokens: Sequence[str], *,
    tops: Mapping[str, Top] | None = None, choices: Mapping[str, Sequence[int]] | None = None,
    chosen: Mapping[str, int] | None = None, groups: Mapping[str, tuple[str, Mapping[int, int]]] | None = None,
) -> Page:  # fmt: skip
    """`page` with the steps on it.

    arrays   name -> (rows, columns), any dtype; kept in float32
    tokens   the text's tokens, as rows are called
    tops     name -> what each token's likeliest successors are
    choices  "layer", "head" -> the numbers that the reader may choose; chosen: the first choice
    groups   name -> (choice, what {name} stands for where that number is chosen): ("head", {0: 0, 1: 0}) of a key head
             that two query heads share
    """
    data: dict[str, Any] = {
        "tokens": list(tokens),
        "arrays": {name: packed(array) for name, array in arrays.items()},
        "matrices": [[asdict(matrix) for matrix in step.matrices] for step in steps],
        "tops": dict(tops or {}),
        "chosen": dict(chosen or {}),
        "groups": {name: [by, {**numbers}] for name, (by, numbers) in (groups or {}).items()},
        "palette": PALETTE[::8] + PALETTE[-1:],
    }
    page.style(asset("steps.css", PACKAGE))
    page.add(_contents(steps))
    page.add(_toolbar(len(steps), choices or {}))
    page.add("<noscript><p>The matrices are drawn by a script, which this browser does not run.</p></noscript>")
    page.add("".join(_section(number, step) for number, step in enumerate(steps, start=1)))
    text = inside_a_script(json.dumps(data, allow_nan=False, ensure_ascii=False))
    page.add(f'<script type="application/json" id="step-data">{text}</script>')
    for script in ("matrix.js", "explain.js", "steps.js"):
        page.script(asset(script, PACKAGE))
    return page


def packed(array: Tensor) -> dict[str, Any]:
    """A (rows, columns) array as JSON: its shape, and its numbers in float32, little-endian, in base64.

    Raises:
        ValueError: it has another number of dimensions.
    """
    if array.dim() != 2:
        raise ValueError(f"packed: array has shape {tuple(array.shape)}; give one of two dimensions")
    numbers = array.detach().to("cpu", torch.float32).contiguous().numpy().astype("<f4")
    return {"shape": list(array.shape), "data": base64.b64encode(numbers.tobytes()).decode("ascii")}


def unpacked(array: Mapping[str, Any]) -> Tensor:
    """What `packed` made of an array, again."""
    numbers = np.frombuffer(base64.b64decode(array["data"]), dtype="<f4")
    return torch.from_numpy(numbers.astype(np.float32)).reshape(array["shape"])


def packed_bytes(arrays: Mapping[str, Tensor]) -> int:
    """What the arrays take on a page."""
    return sum(16 * array.numel() // 3 for array in arrays.values())


def code_of(function: Callable[..., Any], *starts: str) -> list[str]:
    """The lines of a function that begin so, as they stand in its source: a formula on a page is the one that runs.

    Raises:
        ValueError: no line begins so.
    """
    lines = textwrap.dedent(inspect.getsource(function)).splitlines()
    found = []
    for start in starts:
        line = next((line.strip() for line in lines if line.strip().startswith(start)), None)
        if line is None:
            raise ValueError(f"code_of: no line of {function.__qualname__} begins with {start!r}")
        found.append(line)
    return found


def likeliest(logits: Tensor, names: Callable[[int], str], count: int = 10) -> Top:
    """Of each row of logits (T, V): the `count` likeliest tokens with probability (softmax in float32) and logit."""
    logits = logits.detach().float().cpu()
    probabilities = logits.softmax(dim=-1)
    found = probabilities.topk(min(count, logits.shape[-1]), dim=-1)
    return [
        [(names(i), _or_none(p), _or_none(logits[t, i].item())) for p, i in zip(row.tolist(), ids.tolist())]
        for t, (row, ids) in enumerate(zip(found.values, found.indices))
    ]


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def shape_of(*sizes: tuple[str, int]) -> str:
    """ "(T, D) = (12, 32)", in words for a formula."""
    return f"({', '.join(name for name, _ in sizes)}) = ({', '.join(f'{size:,}' for _, size in sizes)})"


def _toolbar(count: int, choices: Mapping[str, Sequence[int]]) -> str:
    selects = "".join(
        f"<label>{name} <select data-choice={name}>{''.join(f'<option>{n}</option>' for n in numbers)}</select></label>"
        for name, numbers in choices.items()
    )
    return (
        '<div class="stepper" hidden><div class="stepping">'
        '<button type=button data-go="-1">← Back</button>'
        f'<output class="at" aria-live=polite>1 of {count}</output>'
        '<button type=button data-go="1">Next →</button>'
        '<button type=button class="all" aria-pressed=false>All steps</button>'
        f'{selects}</div><div class="query"><span id="query-label">Query token</span>'
        '<div class="scroll tokens" role=group aria-labelledby="query-label"></div></div></div>'
    )


def _contents(steps: Sequence[Step]) -> str:
    items = "".join(
        f'<li><a href="#step={number}">{html.escape(step.title)}</a></li>' for number, step in enumerate(steps, start=1)
    )
    return f'<nav aria-label="Steps"><ol class="contents">{items}</ol></nav>'


def _section(number: int, step: Step) -> str:
    code = f"<pre class=code>{html.escape(chr(10).join(step.code))}</pre>" if step.code else ""
    matrices = "".join(_matrix(matrix, f"{number}-{n}") for n, matrix in enumerate(step.matrices))
    top = f'<div class="top" data-source="{html.escape(step.top)}"></div>' if step.top else ""
    return (
        f'<section class="step" id="step={number}" aria-label="Step {number}">'
        f'<h2>{number}. {html.escape(step.title)}</h2><p class="formula">{step.formula}</p>'
        f"<p>{html.escape(step.says)}</p>{code}{matrices}{top}{step.markup}</section>"
    )


def _matrix(matrix: Matrix, key: str) -> str:
    note = f"<p class=note>{html.escape(matrix.note)}</p>" if matrix.note else ""
    return (
        f'<div class="matrix" data-key="{key}"><h3>{matrix.symbol} <small>{html.escape(matrix.name)}, '
        '<span class="size"></span></small></h3><div class="plot"></div>'
        f'<div class="bar"></div>{note}<p class="where" aria-live=polite></p><p class="spelled"></p></div>'
    )
