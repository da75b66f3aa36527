"""Verdicts on made-up studies whose truth is known."""

from __future__ import annotations

import copy

import pytest

from fastgpt.study.depth import claims
from fastgpt.study.depth.claims import CONFIRMED, FULL_SCALE, NOT_CONFIRMED, NOT_TESTABLE


def row(layers: int, *, width: int = 256, seed: int = 0, norm: bool = True, **more):
    name = f"{layers}x{width}-{seed}-{norm}"
    cosine = 0.1 * layers
    return {
        "name": name, "layers": layers, "width": width, "heads": 4, "seed": seed, "norm": norm, "status": "finished",
        "tokens": 2 * FULL_SCALE, "perplexity": claims.PERPLEXITY[layers] + seed * 0.1,
        "block_parameters": 12 * layers * width**2, "gradient_norm_largest": 2.0 if norm else 2.0 * layers,
        "gradient_norm_median": 1.0,
        "smoothing": [{"cosine": cosine, "centred_cosine": 0.0, "effective_rank": 9.0, "top_share": 0.5}],
    } | more  # fmt: skip


def study(**more):
    rows = [row(l, width=w, seed=s) for l in (2, 4, 8, 12) for w in (256, 512) for s in (0, 1)]
    rows += [row(l, norm=False) for l in (2, 4, 8, 12)]
    timing = {r["name"]: {"seconds": (0.5 + 0.6 * r["layers"]) / 1e3} for r in rows if r["seed"] == 0 and r["norm"]}
    memory = [
        {"implementation": "fastgpt", "layers": l, "seq_len": t, "width": d, "activations": 7 * l * t * d}
        for l, t, d in ((2, 512, 256), (4, 512, 256), (4, 1024, 256), (4, 512, 512), (8, 2048, 256))
    ]
    return {
        "rows": rows, "tokens": 2 * FULL_SCALE, "data": {"train": {"name": "corpus"}}, "timing": timing,
        "memory": memory, "recipe": {"micro_batch": 16, "seq_len": 512}, "environment": [("GPU", "none"), ("CPU", "x")],
    } | more  # fmt: skip


def verdicts(found):
    return [verdict.verdict for verdict in claims.verdicts(found)]


def test_a_study_that_the_papers_would_have_made():
    found = claims.verdicts(study())
    assert [verdict.verdict for verdict in found] == [
        CONFIRMED, CONFIRMED, NOT_TESTABLE, CONFIRMED, CONFIRMED, CONFIRMED, CONFIRMED, CONFIRMED
    ]  # fmt: skip
    assert "0.5 + 0.60·L ms" in found[3].numbers
    assert "L^1.00" in found[4].numbers


def change(where: str):
    """Another study, in which one claim is not true."""
    found = study()
    rows = found["rows"]
    deep = [r for r in rows if r["layers"] == 12]
    if where == "other values":
        for r in rows:
            r["perplexity"] *= 1.2
    elif where == "deepest is no better":
        for r in deep:
            r["perplexity"] = 21.68
    elif where == "time of a square":
        found["timing"] = {r["name"]: {"seconds": r["layers"] ** 3 / 1e3} for r in rows if r["name"] in found["timing"]}
    elif where == "memory of a square":
        for r in found["memory"]:
            r["activations"] *= r["seq_len"]
    elif where == "parameters":
        for r in rows:
            r["block_parameters"] *= r["width"]
    elif where == "as stable":
        for r in rows:
            r["gradient_norm_largest"] = 2.0
    elif where == "not alike":
        for r in deep:
            r["smoothing"] = copy.deepcopy(r["smoothing"])
            r["smoothing"][0]["cosine"] = 0.2
    return found


@pytest.mark.parametrize(
    ("where", "number"),
    [
        ("other values", 0), ("deepest is no better", 1), ("time of a square", 3), ("memory of a square", 4),
        ("parameters", 5), ("as stable", 6), ("not alike", 7),
    ],
)  # fmt: skip
def test_what_is_not_so_is_not_confirmed(where, number):
    found = verdicts(change(where))
    assert found[number] == NOT_CONFIRMED
    assert {n for n, verdict in enumerate(found) if verdict == NOT_CONFIRMED} <= {0, number}


def test_a_fall_within_the_range_of_seeds_confirms_nothing():
    found = study()
    for r in found["rows"]:
        r["perplexity"] += 4 * r["seed"]  # 12 layers are 2.8 better than 8
    assert verdicts(found)[1] == NOT_CONFIRMED


def test_deep_runs_that_diverge_without_layer_norm_confirm_it():
    found = study()
    for r in found["rows"]:
        r["gradient_norm_largest"] = 2.0
        if r["layers"] == 12 and not r["norm"]:
            r |= {"status": "failed", "error": "FloatingPointError: loss nan"}
    verdict = claims.less_stable(found)
    assert verdict.verdict == CONFIRMED
    assert "diverged without: 12 layers" in verdict.numbers


def test_at_a_small_scale_values_are_not_testable_and_the_shape_is():
    small = study(tokens=1_000_000)
    found = claims.verdicts(small)
    assert [v.verdict for v in found[:2]] == [NOT_TESTABLE, CONFIRMED]
    assert "needs 100,000,000 tokens" in found[0].scale


def test_nothing_at_all():
    empty = study(rows=[], timing={}, memory=[])
    assert set(verdicts(empty)) == {NOT_TESTABLE}
