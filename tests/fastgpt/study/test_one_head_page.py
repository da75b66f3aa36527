"""The one-head model's page: its numbers are the forward's, keys step and move, a phone can show it."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch
import torch.nn.functional as F

from fastgpt.data.tokenizer import Tokenizer
from fastgpt.model.one_head import OneHeadLM
from fastgpt.pages.page import Page
from fastgpt.study import one_head_page, step_page
from fastgpt.study.attention_maps import token_labels
from fastgpt.study.one_head_steps import one_head_steps, statistics_of
from fastgpt.study.palette import PALETTE
from tests.support.browser import overflow

pytestmark = pytest.mark.needs("tiktoken")

TEXT = "To be, or not to be: <b>"


@pytest.fixture(scope="module")
def tokenizer() -> Tokenizer:
    return Tokenizer.named("shakespeare")


@pytest.fixture(scope="module")
def ids(tokenizer) -> list[int]:
    return tokenizer.encode(TEXT)


@pytest.fixture(scope="module")
def model(tokenizer) -> OneHeadLM:
    torch.manual_seed(0)
    model = OneHeadLM(tokenizer.vocab_size, 12, 32)
    with torch.no_grad():
        for parameter in model.parameters():  # large enough that attention is not near uniform
            parameter.normal_(0, 0.6)
    return model


@pytest.fixture(scope="module")
def path(model, tokenizer, ids, tmp_path_factory):
    page = one_head_page.one_head_page(model, tokenizer, ids, about="Random.", provenance=[("seed", 0)])
    path = tmp_path_factory.mktemp("one-head") / "one.html"
    page.save(path)
    return path


@pytest.fixture(scope="module")
def data(path) -> dict:
    text = path.read_text(encoding="utf-8")
    return json.loads(re.search(r'<script type="application/json" id="step-data">(.*?)</script>', text, re.S)[1])


def on_page(data: dict, name: str) -> torch.Tensor:
    return step_page.unpacked(data["arrays"][name])


def shown(text: str) -> float:
    return float(text.replace("−", "-"))


def four(value: float) -> float:
    return float(f"{value:.4g}")


def test_what_the_forward_returns_by_name_is_on_the_page(model, data, ids):
    output = model(torch.tensor([ids]))
    assert torch.equal(on_page(data, "scores"), output.qk_scaled[0])
    assert torch.equal(on_page(data, "weights"), output.qk_softmax[0])
    steps = one_head_steps(model, torch.tensor([ids]))
    assert torch.equal(steps.logits, output.logits[0])
    assert torch.equal(steps.mask, output.causal_mask)
    chosen = one_head_page.likely_anywhere(output.logits[0])
    assert torch.equal(on_page(data, "logits"), output.logits[0][:, chosen])
    assert data["tokens"] == token_labels(Tokenizer.named("shakespeare"), ids)


def test_every_step_in_float64(model, data, ids):
    """The formulas written out again, in float64."""
    E, P, W_Q, W_K, W_V, W_0 = (
        m.weight.detach().double() for m in (model.token_emb, model.pos_emb, model.W_Q, model.W_K, model.W_V, model.W_0)
    )
    x = E[ids] + P[: len(ids)]
    h = F.layer_norm(x, x.shape[1:], model.ln.weight.double(), model.ln.bias.double(), model.ln.eps)
    q, k, v = h @ W_Q.T, h @ W_K.T, h @ W_V.T
    scores = q @ k.T / math.sqrt(x.shape[1])
    weights = scores.masked_fill(torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1), -math.inf).softmax(-1)
    mixed = weights @ v
    attended = mixed @ W_0.T
    exact = {
        "token": E[ids], "position": P[: len(ids)], "x": x, "h": h, "q": q, "k": k, "v": v, "scores": scores,
        "weights": weights, "mixed": mixed, "attended": attended, "y": x + attended,
    }  # fmt: skip
    for name, value in exact.items():
        torch.testing.assert_close(on_page(data, name).double(), value, rtol=1e-4, atol=1e-4, msg=name)


def test_statistics_are_those_that_layer_norm_divides_by():
    x = torch.tensor([[1.0, 3.0], [5.0, 5.0]])
    torch.testing.assert_close(statistics_of(x, 0.25), torch.tensor([[2.0, math.sqrt(1.25)], [5.0, 0.5]]))


def test_the_likeliest_tokens_are_those_of_the_whole_softmax(model, data, ids):
    logits = model(torch.tensor([ids])).logits[0].double()
    row = data["tops"]["next"][3]
    best = logits[3].softmax(-1).topk(10)
    assert [entry[1] for entry in row] == pytest.approx(best.values.tolist(), rel=1e-5)
    assert [entry[2] for entry in row] == pytest.approx(logits[3][best.indices].tolist(), rel=1e-5)


def test_the_code_on_the_page_is_that_of_the_model():
    assert step_page.code_of(OneHeadLM.forward, "q_BxTxD") == ["q_BxTxD = self.W_Q(h_BxTxD)"]
    with pytest.raises(ValueError, match=r"no line of OneHeadLM\.forward begins with 'nothing'"):
        step_page.code_of(OneHeadLM.forward, "nothing")


def test_a_token_ends_no_script():
    page = step_page.step_page(Page("Steps"), [], {}, ["</script><b>", "<!--"])
    text = page.html()
    assert "</script><b>" not in text
    found = json.loads(re.search(r'id="step-data">(.*?)</script>', text, re.S)[1])
    assert found["tokens"] == ["</script><b>", "<!--"]


def test_only_one_sequence(model):
    with pytest.raises(ValueError, match=r"ids has shape \(2, 3\)"):
        one_head_steps(model, torch.zeros(2, 3, dtype=torch.long))
    with pytest.raises(ValueError, match="give one of two dimensions"):
        step_page.packed(torch.zeros(3))


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (1200, True), (400, False), (400, True)])
def test_it_fits_and_is_quiet_at_every_step(opened, path, width, dark):
    page = opened(path, width=width, dark=dark)
    count = page.locator(".step").count()
    assert count == 11
    for step in range(1, count + 1):
        assert page.inner_text(".at") == f"{step} of {count}"
        assert overflow(page) == 0
        assert page.locator(".step:visible").count() == 1
        page.keyboard.press("ArrowRight")
    page.click(".all")
    assert page.locator(".step:visible").count() == count
    assert overflow(page) == 0


def test_keys_and_buttons_step_and_the_address_says_where(opened, path):
    page = opened(path)
    page.keyboard.press("ArrowRight")
    page.keyboard.press("ArrowRight")
    page.wait_for_function("location.hash === '#step=3'")
    page.keyboard.press("ArrowLeft")
    page.wait_for_function("location.hash === '#step=2'")
    page.click("text=Next →")
    page.wait_for_function("document.querySelector('.at').textContent === '3 of 11'")
    page.evaluate("location.hash = '#step=7'")
    page.wait_for_function("document.querySelector('.at').textContent === '7 of 11'")
    page.go_back()
    page.wait_for_function("document.querySelector('.at').textContent === '3 of 11'")


def focus(page, key: str):
    page.focus(f".matrix[data-key='{key}'] .frame")
    return page.locator(f".matrix[data-key='{key}']")


def test_arrow_keys_move_in_a_matrix_and_the_number_is_the_models(opened, path, data, ids):
    page = opened(f"{path}")
    page.evaluate("location.hash = '#step=5'")
    matrix = focus(page, "5-0")
    for key in ("Home", "PageUp", "ArrowDown", "ArrowDown", "ArrowDown", "ArrowRight"):
        page.keyboard.press(key)
    scores = on_page(data, "scores")
    where = matrix.locator(".where").inner_text()
    assert where.startswith(f"token 3 {data['tokens'][3]}, token 1 {data['tokens'][1]}: ")
    assert shown(where.rpartition(": ")[2]) == four(scores[3, 1].item())
    spelled = matrix.locator(".spelled").inner_text()
    assert spelled.startswith("q₃ · k₁ / √12 = (")
    products = spelled.split("= (", 1)[1].rpartition(") / ")[0].split(" + ")
    terms = [tuple(map(shown, re.sub("[()]", "", product).split(" · "))) for product in products]
    q, k = on_page(data, "q"), on_page(data, "k")
    assert terms == [(four(a), four(b)) for a, b in zip(q[3].tolist(), k[1].tolist())]
    assert shown(spelled.rpartition("= ")[2]) == four(scores[3, 1].item())
    assert page.evaluate("location.hash") == "#step=5"  # arrows in a matrix step nowhere


SPELLED = {
    "2-2": ("x", "E₄,₂ + P₄,₂ = "),
    "3-1": ("h", "(x − mean) / std · weight + bias = ("),
    "4-2": ("v", "h₄ · WV₂ = "),
    "7-0": ("weights", "exp(s₄,₂ − max) / Σ = exp("),
    "8-2": ("mixed", "Σₛ A₄,ₛ · vₛ,₂ = "),
    "9-0": ("attended", "o₄ · W0₂ = "),
    "10-0": ("y", "x₄,₂ + a₄,₂ = "),
    "11-0": ("logits", "y₄ · E₂ = "),
}


def test_every_cell_spells_out_what_makes_its_value(opened, path, data):
    page = opened(path)
    page.click(".all")
    for key, (name, begins) in SPELLED.items():
        matrix = focus(page, key)
        for pressed in ("Home", "PageUp", *["ArrowDown"] * 4, *["ArrowRight"] * 2):
            page.keyboard.press(pressed)
        spelled, value = matrix.locator(".spelled").inner_text(), on_page(data, name)[4, 2].item()
        assert spelled.startswith(begins)
        assert shown(spelled.rpartition("= ")[2]) == four(value)
        _, *parts, _ = spelled.split(" = ")
        python = parts[0].replace("−", "-").replace("·", "*").replace("exp(", "math.exp(")
        assert eval(python) == pytest.approx(value, rel=5e-3, abs=5e-3)  # its terms have four digits


def test_masked_cells_are_not_seen_rather_than_0(opened, path, data):
    page = opened(path)
    page.evaluate("location.hash = '#step=7'")
    matrix = focus(page, "7-0")
    for key in ("PageUp", "Home", "ArrowRight"):
        page.keyboard.press(key)
    assert matrix.locator(".where").inner_text().endswith("not seen")
    assert "token 0 must not see token 1" in matrix.locator(".spelled").inner_text()
    assert "not seen" in matrix.locator(".bar").inner_text()
    # Hatched: the colours of a masked cell differ within it, those of a seen one do not.
    colours = """() => { const c = document.querySelector("[data-key='7-0'] .cells"), v = c.getBoundingClientRect();
      const at = document.querySelector("[data-key='7-0'] .cell").getBoundingClientRect(), k = c.width / v.width;
      const d = c.getContext('2d').getImageData((at.x - v.x + 4) * k, (at.y - v.y + 4) * k, 12, 4).data;
      return new Set(Array.from({length: 48}, (_, n) => d.slice(4 * n, 4 * n + 3).join())).size; }"""
    assert page.evaluate(colours) > 1


def test_a_query_token_is_followed_through_the_steps(opened, path, data):
    page = opened(path, width=400)
    page.evaluate("location.hash = '#step=5'")
    page.click(".tokens button >> nth=2")
    matrix = page.locator(".matrix[data-key='5-0']")
    assert matrix.locator(".where").inner_text().startswith(f"token 2 {data['tokens'][2]}, ")
    band = (
        "key => { const m = document.querySelector(`[data-key='${key}'] .mark`); return m.style.top + m.style.height }"
    )
    row = page.evaluate(band, "5-0")
    focus(page, "5-0")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("Enter")
    assert page.locator(".tokens button[aria-pressed=true]").inner_text() == data["tokens"][3]
    assert page.evaluate(band, "5-0") != row
    page.evaluate("location.hash = '#step=11'")
    page.wait_for_selector(".top table:visible")
    listed = page.locator(".step:visible .top tbody tr")
    assert [shown(listed.nth(n).locator("td").nth(3).inner_text()) for n in range(3)] == [
        four(entry[1]) for entry in data["tops"]["next"][3][:3]
    ]


def test_touch_points_at_a_cell(opened, path, data):
    page = opened(path, width=400)
    page.evaluate("location.hash = '#step=4'")
    page.wait_for_function("document.querySelector('.at').textContent === '4 of 11'")
    cells = page.locator(".matrix[data-key='4-0'] .cells")
    box = "document.querySelector(\"[data-key='4-0'] .cell\").getBoundingClientRect().toJSON()"
    size = [page.evaluate(box)[side] - 1 for side in ("width", "height")]
    cells.tap(position={"x": 2.5 * size[0], "y": 18 + 1.5 * size[1]})
    where = page.inner_text(".matrix[data-key='4-0'] .where")
    assert where.startswith(f"token 1 {data['tokens'][1]}, dimension 2: ")
    assert shown(where.rpartition(": ")[2]) == four(on_page(data, "q")[1, 2].item())


def test_a_long_text_is_drawn_as_a_picture_of_the_same_colours(opened, tokenizer, tmp_path):
    """150 tokens: 22,500 cells of attention."""
    torch.manual_seed(1)
    model = OneHeadLM(tokenizer.vocab_size, 4, 160)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.normal_()
    ids = tokenizer.encode("To be, or not to be: that is the question. " * 14)[:150]
    one_head_page.one_head_page(model, tokenizer, ids, about="", provenance=[]).save(tmp_path / "long.html")
    weights = one_head_steps(model, torch.tensor([ids])).weights
    page = opened(tmp_path / "long.html", width=400)
    page.evaluate("location.hash = '#step=7'")
    page.wait_for_function("document.querySelector('.at').textContent === '7 of 11'")
    matrix = focus(page, "7-0")
    for key in ("PageDown", "ArrowUp", "Home", "ArrowRight", "ArrowRight"):
        page.keyboard.press(key)
    assert shown(matrix.locator(".where").inner_text().rpartition(": ")[2]) == four(weights[148, 2].item())
    colours = """places => { const c = document.querySelector("[data-key='7-0'] .cells");
      const s = document.querySelector("[data-key='7-0'] .cell").style, px = name => parseFloat(s[name]);
      const w = px("width") - 1, h = px("height") - 1, k = c.width / c.clientWidth;
      const { data } = c.getContext("2d").getImageData(0, 0, c.width, c.height);
      return places.map(([i, j]) => {
        const x = px("left") + 1 + (j - 2 + 0.5) * w, y = px("top") + 1 + (i - 148 + 0.5) * h;
        const at = 4 * (Math.floor(y * k) * c.width + Math.floor(x * k));
        return [...data.slice(at, at + 3)];
      }); }"""
    shades = [PALETTE[n] for n in (*range(0, 256, 8), 255)]
    places = [(0, 0), (60, 3), (148, 2), (149, 149)]
    expected = [shades[round(weights[i, j].item() * (len(shades) - 1))] for i, j in places]
    assert page.evaluate(colours, places) == [[int(rgb[at : at + 2], 16) for at in (1, 3, 5)] for rgb in expected]
    assert overflow(page) == 0


def test_what_overflows_is_shown_as_no_number_in_a_colour_of_its_own(opened, tokenizer, tmp_path):
    torch.manual_seed(1)
    model = OneHeadLM(tokenizer.vocab_size, 12, 32)
    with torch.no_grad():
        for weight in (model.W_Q.weight, model.W_K.weight):
            weight.normal_(0, 1e25)  # finite; scores are not
    one_head_page.one_head_page(model, tokenizer, tokenizer.encode(TEXT), about="", provenance=[]).save(
        tmp_path / "nan.html"
    )
    page = opened(tmp_path / "nan.html")
    for step in range(1, 12):
        page.evaluate(f"location.hash = '#step={step}'")
        page.wait_for_function(f"document.querySelector('.at').textContent === '{step} of 11'")
        if step == 7:
            matrix = focus(page, "7-0")
            page.keyboard.press("PageDown")
            page.keyboard.press("Home")
            assert matrix.locator(".where").inner_text().endswith(": NaN")
            assert "NaN: not a number" in matrix.locator(".bar").inner_text()
            pixel = """() => { const c = document.querySelector("[data-key='7-0'] .cells"), k = c.width / c.clientWidth;
              const s = document.querySelector("[data-key='7-0'] .cell").style, px = name => parseFloat(s[name]) + 4;
              return [...c.getContext("2d").getImageData(px("left") * k, px("top") * k, 1, 1).data.slice(0, 3)]; }"""
            assert page.evaluate(pixel) == [0x8A, 0x61, 0x00]  # --s4
    assert "NaN" in page.inner_text(".step:not([hidden]) .top tbody")


def test_matrices_are_printed_in_the_colours_of_paper(opened, path):
    page = opened(path, dark=True)
    page.evaluate("location.hash = '#step=4'")
    page.wait_for_function("document.querySelector('.at').textContent === '4 of 11'")
    ink = """() => { const c = document.querySelector("[data-key='4-0'] canvas.names");
      const copy = Object.assign(document.createElement("canvas"), { width: c.width, height: c.height });
      const pen = copy.getContext("2d", { willReadFrequently: true });
      pen.drawImage(c, 0, 0);
      const { data } = pen.getImageData(0, 0, c.width, c.height);
      return Math.max(...data.filter((value, n) => n % 4 === 0 && data[n + 3] > 200)); }"""
    assert page.evaluate(ink) > 200
    page.evaluate("dispatchEvent(new Event('beforeprint'))")
    assert page.evaluate(ink) < 100
    assert page.locator(".step:visible").count() == 11
    page.evaluate("dispatchEvent(new Event('afterprint'))")
    assert page.evaluate(ink) > 200
    assert page.locator(".step:visible").count() == 1


def test_names_are_cut_between_characters(opened, path):
    page = opened(path)
    cut = "fit({ measureText: text => ({ width: 10 * [...text].length }) }, '🙂🙂🙂🙂', 30)"
    assert page.evaluate(cut) == "🙂🙂…"


@pytest.mark.parametrize(
    ("value", "text"), [("0.999", "1.00"), ("-0.5", "−.50"), ("99.96", "100"), ("-123456", "−1e5"), ("1/0", "∞")]
)
def test_numbers_in_cells_have_room_there(opened, path, value, text):
    assert opened(path).evaluate(f"brief({value})") == text


def test_the_query_token_is_in_sight(opened, model, tokenizer, tmp_path):
    ids = tokenizer.encode("to be or not to be " * 8)[:32]
    one_head_page.one_head_page(model, tokenizer, ids, about="", provenance=[]).save(tmp_path / "long.html")
    page = opened(tmp_path / "long.html", width=400)
    right = page.evaluate("document.querySelector('.tokens [aria-pressed=true]').getBoundingClientRect().right")
    assert 0 < right < 400
