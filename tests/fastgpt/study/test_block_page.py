"""The page of a GPT's block: its numbers are those that hooks on the forward see, layer and head are chosen on it."""

from __future__ import annotations

import json
import math
import re

import pytest
import torch

from fastgpt.data.tokenizer import Tokenizer
from fastgpt.model.config import GPTConfig
from fastgpt.model.gpt import GPT
from fastgpt.study import block_arrays, block_page, step_page
from fastgpt.study.block_steps import gpt_steps
from tests.support.browser import overflow

pytestmark = pytest.mark.needs("tiktoken")

D, HEADS, KV_HEADS, WIDTH = 6, 4, 2, 24


@pytest.fixture(scope="module")
def ids() -> list[int]:
    return Tokenizer.named("shakespeare").encode("To be, or not to be")


def make(**changes) -> GPT:
    torch.manual_seed(0)
    sizes = {"n_layers": 2, "n_heads": HEADS, "n_kv_heads": KV_HEADS, "d_model": WIDTH, "d_ff": 140}
    model = GPT(GPTConfig(4096, 16, **sizes | changes)).eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.add_(torch.randn_like(parameter) * 0.3)
    return model


@pytest.fixture(scope="module")
def model() -> GPT:
    return make()


@pytest.fixture(scope="module")
def path(model, ids, tmp_path_factory):
    tokenizer = Tokenizer.named("shakespeare")
    page = block_page.block_page(model, tokenizer, ids, 1, 3, about="Random.", provenance=[("seed", 0)])
    path = tmp_path_factory.mktemp("block") / "block.html"
    page.save(path)
    return path


def data_of(text: str) -> dict:
    return json.loads(re.search(r'<script type="application/json" id="step-data">(.*?)</script>', text, re.S)[1])


@pytest.fixture(scope="module")
def data(path) -> dict:
    return data_of(path.read_text(encoding="utf-8"))


def on_page(data: dict, name: str) -> torch.Tensor:
    return step_page.unpacked(data["arrays"][name])


def watched(model: GPT, ids: list[int]) -> dict[str, torch.Tensor]:
    """What each part of the model is given and returns in a forward, by hooks."""
    seen = {}

    def hook(name):
        def keep(module, args, result):
            for n, value in enumerate(args):
                seen[f"{name}.in{n}"] = value
            for n, value in enumerate(result if isinstance(result, tuple) else (result,)):
                seen[f"{name}.out{n}"] = value

        return keep

    hooks = [
        part.register_forward_hook(hook(f"{layer}.{name}"))
        for layer, block in enumerate(model.blocks)
        for name, part in block.named_modules()
        if name in ("ln1", "ln2", "attn", "ffn", "ffn.0", "ffn.1", "ffn.2", "attn.out_proj")
    ]
    hooks.append(model.ln_f.register_forward_hook(hook("ln_f")))
    with torch.no_grad():
        seen["logits"] = model(torch.tensor([ids])).logits
    for one in hooks:
        one.remove()
    return {name: value[0] for name, value in seen.items() if value is not None}


@pytest.mark.parametrize("changes", [{}, {"bias": False, "gelu": "tanh", "n_kv_heads": HEADS}], ids=["bias", "plain"])
def test_the_numbers_are_those_of_the_forward(ids, changes):
    model = make(**changes)
    config = model.config
    found = gpt_steps(model, torch.tensor([ids]), [0, 1])
    held = block_arrays.choose_held(config, len(ids), 0, 0)
    arrays = block_arrays.block_arrays(model, found.blocks, held)
    seen = watched(model, ids)
    maps = model.attention_maps(torch.tensor([ids]))
    for layer in (0, 1):
        same = {
            "stream": "ln1.out1", "h1": "ln1.out0", "heads": "attn.out_proj.in0", "attended": "attn.out0",
            "middle": "ln2.out1", "h2": "ln2.out0", "hidden": "ffn.0.out0", "activated": "ffn.1.out0",
            "fed": "ffn.out0",
        }  # fmt: skip
        for ours, theirs in same.items():
            value = seen[f"{layer}.{theirs}"]
            torch.testing.assert_close(arrays[f"{layer}.{ours}"], value, rtol=1e-4, atol=1e-4, msg=f"{layer} {ours}")
        for head in range(HEADS):
            kv = head * config.n_kv_heads // HEADS
            weights, values = arrays[f"{layer}.{head}.weights"], arrays[f"{layer}.{kv}.v"]
            torch.testing.assert_close(weights, maps[layer][0, head])
            mixed = seen[f"{layer}.attn.out_proj.in0"][:, head * D : (head + 1) * D]
            torch.testing.assert_close(weights @ values, mixed, rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(arrays[f"{layer}.{head}.mixed"], mixed)
            scores = arrays[f"{layer}.{head}.scores"].double()
            hidden = torch.ones(len(ids), len(ids), dtype=torch.bool).triu(1)
            torch.testing.assert_close(
                scores.masked_fill(hidden, -math.inf).softmax(-1), weights.double(), rtol=1e-4, atol=1e-5
            )
            for name, of in (("q", head), ("k", kv), ("v", kv)):
                made = arrays[f"{layer}.h1"] @ arrays[f"{layer}.{of}.W_{name}"].T
                made = made + arrays[f"{layer}.{of}.W_{name}.bias"] if config.bias else made
                torch.testing.assert_close(arrays[f"{layer}.{of}.{name}"], made, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(arrays["2.stream"], seen["ln_f.out1"])
    torch.testing.assert_close(found.lens[1], seen["logits"])
    torch.testing.assert_close(found.logits, seen["logits"])
    assert found.norms[1].fed == pytest.approx(float(seen["1.ffn.out0"].norm(dim=-1).mean()), rel=1e-4)
    assert found.norms[1].before == pytest.approx(float(seen["1.ln1.out1"].norm(dim=-1).mean()), rel=1e-4)


def test_query_heads_in_a_row_share_a_key_head(model, data):
    assert data["groups"]["kv"] == ["head", {"0": 0, "1": 0, "2": 1, "3": 1}]
    assert data["groups"]["next"] == ["layer", {"0": 1, "1": 2}]
    assert [block_arrays.key_head(model.config, head) for head in range(4)] == [0, 0, 1, 1]


def test_the_size_that_decides_is_the_size_that_comes(model, ids):
    for held in (
        block_arrays.Held([0, 1], [0, 1, 2, 3], True),
        block_arrays.Held([0, 1], [0, 1, 2, 3], False),
        block_arrays.Held([1], [2], True),
    ):
        found = gpt_steps(model, torch.tensor([ids]), held.layers)
        arrays = block_arrays.block_arrays(model, found.blocks, held)
        assert block_arrays.bytes_of(model.config, len(ids), held) == pytest.approx(
            step_page.packed_bytes(arrays), rel=1e-3
        )


def test_what_is_too_large_is_left_out_and_the_page_says_so(model, ids):
    config, T = model.config, len(ids)

    def held(share):
        whole = block_arrays.bytes_of(config, T, block_arrays.Held([0, 1], [0, 1, 2, 3], True))
        return block_arrays.choose_held(config, T, 1, 2, int(whole * share))

    assert held(1.0) == ([0, 1], [0, 1, 2, 3], True)
    assert held(0.9) == ([0, 1], [0, 1, 2, 3], False)
    assert held(0.0) == ([1], [2], False)
    tokenizer = Tokenizer.named("shakespeare")
    page = block_page.block_page(model, tokenizer, ids, 1, 2, about="", provenance=[], room=0).html()
    assert "layer 1 and head 2 are on this page: more would make it too large" in page
    assert "The weights are not on it" in page
    assert page.count("<option>") == 2  # one layer, one head


def test_in_a_browser_layer_and_head_are_chosen_and_numbers_follow(opened, path, data, model, ids):
    page = opened(path)
    page.evaluate("location.hash = '#step=4'")
    page.wait_for_function("document.querySelector('.at').textContent === '4 of 15'")
    frame, where = ".matrix[data-key='4-0'] .frame", ".matrix[data-key='4-0'] .where"

    def value_at(keys):
        page.focus(frame)
        for key in ("Home", "PageUp", *keys):
            page.keyboard.press(key)
        return float(page.inner_text(where).rpartition(": ")[2].replace("−", "-"))

    keys = ["ArrowDown"] * 3 + ["ArrowRight"]
    assert value_at(keys) == float(f"{on_page(data, '1.3.scores')[3, 1].item():.4g}")
    page.select_option("select[data-choice=layer]", "0")
    page.select_option("select[data-choice=head]", "1")
    assert value_at(keys) == float(f"{on_page(data, '0.1.scores')[3, 1].item():.4g}")
    spelled = page.inner_text(".matrix[data-key='4-0'] .spelled")
    terms = [term.strip("()") for term in spelled.split("= (", 1)[1].rpartition(") / ")[0].split(" + ")]
    product = sum(math.prod(float(x.strip("()").replace("−", "-")) for x in term.split(" · ")) for term in terms)
    key = on_page(data, "0.0.k")[1]  # query heads 0 and 1 read key head 0
    assert product == pytest.approx(float(on_page(data, "0.1.q")[3] @ key), rel=1e-2, abs=1e-2)
    assert len(terms) == D
    page.evaluate("location.hash = '#step=15'")
    page.wait_for_selector(".top table:visible")
    first = page.locator(".step:visible .top tbody tr td").nth(3).inner_text()
    lens = gpt_steps(model, torch.tensor([ids]), [0]).lens[0][-1].double().softmax(-1).max()
    assert float(first) == pytest.approx(float(lens), rel=1e-3)


def test_wide_matrices_are_turned_in_pages_by_buttons_and_keys(opened, path, data):
    page = opened(path, width=400)
    page.evaluate("location.hash = '#step=11'")
    matrix = page.locator(".matrix[data-key='11-0']")
    matrix.locator(".pager").wait_for()
    assert matrix.locator(".pager").inner_text().split("columns ")[1].startswith("0 to 127 of 140")
    matrix.locator("button[aria-label='later columns']").click()
    assert "columns 12 to 139 of 140" in matrix.locator(".pager").inner_text()
    page.focus(".matrix[data-key='11-0'] .frame")
    page.keyboard.press("Home")
    assert "columns 0 to 127" in matrix.locator(".pager").inner_text()
    page.keyboard.press("PageUp")
    page.keyboard.press("End")
    where = matrix.locator(".where").inner_text()
    assert where.startswith(f"token 0 {data['tokens'][0]}, dimension 139: ")
    value = on_page(data, "1.hidden")[0, 139].item()
    assert float(where.rpartition(": ")[2].replace("−", "-")) == float(f"{value:.4g}")


@pytest.mark.parametrize(("width", "dark"), [(1200, False), (400, True)])
def test_it_fits_and_is_quiet_at_every_step(opened, path, width, dark):
    page = opened(path, width=width, dark=dark)
    for step in range(1, 16):
        assert page.inner_text(".at") == f"{step} of 15"
        assert overflow(page) == 0
        page.keyboard.press("ArrowRight")
