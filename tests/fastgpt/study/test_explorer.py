"""The attention explorer: what a page carries, and that a browser shows the model's numbers, whatever one does."""

from __future__ import annotations

import base64
import json
import re
import zlib

import numpy as np
import pytest
import torch

from fastgpt.model.one_head import OneHeadLM
from fastgpt.study import explorer, map_storage
from fastgpt.study.head_scores import head_scores
from fastgpt.study.palette import PALETTE, SCALES, shade
from tests.fastgpt.pages.test_page import Parsed
from tests.fastgpt.training import tiny_model
from tests.support.browser import overflow

TOKENS = ["To", "·be", "</script>", "$or$", "·be", "<b>"]
IDS = torch.tensor([3, 5, 7, 11, 5, 2])
T = len(TOKENS)


@pytest.fixture(scope="module")
def maps():
    model = tiny_model(n_layers=3)
    for weight in model.parameters():
        torch.nn.init.normal_(weight, std=0.5)  # so that heads differ
    return model.attention_maps(IDS[None])


@pytest.fixture
def page(maps, opened, tmp_path):
    """open(width=1200, dark=False) -> the explorer of `maps` in a browser, its first head drawn."""

    def open_page(**how):
        explorer.explorer_page(maps, TOKENS, IDS, "Attention").save(tmp_path / "a.html")
        shown = opened(tmp_path / "a.html", **how)
        shown.wait_for_selector("[data-shown='0']")
        return shown

    return open_page


def unpacked(text: str, dtype: str) -> np.ndarray:
    return np.frombuffer(zlib.decompress(base64.b64decode(text)), dtype=dtype)


def carried(text: str) -> tuple[dict, list[str]]:
    """(the data, the maps) of a page."""
    data = re.search(r"class=explorer-data>(.*?)</script>", text, re.S).group(1)
    return json.loads(data), re.findall(r"class=map-data>(.*?)</script>", text)


def state(page) -> tuple[int, int, int]:
    return tuple(
        page.evaluate("(d => [d.head, d.query, d.key].map(Number))(document.querySelector('.explorer').dataset)")
    )


def readout(page) -> str:
    return page.inner_text(".readout")


# ---- what a page carries -------------------------------------------------------------------------------------------


def test_a_page_carries_every_weight(maps):
    text = explorer.explorer_page({n: m[:, [1, 0]] for n, m in maps.items()}, TOKENS, IDS, "a <title>", [1, 0]).html()
    found = Parsed(text)
    assert not found.external
    assert "b" not in found.tags
    assert explorer.MARK in text[:4096]
    data, blobs = carried(text)
    assert data["tokens"] == TOKENS
    assert [panel["title"] for panel in data["panels"]] == [f"layer {n}, head {h}" for n in range(3) for h in (1, 0)]
    assert data["columns"] == 2
    lower = np.tri(T, dtype=bool)
    for (n, h), blob in zip([(n, h) for n in range(3) for h in (1, 0)], blobs, strict=True):
        assert np.array_equal(unpacked(blob, "<f4"), maps[n][0, h].numpy()[lower])


@pytest.mark.parametrize("count", [map_storage.EXACT, map_storage.EXACT + 1, 300])
def test_long_texts_are_rounded_as_it_is_told(count, seed):
    weights = torch.softmax(
        6 * torch.randn(count, count).masked_fill(torch.ones(count, count).triu(1).bool(), -torch.inf), -1
    )
    exact = weights.numpy()[np.tri(count, dtype=bool)].astype(np.float64)
    text = map_storage.packed(weights)
    assert map_storage.stored_as(count) == ("float32" if count == map_storage.EXACT else "uint8")
    if count == map_storage.EXACT:
        assert np.array_equal(unpacked(text, "<f4"), exact)
        return
    codes = unpacked(text, "u1") / 255
    assert (np.abs(codes**2 - exact) <= (2 * codes + 1 / 510) / 510 + 1e-12).all()


def test_small_maps_show_the_largest_weight():
    weights = torch.eye(130)
    small, k = map_storage.thumbnail(weights)
    assert (tuple(small.shape), k) == ((44, 44), 3)
    assert bool((small.diagonal() == 1).all())
    codes = unpacked(map_storage.packed_thumbnails([small, small / 4]), "u1").reshape(2, 44, 44)
    assert (codes[0].diagonal() == 255).all()
    assert (codes[1].diagonal() == 128).all()  # √¼


def test_what_no_page_can_show_is_refused(maps, monkeypatch):
    def add(maps, ids=IDS, **how):
        explorer.explorer_page(maps, TOKENS, ids, "", **how)

    with pytest.raises(ValueError, match="scale='root' must be one of linear, sqrt, log"):
        add(maps, scale="root")
    with pytest.raises(ValueError, match="must give no weight to later keys"):
        add({0: maps[0].mT})
    with pytest.raises(ValueError, match="finite"):
        add({0: maps[0] * torch.nan})
    with pytest.raises(ValueError, match=r"ids=\(2,\) must be \(6,\)"):
        add(maps, IDS[:2])
    monkeypatch.setattr(explorer, "LARGEST", 300)
    with pytest.raises(
        ValueError, match=r"makes 6 maps of 6 x 6 weights, of which a page of 300 bytes holds 2; shorten"
    ):
        add(maps)


def test_each_head_is_told_of(maps):
    told = []
    explorer.explorer_page(maps, TOKENS, IDS, "", on_head=lambda: told.append(1))
    assert len(told) == 6


# ---- in a browser --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("width", "dark"), [(1200, True), (400, False)])
def test_it_fits_and_tells_the_models_weights(page, maps, width, dark):
    shown = page(width=width, dark=dark)
    assert overflow(shown) == 0
    assert shown.locator(".grid button").count() == 6
    row = maps[0][0, 0, T - 1]
    strongest = int(row.argmax())
    assert state(shown) == (0, T - 1, strongest)
    assert f"query 5 “<b>” → key {strongest} “{TOKENS[strongest]}”: weight {float(row[strongest]):.6g}" in readout(
        shown
    )
    listed = shown.locator(".top li").all_inner_texts()
    order = row.argsort(descending=True).tolist()
    assert [int(re.match(r"\d+", item).group()) for item in listed] == order
    assert [float(item.split()[-1]) for item in listed] == pytest.approx(
        [float(row[k]) for k in order], abs=6e-5, rel=0.06
    )
    assert shown.evaluate(
        "Math.min(...[...document.querySelectorAll('body *')].map(e => parseFloat(getComputedStyle(e).fontSize)))"
    ) >= 11  # fmt: skip


def test_keys_choose_query_key_head_and_zoom(page, maps):
    shown = page()
    shown.focus(".map")
    shown.keyboard.press("Home")
    assert state(shown) == (0, 0, 0)
    assert "weight 1" in readout(shown)
    for key in ("ArrowDown", "ArrowDown", "ArrowDown"):
        shown.keyboard.press(key)
    assert state(shown) == (0, 3, 0)
    shown.keyboard.press("ArrowRight")
    shown.keyboard.press("ArrowRight")
    assert state(shown) == (0, 3, 2)
    assert f"query 3 “$or$” → key 2 “</script>”: weight {float(maps[0][0, 0, 3, 2]):.6g}" in readout(shown)
    for _ in range(3):
        shown.keyboard.press("ArrowRight")  # not into the future
    assert state(shown) == (0, 3, 3)
    shown.keyboard.press("]")
    shown.wait_for_selector("[data-shown='1']")
    assert f"weight {float(maps[0][0, 1, 3, 3]):.6g}" in readout(shown)
    shown.keyboard.press("[")
    shown.keyboard.press("[")
    shown.wait_for_selector("[data-shown='5']")
    assert "layer 2, head 1" in shown.inner_text(".map-title")
    assert f"weight {float(maps[2][0, 1, 3, 3]):.6g}" in readout(shown)
    shown.keyboard.press("+")
    assert "times" in shown.inner_text(".map-note")
    shown.keyboard.press("0")
    assert shown.inner_text(".map-note") == ""
    shown.focus(".text")
    shown.keyboard.press("ArrowLeft")
    assert state(shown)[:2] == (5, 2)


def cell(page, query: int, key: int) -> tuple[float, float]:
    """The middle of a cell of the enlarged map, in pixels from the canvas's corner."""
    box = page.locator(".map").bounding_box()
    left = 76 if box["width"] < 420 else 92
    side = box["width"] - left - 6
    return left + (key + 0.5) * side / T, 26 + (query + 0.5) * side / T


def test_a_mouse_points_and_chooses(page, maps):
    shown = page()
    x, y = cell(shown, 4, 1)
    shown.hover(".map", position={"x": x, "y": y})
    assert f"query 4 “·be” → key 1 “·be”: weight {float(maps[0][0, 0, 4, 1]):.6g}" in readout(shown)
    x, y = cell(shown, 1, 4)
    shown.hover(".map", position={"x": x, "y": y})
    assert "not seen: future" in readout(shown)
    shown.hover("h1")
    assert state(shown)[1] == T - 1  # what was pointed at is forgotten
    x, y = cell(shown, 3, 1)
    shown.click(".map", position={"x": x, "y": y})
    shown.hover("h1")
    assert state(shown) == (0, 3, 1)
    shown.click(".text [data-token='4']")
    shown.hover("h1")
    assert state(shown)[1] == 4
    shown.hover(".text [data-token='0']")
    assert f"→ key 0 “To”: weight {float(maps[0][0, 0, 4, 0]):.6g}" in readout(shown)
    shown.click(".top li:nth-child(2) button")
    assert state(shown)[2] == int(maps[0][0, 0, 4].argsort(descending=True)[1])


def test_a_tap_chooses(page, maps):
    shown = page(width=400)
    x, y = cell(shown, 4, 2)
    shown.tap(".map", position={"x": x, "y": y})
    assert state(shown) == (0, 4, 2)
    assert f"weight {float(maps[0][0, 0, 4, 2]):.6g}" in readout(shown)
    shown.tap(".text [data-token='1']")
    assert state(shown)[1] == 1
    shown.tap(".grid button >> nth=3")
    shown.wait_for_selector("[data-shown='3']")


PIXEL = """([x, y]) => { const canvas = document.querySelector('.map'), ratio = canvas.width / canvas.clientWidth;
    const copy = document.createElement('canvas').getContext('2d', { willReadFrequently: true });
    copy.drawImage(canvas, -Math.floor(x * ratio), -Math.floor(y * ratio));
    return [...copy.getImageData(0, 0, 1, 1).data].slice(0, 3) }"""


@pytest.mark.parametrize("scale", SCALES)
def test_colours_are_the_palettes_on_the_scale_that_is_said(page, maps, scale):
    shown = page()
    shown.select_option(".choose-scale", scale)
    assert f"colours: {SCALES[scale]}" in shown.inner_text(".scale-name")
    for query, key in ((2, 0), (4, 3), (3, 1)):
        colour = PALETTE[round(255 * float(shade(float(maps[0][0, 0, query, key]), scale)))]
        assert "#{:02x}{:02x}{:02x}".format(*shown.evaluate(PIXEL, cell(shown, query, key))) == colour
    x, y = cell(shown, 0, 4)
    future = {tuple(shown.evaluate(PIXEL, (x + n, y))) for n in range(9)}
    assert future == {(255, 255, 255), (0xD1, 0xD9, 0xE0)}  # paper and line: no shade of any weight


def test_heads_are_found_by_their_scores(page, maps):
    shown = page()
    scores = {n: head_scores(maps[n][0], IDS) for n in maps}
    first = [float(scores[n].first_token[h]) for n in range(3) for h in range(2)]
    shown.select_option(".choose-order", "first_token")
    tiles = shown.locator(".grid button").all_inner_texts()
    expected = sorted(range(6), key=lambda i: -first[i])
    assert tiles == [f"L{i // 2} H{i % 2}: {first[i]:.3f}" for i in expected]
    shown.focus(".grid button >> nth=0")
    shown.keyboard.press("ArrowRight")
    shown.wait_for_selector(f"[data-shown='{expected[1]}']")
    row = shown.locator(f".explorer-scores tbody tr[data-head='{expected[3]}']")
    assert row.inner_text().split()[:2] == [str(expected[3] // 2), str(expected[3] % 2)]
    found = [float(text) for text in row.inner_text().split()[2:]]
    assert found == pytest.approx([float(s[expected[3] % 2]) for s in scores[expected[3] // 2]], abs=6e-4)
    row.click()
    shown.wait_for_selector(f"[data-shown='{expected[3]}']")
    assert row.get_attribute("aria-current") == "true"
    row.focus()
    shown.click(".explorer-scores th:has-text('previous token')")  # sorts; rows keep their heads
    row.focus()
    shown.keyboard.press("Enter")
    assert state(shown)[0] == expected[3]


def test_a_long_text_says_how_exact_its_weights_are(opened, tmp_path, seed):
    count = 200
    future = torch.ones(count, count).triu(1).bool()
    weights = torch.softmax(2 * torch.randn(1, 1, count, count).masked_fill(future, -torch.inf), -1)
    tokens = [f"·{n}" for n in range(count)]
    explorer.explorer_page({0: weights}, tokens, torch.arange(count) % 7, "Long").save(tmp_path / "a.html")
    shown = opened(tmp_path / "a.html", width=400)
    shown.wait_for_selector("[data-shown='0']")
    assert overflow(shown) == 0
    shown.focus(".map")
    for key in ("+", "+", "+", "ArrowUp", "ArrowLeft", "ArrowLeft"):
        shown.keyboard.press(key)
    _, query, key = state(shown)
    value, off = map(float, re.search(r"≈ ([\d.]+) ± ([\d.]+)", readout(shown)).groups())
    assert abs(value - float(weights[0, 0, query, key])) <= 1.5 * off
    assert 0 < off < 0.005
    assert "the largest weight of 4 x 4" in shown.inner_text(".grid-note")


def test_one_head_and_a_text_of_one_token(opened, tmp_path):
    torch.manual_seed(0)
    model = OneHeadLM(vocab_size=20, d_model=8, max_len=8)
    explorer.explorer_page(model.attention_maps(IDS[None, :1]), ["To"], IDS[:1], "One").save(tmp_path / "a.html")
    shown = opened(tmp_path / "a.html", width=400, dark=True)
    shown.wait_for_selector("[data-shown='0']")
    assert "query 0 “To” → key 0 “To”: weight 1" in readout(shown)
    assert "–" in shown.inner_text(".explorer-scores tbody tr")
    shown.focus(".map")
    for key in ("+", "ArrowUp", "ArrowDown", "ArrowLeft", "ArrowRight", "]"):
        shown.keyboard.press(key)
    assert state(shown) == (0, 0, 0)


def test_maps_are_printed_in_the_colours_of_paper(page):
    shown = page(dark=True)
    ink = """() => { const c = document.querySelector("canvas.map");
      const copy = Object.assign(document.createElement("canvas"), { width: c.width, height: c.height });
      const pen = copy.getContext("2d", { willReadFrequently: true });
      pen.drawImage(c, 0, 0);
      const { data } = pen.getImageData(0, 40, 80, c.height - 140); // names of the queries
      return Math.max(...data.filter((value, n) => n % 4 === 0 && data[n + 3] > 200)); }"""
    assert shown.evaluate(ink) > 200
    shown.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert shown.evaluate(ink) < 130
    shown.evaluate("dispatchEvent(new Event('afterprint'))")
    assert shown.evaluate(ink) > 200


def test_without_scripts_it_says_so(maps, browser, tmp_path):
    explorer.explorer_page(maps, TOKENS, IDS, "Attention").save(tmp_path / "a.html")
    context = browser.new_context(java_script_enabled=False, offline=True)
    shown = context.new_page()
    shown.goto((tmp_path / "a.html").as_uri())
    assert "drawn by a script" in shown.inner_text("body")
    context.close()


def test_a_token_ends_no_script(maps):
    tokens = ["</script>", "<!--<script>", *TOKENS[2:]]
    text = explorer.explorer_page(maps, tokens, IDS, "Attention").html()
    assert "<!--<script>" not in text
    assert carried(text)[0]["tokens"] == tokens
