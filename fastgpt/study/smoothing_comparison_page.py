"""The page of a comparison: what dropout and weight decay change, then each measure by layer."""

from __future__ import annotations

import statistics
from collections.abc import Mapping
from typing import Any

from ..pages.charts import Chart
from ..pages.figures import duration
from ..pages.page import Page
from .smoothing_effects import KNOBS, figures
from .smoothing_page import grouped, provenance, sections, shape, text_of

GENERATOR = "fastgpt comparison of smoothing"  # begins otherwise than one model's page, which --page may replace

LESS_ALIKE = {
    "Cosine of two tokens": -1, "Cosine without the mean": -1, "Effective rank": 1, "Share of the first direction": -1,
    "Dirichlet energy over attention": 1, "Entropy of attention": -1,
}  # fmt: skip
"""The sign of a change with which a measure says that tokens are less alike (of entropy: are averaged less)."""


def comparison_page(record: Mapping[str, Any]) -> Page:
    """The page of a record of several runs, of which at least one has ended."""
    rows, recipe = record["rows"], record["recipe"]
    seeds = len({row["seed"] for row in rows})
    page = Page(
        "Over-smoothing, dropout and weight decay",
        lead=f"{len(rows)} models of {shape(rows[0])}, trained alike for {rows[0]['tokens']:,} tokens of "
        f"{record['trained_on']['name']} but for dropout (0 or {recipe['dropout']:g}) and weight decay (0 or "
        f"{recipe['weight_decay']:g}); looked at with {text_of(record)}, without dropout.",
        generator=GENERATOR,
    )
    page.heading("What they change")
    page.paragraph(
        "Papers recommend dropout and weight decay against over-smoothing. Each row is a number at the end of "
        "training, the measures behind the last block; a change is the mean over pairs of runs that differ in nothing "
        "else, and in brackets stands how many of these pairs changed the same way."
    )
    page.table(_headings(record), effect_rows(record))
    for line in summary(record):
        page.paragraph(line)
    page.paragraph(chance(seeds))
    shrunk = max(row["shrunk"] for row in rows)
    page.paragraph(
        f"In AdamW, weight decay shrinks weights by lr · decay in each update: over a run of {recipe['steps']:,} "
        f"updates by {shrunk:.1%}, were there no gradients. Short runs show little of it."
    )
    page.heading("Loss")
    groups = grouped(rows)
    curves = {name: _mean_curve([row["val_curve"] for row in same]) for name, same in groups.items()}
    page.chart(Chart(curves, "Validation loss", "updates", "loss, nats per token", dots=True))
    page.table(
        ("run", "seed", "validation loss, nats/token", "training loss, nats/token", "training, s"),
        [
            (row["group"], row["seed"], *((row[key], f"{row[key]:.4f}") for key in ("val_loss", "train_loss")),
             (row["seconds"], f"{row['seconds']:.0f}"))
            for row in rows
        ],
    )  # fmt: skip
    sections(page, record)
    page.heading("Recipe")
    page.table(("setting", "value"), list(recipe.items()))
    more = [
        ("seeds", ", ".join(str(seed) for seed in sorted({row["seed"] for row in rows}))),
        ("tokens of each run", f"{rows[0]['tokens']:,} of {record['trained_on']['name']}"),
        ("training time of all runs", duration(sum(row["seconds"] for row in rows))),
    ]
    provenance(page, record, more)
    return page


def effect_rows(record: Mapping[str, Any]) -> list[tuple[object, ...]]:
    """A row for each number: without both; by each knob the change, and what that says of the tokens."""
    groups = grouped(record["rows"])
    by_name = {(effect["what"], effect["knob"]): effect for effect in record["effects"]}
    found = []
    for what in figures(record["rows"][0]):
        cells: list[object] = [what]
        if "neither" in groups:
            value = statistics.fmean(figures(row)[what] for row in groups["neither"])
            cells.append((value, f"{value:.4f}"))
        else:
            cells.append("–")
        for knob in KNOBS:
            effect = by_name.get((what, knob))
            cells.append("–" if effect is None else (effect["change"], shown(effect)))
            cells.append("–" if effect is None or what not in LESS_ALIKE else verdict(effect))
        found.append(tuple(cells))
    return found


def shown(effect: Mapping[str, Any]) -> str:
    """+0.0123 (2 of 2)"""
    return f"{effect['change']:+.4f} ({effect['alike']} of {effect['pairs']})"


def verdict(effect: Mapping[str, Any]) -> str:
    """What a measure's change says, if all pairs agree."""
    if effect["alike"] < effect["pairs"]:
        return "no clear sign"
    return "less alike" if effect["change"] * LESS_ALIKE[effect["what"]] > 0 else "more alike"


def chance(seeds: int) -> str:
    """How far the changes can be trusted."""
    if seeds == 1:
        return "One seed: a change that is smaller than those between seeds may be chance; --seeds 0 1 2 shows them."
    return f"{seeds} seeds: bars below reach from the lowest to the highest; where they overlap, it may be chance."


def summary(record: Mapping[str, Any]) -> list[str]:
    """A sentence for each knob: by how many measures tokens are less alike with it."""
    found = []
    for knob, name in KNOBS.items():
        said = [
            verdict(effect) for effect in record["effects"] if effect["knob"] == knob and effect["what"] in LESS_ALIKE
        ]
        if said:
            counts = ", ".join(f"{said.count(word)} {meant}" for word, meant in _SAID.items())
            found.append(f"With {name} {record['recipe'][knob]:g}, of {len(said)} measures: {counts}.")
    return found


_SAID = {
    "less alike": "say that tokens are less alike", "more alike": "that they are more alike",
    "no clear sign": "changed differently from pair to pair",
}  # fmt: skip


def _headings(record: Mapping[str, Any]) -> tuple[str, ...]:
    recipe = record["recipe"]
    dropout, decay = f"dropout {recipe['dropout']:g}", f"weight decay {recipe['weight_decay']:g}"
    return "number", "with neither", dropout, "by dropout tokens are", decay, "by decay tokens are"


def _mean_curve(curves: list[list[tuple[int, float]]]) -> list[tuple[float, float]]:
    return [(same[0][0], statistics.fmean(loss for _, loss in same)) for same in zip(*curves)]
