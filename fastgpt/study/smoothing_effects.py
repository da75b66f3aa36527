"""What dropout and weight decay change: differences between runs that are alike in all else."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from .smoothing_page import MEASURES, mean_of

Row = Mapping[str, Any]

KNOBS = {"dropout": "dropout", "weight_decay": "weight decay"}


@dataclass(frozen=True)
class Effect:
    """How a number differs with `knob` from without it.

    change  mean over the pairs of runs that differ in nothing else
    alike   how many of those `pairs` have the sign of `change`
    """

    knob: str
    what: str
    change: float
    alike: int
    pairs: int


def effects(rows: Sequence[Row]) -> list[Effect]:
    """Of each knob on each of `figures`; none where there is no such pair."""
    found = []
    for knob in KNOBS:
        pairs = _matched(rows, knob)
        for what in figures(rows[0]) if pairs else ():
            changes = [figures(on)[what] - figures(off)[what] for on, off in pairs]
            change = statistics.fmean(changes)
            alike = sum(one * change > 0 for one in changes)
            found.append(Effect(knob, what, change, alike, len(pairs)))
    return found


def figures(row: Row) -> dict[str, float]:
    """The losses of a run, and the measures behind its last block (of its last block's attention)."""
    found = {"validation loss": row["val_loss"], "training loss": row["train_loss"]}
    for measure in MEASURES:
        known = [value for value in (mean_of(layer, measure) for layer in row["layers"]) if value is not None]
        found[measure.name] = known[-1]
    return found


def _matched(rows: Sequence[Row], knob: str) -> list[tuple[Row, Row]]:
    """(with it, without it), equal in the other knob and the seed."""
    keys = [key for key in (*KNOBS, "seed") if key != knob]
    return [
        (on, off)
        for on in rows
        for off in rows
        if on[knob] > 0 and off[knob] == 0 and all(on[key] == off[key] for key in keys)
    ]
