"""Pictures of attention weights: a PNG of all heads, and HTML in which every weight can be read.

Both take what `model.attention_maps(idx)` returns, {layer: (1, heads, T, T)}, and the T tokens as text. Row t is what
query t sees.
"""

from __future__ import annotations

import base64
import html
import io
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from ..base import files
from ..kernels._runtime import cdiv

if TYPE_CHECKING:
    from ..data.tokenizer import Tokenizer


MARK = "fastgpt attention maps"  # in the files' own words for what made them


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a page or picture that this module wrote."""
    with open(path, "rb") as file:
        return MARK.encode() in file.read(4096)


def token_labels(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Each token's text, with visible white space; bytes that are no character alone appear as U+FFFD."""
    return [tokenizer.decode([i]).replace("\n", "↵").replace(" ", "·") or "∅" for i in ids]


def head_panels(maps: Mapping[int, Tensor], heads: Sequence[int] | None = None) -> list[tuple[str, Tensor]]:
    """[("layer 0, head 2", (T, T) float32 on the CPU), ...]; `heads`: the numbers that the maps' heads have.

    Raises:
        ValueError: more than one sequence in the batch.
    """
    panels = []
    for layer, weights in maps.items():
        if weights.dim() != 4 or weights.shape[0] != 1:
            raise ValueError(f"attention maps of layer {layer} have shape {tuple(weights.shape)}; give one sequence")
        numbers = heads if heads is not None else range(weights.shape[1])
        for number, head in zip(numbers, weights[0], strict=True):
            panels.append((f"layer {layer}, head {number}", head.detach().float().cpu()))
    return panels


def png(
    maps: Mapping[int, Tensor], title: str, heads: Sequence[int] | None = None, *, columns: int | None = None,
    most: int | None = None,
) -> bytes:  # fmt: skip
    """A PNG with a square of weights per head, at `most` so many, a row per layer or `columns` of them in a row.

    Brightness is the square root of the weight.

    Raises:
        ImportError: matplotlib is not installed.
    """
    figure_class = import_figure()
    panels = head_panels(maps, heads)[:most]
    columns = columns or max(1, len(panels) // max(1, len(maps)))
    rows = cdiv(len(panels), columns)
    figure = figure_class(figsize=(1.8 * columns + 0.4, 1.9 * rows + 0.6), layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat[len(panels) :]:
        axis.axis("off")
    for axis, (name, weights) in zip(axes.flat, panels):
        axis.imshow(weights.sqrt().numpy(), vmin=0.0, vmax=1.0, cmap="magma", interpolation="nearest")
        axis.set_title(name, fontsize=7)
        axis.set_xticks([])
        axis.set_yticks([])
    # A $ would start a formula.
    figure.suptitle(f"rows: queries, columns: keys\n{title}".replace("$", r"\$"), fontsize=7)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=150, metadata={"Software": MARK})
    return drawn.getvalue()


def save_png(
    maps: Mapping[int, Tensor], tokens: Sequence[str], path: str | os.PathLike[str], heads: Sequence[int] | None = None
) -> None:
    """Write `png` to a file, the tokens as its title.

    Raises:
        ImportError: matplotlib is not installed. OSError: the disk is full or cannot be written.
    """
    text = " ".join(tokens)
    drawn = png(maps, text if len(text) <= 80 else text[:79] + "…", heads)
    files.replace_file(Path(path), lambda new: new.write_bytes(drawn))


def import_figure() -> Any:
    """matplotlib's Figure, without pyplot and its global state.

    Raises:
        ImportError: matplotlib is not installed.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("drawing needs matplotlib; `pip install 'fastgpt-triton[train]'`") from error
    return Figure


def maps_html(maps: Mapping[int, Tensor], tokens: Sequence[str], heads: Sequence[int] | None = None) -> str:
    """A self-contained piece of HTML: choose a layer and head, point at a query to read its weights off the tokens.

    Weights are stored in steps of 1/255.
    """
    panels = [
        {"title": title, "weights": base64.b64encode(_bytes(weights)).decode("ascii")}
        for title, weights in head_panels(maps, heads)
    ]
    data = json.dumps({"tokens": list(tokens), "panels": panels}).replace("</", "<\\/")
    return _VIEWER.replace("__DATA__", data)


def maps_page(maps: Mapping[int, Tensor], tokens: Sequence[str], title: str, heads: Sequence[int] | None = None) -> str:
    """`maps_html` as a whole page."""
    head = f'<!doctype html><html lang="en"><meta charset="utf-8"><meta name="generator" content="{MARK}">'
    head += f"<title>{html.escape(title)}</title>"
    style = "<style>body{font:15px system-ui,sans-serif;margin:2rem;max-width:60rem}</style>"
    return f"{head}{style}<h1>{html.escape(title)}</h1>{maps_html(maps, tokens, heads)}</html>"


def save_page(
    maps: Mapping[int, Tensor], tokens: Sequence[str], path: str | os.PathLike[str], title: str,
    heads: Sequence[int] | None = None,
) -> None:  # fmt: skip
    """Write `maps_page` to a file.

    Raises:
        OSError: the disk is full or cannot be written.
    """
    page = maps_page(maps, tokens, title, heads)
    files.replace_file(Path(path), lambda new: new.write_text(page, encoding="utf-8"))


def _bytes(weights: Tensor) -> bytes:
    return (weights.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).numpy().tobytes()


_VIEWER = """
<div class="attention"><p><label>head <select></select></label>
<span class="hint">Point at a row of the picture, or at a token: the tokens are shaded by what it attends to.</span></p>
<canvas style="width:24rem;height:24rem;image-rendering:pixelated;border:1px solid #888;float:left;margin-right:1rem">
</canvas><div class="tokens" style="font:14px ui-monospace,monospace;line-height:1.9"></div>
<div style="clear:both"></div></div>
<script>
(() => {
  const data = __DATA__;
  const root = document.currentScript.previousElementSibling;
  const [select, canvas, row] = ["select", "canvas", ".tokens"].map(name => root.querySelector(name));
  const n = data.tokens.length, draw = canvas.getContext("2d");
  let weights = null;
  canvas.width = canvas.height = n;
  data.panels.forEach((panel, i) => select.add(new Option(panel.title, i)));
  const spans = data.tokens.map((token, i) => {
    const span = document.createElement("span");
    span.textContent = token;
    span.style.padding = "2px 1px";
    span.onmouseenter = () => shade(i);
    row.append(span, "\\u200b");
    return span;
  });
  function shade(query) {
    spans.forEach((span, key) => {
      const w = weights[query * n + key] / 255;
      span.style.background = key <= query ? `rgba(230,90,20,${Math.sqrt(w)})` : "none";
      span.style.outline = key === query ? "2px solid #36c" : "none";
      span.title = `${data.tokens[query]} → ${data.tokens[key]}: ${w.toFixed(3)}`;
    });
  }
  function show() {
    weights = Uint8Array.from(atob(data.panels[select.value].weights), c => c.charCodeAt(0));
    const image = draw.createImageData(n, n);
    weights.forEach((w, i) => {
      const v = Math.sqrt(w / 255);
      image.data.set([20 + 235 * v, 12 + 150 * v * v, 50 + 60 * (1 - v), 255], 4 * i);
    });
    draw.putImageData(image, 0, 0);
    shade(n - 1);
  }
  select.onchange = show;
  canvas.onmousemove = event => {
    const box = canvas.getBoundingClientRect();
    shade(Math.max(0, Math.min(n - 1, Math.floor((event.clientY - box.top) / box.height * n))));
  };
  if (data.panels.length) show();
})();
</script>
"""
