"""The page of a cost study in a browser: the numbers of the record, plots that end at the GPU's memory."""

from __future__ import annotations

import dataclasses
import json
import re

import pytest

from fastgpt.model.config import IMPLEMENTATION_SETS
from fastgpt.pages.page import is_ours
from fastgpt.study.cost import CostConfig, cost_study, page
from fastgpt.study.cost import study as cost
from fastgpt.study.study_folder import write_record
from tests.support.browser import overflow

GRID = CostConfig(
    layers=(1, 2, 3), seq_lens=(32, 64, 96), widths=(16, 32), base=(2, 32, 16), heads=2, batch_size=3, vocab_size=101,
    dtype="float32", gpu="0.0015", margin=0.0,
)  # fmt: skip


def counted(config, *, say):
    """Rows whose sizes are powers of L, T and D."""
    rows = []
    for n, name in enumerate(IMPLEMENTATION_SETS, 1):
        for p in config.points():
            tokens = p.layers * p.seq_len
            sizes = {
                "activations": n * 1000 * tokens,
                "working": n * 5_000_000,
                "weights": 1000 * p.layers * p.width**2,
            }
            rows.append({"implementation": name, **p._asdict(), **sizes, "peak": n * (10**6 + 300 * tokens * p.width)})
    return rows


def limited(config, *, say):
    return [
        {"implementation": name, "over": over, "largest": 1000 * n + 234, "peak": size, "is_bound": True}
        for n, name in enumerate(IMPLEMENTATION_SETS, 1)
        for over, size in (("layers", 10**7), ("seq_len", 1_610_000), ("batch_size", 10**7))
    ]


@pytest.fixture(scope="module")
def record():
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(cost, "memory_cost", counted)
        patched.setattr(cost, "memory_limits", limited)
        found = cost_study(GRID)
    timed = {
        "rows": [
            {**{k: row[k] for k in ("implementation", "layers", "seq_len", "width")},
             "seconds": 1e-3 * row["layers"] ** 1.5, "low": 1e-4, "high": 1.0, "measured_peak": None}
            for row in found["rows"]
            if row["implementation"] != "fastgpt"
        ],
        "device": "cpu", "dtype": "float32",
        "left_out": [{"implementation": "torch", "layers": 9, "seq_len": 9, "width": 9, "why": "<b>too large</b>"}],
    }  # fmt: skip
    found["exponents"] += cost.exponents(GRID, timed["rows"], cost.TIMES)
    return json.loads(json.dumps(found | {"times": timed}, allow_nan=False))


@pytest.fixture(scope="module")
def saved(record, tmp_path_factory):
    path = tmp_path_factory.mktemp("page") / "cost.html"
    page.save(path, record)
    return path


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (400, True)])
def test_the_page_shows_the_record(opened, saved, record, width, dark):
    shown = opened(saved, width=width, dark=dark)
    assert overflow(shown) == 0
    cells = [row.split("\t") for row in shown.inner_text("table >> nth=0").replace("\xa0", " ").splitlines()]
    assert cells[0] == ["quantity", "over", "fastgpt", "torch", "reference"]
    by_row = {(row[0], row[1]): row[2:] for row in cells[1:]}
    for fit in record["exponents"]:
        words = by_row[page.NAMES[fit["quantity"]], page.SYMBOLS[fit["over"]]]
        word = words[("fastgpt", "torch", "reference").index(fit["implementation"])]
        assert word.startswith(f"{fit['exponent']:.2f}")
        assert ("[" in word) == (fit["interval"] is not None)
    assert by_row["time of a step", "L"] == ["n/a", "1.50 [1.50, 1.50]", "1.50 [1.50, 1.50]"]
    text = shown.inner_text("body")
    for limit in record["limits"]:
        assert f"{limit['largest']:,}" in text
    for row in record["rows"]:
        assert f"{row['peak'] / 2**20:,.1f}" in text
    assert "<b>too large</b>" in text
    assert all(what in text for what in ("date", "CPU", "torch", "command", "commit", "seed", "time taken"))


def test_the_plots_end_at_the_gpus_memory(record):
    charts = {chart.title: chart for chart in page.charts(record, "peak")}
    assert list(charts) == [
        "Peak over L (T = 32, D = 16)",
        "Peak over T (L = 2, D = 16)",
        "Peak over D (L = 2, T = 32)",
    ]
    limits = {limit["implementation"]: limit for limit in record["limits"] if limit["over"] == "seq_len"}
    chart = charts["Peak over T (L = 2, D = 16)"]
    (level,) = chart.levels.values()
    assert level == record["room"] / 2**30
    for name, points in list(chart.series.items())[:3]:
        implementation = name.partition(",")[0]
        limit = limits[implementation]
        assert name == f"{implementation}, at most {limit['largest']:,}"
        assert (limit["largest"], limit["peak"] / 2**30) in points
        assert [x for x, _ in points] == sorted({32, 64, 96, limit["largest"]})
    for name in chart.dashed:
        fit = next(f for f in record["exponents"] if (f["quantity"], f["over"]) == ("peak", "seq_len")
                   and name.startswith(f["implementation"] + " "))  # fmt: skip
        assert f"T^{fit['exponent']:.2f} [" in name
        assert chart.series[name][0] == (32, pytest.approx(fit["factor"] * 32 ** fit["exponent"] / 2**30))
        assert chart.like[name].startswith(fit["implementation"])


def test_a_plot_of_time_is_in_milliseconds(record):
    charts = list(page.charts(record, "seconds"))
    assert [chart.y_label for chart in charts] == ["time of a step, ms"] * 3
    assert list(charts[0].series)[:2] == ["torch", "reference"]
    assert charts[0].series["torch"] == [(n, pytest.approx(n**1.5)) for n in (1, 2, 3)]
    assert list(page.charts(record | {"times": None}, "seconds")) == []


def test_whose_file_it_is(saved, record, tmp_path):
    assert is_ours(saved, "fastgpt study cost")
    write_record(tmp_path / "a.json", record)
    assert cost.is_ours(tmp_path / "a.json")
    assert json.loads((tmp_path / "a.json").read_text())["exponents"] == record["exponents"]
    assert not is_ours(tmp_path / "a.json")
    assert not cost.is_ours(saved)
    (tmp_path / "b.json").write_text('{"study": "smoothing"}')
    assert not cost.is_ours(tmp_path / "b.json")
    assert not cost.is_ours(tmp_path / "none.json")


def test_a_record_knows_its_grid(record):
    assert cost.config_of(record) == GRID
    assert dataclasses.asdict(GRID)["gpu"] == record["config"]["gpu"]
    assert re.fullmatch(
        r"L 1/2/3, T 32/64/96, D 16/32; batches of 3, 2 heads, 101 token ids, float32", page.scale(record)
    )


def test_limits_sort_by_number(record):
    """Neither by how they are written, 15,306 before 2,234, nor by their words."""
    record = {**record, "limits": [dict(limit) for limit in record["limits"]]}
    record["limits"][0] |= {"largest": 128, "is_bound": False}
    text = page.page_of(record).html()
    assert '<td class=number data-value="128.0">over 128</td>' in text
    assert '<td class=number data-value="2234.0">2,234</td>' in text
    assert next(page.limit_rows(record))[1] == "over 128"
