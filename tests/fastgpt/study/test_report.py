"""Pictures and pages: self-contained, escaped, and showing the numbers that they were given."""

from __future__ import annotations

import base64
import json
import re
from html.parser import HTMLParser

import pytest
import torch

from fastgpt.data.tokenizer import Tokenizer
from fastgpt.study import attention_maps
from fastgpt.study.report import Report, environment


class Page(HTMLParser):
    """Collects tags, and what would be fetched from elsewhere."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.external: list[str] = []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.tags.append(tag)
        self.external += [v for k, v in attributes if k in ("src", "href") and not str(v).startswith("data:")]


def maps_of(layers=(0, 2), heads=2, T=5) -> dict[int, torch.Tensor]:
    torch.manual_seed(0)
    return {layer: torch.softmax(torch.randn(1, heads, T, T), -1) for layer in layers}


TOKENS = ["To", "·be", "</script>", "$or$", "↵"]


def test_report_is_one_escaped_file(tmp_path):
    report = Report("a <title>")
    report.heading("1 < 2")
    report.paragraph("<b>")
    report.preformatted("<i>")
    report.table(("a", "b"), [("<u>", 1), ("x", 2)], bad=[1])
    report.save(tmp_path / "deep" / "r.html")
    text = (tmp_path / "deep" / "r.html").read_text()
    page = Page(text)
    assert not page.external
    assert not {"b", "i", "u"} & set(page.tags)
    assert text.count("class=bad") == 1
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["r.html"]


def test_environment_names_what_matters():
    names = dict(environment())
    assert {"fastgpt", "Python", "torch", "triton", "GPU", "CPU", "system"} <= names.keys()
    assert names["torch"] == torch.__version__


def test_html_maps_hold_the_weights():
    maps = maps_of()
    text = attention_maps.maps_page(maps, TOKENS, "a <title>", heads=[0, 3])
    page = Page(text)
    assert not page.external
    assert text.count("</script>") == 1  # a token must not end the script
    data = json.loads(re.search(r"const data = (.*);\n", text).group(1))
    assert data["tokens"] == TOKENS
    assert [p["title"] for p in data["panels"]] == [f"layer {l}, head {h}" for l in (0, 2) for h in (0, 3)]
    stored = torch.frombuffer(bytearray(base64.b64decode(data["panels"][3]["weights"])), dtype=torch.uint8)
    torch.testing.assert_close(stored.view(5, 5) / 255, maps[2][0, 1], rtol=0, atol=0.5 / 255 + 1e-6)


def test_png_of_maps(tmp_path):
    image = pytest.importorskip("matplotlib.image")
    attention_maps.save_png(maps_of(heads=3), TOKENS, tmp_path / "a.png")
    picture = image.imread(tmp_path / "a.png")
    assert picture.shape[1] > picture.shape[0] > 200
    assert picture[..., :3].std() > 0.05


def test_maps_of_a_batch_are_refused():
    with pytest.raises(ValueError, match=r"have shape \(2, 1, 4, 4\); give one sequence"):
        attention_maps.head_panels({0: torch.zeros(2, 1, 4, 4)})


@pytest.mark.needs("tiktoken")
def test_token_labels_show_white_space():
    tokenizer = Tokenizer.named("gpt2")
    labels = attention_maps.token_labels(tokenizer, tokenizer.encode("To be\n🤖"))
    assert labels[:3] == ["To", "·be", "↵"]
    assert "\ufffd" in labels[3]
