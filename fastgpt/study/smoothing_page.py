"""The page of over-smoothing: a record of `smoothing_record.py`, with each formula explained, as a class needs it."""

from __future__ import annotations

import html
import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..pages.charts import Chart, Points
from ..pages.page import Page, asset
from .measures import largest_entropy

GENERATOR = "fastgpt study smoothing"  # by which a later call knows its own page

Row = Mapping[str, Any]


@dataclass(frozen=True)
class Measure:
    """One number of each layer, or of each head. formula: HTML; reading: what it tells, for a class."""

    key: str
    name: str
    label: str
    formula: str
    source: str
    reading: str

    @property
    def by_head(self) -> bool:
        return self.key in ("energy", "entropy")


_X = "x<sub>i</sub>·x<sub>j</sub> / (|x<sub>i</sub>| |x<sub>j</sub>|)"
MEASURES = (
    Measure(
        "cosine", "Cosine of two tokens", "mean cosine",
        f"mean of {_X} over all pairs i ≠ j of a sequence",
        "Dong, Cordonnier, Loukas 2021, “Attention is not all you need”; Shi et al. 2022, “Revisiting over-smoothing "
        "in BERT”",
        "1: all tokens point the same way, and the layer no longer tells them apart. 0: on average they have nothing "
        "in common. A large part that all tokens share counts here, and most trained GPTs have one.",
    ),
    Measure(
        "centred_cosine", "Cosine without the mean", "mean cosine, centred",
        "the same of x<sub>i</sub> − m, with m the mean of x<sub>1</sub> … x<sub>T</sub>",
        "the same, after the mean token is taken off",
        "What is left once the common part is gone. T tokens that differ evenly have −1 / (T − 1), a little below 0; "
        "above it, they fall into groups.",
    ),
    Measure(
        "effective_rank", "Effective rank", "effective rank",
        "exp(−Σ p<sub>k</sub> log p<sub>k</sub>), p<sub>k</sub> = σ<sub>k</sub> / Σ σ, σ the singular values of the "
        "T × d matrix of the tokens",
        "Roy, Vetterli 2007, “The effective rank”",
        "How many directions the tokens really use: 1 if all lie on one line, at most the smaller of T and d.",
    ),
    Measure(
        "top_share", "Share of the first direction", "share of the sum of squares",
        "σ<sub>1</sub>² / Σ σ<sub>k</sub>²",
        "the part of the tokens' sum of squares that lies along the first singular vector",
        "1: one direction holds everything, so the matrix is as good as of rank 1. That is what attention alone, "
        "without residual connections and FFN, tends to.",
    ),
    Measure(
        "energy", "Dirichlet energy over attention", "Dirichlet energy",
        "½ Σ<sub>ij</sub> A<sub>ij</sub> |x<sub>i</sub> − x<sub>j</sub>|² / Σ<sub>i</sub> |x<sub>i</sub>|², A the "
        "attention weights of a head",
        "Cai, Wang 2020, “A note on over-smoothing for graph neural networks”, with attention for the graph",
        "How different those tokens are that attend to each other: 0 if a head looks only at tokens that are the "
        "same as its own, as over-smoothed ones are.",
    ),
    Measure(
        "entropy", "Entropy of attention", "entropy, nats",
        "−Σ<sub>j</sub> A<sub>tj</sub> log A<sub>tj</sub>, its mean over the queries t",
        "Shannon's; at query t at most log(t + 1)",
        "How widely a head looks: 0 is one token, the dashed line is all tokens alike. A head near that line averages, "
        "and averaging is what makes tokens alike.",
    ),
)  # fmt: skip


def page_of(record: Mapping[str, Any]) -> Page:
    """The page of a record of one model."""
    row = record["rows"][0]
    title = f"Over-smoothing in {row['name']}"
    page = Page(title, lead=f"{shape(row)}, looked at with {text_of(record)}.", generator=GENERATOR)
    page.paragraph(
        "Each block of a GPT adds what its attention and its FFN have found to the residual stream: a vector for each "
        "token. Attention averages over tokens, so that they may become more and more alike with depth; this is called "
        "over-smoothing. These plots show how far it goes, behind the embeddings (0) and behind each block."
    )
    sections(page, record)
    page.heading("Each layer")
    caption = "Energy and entropy: of the attention that reads this layer, the next block's; means over heads"
    page.table(HEADER, [cells(layer) for layer in row["layers"]], caption=caption)
    provenance(page, record)
    return page


def sections(page: Page, record: Mapping[str, Any]) -> None:
    """A section for each measure: its formula, what it tells, its plot; of one model also each head."""
    page.style(asset("smoothing.css", __package__))
    groups = grouped(record["rows"])
    for measure in MEASURES:
        drawn = chart(measure, groups, record["text"]["seq_len"])
        if drawn is None:
            continue
        page.heading(measure.name)
        source = html.escape(measure.source)
        page.add(f"<p class=formula>{measure.formula}<small>{source}</small></p>")
        page.paragraph(measure.reading)
        bars = "Bars: lowest and highest seed." if len(groups) > 1 else "Bars: lowest and highest head."
        page.chart(drawn, bars if drawn.spans else "")
        if measure.by_head and len(record["rows"]) == 1:
            page.add(heads_table(measure, record["rows"][0]["layers"]))


def chart(measure: Measure, groups: Mapping[str, Sequence[Row]], seq_len: int) -> Chart | None:
    """The measure by layer, a line for each group of rows: their mean; None where there is no number to draw."""
    series: dict[str, Points] = {}
    spans: dict[str, list[tuple[float, float, float]]] = {}
    for name, rows in groups.items():
        label = "mean over heads" if len(groups) == 1 and measure.by_head else name
        points: list[tuple[float, float]] = []
        bars: list[tuple[float, float, float]] = []
        for same in zip(*(row["layers"] for row in rows), strict=True):
            values = [value for value in (mean_of(layer, measure) for layer in same) if value is not None]
            if not values:
                continue
            x = same[0]["layer"] + measure.by_head  # a head's block is the next one
            points.append((x, statistics.fmean(values)))
            alone = len(groups) == 1 and measure.by_head
            ends = same[0][measure.key] if alone else values
            if len(ends) > 1:
                bars.append((x, min(ends), max(ends)))
        series[label], spans[label] = points, bars
    if not any(math.isfinite(y) for points in series.values() for _, y in points):
        return None
    levels = {"all tokens alike": largest_entropy(seq_len)} if measure.key == "entropy" else {}
    x_label = "block" if measure.by_head else "blocks passed (0: embeddings)"
    title = f"{measure.name} by layer"
    spans = {name: bars for name, bars in spans.items() if bars}
    return Chart(series, title, x_label, measure.label, levels, spans=spans, dots=True)


def grouped(rows: Sequence[Row]) -> dict[str, list[Row]]:
    """Rows that differ by their seed alone, by name."""
    groups: dict[str, list[Row]] = {}
    for row in rows:
        groups.setdefault(row.get("group", row["name"]), []).append(row)
    return groups


def mean_of(layer: Mapping[str, Any], measure: Measure) -> float | None:
    """A layer's number; of a measure by head their mean; None where it has none."""
    value = layer[measure.key]
    return statistics.fmean(value) if isinstance(value, list) else value


def heads_table(measure: Measure, layers: Sequence[Mapping[str, Any]]) -> str:
    """HTML: a row for each block, a cell for each head, shaded from the lowest number to the highest."""
    rows = [(layer["layer"] + 1, layer[measure.key]) for layer in layers if layer[measure.key] is not None]
    low, high = min(min(heads) for _, heads in rows), max(max(heads) for _, heads in rows)

    def cell(value: float) -> str:
        part = (value - low) / (high - low) if high > low else 0.0
        return f'<td class=number style="--part:{part:.3f}" data-value="{value!r}">{value:.3f}</td>'

    head = "".join(f"<th scope=col class=number>head {n}</th>" for n in range(len(rows[0][1])))
    body = "".join(f"<tr><th scope=row>block {block}</th>{''.join(map(cell, heads))}</tr>" for block, heads in rows)
    caption = f"Each head: the stronger the colour, the more, {low:.3f} to {high:.3f}"
    return (
        f"<div class=scroll tabindex=0 role=region aria-label='{html.escape(measure.name)} of each head'>"
        f"<table class=heads><caption>{html.escape(caption)}</caption>"
        f"<thead><tr><th></th>{head}</tr></thead><tbody>{body}</tbody></table></div>"
    )


HEADER = ("layer", "cosine", "centred", "rank", "top share", "energy", "entropy")  # of MEASURES, in their order


def cells(layer: Mapping[str, Any]) -> list[object]:
    """A layer's row of a table under `HEADER`."""
    number = layer["layer"]
    shown: list[object] = [(number, "embeddings" if number == 0 else f"block {number}")]
    for measure in MEASURES:
        value = mean_of(layer, measure)
        shown.append(None if value is None else (value, figure(measure, value)))
    return shown


def figure(measure: Measure, value: float) -> str:
    return f"{value:.2f}" if measure.key == "effective_rank" else f"{value:.4f}"


def shape(row: Row) -> str:
    """A model's size, in words."""
    return (
        f"{row['n_layers']} layer{'s' * (row['n_layers'] != 1)}, {row['n_heads']} head{'s' * (row['n_heads'] != 1)}, "
        f"width {row['d_model']}, {row['parameters']:,} parameters"
    )


def text_of(record: Mapping[str, Any]) -> str:
    """The text that a record is of, in words."""
    text = record["text"]
    sequences = "1 sequence" if text["sequences"] == 1 else f"{text['sequences']} sequences"
    return f"{sequences} of {text['seq_len']} tokens of {text['name']} ({text['tokens']:,} tokens)"


def provenance(page: Page, record: Mapping[str, Any], more: Sequence[tuple[str, object]] = ()) -> None:
    """Where the numbers come from, as the record has it."""
    sizes: dict[str, None] = dict.fromkeys(shape(row) for row in record["rows"])
    page.provenance_of([
        ("model", "; ".join(sizes)), ("text", text_of(record)), *more,
        *map(tuple, record["made_by"]), *map(tuple, record["environment"]),
    ])  # fmt: skip
