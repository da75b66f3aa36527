"""Pictures of attention: every head and token where it belongs, in the palette's colours, beside their bar."""

from __future__ import annotations

import pytest
import torch

from fastgpt.data.tokenizer import Tokenizer
from fastgpt.study import attention_maps
from fastgpt.study.palette import PALETTE, SCALES, shade

TOKENS = ["To", "·be", "</script>", "$or$", "↵"]


def maps_of(layers=(0, 2), heads=2, T=5) -> dict[int, torch.Tensor]:
    """Causal attention that draws from torch's generator."""
    future = torch.ones(T, T).triu(1).bool()
    return {n: torch.softmax(torch.randn(1, heads, T, T).masked_fill(future, -torch.inf), -1) for n in layers}


def drawn(monkeypatch, *args, **options):
    """The figure of `png`, which it drew."""
    made = []
    figure_class = attention_maps.import_figure()

    def make(*given, **how):
        made.append(figure_class(*given, **how))
        return made[-1]

    monkeypatch.setattr(attention_maps, "import_figure", lambda: make)
    assert attention_maps.png(*args, **options)[:4] == b"\x89PNG"
    return made[0]


def test_a_picture_is_written(tmp_path, seed):
    image = pytest.importorskip("matplotlib.image")
    attention_maps.save_png(maps_of(heads=3), TOKENS, tmp_path / "a.png")
    assert attention_maps.is_ours(tmp_path / "a.png")
    picture = image.imread(tmp_path / "a.png")
    assert picture.shape[1] > picture.shape[0] > 200
    assert picture[..., :3].std() > 0.05


@pytest.mark.parametrize("scale", SCALES)
def test_a_picture_shows_weights_tokens_and_scale(monkeypatch, seed, scale):
    pytest.importorskip("matplotlib")
    maps = maps_of()
    figure = drawn(monkeypatch, maps, "To be", [1, 3], scale=scale, tokens=TOKENS)
    *panels, bar = figure.axes
    assert [axis.get_title() for axis in panels] == [f"layer {n}, head {h}" for n in (0, 2) for h in (1, 3)]
    shown = panels[3].images[0]
    weights, future = maps[2][0, 1], torch.ones(5, 5).triu(1).bool()
    assert shown.get_array().mask.tolist() == future.tolist()  # neither 0 nor any other weight
    assert panels[3].patch.get_hatch()
    rgb = shown.cmap(shown.norm(weights.numpy()), bytes=True)[..., :3]
    expected = [[PALETTE[min(255, int(256 * s))] for s in row] for row in shade(weights.numpy(), scale)]
    assert [["#{:02x}{:02x}{:02x}".format(*cell) for cell in row] for row in rgb] == expected
    rows, columns = ([text.get_text() for text in texts] for texts in
                     (panels[0].get_yticklabels(), panels[2].get_xticklabels()))  # fmt: skip
    assert rows == columns == ["To", "·be", "</script>", r"\$or\$", "↵"]
    assert not panels[1].get_yticklabels()
    assert not panels[1].get_xticklabels()
    assert bar.get_ylabel() == f"attention weight ({SCALES[scale]})"


def test_a_pixel_of_many_weights_is_the_largest(monkeypatch):
    pytest.importorskip("matplotlib")
    weights = torch.eye(600)
    figure = drawn(monkeypatch, {0: weights[None, None]}, "", tokens=["a"] * 600)
    shown = figure.axes[0].images[0].get_array()
    assert shown.shape == (200, 200)
    assert (shown.diagonal() == 1).all()
    assert "a pixel is the largest weight of 3 x 3" in figure.get_suptitle()
    assert not figure.axes[0].get_yticklabels()
    small, k = attention_maps.pooled(torch.arange(25.0).view(5, 5), 3)
    assert (small.tolist(), k) == ([[6, 8, 9], [16, 18, 19], [21, 23, 24]], 2)


def test_heads_have_their_numbers(seed):
    maps = maps_of()
    panels = list(attention_maps.head_panels(maps, [0, 3]))
    assert [panel.title for panel in panels] == [f"layer {n}, head {h}" for n in (0, 2) for h in (0, 3)]
    assert torch.equal(panels[3].weights, maps[2][0, 1])
    assert [panel.head for panel in attention_maps.head_panels(maps)] == [0, 1, 0, 1]
    with pytest.raises(ValueError, match=r"have shape \(2, 1, 4, 4\); give one sequence"):
        list(attention_maps.head_panels({0: torch.zeros(2, 1, 4, 4)}))


def test_a_scale_that_is_none():
    with pytest.raises(ValueError, match="scale='root' must be one of linear, sqrt, log"):
        attention_maps.png({}, "", scale="root")


@pytest.mark.needs("tiktoken")
def test_token_labels_show_white_space():
    tokenizer = Tokenizer.named("gpt2")
    labels = attention_maps.token_labels(tokenizer, tokenizer.encode("To be\n🤖"))
    assert labels[:3] == ["To", "·be", "↵"]
    assert "".join(labels[3:]) == "".join(f"\\x{byte:02x}" for byte in "🤖".encode())
    assert attention_maps.token_labels(tokenizer, tokenizer.encode("\t")) == ["⇥"]
    assert attention_maps.token_labels(tokenizer, tokenizer.encode("\r")) == ["\\r"]
    assert attention_maps.token_labels(tokenizer, tokenizer.encode("é")) == ["é"]
