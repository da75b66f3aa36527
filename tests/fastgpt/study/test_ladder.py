"""The kernel ladder measured: counts against formulas, errors against float64, and the page that shows them."""

from __future__ import annotations

import dataclasses
import html
import re
from pathlib import Path

import pytest
import torch

from fastgpt.base.settings import SettingError, SettingTypeError
from tests.support.browser import overflow

pytest.importorskip("triton")
from fastgpt.study import ladder, ladder_page
from fastgpt.study.ladder import TITLES, Measured, Shape, climb, traffic
from fastgpt.tools.memory import peak_bytes

SMALL = Shape(seq_len=70, head_dim=16, heads=2)


@pytest.fixture(scope="module")
def rungs() -> list[Measured]:
    return climb(SMALL)


def test_every_rung_is_measured(rungs):
    assert [rung.name for rung in rungs] == list(TITLES)
    clocks = ["Python", "CPU", "CPU", "CPU", "interpreter", "interpreter", "interpreter"]
    assert [rung.clock for rung in rungs] == clocks
    assert all(rung.seconds > 0 and 0 < rung.error < 2e-6 for rung in rungs)
    assert not any(rung.left_out for rung in rungs)


def test_traffic_and_memory_by_formula(rungs):
    """Of the loops: q, k, v and out at each pair and dimension, out written there. Of all: times the heads."""
    T, D, H, E = 70, 16, 2, 4
    found = {rung.name: rung for rung in rungs}
    pairs = T * (T + 1) // 2
    assert found["three_loops"].read_bytes == H * E * 4 * pairs * D
    assert found["three_loops"].written_bytes == H * E * pairs * D
    assert found["naive"].written_bytes == H * (E * (T * D + 4 * T * T) + T * T + 8 * T)
    assert found["triton_forward"].read_bytes == H * E * (T * D + 2 * 2 * T * D)
    assert found["tile_skipping"].read_bytes == H * E * (T * D + 2 * (64 + T) * D)
    assert found["tile_skipping"].written_bytes == H * E * T * D
    assert found["three_loops"].extra_bytes is None
    assert found["tile_skipping"].extra_bytes == H * E * T * D
    lse = H * 4 * T
    assert found["flash_attention"].written_bytes == found["flash_attention"].extra_bytes == H * E * T * D + lse


def test_traffic_counts_bytes_of_the_dtype():
    half = dataclasses.replace(SMALL, dtype="bfloat16")
    for name in ("three_loops", "triton_forward", "tile_skipping"):
        assert traffic(name, half) == tuple(n // 2 for n in traffic(name, SMALL))


def test_the_error_is_that_of_the_output(monkeypatch):
    """A rung that is wrong by 0.5 in one number shows 0.5."""
    right = ladder.attention_of

    def wrong(name):
        def attention(q, k, v):
            out = right(name)(q, k, v)
            if name == "tiled":
                out[0, 0, 60, 3] += 0.5
            return out

        return attention

    monkeypatch.setattr(ladder, "attention_of", wrong)
    errors = {rung.name: rung.error for rung in climb(SMALL)}
    assert errors.pop("tiled") == pytest.approx(0.5, abs=1e-5)
    assert max(errors.values()) < 2e-6


def test_long_loops_are_left_out_and_threads_are_as_before(monkeypatch):
    threads = torch.get_num_threads()
    monkeypatch.setattr(ladder, "MOST_STEPS", 2 * 70 * 70 * 16 - 1)
    found = climb(SMALL)
    assert found[0].left_out == "156,800 steps of Python would take long; at most 156,799 are taken"
    assert found[0].seconds is found[0].read_bytes is found[0].error is None
    assert not any(rung.left_out for rung in found[1:])
    assert torch.get_num_threads() == threads


def test_without_triton_the_kernels_are_left_out(monkeypatch):
    monkeypatch.setattr("fastgpt.kernels.support.has_triton", lambda: False)
    found = climb(SMALL)
    assert [rung.name for rung in found if rung.left_out] == list(ladder.KERNELS)
    assert found[-1].left_out.startswith("triton is not installed")


@pytest.mark.parametrize(
    ("setting", "error", "message"),
    [
        ({"seq_len": 0}, SettingError, "seq_len=0 must be an integer, at least 1 and at most 1024"),
        ({"seq_len": 1025}, SettingError, "the kernels' tiles are counted one by one"),
        ({"seq_len": 2.0}, SettingTypeError, "seq_len=2.0 must be an integer"),
        ({"heads": 65}, SettingError, "heads=65 must be"),
        ({"head_dim": 48}, SettingError, "head_dim=48 must be one of 16, 32, 64, 128"),
        ({"dtype": "float64"}, SettingError, "dtype='float64'"),
        ({"device": "mps"}, SettingError, "device='mps'"),
        ({"seed": -1}, SettingError, "seed=-1 must be"),
    ],
)
def test_bad_shapes(setting, error, message):
    with pytest.raises(error, match="show ladder: ") as caught:
        Shape(**setting)
    assert message in str(caught.value)


def test_marked_lines_make_both_files():
    before, after = "a\n  b\nc\nd\n", "a\nb\nx\nd\ne\n"
    found = ladder_page.marked(before, after)
    assert found == [("", "a"), ("", "b"), ("-", "c"), ("+", "x"), ("", "d"), ("+", "e")]


def timed(rungs, clock):
    return [dataclasses.replace(rung, clock=clock, seconds=1.0 / (n + 1)) for n, rung in enumerate(rungs)]


def test_speed_is_compared_on_a_gpu_only(rungs):
    first, second = rungs[1:3]
    assert ladder_page.relative(second, first) == ""
    first, second = timed([first, second], "CUDA")
    assert ladder_page.relative(second, first) == "2.00 x as fast"
    assert ladder_page.relative(first, None) == ""
    assert ladder_page.relative(dataclasses.replace(second, clock="interpreter"), first) == ""
    assert ladder_page.relative(second, dataclasses.replace(first, clock="CPU")) == ""


def test_time_on_a_gpu_is_the_median_after_warm_up(monkeypatch):
    """By a clock that a call moves on: 100 ms while it warms up, then 1, 2, ... 20 ms."""
    now, calls = [0.0], []

    class Event:
        def __init__(self, enable_timing):
            assert enable_timing

        def record(self):
            self.at = now[0]

        def elapsed_time(self, end):
            return end.at - self.at

    def call():
        calls.append(len(calls))
        now[0] += 100.0 if len(calls) <= ladder.WARM_UP else len(calls) - ladder.WARM_UP
        return torch.zeros(len(calls))

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "synchronize", lambda: None)
    out, seconds, clock = ladder._timed("naive", Shape(device="cuda"), call)
    assert (len(calls), clock, len(out)) == (ladder.WARM_UP + ladder.ROUNDS, "CUDA", len(calls))
    assert seconds == pytest.approx(10.5e-3)


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (400, True)])
def test_page_in_a_browser(opened, tmp_path, rungs, width, dark):
    """The numbers are those measured; the first key goes to the first rung."""
    ladder_page.ladder_page(SMALL, rungs, 1.5).save(tmp_path / "ladder.html")
    shown = opened(tmp_path / "ladder.html", width=width, dark=dark)
    assert overflow(shown) == 0
    assert "2 heads of 70 tokens x 16 numbers, float32" in shown.inner_text("body")
    rows = shown.evaluate(
        "[...document.querySelector('table').rows].slice(1).map(row => [...row.cells].map(c => c.dataset.value))"
    )
    for row, rung in zip(rows, rungs, strict=True):
        wanted = (rung.seconds, rung.read_bytes, rung.written_bytes, rung.extra_bytes, rung.error)
        assert [float(row[n]) for n in (1, 3, 4, 5, 6) if n < len(row) and row[n]] == [
            w for w in wanted if w is not None
        ]
    shown.keyboard.press("Tab")
    shown.keyboard.press("Enter")
    assert shown.url.endswith("#three_loops")
    sizes = (
        "[...document.querySelectorAll('body *')].filter(e => e.innerText)"
        ".map(e => parseFloat(getComputedStyle(e).fontSize))"
    )
    assert min(shown.evaluate(sizes)) >= 11


def test_sources_on_the_page_are_those_that_run(rungs):
    text = ladder_page.ladder_page(SMALL, rungs, 1.5).html()
    for rung in rungs:
        (block,) = re.findall(rf'aria-label="{rung.path}"><code>(.*?)</code>', text, re.DOTALL)
        plain = html.unescape(re.sub(r"<i .*?</i> |</?span.*?>", "", block))
        assert plain.rstrip("\n") == ladder.source(rung.name).rstrip("\n")


DOCS = Path(__file__).parents[3] / "docs" / "ladder"


def test_pages_for_teachers_give_the_figures_that_are_counted():
    """Of one head of 256 x 32 in float32: in the table of all rungs, and on each rung's own page."""
    rows = re.findall(r"^\| (?:\[\d\]|7).*\|$", (DOCS / "README.md").read_text(), re.MULTILINE)
    pages = [page.read_text() for page in sorted(DOCS.glob("[1-6]-*.md"))]
    shape = Shape()
    for n, (name, row) in enumerate(zip(TITLES, rows, strict=True)):
        read, written = traffic(name, shape)
        extra = 0 if n == 0 else peak_bytes(ladder.attention_of(name), list(shape.inputs()), backward=False)
        cells = [cell.strip().replace(",", "") for cell in row.strip("|").split("|")]
        assert [int(cell or 0) for cell in cells[3:]] == [read, written, extra], name
        if n < len(pages):
            assert name in pages[n]
            assert all(f"{bytes_:,}" in pages[n] for bytes_ in (read, written, extra) if bytes_), name
    links = [link for page in DOCS.glob("*.md") for link in re.findall(r"\]\(([^)#:]+)\)", page.read_text())]
    assert len(links) > 15
    assert all((DOCS / link).exists() for link in links)
