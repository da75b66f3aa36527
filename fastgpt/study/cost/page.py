"""The page of a cost study: its points, the power laws through them, and where a GPU's memory ends."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from typing import Any

from ...pages.charts import Chart
from ...pages.figures import duration
from ...pages.page import Page
from .config import SYMBOLS, CostConfig
from .growth import BYTES, TIMES, along
from .study import config_of

Record = Mapping[str, Any]
AXIS_LABELS = {"layers": "layers, L", "seq_len": "tokens per sequence, T", "width": "width, D"}
NAMES = {
    "activations": "activations", "working": "activations and transient tensors", "weights": "weights",
    "peak": "peak", "seconds": "time of a step", "measured_peak": "peak, measured",
}  # fmt: skip
_UNITS = {"seconds": (1e3, "ms")} | dict.fromkeys((*BYTES, "measured_peak"), (1 / 2**30, "GiB"))
_EXPLAINED = {
    "peak": "All that a step holds at the moment when most is held, counted on paper. Broken lines are power laws by "
    "least squares; the point of a curve at the GPU's memory is the largest step that fits, counted too.",
    "activations": "What the blocks keep from forward to backward: the papers' O(L·T·D). Without copies of weights, "
    "head and loss; the embeddings' sum and the last LayerNorm are in it, once for any number of layers.",
    "working": "Activations, and what an operation needs while it runs (logits, workspaces), at the moment of the "
    "peak. That moment differs from point to point, so this is no clean power law.",
    "weights": "float32 weights, their gradients, and AdamW's two moments; over T only the position embedding grows.",
    "seconds": "Medians of training steps, all points taking turns; on random tokens.",
    "measured_peak": "What torch allocated on the GPU at most, beside the count on paper above.",
}


def save(path: str | os.PathLike[str], record: Record) -> None:
    """Write the page, whole or not at all.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    page_of(record).save(path)


def page_of(record: Record) -> Page:
    """Exponents first, then where the GPU is full, then the plots, then every point."""
    config = config_of(record)
    lead = f"How bytes and seconds grow: {scale(record)}."
    page = Page("What a training step costs", lead, generator="fastgpt study cost")
    page.heading("Exponents")
    page.paragraph(
        "Each quantity as factor · x to the power of the exponent, over one of L, T and D while the other two stay at "
        f"the base ({config.base_point}); 95 % intervals by Student's t. Bytes on paper have no noise: there the "
        "interval says how far they are from a power law."
    )
    page.table(("quantity", "over", *names_of(record)), list(_exponent_rows(record)))
    if record["joint"]:
        page.heading("Over all axes at once")
        page.paragraph("One power law through all points of the grid, factor · L^a · T^b · D^c.")
        page.table(
            ("quantity", "implementation", *(SYMBOLS[axis] for axis in config.axes), "R²"),
            [
                (NAMES[fit["quantity"]], fit["implementation"],
                 *(_whole(shown(fit["exponents"][axis], fit["intervals"][axis])) for axis in config.axes),
                 (fit["r2"], f"{fit['r2']:.4f}"))
                for fit in record["joint"]
            ],
        )  # fmt: skip
    page.heading(f"Where {record['gpu']['name']} is full")
    page.paragraph(
        f"The largest step that fits {record['room'] / 2**30:,.1f} GiB ({record['gpu']['memory'] / 2**30:,.1f} GiB "
        f"less a margin of {config.margin:g} for what a GPU needs on top), one size growing from the base: counted at "
        "this size and at the next, no line extended."
    )
    page.table(("largest", *names_of(record)), limit_cells(record))
    for quantity in ("peak", "activations", "working", "weights", *TIMES):
        drawn = list(charts(record, quantity))
        if drawn:
            page.heading(NAMES[quantity][0].upper() + NAMES[quantity][1:])
            page.paragraph(_EXPLAINED[quantity])
            for chart in drawn:
                page.chart(chart)
    page.heading("Every point")
    page.table(_HEADER, [_row(row) for row in record["rows"]], caption="Bytes on paper, in MiB")
    if record["times"] is not None:
        _add_times(page, record)
    for name, why in record["left_out"].items():
        page.paragraph(f"Left out: {name}: {why}.")
    page.provenance_of([
        ("model", f"{config.heads} heads, {config.vocab_size:,} token ids, {config.batch_size} sequences a step"),
        ("time taken", duration(record["seconds"])), ("seed", "0 (weights and tokens of timed steps)"),
        *map(tuple, record["made_by"]), *map(tuple, record["environment"]),
    ])  # fmt: skip
    return page


def scale(record: Record) -> str:
    """The grid in words."""
    config = config_of(record)
    listed = ", ".join(
        f"{SYMBOLS[axis]} {'/'.join(str(getattr(p, axis)) for p in config.line(axis))}" for axis in config.axes
    )
    return (
        f"{listed}; batches of {config.batch_size}, {config.heads} heads, {config.vocab_size:,} token ids, "
        f"{record['dtype']}"
    )


def names_of(record: Record) -> list[str]:
    """The implementations, in their order."""
    return list(dict.fromkeys(row["implementation"] for row in record["rows"]))


def shown(exponent: float, interval: tuple[float, float] | list[float] | None) -> str:
    """ "1.02 [0.98, 1.06]" """
    return f"{exponent:.2f}" + (f" [{interval[0]:.2f}, {interval[1]:.2f}]" if interval else "")


def cells(record: Record) -> dict[tuple[str, str], list[str]]:
    """{(quantity, axis): its exponent for each of `names_of`, "n/a" where there is none}."""
    found: dict[tuple[str, str], dict[str, str]] = {}
    for fit in record["exponents"]:
        by_name = found.setdefault((fit["quantity"], fit["over"]), {})
        by_name[fit["implementation"]] = shown(fit["exponent"], fit["interval"])
    return {key: [by_name.get(name, "n/a") for name in names_of(record)] for key, by_name in found.items()}


def _exponent_rows(record: Record) -> Iterator[tuple[str, ...]]:
    for (quantity, axis), row in cells(record).items():
        yield NAMES[quantity], SYMBOLS[axis], *map(_whole, row)


def _whole(interval: str) -> str:
    """With an interval that no narrow column breaks."""
    return interval.replace(", ", ",\N{NO-BREAK SPACE}")


LIMITS = {"layers": "layers, L", "seq_len": "tokens per sequence, T", "batch_size": "sequences in a batch"}


def limit_rows(record: Record) -> Iterator[tuple[str, ...]]:
    """What, then the most that fits for each of `names_of`."""
    for what, *limits in limit_cells(record):
        yield what, *(shown for _, shown in limits)


def limit_cells(record: Record) -> Iterator[tuple[Any, ...]]:
    """The same as a page's table has it, sorted by the number: (number, how it is said)."""
    found = {(limit["over"], limit["implementation"]): limit for limit in record["limits"]}
    for over, what in LIMITS.items():
        limits = [found[over, name] for name in names_of(record)]
        yield what, *((limit["largest"], _most(limit)) for limit in limits)


def _most(limit: Mapping[str, Any]) -> str:
    if not limit["largest"]:
        return "none fits"
    return f"{limit['largest']:,}" if limit["is_bound"] else f"over {limit['largest']:,}"


def charts(record: Record, quantity: str) -> Iterator[Chart]:
    """One log-log plot for each axis: points, power laws with their exponents, and for the peak the GPU's memory."""
    config = config_of(record)
    rows = record["rows"] if quantity in BYTES else record["times"]["rows"] if record["times"] else []
    factor, unit = _UNITS[quantity]
    for axis in config.axes:
        measured: dict[str, list[tuple[float, float]]] = {}
        fitted: dict[str, list[tuple[float, float]]] = {}
        like: dict[str, str] = {}
        for name in names_of(record):
            line = along(config, rows, name, quantity, axis)
            if not line:
                continue
            limit = _limit(record, name, axis) if quantity == "peak" else None
            points = sorted({*line, *([limit] if limit else [])})
            label = f"{name}, at most {limit[0]:,}" if limit else name
            measured[label] = [(x, y * factor) for x, y in points]
            fit = _fit(record, quantity, axis, name)
            if fit is not None:
                power = f"{SYMBOLS[axis]}^{shown(fit['exponent'], fit['interval'])}"
                like[f"{name} ~ {power}"] = label
                fitted[f"{name} ~ {power}"] = [
                    (x, fit["factor"] * x ** fit["exponent"] * factor) for x in (line[0][0], line[-1][0])
                ]
        if measured:
            levels = {f"{record['gpu']['name']}, margin free, GiB": record["room"] / 2**30}
            yield Chart(
                {**measured, **fitted}, _title(config, quantity, axis), AXIS_LABELS[axis],
                f"{NAMES[quantity]}, {unit}", levels if quantity == "peak" else {}, log_x=True, log_y=True,
                dashed=list(fitted), like=like,
            )  # fmt: skip


def _title(config: CostConfig, quantity: str, axis: str) -> str:
    fixed = [f"{symbol} = {getattr(config.base_point, name):,}" for name, symbol in SYMBOLS.items() if name != axis]
    return f"{NAMES[quantity][0].upper()}{NAMES[quantity][1:]} over {SYMBOLS[axis]} ({', '.join(fixed)})"


def _limit(record: Record, name: str, axis: str) -> tuple[int, int] | None:
    for limit in record["limits"]:
        if (limit["implementation"], limit["over"]) == (name, axis) and limit["is_bound"] and limit["largest"]:
            return limit["largest"], limit["peak"]
    return None


def _fit(record: Record, quantity: str, axis: str, name: str) -> Mapping[str, Any] | None:
    for fit in record["exponents"]:
        if (fit["quantity"], fit["over"], fit["implementation"]) == (quantity, axis, name):
            return fit
    return None


_HEADER = ("implementation", "L", "T", "D", "activations", "activations and transient", "weights", "peak")


def _row(row: Mapping[str, Any]) -> tuple[object, ...]:
    sizes = ((row[name], f"{row[name] / 2**20:,.1f}") for name in BYTES)
    return row["implementation"], row["layers"], (row["seq_len"], f"{row['seq_len']:,}"), row["width"], *sizes


def _add_times(page: Page, record: Record) -> None:
    times = record["times"]
    if times["rows"]:
        page.table(
            ("implementation", "L", "T", "D", "ms a step", "middle half, ms"),
            [
                (row["implementation"], row["layers"], row["seq_len"], row["width"],
                 (row["seconds"], f"{row['seconds'] * 1e3:,.2f}"),
                 f"{row['low'] * 1e3:,.2f} to {row['high'] * 1e3:,.2f}")
                for row in times["rows"]
            ],
            caption=f"Time of a step, {times['dtype']} on {times['device']}",
        )  # fmt: skip
    if times["left_out"]:
        page.table(
            ("implementation", "L", "T", "D", "why"),
            [(row["implementation"], row["layers"], row["seq_len"], row["width"], row["why"])
             for row in times["left_out"]],
            caption="Not timed",
        )  # fmt: skip
