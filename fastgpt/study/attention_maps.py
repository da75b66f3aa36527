"""Attention maps as a picture: a PNG with a square of weights per head, its tokens, and the bar of its colours.

It takes what `model.attention_maps(idx)` returns, {layer: (1, heads, T, T)}, and the T tokens as text. Row t is what
query t sees. `explorer.py` makes a page of the same, in which every weight can be read.
"""

from __future__ import annotations

import io
import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import torch
from torch import Tensor

from ..base import files
from ..base.settings import check_choice
from ..kernels._runtime import cdiv
from .palette import LOG_FLOOR, PALETTE, SCALES, TICKS

if TYPE_CHECKING:
    from ..data.tokenizer import Tokenizer


MARK = "fastgpt attention maps"  # in the files' own words for what made them

LABELLED = 32  # tokens, at most, that stand on a picture's axes

_SIDE = 256  # pixels, at most, of a head in a picture

_MOST_PIXELS = 6000  # of a whole picture's width or height


class Panel(NamedTuple):
    """One head: its numbers in the model, and its weights (T, T), float32 on the CPU."""

    layer: int
    head: int
    weights: Tensor

    @property
    def title(self) -> str:
        return f"layer {self.layer}, head {self.head}"


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a page or picture that `fastgpt inspect` wrote."""
    with open(path, "rb") as file:
        return MARK.encode() in file.read(4096)


def token_labels(tokenizer: Tokenizer, ids: Sequence[int]) -> list[str]:
    """Each token's text, in which everything can be seen: white space as ·, ↵ and ⇥, other characters that have no
    picture by their escape sequence ("\\r", "\\u200b"), and bytes that are no character alone, "\\xf0\\x9f"."""
    return ["".join(map(_visible, tokenizer.decode_bytes([i]).decode("utf-8", "backslashreplace"))) or "∅" for i in ids]


_SHOWN = {" ": "·", "\n": "↵", "\t": "⇥"}


def _visible(letter: str) -> str:
    return _SHOWN.get(letter) or (letter if letter.isprintable() else ascii(letter)[1:-1])


def head_panels(maps: Mapping[int, Tensor], heads: Sequence[int] | None = None) -> Iterator[Panel]:
    """The heads of {layer: (1, heads, T, T)}, one at a time; `heads`: the numbers that they have in the model.

    Raises:
        ValueError: more than one sequence in the batch.
    """
    for layer, weights in maps.items():
        if weights.dim() != 4 or weights.shape[0] != 1:
            raise ValueError(f"attention maps of layer {layer} have shape {tuple(weights.shape)}; give one sequence")
        numbers = heads if heads is not None else range(weights.shape[1])
        for number, head in zip(numbers, weights[0], strict=True):
            yield Panel(layer, number, head.detach().float().cpu())


def pooled(weights: Tensor, most: int) -> tuple[Tensor, int]:
    """(the largest weight of each square of k x k, k): of (T, T) so that at most `most` rows are left."""
    k = cdiv(weights.shape[-1], most)
    return torch.nn.functional.max_pool2d(weights[None], k, ceil_mode=True)[0], k


def png(
    maps: Mapping[int, Tensor], title: str, heads: Sequence[int] | None = None, *, columns: int | None = None,
    most: int | None = None, scale: str = "sqrt", tokens: Sequence[str] | None = None, points: float = 7,
) -> bytes:  # fmt: skip
    """A PNG with a square of weights per head, at `most` so many, a row per layer or `columns` of them in a row.

    Colours are `palette.PALETTE` on `scale`, which the bar beside them names. Keys that a query does not see are
    hatched. Up to `LABELLED` tokens stand on the axes; of more than 256, a pixel is the largest weight of a square.
    Text is `points` high, of a picture in which a head takes 1.8 inches or more.

    Raises:
        ImportError: matplotlib is not installed. SettingError: a scale that is none.
    """
    check_choice("png", "scale", scale, SCALES)
    figure_class = import_figure()
    panels = list(head_panels(maps, heads))[:most]
    columns = columns or max(1, len(panels) // max(1, len(maps)))
    rows = cdiv(len(panels), columns)
    labels = _labels(tokens)
    side = max(1.8, 0.11 * len(labels))  # inches
    size = (side * columns + 1.4, (side + 0.1) * rows + 0.8 + 0.4 * bool(labels))
    figure = figure_class(figsize=size, layout="constrained")
    axes = figure.subplots(rows, columns, squeeze=False)
    norm, colours = _colours(scale)
    k = 1
    for place, axis in enumerate(axes.flat):
        if place >= len(panels):
            axis.axis("off")
            continue
        weights, k = pooled(panels[place].weights, _SIDE)
        seen = torch.ones_like(weights).tril().bool()
        axis.patch.set(facecolor="#ffffff", edgecolor="#b6bec7", hatch="//////", linewidth=0)
        axis.imshow(
            weights.where(seen, torch.nan).numpy(), norm=norm, cmap=colours, interpolation="nearest"
        )  # what is NaN is not drawn: the hatch shows
        axis.set_title(panels[place].title, fontsize=points)
        is_left, is_last = place % columns == 0, place + columns >= len(panels)
        _name_axis(axis.yaxis, labels if is_left else [])
        _name_axis(axis.xaxis, labels if is_last else [], rotation=90)
    _draw_bar(figure, axes, norm, colours, scale, points)
    grouped = f"; a pixel is the largest weight of {k} x {k}" if k > 1 else ""
    above = f"rows: queries, columns: keys; hatched: not seen, future{grouped}\n{title}"
    figure.suptitle(_plain(above), fontsize=points)
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=min(150.0, _MOST_PIXELS / max(size)), metadata={"Software": MARK})
    return drawn.getvalue()


def save_png(
    maps: Mapping[int, Tensor], tokens: Sequence[str], path: str | os.PathLike[str], heads: Sequence[int] | None = None,
    scale: str = "sqrt",
) -> None:  # fmt: skip
    """Write `png` to a file, the tokens as its title, and on its axes where they are few.

    Raises:
        ImportError: matplotlib is not installed. OSError: the disk is full or cannot be written.
    """
    text = " ".join(tokens)
    drawn = png(maps, text if len(text) <= 80 else text[:79] + "…", heads, scale=scale, tokens=tokens)
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


def _labels(tokens: Sequence[str] | None) -> list[str]:
    if tokens is None or len(tokens) > LABELLED:
        return []
    return [_plain(token if len(token) <= 10 else f"{token[:9]}…") for token in tokens]


def _plain(text: str) -> str:
    """A $ would start a formula."""
    return text.replace("$", r"\$")


def _name_axis(axis: Any, labels: Sequence[str], **how: Any) -> None:
    axis.set_ticks(range(len(labels)), labels, fontsize=6, **how)
    axis.set_tick_params(length=0)


def _colours(scale: str) -> tuple[Any, Any]:
    """matplotlib's norm and colour map for a scale of `palette.py`."""
    from matplotlib.colors import ListedColormap, LogNorm, PowerNorm

    powers = {"linear": 1.0, "sqrt": 0.5}
    norm = PowerNorm(powers[scale], 0.0, 1.0) if scale in powers else LogNorm(LOG_FLOOR, 1.0, clip=True)
    return norm, ListedColormap(PALETTE)


def _draw_bar(figure: Any, axes: Any, norm: Any, colours: Any, scale: str, points: float) -> None:
    from matplotlib.cm import ScalarMappable

    length = {"shrink": min(1.0, 2.0 / axes.shape[0]), "aspect": 16, "pad": 0.01, "fraction": 0.4 / axes.shape[1]}
    bar = figure.colorbar(ScalarMappable(norm, colours), ax=axes, ticks=TICKS[scale], **length)
    bar.set_label(f"attention weight ({SCALES[scale]})", fontsize=points)
    bar.ax.set_yticklabels([f"{tick:g}" for tick in TICKS[scale]], fontsize=points - 1)
    bar.minorticks_off()
