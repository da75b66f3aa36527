"""Faults of a model that somebody's own code has sharded: sampling, files, state dicts, what it tells, views."""

from __future__ import annotations

from ..places import call, condition, returned, value
from ..plant import Mutant

_ON_RANKS = "tests/fastgpt/model/test_sharded_model.py::test_on_ranks[{}]"

MUTANTS = (
    Mutant(
        "wrapped-generates-by-parts",
        "model.as_forward",
        condition("is_fsdp").always(),
        _ON_RANKS.format("generates-root"),
    ),
    Mutant(
        "wrapped-ends-where-its-own-rows-end",
        "model.everywhere",
        condition("parts").always(),
        _ON_RANKS.format("rows-that-end-apart-root"),
    ),
    Mutant(
        "wrapped-agrees-along-one-axis",
        "model.everywhere",
        call("range").argument(1).becomes("1"),
        _ON_RANKS.format("a-mesh-of-two-dimensions"),
    ),
    Mutant(
        "wrapped-every-rank-writes-the-file",
        "model.by_first",
        value("first").becomes("True"),
        _ON_RANKS.format("says-on-all-ranks-why-it-cannot-save"),
    ),
    Mutant(
        "wrapped-file-holds-padding",
        "model._alone",
        returned().becomes("tensor"),
        _ON_RANKS.format("saves-root"),
    ),
    Mutant(
        "wrapped-tells-of-parts",
        "nn._exact.why_children_run",
        condition("_gathered").never(),
        _ON_RANKS.format("tells-root"),
    ),
    Mutant(
        "wrapped-logits-by-stepped-weights",
        "Unembedding._lent",
        condition("part_versions").never(),
        _ON_RANKS.format("makes-logits-later-root"),
    ),
    Mutant(
        "wrapped-a-view-is-handed-out",
        "kernels.own",
        condition("is_compiling").always(),
        _ON_RANKS.format("takes-every-implementation-without-a-warning-torch"),
    ),
)
