"""What a look at over-smoothing found, as it is kept: a record of JSON, of one model or of several beside each other.
`smoothing_page.py` draws it.

{"study": "smoothing", "version": 1,
 "text": {"name": ..., "tokens": of the whole text, "sequences": ..., "seq_len": ...},
 "rows": [{"name": ..., "layers": [`LayerSmoothing`, ...], ...}],
 "environment": ..., "made_by": ...}

Written by `study_folder.py: write_record`.
"""

from __future__ import annotations

import dataclasses
import os
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from ..base import files
from ..base.settings import SettingError, check_integer
from ..model.gpt import GPT
from ..pages.provenance import environment, made_by
from .smoothing_layers import smoothing_of_sequences

KIND, VERSION = "smoothing", 1
_OWNER = "smoothing"


def windows(ids: Sequence[int], seq_len: int, count: int) -> Tensor:
    """Sequences (n, T) int64 of token ids, at most `count`, spread evenly over a text and none overlapping another.

    T is `seq_len`, or the whole text where that is shorter; what is left at its end is less than a sequence.

    Raises:
        SettingError, SettingTypeError: no two tokens, of which alone there is a pair; a seq_len below 2, no sequence.
    """
    check_integer(_OWNER, "seq_len", seq_len, least=2)
    check_integer(_OWNER, "sequences", count, least=1)
    if len(ids) < 2:
        need = f"has {len(ids)} token{'s' * (len(ids) != 1)}: tokens are compared in pairs; give some more text"
        raise SettingError(_OWNER, "text", "", need)
    length = min(seq_len, len(ids))
    there = len(ids) // length
    count = min(count, there)
    starts = [length * (n * there // count) for n in range(count)]
    return torch.tensor([list(ids[start : start + length]) for start in starts], dtype=torch.int64)


def row_of(
    name: str, model: GPT, idx: Tensor, on_sequence: Callable[[], object] = lambda: None, **more: Any
) -> dict[str, Any]:
    """One model's part of a record: its sizes, and the measures of each layer on idx (B, T).

    Raises:
        SettingError, SettingTypeError, ValueError, IndexError: as `smoothing_by_layer`.
    """
    config = model.config
    layers = smoothing_of_sequences(model, idx, on_sequence)
    return {
        "name": name, "n_layers": config.n_layers, "n_heads": config.n_heads, "d_model": config.d_model,
        "parameters": model.num_parameters(), **more, "layers": [dataclasses.asdict(layer) for layer in layers],
    }  # fmt: skip


def record_of(rows: list[dict[str, Any]], text: str, n_tokens: int, idx: Tensor, **more: Any) -> dict[str, Any]:
    """A record of `rows`, all measured on idx (B, T), which was taken from the `n_tokens` tokens of `text`."""
    sequences, seq_len = idx.shape
    about = {"name": text, "tokens": n_tokens, "sequences": sequences, "seq_len": seq_len}
    return {
        "study": KIND, "version": VERSION, "text": about, **more, "rows": rows,
        "environment": environment(), "made_by": made_by(),
    }  # fmt: skip


def is_ours(path: str | os.PathLike[str]) -> bool:
    """Whether a file is a record of one model that was written by `write_record`; one of a comparison stays."""
    try:
        found = files.read_json(path)
    except (OSError, ValueError):
        return False
    return isinstance(found, dict) and found.get("study") == KIND and "recipe" not in found
