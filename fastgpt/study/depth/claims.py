"""What the papers claim, and what this study says of it: confirmed, not confirmed, or not testable here.

A claim that needs the papers' scale, 100 million tokens or their GPU, is not testable where the scale is another: then
only its shape is, which is a claim of its own.
"""

from __future__ import annotations

import itertools
import statistics
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from ..fits import line, power, powers

PERPLEXITY = {2: 38.5, 4: 29.4, 8: 21.7, 12: 18.9}  # by layers, after epochs over Wikipedia and books
MILLISECONDS = {2: 1.2, 4: 2.3, 8: 4.8, 12: 7.5}  # a step, by layers, on a GPU that is not named
FULL_SCALE = 100_000_000  # tokens a run: an epoch of the papers' corpus has more
NEAR = 0.1  # relative: as close as another corpus and tokenizer may come

CONFIRMED, NOT_CONFIRMED, NOT_TESTABLE = "confirmed", "not confirmed", "not testable here"


@dataclass(frozen=True)
class Verdict:
    """claim: in the papers' words or numbers; verdict: one of the three; numbers: measured; scale: at which."""

    claim: str
    verdict: str
    numbers: str
    scale: str


def verdicts(study: Mapping[str, Any]) -> list[Verdict]:
    """Every claim, judged by what `study` (study.json) holds."""
    judges: tuple[Callable[[Mapping[str, Any]], Verdict], ...] = (
        perplexity_values, perplexity_falls, times, time_is_linear, memory_grows, capacity, less_stable, tokens_alike,
    )  # fmt: skip
    return [judge(study) for judge in judges]


def finished(study: Mapping[str, Any], *, norm: bool = True) -> list[dict[str, Any]]:
    """The rows of runs that ended well, with (or without) LayerNorm."""
    return [row for row in study["rows"] if row["status"] == "finished" and row["norm"] is norm]


def means(rows: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float]) -> dict[int, float]:
    """{layers: mean of the values}, shallow ones first."""
    return {n: statistics.fmean(some) for n, some in by_depth(rows, value).items()}


def by_depth(rows: Sequence[Mapping[str, Any]], value: Callable[[Mapping[str, Any]], float]) -> dict[int, list[float]]:
    """{layers: values}, shallow ones first."""
    found: dict[int, list[float]] = defaultdict(list)
    for row in sorted(rows, key=lambda row: row["layers"]):
        found[row["layers"]].append(value(row))
    return dict(found)


def perplexity_values(study: Mapping[str, Any]) -> Verdict:
    claim = "Perplexity " + ", ".join(f"{p} at {n} layers" for n, p in PERPLEXITY.items())
    found = means([row for row in finished(study) if row["layers"] in PERPLEXITY], lambda row: row["perplexity"])
    numbers, scale = _listed(found, "{:.1f}"), _scale(study)
    if not found or study["tokens"] < FULL_SCALE:
        return Verdict(claim, NOT_TESTABLE, numbers, f"{scale}; needs {FULL_SCALE:,} tokens a run")
    near = all(abs(mean / PERPLEXITY[n] - 1) <= NEAR for n, mean in found.items())
    return Verdict(claim, CONFIRMED if near else NOT_CONFIRMED, numbers, scale)


def perplexity_falls(study: Mapping[str, Any]) -> Verdict:
    """Confirmed if each depth's mean lies below the one before, by more than the largest range over seeds."""
    claim = "The deeper, the lower the perplexity"
    groups: dict[tuple[int, int], list[dict[str, Any]]] = defaultdict(list)
    for row in finished(study):
        groups[row["width"], row["heads"]].append(row)
    falls, words = [], []
    for (width, heads), rows in sorted(groups.items()):
        found = by_depth(rows, lambda row: row["perplexity"])
        mean = {n: statistics.fmean(some) for n, some in found.items()}
        spread = max(max(some) - min(some) for some in found.values())
        falls += [upper - lower > spread for upper, lower in itertools.pairwise(mean.values())]
        words.append(f"width {width}, {heads} heads: {_listed(mean, '{:.1f}')} (range over seeds {spread:.1f})")
    numbers = "; ".join(words) or "no finished runs"
    if not falls:
        return Verdict(claim, NOT_TESTABLE, numbers, f"{_scale(study)}; needs two depths")
    return Verdict(claim, CONFIRMED if all(falls) else NOT_CONFIRMED, numbers, _scale(study))


def times(study: Mapping[str, Any]) -> Verdict:
    claim = "A step takes " + ", ".join(f"{t} ms at {n} layers" for n, t in MILLISECONDS.items())
    numbers = _listed(step_milliseconds(study), "{:.1f} ms")
    return Verdict(claim, NOT_TESTABLE, numbers, f"{_timed(study)}; the papers name no GPU and no shape")


def time_is_linear(study: Mapping[str, Any]) -> Verdict:
    """Confirmed if a line explains 98 % of the variance, and its slope's interval does not hold 0."""
    ratio = MILLISECONDS[12] / MILLISECONDS[2]
    claim = f"Time per step is a line over depth, a + b·L (claimed: 12 layers {ratio:.2f} times 2 layers)"
    found = step_milliseconds(study)
    if len(found) < 3:
        return Verdict(claim, NOT_TESTABLE, _listed(found, "{:.1f} ms"), f"{_timed(study)}; needs three depths")
    fit = line(list(found), list(found.values()))
    first, last = min(found), max(found)
    numbers = (
        f"{fit.intercept:.1f} + {fit.slope:.2f}·L ms, slope {_interval(fit.slope_interval)}, R² {fit.r2:.4f}; "
        f"{last} layers: {found[last] / found[first]:.2f} times {first} layers"
    )
    holds = fit.r2 >= 0.98 and fit.slope_interval[0] > 0
    return Verdict(claim, CONFIRMED if holds else NOT_CONFIRMED, numbers, _timed(study))


def memory_grows(study: Mapping[str, Any]) -> Verdict:
    """Confirmed if each exponent of fastgpt's activations is 1 within 0.1."""
    claim = "Memory grows as O(L·T·D)"
    rows = [row for row in study.get("memory", []) if row["implementation"] == "fastgpt"]
    if not rows:
        return Verdict(claim, NOT_TESTABLE, "no memory was counted", "Triton is not installed")
    fit = memory_fit(rows)
    words = ", ".join(f"{name}^{value:.2f} {_interval(fit.intervals[name])}" for name, value in fit.exponents.items())
    holds = all(abs(value - 1) <= 0.1 for value in fit.exponents.values())
    scale = "activations of one sequence, on paper; " + ", ".join(
        f"{name} {min(row[key] for row in rows)} to {max(row[key] for row in rows)}"
        for name, key in (("L", "layers"), ("T", "seq_len"), ("D", "width"))
    )
    return Verdict(claim, CONFIRMED if holds else NOT_CONFIRMED, words, scale)


def capacity(study: Mapping[str, Any]) -> Verdict:
    """Confirmed if the blocks' parameters have exponents 1 and 2 within 0.05."""
    claim = "Capacity, in parameters, grows as L·d²"
    rows = finished(study)
    depths, widths = {row["layers"] for row in rows}, {row["width"] for row in rows}
    if len(depths) < 2 or len(widths) < 2:
        pairs = [(row["layers"], row["block_parameters"]) for row in rows]
        numbers = "blocks have " + ", ".join(f"{n / layers:,.0f} a layer" for layers, n in sorted(set(pairs))[:1])
        if len(depths) >= 2:
            numbers += f"; exponent of L {power(*zip(*pairs)).exponents['x']:.3f}"
        return Verdict(claim, NOT_TESTABLE, numbers, f"{_scale(study)}; needs two widths and two depths")
    xs = {"L": [row["layers"] for row in rows], "d": [row["width"] for row in rows]}
    fit = powers(xs, [row["block_parameters"] for row in rows])
    holds = abs(fit.exponents["L"] - 1) <= 0.05 and abs(fit.exponents["d"] - 2) <= 0.05  # biases are not matrices
    numbers = f"L^{fit.exponents['L']:.3f} · d^{fit.exponents['d']:.3f}"
    return Verdict(claim, CONFIRMED if holds else NOT_CONFIRMED, numbers, f"counted, {len(rows)} models")


def less_stable(study: Mapping[str, Any]) -> Verdict:
    """Confirmed if, without LayerNorm, the deepest run's gradient norm rises further above its median than the
    shallowest's and than with LayerNorm; or if the deepest run diverges and the shallowest does not."""
    claim = "Without LayerNorm, deeper models are less stable"
    without = [row for row in study["rows"] if not row["norm"]]
    if len(without) < 2:
        return Verdict(claim, NOT_TESTABLE, "no runs without LayerNorm", f"{_scale(study)}; needs --without-norm")
    failed = sorted(row["layers"] for row in without if row["status"] != "finished")
    peaks, normed = means(finished(study, norm=False), _peak), means(finished(study), _peak)
    numbers = (
        f"largest gradient norm over its median, without LayerNorm: {_listed(peaks, '{:.1f}')}; with: "
        f"{_listed(normed, '{:.1f}')}; diverged without: {', '.join(f'{n} layers' for n in failed) or 'none'}"
    )
    shallow, deep = min(row["layers"] for row in without), max(row["layers"] for row in without)
    grows = deep in peaks and shallow in peaks and peaks[deep] > peaks[shallow] and peaks[deep] > normed.get(deep, 0.0)
    holds = (bool(failed) and deep in failed and shallow not in failed) or grows
    return Verdict(claim, CONFIRMED if holds else NOT_CONFIRMED, numbers, _scale(study, without))


def tokens_alike(study: Mapping[str, Any]) -> Verdict:
    """Confirmed if, behind the last block, tokens are the more alike (cosine) the deeper the model is."""
    claim = "Tokens grow alike with depth (over-smoothing)"
    rows = finished(study)
    last, centred, ranks = (
        means(rows, lambda row, key=key: row["smoothing"][-1][key])  # type: ignore[misc]
        for key in ("cosine", "centred_cosine", "effective_rank")
    )
    numbers = (
        f"behind the last block: mean cosine {_listed(last, '{:.3f}')}; centred {_listed(centred, '{:.3f}')}; "
        f"effective rank {_listed(ranks, '{:.0f}')}"
    )
    if len(last) < 2:
        return Verdict(claim, NOT_TESTABLE, numbers, f"{_scale(study)}; needs two depths")
    holds = all(a < b for a, b in itertools.pairwise(last.values()))
    return Verdict(claim, CONFIRMED if holds else NOT_CONFIRMED, numbers, _scale(study))


def step_milliseconds(study: Mapping[str, Any]) -> dict[int, float]:
    """{layers: ms of a step} of the first width and number of heads that were timed."""
    timed = study.get("timing") or {}
    rows = [row for row in study["rows"] if row["name"] in timed]
    rows = [row for row in rows if (row["width"], row["heads"]) == (rows[0]["width"], rows[0]["heads"])]
    return {n: some[0] for n, some in by_depth(rows, lambda row: 1e3 * timed[row["name"]]["seconds"]).items()}


def memory_fit(rows: Sequence[Mapping[str, Any]]) -> Any:
    """Exponents of L, T and D of the activations in rows of `measures.memory_grid`."""
    names = {"L": "layers", "T": "seq_len", "D": "width"}
    xs = {name: [row[key] for row in rows] for name, key in names.items()}
    xs = {name: values for name, values in xs.items() if len(set(values)) > 1}
    return powers(xs, [row["activations"] for row in rows])


def _peak(row: Mapping[str, Any]) -> float:
    return row["gradient_norm_largest"] / row["gradient_norm_median"]


def _listed(values: Mapping[int, float], form: str) -> str:
    return ", ".join(f"L{n}: {form.format(value)}" for n, value in values.items()) or "nothing measured"


def _interval(interval: tuple[float, float]) -> str:
    return f"[{interval[0]:.2f}, {interval[1]:.2f}]"


def _scale(study: Mapping[str, Any], rows: Sequence[Mapping[str, Any]] | None = None) -> str:
    rows = finished(study) if rows is None else rows
    tokens = max((row["tokens"] for row in rows if "tokens" in row), default=study["tokens"])
    seeds = len({row["seed"] for row in rows})
    return f"{tokens:,} tokens a run, {seeds} seed{'s' * (seeds != 1)}, {study['data']['train']['name']}"


def _timed(study: Mapping[str, Any]) -> str:
    recipe = study["recipe"]
    where = dict(study["environment"])
    machine = where["GPU"] if where.get("GPU", "none") != "none" else where["CPU"]
    return f"{recipe['micro_batch']} x {recipe['seq_len']} tokens a step, {machine}"
