"""Pictures and pages: self-contained, escaped, and showing the numbers that they were given."""

from __future__ import annotations

import base64
import json
import re

import pytest
import torch

from fastgpt.data.tokenizer import Tokenizer
from fastgpt.study import attention_maps
from tests.fastgpt.pages.test_page import Parsed


def maps_of(layers=(0, 2), heads=2, T=5) -> dict[int, torch.Tensor]:
    torch.manual_seed(0)
    return {layer: torch.softmax(torch.randn(1, heads, T, T), -1) for layer in layers}


TOKENS = ["To", "·be", "</script>", "$or$", "↵"]


def test_html_maps_hold_the_weights():
    maps = maps_of()
    text = attention_maps.maps_page(maps, TOKENS, "a <title>", heads=[0, 3])
    page = Parsed(text)
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
