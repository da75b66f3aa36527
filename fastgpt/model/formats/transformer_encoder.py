"""Stacks of `nn.TransformerEncoderLayer(norm_first=True, activation="gelu")` <-> our blocks.

    layers.{i}.norm1, self_attn, norm2, linear1, linear2   <->   blocks.{i}.ln1, attn, ln2, ffn.0, ffn.2

Run with a causal mask, such a stack computes what our blocks compute. Embeddings, final norm and head have no common
names in the wild: the caller adds them.
"""

from __future__ import annotations

import re
from collections.abc import Callable

from torch import Tensor

_PARTS = {"norm1": "ln1", "self_attn": "attn", "norm2": "ln2", "linear1": "ffn.0", "linear2": "ffn.2"}
_BACK = {ours: theirs for theirs, ours in _PARTS.items()}


def blocks_from_encoder(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The names of an nn.TransformerEncoder's state dict (below `prefix`, e.g. "encoder.") to `blocks.{i}...`.

    Raises:
        ValueError: no layers under that prefix.
    """
    pattern = re.compile(rf"{re.escape(prefix)}layers\.(\d+)\.({'|'.join(_PARTS)})\.(.+)")
    return _rename(state, pattern, lambda i, part, rest: f"blocks.{i}.{_PARTS[part]}.{rest}", f"{prefix}layers.*")


def encoder_from_blocks(state: dict[str, Tensor], prefix: str = "") -> dict[str, Tensor]:
    """The inverse: `blocks.{i}...` of our state dict to the names of an nn.TransformerEncoder below `prefix`."""
    pattern = re.compile(rf"blocks\.(\d+)\.({'|'.join(re.escape(ours) for ours in _BACK)})\.(.+)")
    return _rename(state, pattern, lambda i, part, rest: f"{prefix}layers.{i}.{_BACK[part]}.{rest}", "blocks.*")


def _rename(
    state: dict[str, Tensor], pattern: re.Pattern[str], name: Callable[..., str], expected: str
) -> dict[str, Tensor]:
    matches = ((pattern.fullmatch(old), tensor) for old, tensor in state.items())
    renamed = {name(*match.groups()): tensor for match, tensor in matches if match}
    if not renamed:
        raise ValueError(
            f"no parameter is named {expected!r}; the state dict has {sorted(state)[:3]}; check the prefix"
        )
    return renamed
