"""Pages: self-contained, escaped, and showing the numbers that they were given."""

from __future__ import annotations

from html.parser import HTMLParser

import pytest
import torch

from fastgpt.pages.charts import Chart
from fastgpt.pages.page import Page
from fastgpt.pages.provenance import environment
from tests.support.browser import overflow


class Parsed(HTMLParser):
    """Collects tags, and what would be fetched from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.external: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.external += [v for k, v in attributes if k in ("src", "href") and not str(v).startswith("data:")]


def test_page_is_one_escaped_file(tmp_path):
    page = Page("a <title>")
    page.heading("1 < 2")
    page.paragraph("<b>")
    page.preformatted("<i>")
    page.table(("a", "b"), [("<u>", 1), ("x", 2)], bad=[1])
    page.save(tmp_path / "deep" / "r.html")
    text = (tmp_path / "deep" / "r.html").read_text()
    found = Parsed(text)
    assert not found.external
    assert not {"b", "i", "u"} & set(found.tags)
    assert text.count("class=bad") == 1
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["r.html"]


def test_environment_names_what_matters():
    names = dict(environment())
    assert {"fastgpt", "Python", "torch", "triton", "GPU", "CPU", "system"} <= names.keys()
    assert names["torch"] == torch.__version__


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (400, True)])
def test_page_in_a_browser(opened, tmp_path, width, dark):
    """Sorts by the heading that is pressed, fits a phone, is dark where the reader's system is, and says nothing."""
    page = Page("Runs", lead="Three of them.")
    page.chart(Chart({"a": [(1, 2.0), (2, 1.0)]}, title="Loss", x_label="step", y_label="loss, nats per token"))
    page.table(("layers", "perplexity"), [(12, 30.0), (2, (38.5, "38.5 ± 1")), (4, 29.4)])
    page.provenance([("seed", 0)])
    page.save(tmp_path / "page.html")
    shown = opened(tmp_path / "page.html", width=width, dark=dark)
    assert overflow(shown) == 0
    assert shown.locator("svg:visible").count() == 1
    column = "[...document.querySelectorAll('table tbody')][1].innerText.split('\\n').map(row => row.split('\\t')[0])"
    shown.click("text=layers")
    assert shown.evaluate(column) == ["2", "4", "12"]
    shown.click("text=layers")
    assert shown.evaluate(column) == ["12", "4", "2"]
    paper = shown.evaluate("getComputedStyle(document.body).backgroundColor")
    assert (paper == "rgb(13, 17, 23)") is dark


def test_a_table_sorts_by_keys_with_what_is_missing_last(opened, tmp_path):
    page = Page("Runs")
    page.table(("name", "loss"), [("b", 2.0), ("c", None), ("a", (1.5, "1.50 ± 0.1")), ("d", 10.0)])
    page.save(tmp_path / "page.html")
    shown = opened(tmp_path / "page.html")
    names = "[...document.querySelector('tbody').rows].map(row => row.cells[0].textContent).join('')"
    shown.focus("text=loss")
    shown.keyboard.press("Enter")
    assert shown.evaluate(names) == "abdc"
    assert shown.get_attribute("th:nth-child(2)", "aria-sort") == "ascending"
    shown.keyboard.press("Space")
    assert shown.evaluate(names) == "dbac"
    assert shown.inner_text("tbody tr:last-child td:nth-child(2)") == ""


def test_the_numbers_of_a_chart_stand_below_it(opened, tmp_path):
    """Those that were drawn, a column for each line; of a chart of very many points there are none."""
    few = {"training": [(1, 8.25), (2, 7.0), (3, float("nan"))], "validation": [(2, 7.5)]}
    page = Page("Runs")
    page.chart(Chart(few, title="Loss", x_label="step", y_label="loss, nats per token"))
    page.chart(Chart({"training": [(n, 1.0) for n in range(5000)]}, title="Loss", x_label="step", y_label="loss"))
    page.save(tmp_path / "page.html")
    shown = opened(tmp_path / "page.html", width=400)
    assert shown.locator("details").count() == 1
    shown.click("text=The numbers")
    assert shown.inner_text("details thead").split() == ["step", "training", "validation"]
    rows = [row.split("\t") for row in shown.inner_text("details tbody").split("\n")]
    assert rows == [["1", "8.25", ""], ["2", "7", "7.5"], ["3", "", ""]]
    assert overflow(shown) == 0


def test_what_is_no_number_comes_behind_the_numbers_that_sort_by_value(opened, tmp_path):
    """Negative ones too, which as words would sort by their digits."""
    page = Page("Runs")
    cells = [-2.0, "n/a", (-10.0, "−10.0 %"), None, 3, float("nan"), (0.5, "50 %")]
    page.table(("name", "change"), list(zip("abcdefg", cells)))
    page.save(tmp_path / "page.html")
    shown = opened(tmp_path / "page.html")
    names = "[...document.querySelector('tbody').rows].map(row => row.cells[0].textContent).join('')"
    shown.click("text=change")
    assert shown.evaluate(names) == "cage" + "bfd"
    shown.click("text=change")
    assert shown.evaluate(names) == "egac" + "fbd"


def test_paper_is_white(opened, tmp_path):
    """Printed from a dark screen: dark ink, in pages and in what scripts draw while the print is made ready."""
    page = Page("Runs")
    page.chart(Chart({"training": [(1, 8.25), (2, 7.0)]}, title="Loss", x_label="step", y_label="loss"))
    page.save(tmp_path / "page.html")
    shown = opened(tmp_path / "page.html", dark=True)
    ink = "getComputedStyle(document.body).color"
    light, dark = "rgb(31, 35, 40)", "rgb(230, 237, 243)"
    assert shown.evaluate(ink) == dark
    shown.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert shown.evaluate(ink) == light
    shown.evaluate("dispatchEvent(new Event('afterprint'))")
    assert shown.evaluate(ink) == dark
    shown.emulate_media(media="print", color_scheme="dark")
    assert shown.evaluate(ink) == light
