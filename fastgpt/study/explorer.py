"""The attention explorer: a page with all heads as small maps, one enlarged, and what each token attends to.

page = explorer_page(model.attention_maps(idx), tokens, idx[0], "Attention weights")
page.provenance()
page.save("attention.html")
"""

from __future__ import annotations

import html
import json
import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from torch import Tensor

from ..base.machine import readable
from ..base.settings import SettingError, check_choice
from ..pages.page import Page, asset, inside_a_script
from . import map_storage
from .attention_maps import MARK, head_panels
from .head_scores import NAMES, HeadScores, chance_scores, head_scores
from .palette import LOG_FLOOR, PALETTE, SCALES, TICKS

LARGEST = 128 * 2**20  # bytes of maps in a page: a browser opens them, and GPT-2's 144 heads of 1024 tokens always fit

MEANINGS = {
    "entropy": "mean over the queries t of −Σⱼ A(t,j) log A(t,j): how widely the head looks",
    "normalised": "the same divided by log(t + 1) at each query: 0 looks at one key, 1 at all that are seen alike",
    "previous_token": "mean weight on the key just before the query",
    "first_token": "mean weight on the first token, for all queries but the first: an attention sink",
    "same_token": "mean weight on earlier keys that hold the query's own token, for queries that have one",
    "induction": "mean weight on keys that followed an earlier one of the query's token, for queries that have one",
}


def explorer_page(
    maps: Mapping[int, Tensor], tokens: Sequence[str], ids: Tensor, title: str, heads: Sequence[int] | None = None,
    **how: Any,
) -> Page:  # fmt: skip
    """A page with `add_explorer` on it; `how`: its options.

    Raises:
        As `add_explorer`.
    """
    page = Page(title, generator=MARK)
    add_explorer(page, maps, tokens, ids, heads, **how)
    return page


def add_explorer(
    page: Page, maps: Mapping[int, Tensor], tokens: Sequence[str], ids: Tensor, heads: Sequence[int] | None = None, *,
    scale: str = "sqrt", on_head: Callable[[], object] | None = None,
) -> None:  # fmt: skip
    """Append the explorer of {layer: (1, heads, T, T)} to a page, and the table of its heads' scores.

    tokens: the T tokens as text, ids (T,): their numbers. heads: the numbers that the maps' heads have in the model.
    scale: of the colours at first, one of `palette.SCALES`. on_head: called after each head, which take some 50 ms each
    of 1024 tokens. How exact the weights are that the page tells: `map_storage.py`.

    Raises:
        SettingError: maps that are not causal or not finite, ids of another number, a scale that is none, maps of more
            than `LARGEST` bytes. ValueError: more than one sequence in the batch.
    """
    check_choice("add_explorer", "scale", scale, SCALES)
    packed, small, scores, named = [], [], [], []
    k, size = 1, 0
    for panel in head_panels(maps, heads):
        scores.append(head_scores(panel.weights[None], ids.cpu()))
        packed.append(map_storage.packed(panel.weights))
        thumbnail, k = map_storage.thumbnail(panel.weights)
        small.append(thumbnail)
        named.append({"layer": panel.layer, "head": panel.head, "title": panel.title})
        size += len(packed[-1])
        if size > LARGEST:
            raise _too_large(maps, len(packed))
        if on_head is not None:
            on_head()
    columns = {name: [float(score[n]) for score in scores] for n, name in enumerate(HeadScores._fields)}
    data = {
        "tokens": list(tokens), "panels": named, "columns": len(named) // max(1, len(maps)), "scale": scale,
        "stored": map_storage.stored_as(len(tokens)), "small": len(small[0]), "pooled": k,
        "scores": {name: [_or_none(value) for value in column] for name, column in columns.items()},
        "names": NAMES, "palette": "".join(PALETTE).replace("#", ""), "scales": SCALES, "ticks": TICKS,
        "floor": LOG_FLOOR,
    }  # fmt: skip
    for name in ("attention_map.js", "token_lines.js", "explorer.js"):
        page.script(asset(name, __package__))
    page.style(asset("explorer.css", __package__))
    page.add(_skeleton(data, map_storage.packed_thumbnails(small), packed))
    _add_table(page, named, columns, ids)


def _too_large(maps: Mapping[int, Tensor], fits: int) -> SettingError:
    shape = next(iter(maps.values())).shape
    need = (
        f"makes {len(maps) * shape[1]:,} maps of {shape[-1]:,} x {shape[-1]:,} weights, of which a page of "
        f"{readable(LARGEST)} holds {fits - 1:,}; shorten it, or name fewer layers (--layers) or heads (--heads)"
    )
    return SettingError("add_explorer", "maps", tuple(shape), need)


def _or_none(value: float) -> float | None:
    return value if math.isfinite(value) else None


def _skeleton(data: dict[str, Any], thumbnails: str, packed: Sequence[str]) -> str:
    """What `explorer.js` fills, and the maps: JSON, and a script that none runs for each head, which waits as text."""
    escaped = inside_a_script(json.dumps(data, allow_nan=False))
    blobs = "".join(f'<script type="text/plain" class=map-data>{text}</script>' for text in packed)
    scales = "".join(f"<option value={name}>{html.escape(said)}</option>" for name, said in SCALES.items())
    return asset("explorer.html", __package__).replace("__SCALES__", scales) + (
        f'<script type="application/json" class=explorer-data>{escaped}</script>'
        f'<script type="text/plain" class=small-data>{thumbnails}</script>{blobs}</section>'
    )


def _add_table(page: Page, named: Sequence[dict[str, Any]], columns: dict[str, list[float]], ids: Tensor) -> None:
    """Scores of all heads, which sort; a row that is pressed chooses its head (`explorer.js`)."""
    chance = {name: float(value[0]) for name, value in chance_scores(ids.cpu())._asdict().items()}
    evenly = ", ".join(f"{NAMES[name]} {value:.3f}" for name, value in chance.items() if math.isfinite(value))
    meant = "".join(
        f"<dt>{html.escape(NAMES[name])}</dt><dd>{html.escape(said)}</dd>" for name, said in MEANINGS.items()
    )
    page.add("<div class=explorer-scores><h3>Search for heads</h3>")
    page.add("<p class=explorer-note>Press a heading to sort, a row to look at its head.</p>")
    rows = [
        (panel["layer"], panel["head"], *(_cell(column[n]) for column in columns.values()))
        for n, panel in enumerate(named)
    ]
    page.table(("layer", "head", *NAMES.values()), rows, caption="Scores of each head on this text")
    page.add(
        f"<p class=explorer-note>Chance, a head that looks at all it sees alike: {html.escape(evenly)}."
        f"{'' if math.isfinite(chance['same_token']) else ' No token comes twice.'}</p>"
        f"<details><summary>What the scores mean</summary><dl>{meant}</dl></details></div>"
    )


def _cell(value: float) -> tuple[float, str] | str:
    return (value, f"{value:.3f}") if math.isfinite(value) else "–"
