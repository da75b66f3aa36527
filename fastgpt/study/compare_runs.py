"""Several training runs on one page: their losses, final figures, the settings that differ, where each comes from.

page = compare_runs.page_of(compare_runs.named([run_record.read(folder) for folder in folders]))
page.save("comparison.html")
"""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path

from ..pages.charts import Chart
from ..pages.figures import duration, means
from ..pages.page import Page
from ..train.run_record import GENERATOR, LAST, Run
from ..train.run_report import provenance_of, said

_MISSING = "not recorded"

_PLACES = ("name", "runs_dir")  # settings that are said by what the run is called

_MOST_POINTS = 200  # of a training curve, each the mean of a stretch of steps


def named(runs: Sequence[Run]) -> dict[str, Run]:
    """The runs by their folders' names, with as many of the folders above as tell them apart.

    Raises:
        ValueError: a run is given twice.
    """
    paths = [run.folder.resolve() for run in runs]
    twice = next((path for n, path in enumerate(paths) if path in paths[:n]), None)
    if twice is not None:
        raise ValueError(f"{twice}: given twice; a run is compared with others")
    for depth in range(1, max(len(path.parts) for path in paths) + 1):
        labels = [str(Path(*path.parts[-depth:])) for path in paths]
        if len(set(labels)) == len(labels):
            break
    return dict(zip(labels, runs))


def page_of(runs: Mapping[str, Run]) -> Page:
    """The comparison of runs, by name (`named`)."""
    page = Page(f"{len(runs)} training runs", f"{', '.join(runs)}, side by side.", GENERATOR)
    _warn(page, runs)
    page.heading("Final figures")
    page.table(
        (
            "run", "parameters", "steps", "tokens seen", "time of updates", "median tokens per second",
            "training loss", "validation loss", "perplexity", "bits per byte",
        ),
        [_figures(name, run) for name, run in runs.items()],
    )  # fmt: skip
    page.paragraph(f"Losses are in nats per token; that of training is the mean of the last {LAST} steps.")
    page.heading("Losses")
    for kind, key in (("Validation", "val_loss"), ("Training", "loss")):
        for axis in ("step", "tokens seen"):
            _chart(page, runs, kind, key, axis)
    page.heading("Settings that differ")
    names = sorted({name for run in runs.values() for name in run.settings} - {*_PLACES})
    rows = [(name, *(_setting(run, name) for run in runs.values())) for name in names]
    rows = [row for row in rows if len(set(row[1:])) > 1]
    if rows:
        page.table(("setting", *runs), rows)
    else:
        page.paragraph("None: all settings that are recorded are the same.")
    page.heading("Where the runs come from")
    origins = [dict(provenance_of(run)) for run in runs.values()]
    what = list(dict.fromkeys(name for origin in origins for name in origin))
    page.table(("what", *runs), [(name, *(origin.get(name, _MISSING) for origin in origins)) for name in what])
    page.provenance()
    return page


def _warn(page: Page, runs: Mapping[str, Run]) -> None:
    """Say so where losses are of different tokens or texts, by which they differ themselves."""
    for name, what in (("tokenizer", "tokenizers"), ("val_sha256", "validation data")):
        known = [run.settings[name] for run in runs.values() if name in run.settings]
        if any(value != known[0] for value in known):
            way = " Bits per byte do not depend on the tokenizer." if name == "tokenizer" else ""
            page.paragraph(f"These runs have different {what}, so losses and perplexities do not compare.{way}")


def _setting(run: Run, name: str) -> str:
    return said(run.settings[name], name) if name in run.settings else _MISSING


def _figures(name: str, run: Run) -> list[object]:
    speeds = [speed for _, speed in run.points("tokens_per_second")]
    time = run.update_seconds
    figures = [
        (run.parameters, ","), (run.step, ","), (run.tokens, ","), (time, ""),
        (statistics.median(speeds) if speeds else None, ",.0f"), (run.training_loss, ".4f"),
        (run.validation("loss"), ".4f"), (run.validation("perplexity"), ".4g"),
        (run.validation("bits_per_byte"), ".4f"),
    ]  # fmt: skip
    cells = [None if n is None else (n, duration(n) if n is time else format(n, form)) for n, form in figures]
    return [name, *cells]


def _chart(page: Page, runs: Mapping[str, Run], kind: str, key: str, axis: str) -> None:
    """A loss of all runs that have it, over steps or over tokens."""
    series = {}
    for name, run in runs.items():
        scale = 1 if axis == "step" else run.tokens_per_step
        points = [] if scale is None else [(step * scale, loss) for step, loss in run.points(key)]
        series[name] = means(points, _MOST_POINTS)[0] if key == "loss" else points
    if any(series.values()):
        title = f"{kind} loss over {axis.replace('step', 'steps')}"
        note = f"Each point is the mean of a stretch of steps, of which a run has at most {_MOST_POINTS}."
        chart = Chart(series, title, axis, "loss, nats per token", dots=None if key == "val_loss" else False)
        page.chart(chart, note if key == "loss" else "")
