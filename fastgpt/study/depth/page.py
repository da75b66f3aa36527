"""study.html and study.svg: what a depth study found, drawn beside what was claimed."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from ...pages.charts import Chart, in_a_row
from ...pages.figures import duration
from ...pages.page import Page
from ..fits import line, power
from . import claims
from .claims import by_depth, finished

Study = Mapping[str, Any]
Points = list[tuple[float, float]]


def save(folder: Path, study: Study) -> Path:
    """Write study.html and study.svg into `folder`. Returns the page.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    from ...base import files

    path = folder / "study.html"
    page(study).save(path)
    drawn = picture(study)
    if drawn is not None:
        files.replace_file(folder / "study.svg", lambda new: new.write_text(drawn, encoding="utf-8"))
    return path


def page(study: Study) -> Page:
    """Verdicts first, then each plot, then every run."""
    found = Page("Depth study", lead=f"What the papers claim of depth, measured again: {scale(study)}.")
    found.heading("Claims and verdicts")
    found.table(
        ("claim", "verdict", "measured", "at which scale"),
        [(v["claim"], v["verdict"], v["numbers"], v["scale"]) for v in study["verdicts"]],
    )
    for heading, caption, charts in (
        ("Perplexity", _PERPLEXITY, perplexity(study)),
        ("Loss", "Each update's own batches, and the validations.", losses(study)),
        ("Time per step", _TIME, time(study)),
        ("Memory", _MEMORY, memory(study)),
        ("Capacity", "Parameters of the blocks, without embeddings, against perplexity.", capacity(study)),
        ("Gradients by layer", _GRADIENTS, gradients(study)),
        ("Tokens by layer", _TOKENS, tokens(study)),
    ):
        if charts:
            found.heading(heading)
            found.paragraph(caption)
            for chart in charts:
                found.chart(chart)
    found.heading("Runs")
    found.paragraph(_RUNS)
    found.table(_HEADER, [_row(row) for row in study["rows"]], [n for n, row in enumerate(study["rows"]) if _bad(row)])
    found.heading("Recipe")
    found.table(("setting", "value"), [*study["recipe"].items(), ("tokenizer", study["tokenizer"]["name"])])
    seconds = sum(row.get("seconds") or 0 for row in study["rows"])
    found.provenance_of([
        ("training time of all runs", duration(seconds)),
        ("training data", f"{study['data']['train']['name']}, {study['data']['train']['tokens']:,} tokens"),
        ("validation data", f"{study['data']['val']['name']}, {study['data']['val']['tokens']:,} tokens"),
        *map(tuple, study["made_by"]), *map(tuple, study["environment"]),
    ])  # fmt: skip
    return found


def scale(study: Study) -> str:
    """The scale of a study, in words."""
    rows = finished(study)
    of = {name: sorted({row[name] for row in rows}) for name in ("layers", "width", "heads", "seed")}
    listed = {name: "/".join(map(str, values)) for name, values in of.items()}
    return (
        f"{listed['layers']} layers, width {listed['width']}, {listed['heads']} heads, {len(of['seed'])} "
        f"seed{'s' * (len(of['seed']) != 1)}, {study['tokens']:,} tokens a run of {study['data']['train']['name']}, "
        f"{study['tokenizer']['vocab_size']:,} token ids"
    )


def perplexity(study: Study) -> list[Chart]:
    groups = _by_width(finished(study))
    if not groups:
        return []
    series: dict[str, Points] = {}
    spans: dict[str, list[tuple[float, float, float]]] = {}
    for name, rows in groups.items():
        found = by_depth(rows, lambda row: row["perplexity"])
        series[f"measured, {name}"] = [(n, statistics.fmean(some)) for n, some in found.items()]
        spans[f"measured, {name}"] = [(n, min(some), max(some)) for n, some in found.items()]
    series["claimed"] = [(float(n), value) for n, value in claims.PERPLEXITY.items()]
    return [Chart(series, "Validation perplexity by depth", "layers", "perplexity", log_y=True, dashed=["claimed"],
                  spans=spans, dots=True)]  # fmt: skip


def losses(study: Study) -> list[Chart]:
    rows = finished(study)
    charts = []
    for what, key in (("Validation", "val_curve"), ("Training", "train_curve")):
        curves = {_named(row): row[key] for row in rows if row["seed"] == rows[0]["seed"]}
        if curves:
            charts.append(Chart(curves, f"{what} loss", "tokens", "loss, nats per token"))
    return charts


def time(study: Study) -> list[Chart]:
    means = claims.step_milliseconds(study)
    if not means:
        return []
    series: dict[str, Points] = {"measured": list(means.items())}
    if len(means) > 2:
        fit = line(list(means), list(means.values()))
        low, high = fit.slope_interval
        name = f"{fit.intercept:.1f} + {fit.slope:.2f}·L ms, slope {low:.2f} to {high:.2f}, R² {fit.r2:.4f}"
        series[name] = [(n, fit.at(n)) for n in (0, max(means))]
    return [Chart(series, "Time of a step by depth", "layers", "ms a step", dashed=list(series)[1:], dots=True)]


def memory(study: Study) -> list[Chart]:
    rows = study["memory"]
    charts = []
    for key, label in (("layers", "layers"), ("seq_len", "tokens in a sequence"), ("width", "width")):
        others = [name for name in ("layers", "seq_len", "width") if name != key]
        series: dict[str, Points] = {}
        for name in dict.fromkeys(row["implementation"] for row in rows):
            some = [row for row in rows if row["implementation"] == name]
            base = {o: statistics.mode(row[o] for row in some) for o in others}
            line_of = sorted(
                (row[key], row["activations"] / 2**20) for row in some if all(row[o] == base[o] for o in others)
            )
            exponent = power([x for x, _ in line_of], [y for _, y in line_of]).exponents["x"]
            series[f"{name}: exponent {exponent:.2f}"] = line_of
        if series:
            fixed = ", ".join(f"{o.replace('_', ' ')} {value}" for o, value in base.items())
            title = f"Activations of a step ({fixed})"
            charts.append(Chart(series, title, label, "MiB", log_x=True, log_y=True))
    return charts


def capacity(study: Study) -> list[Chart]:
    groups = _by_width(finished(study))
    series = {
        name: sorted((row["block_parameters"], row["perplexity"]) for row in rows) for name, rows in groups.items()
    }
    if not series:
        return []
    return [Chart(series, "Perplexity by capacity", "parameters of the blocks", "perplexity", log_x=True, log_y=True)]


def gradients(study: Study) -> list[Chart]:
    charts = []
    for key, when in (("gradient_norms_untrained", "before training"), ("gradient_norms", "after training")):
        series = {}
        for norm, rows in ((True, finished(study)), (False, finished(study, norm=False))):
            first = [row for row in rows if row["seed"] == rows[0]["seed"] and row["width"] == rows[0]["width"]]
            for row in [row for row in first if row["heads"] == first[0]["heads"]]:
                name = f"{row['layers']} layers, {'LayerNorm' if norm else 'none'}"
                series[name] = [(n + 1, value) for n, value in enumerate(row[key]) if value]
        if series:
            title = f"Gradient norm by block, {when}"
            charts.append(Chart(series, title, "block", "norm of the gradient", log_y=True,
                                bold=[name for name in series if name.endswith("none")]))  # fmt: skip
    return charts


def tokens(study: Study) -> list[Chart]:
    rows = finished(study)
    charts = []
    for key, label in (
        ("cosine", "mean cosine of two tokens"), ("centred_cosine", "mean cosine, centred"),
        ("effective_rank", "effective rank"),
    ):  # fmt: skip
        series = {
            _named(row): [(one["layer"], one[key]) for one in row["smoothing"] if one[key] is not None]
            for row in rows
            if row["seed"] == rows[0]["seed"]
        }
        if series:
            title = f"{label[0].upper()}{label[1:]} behind each block"
            charts.append(Chart(series, title, "blocks passed", label, dots=True))
    return charts


def picture(study: Study) -> str | None:
    """For a README: perplexity claimed and measured, and the time of a step, as one SVG; None where nothing ended."""
    charts = [*perplexity(study), *time(study)]
    if not charts:
        return None
    drawn = [chart.svg((430, 320), standalone=True) for chart in charts]
    seeds = len({row["seed"] for row in finished(study)})
    at = f"{study['tokens']:,} tokens a run of {study['data']['train']['name']}, {seeds} seed{'s' * (seeds != 1)}"
    return in_a_row(drawn, f"Depth study at {at}")


_PERPLEXITY = (
    "Claimed by the papers after epochs over Wikipedia and books, and measured here. Another corpus, tokenizer and "
    "number of tokens give other perplexities: what can be compared is the shape. Bars: lowest and highest over seeds."
)
_TIME = "An update of one micro-batch, all depths taking turns; the line is a + b·L by least squares, 95 % interval."
_MEMORY = (
    "What the forward keeps for the backward of one sequence, counted on paper (fastgpt/tools/memory.py), for each "
    "implementation; straight lines are power laws."
)
_GRADIENTS = (
    "The norm of the loss's gradient over each block's parameters, on validation data; thick: without LayerNorm."
)
_TOKENS = (
    "How alike the tokens of a sequence are in the residual stream behind each block, on validation data: mean cosine "
    "similarity, the same without the mean token, and effective rank (fastgpt/study/measures.py)."
)
_RUNS = (
    "An update's time is the median of the whole run, whatever else the machine did; the plot above took turns. Peak "
    "memory is measured on a GPU; on a CPU it is counted for torch's implementations."
)
_HEADER = (
    "layers", "width", "heads", "seed", "LayerNorm", "status", "parameters", "tokens", "loss, nats/token", "perplexity",
    "bits per byte", "training, s", "ms an update", "peak, MiB",
)  # fmt: skip


def _row(row: Mapping[str, Any]) -> tuple[object, ...]:
    def shown(key: str, form: str, unit: float = 1) -> object:
        value = row.get(key)
        return (value, form.format(unit * value)) if value is not None else None

    status = row["status"] if "error" not in row else f"failed: {row['error']}"
    return (
        row["layers"], row["width"], row["heads"], row["seed"], "yes" if row["norm"] else "no", status,
        shown("parameters", "{:,}"), shown("tokens", "{:,}"), shown("val_loss", "{:.4f}"),
        shown("perplexity", "{:.1f}"), shown("bits_per_byte", "{:.3f}"), shown("seconds", "{:,.0f}"),
        shown("seconds_per_update", "{:,.0f}", 1e3), shown("peak_memory_bytes", "{:,.0f}", 2**-20),
    )  # fmt: skip


def _bad(row: Mapping[str, Any]) -> bool:
    return row["status"] == "failed"


def _named(row: Mapping[str, Any]) -> str:
    return f"{row['layers']} x {row['width']} x {row['heads']}"


def _by_width(rows: Sequence[Mapping[str, Any]]) -> dict[str, list[Mapping[str, Any]]]:
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for row in rows:
        groups.setdefault(f"width {row['width']}", []).append(row)
    return groups
