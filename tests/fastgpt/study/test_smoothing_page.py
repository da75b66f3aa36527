"""The page of over-smoothing in a browser: its numbers are the model's, and it can be read on a phone."""

from __future__ import annotations

import pytest
import torch

from fastgpt.pages.page import is_ours
from fastgpt.study import smoothing_page
from fastgpt.study.smoothing_page import MEASURES, chart, grouped, page_of
from fastgpt.study.smoothing_record import record_of, row_of
from tests.support.browser import overflow

from .smoothing_models import expected_layers, small_model

HEADINGS = [
    "Cosine of two tokens", "Cosine without the mean", "Effective rank", "Share of the first direction",
    "Dirichlet energy over attention", "Entropy of attention", "Each layer", "Where this comes from",
]  # fmt: skip


@pytest.fixture(scope="module")
def looked_at():
    """(model, idx, record) of a model whose name would be markup."""
    model = small_model()
    idx = torch.randint(31, (2, 9), generator=torch.Generator().manual_seed(0))
    return model, idx, record_of([row_of("<b>m</b>", model, idx)], "a <text>", 40, idx)


@pytest.fixture
def path(looked_at, tmp_path):
    page_of(looked_at[2]).save(tmp_path / "a.html")
    return tmp_path / "a.html"


def test_the_numbers_are_the_models(opened, looked_at, path):
    model, idx, _ = looked_at
    page = opened(path)
    assert page.inner_text("h1") == "Over-smoothing in <b>m</b>"
    assert page.locator("h2").all_inner_texts() == HEADINGS
    expected = expected_layers(model, idx)
    table = page.locator("table.sortable", has_text="means over heads").last
    for row, layer in zip(table.locator("tbody tr").all(), expected, strict=True):
        values = [cell.get_attribute("data-value") for cell in row.locator("td").all()]
        means = [value if not isinstance(value, list) else sum(value) / len(value) for value in layer.values()]
        for value, mean in zip(values, means, strict=True):
            assert value is mean is None or float(value) == pytest.approx(mean, rel=2e-4, abs=2e-5)
    tables = page.locator("table.heads").all()
    for table, key in zip(tables, ("energy", "entropy"), strict=True):
        shown = [float(cell.get_attribute("data-value")) for cell in table.locator("td").all()]
        assert shown == pytest.approx([value for layer in expected[:-1] for value in layer[key]], rel=2e-4, abs=2e-5)


def test_heads_are_shaded_from_the_lowest_to_the_highest(opened, path):
    page = opened(path)
    for table in page.locator("table.heads").all():
        cells = table.locator("td").all()
        values = [float(cell.get_attribute("data-value")) for cell in cells]
        parts = [float(cell.evaluate("cell => cell.style.getPropertyValue('--part')")) for cell in cells]
        span = max(values) - min(values)
        assert parts == pytest.approx([(value - min(values)) / span for value in values], abs=6e-4)
        backgrounds = {cell.evaluate("cell => getComputedStyle(cell).backgroundColor") for cell in cells}
        assert len(backgrounds) > 3


@pytest.mark.parametrize("dark", [False, True])
@pytest.mark.parametrize("width", [400, 1200])
def test_it_fits_a_phone_and_a_screen(opened, path, width, dark):
    page = opened(path, width=width, dark=dark)
    assert overflow(page) == 0
    sizes = page.evaluate(
        "[...document.querySelectorAll('p, td, th, small, caption, figcaption, svg text')]"
        ".filter(e => e.getClientRects().length).map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(sizes) >= 11
    assert page.locator("figure svg:visible").count() == len(MEASURES)


def test_a_wide_table_of_heads_scrolls_by_keys(opened, looked_at, tmp_path):
    record = looked_at[2]
    layers = [
        layer | {key: layer[key] and layer[key] * 8 for key in ("energy", "entropy")}
        for layer in record["rows"][0]["layers"]
    ]
    page_of(record | {"rows": [record["rows"][0] | {"layers": layers}]}).save(tmp_path / "wide.html")
    page = opened(tmp_path / "wide.html", width=400)
    assert overflow(page) == 0
    region = page.get_by_role("region", name="Entropy of attention of each head")
    region.focus()
    page.keyboard.press("ArrowRight")
    page.wait_for_function("e => e.scrollLeft > 0", arg=region.element_handle())


def test_a_chart_has_a_point_for_each_layer_and_a_bar_for_the_heads(looked_at):
    record = looked_at[2]
    layers = record["rows"][0]["layers"]
    by_key = {measure.key: chart(measure, grouped(record["rows"]), 9) for measure in MEASURES}
    assert by_key["cosine"].series["<b>m</b>"] == [(n, layers[n]["cosine"]) for n in range(4)]
    energy = by_key["energy"]
    assert [x for x, _ in energy.series["mean over heads"]] == [1, 2, 3]
    assert energy.spans["mean over heads"] == [
        (n + 1, min(layers[n]["energy"]), max(layers[n]["energy"])) for n in range(3)
    ]


def test_a_measure_without_a_number_has_no_plot(looked_at):
    record = looked_at[2]
    layers = [layer | {"effective_rank": float("nan")} for layer in record["rows"][0]["layers"]]
    rank = next(measure for measure in MEASURES if measure.key == "effective_rank")
    assert chart(rank, grouped([{"name": "m", "layers": layers}]), 9) is None


def test_a_page_is_known_again(path, tmp_path):
    assert is_ours(path, smoothing_page.GENERATOR)
    (tmp_path / "b.html").write_text("<h1>mine</h1>")
    assert not is_ours(tmp_path / "b.html")
