"""What a model takes as token ids and targets: tensors of any integer dtype, checked before they fail deep inside."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..base.settings import SettingTypeError
from ..kernels import support

IGNORE_INDEX = -100  # targets with this value do not count, as in torch

# Embeddings and losses index with the first two; the others hold token ids as well, and are widened once.
_INDEXING = (torch.int64, torch.int32)
_NARROW = (torch.int16, torch.int8, torch.uint8, torch.uint16, torch.uint32, torch.uint64)


def checked_ids(owner: str, idx: Any, *, vocab_size: int, max_len: int, vocabulary: str) -> Tensor:
    """idx (B, T) as int64 or int32. `vocabulary` ends the error about an id outside of it: the way out.

    Raises:
        TypeError: no tensor, or one of floats or bools. ValueError: not (B, T), or T > max_len.
        IndexError: an id outside [0, vocab_size), where looking at values costs no wait (on a CPU).
    """
    idx = _integers(owner, "idx", idx)
    if idx.dim() != 2:
        way = {0: "idx[None, None]", 1: "idx[None] is a batch of one"}.get(idx.dim(), "drop dimensions")
        raise ValueError(f"{owner}: idx must be (batch, tokens), got shape {tuple(idx.shape)}; {way}")
    if idx.shape[1] > max_len:
        raise ValueError(
            f"{owner}: idx has {idx.shape[1]} tokens and max_len is {max_len}; pass idx[:, -{max_len}:], or make the "
            "model with a larger max_len"
        )
    if _is_cheap_to_read(idx):
        low, high = _ends(_read(idx))
        if low < 0 or high >= vocab_size:
            bad = low if low < 0 else high
            raise IndexError(f"{owner}: token id {bad} is outside [0, {vocab_size}); {vocabulary}")
    return idx


def checked_targets(owner: str, targets: Any, idx: Tensor, *, vocab_size: int) -> Tensor:
    """targets, of idx's shape, as int64 or int32.

    Raises:
        TypeError: no tensor, or one of floats or bools. ValueError: another shape than idx's.
        IndexError: neither a token id nor -100, where looking at values costs no wait (on a CPU).
    """
    targets = _integers(owner, "targets", targets)
    if targets.shape != idx.shape:
        raise ValueError(
            f"{owner}: targets have shape {tuple(targets.shape)} and idx {tuple(idx.shape)}; make them equal"
        )
    if _is_cheap_to_read(targets):
        values = _read(targets)
        low, high = _ends(values[values != IGNORE_INDEX])
        if low < 0 or high >= vocab_size:
            bad = low if low < 0 else high
            way = f"targets.masked_fill(targets == {bad}, {IGNORE_INDEX})"
            raise IndexError(
                f"{owner}: target {bad} is outside [0, {vocab_size}); what does not count is {IGNORE_INDEX} here: {way}"
            )
    return targets


def checked_positions(owner: str, positions: Any, idx: Tensor, *, max_len: int) -> Tensor:
    """positions (T,) or (B, T), as int64 or int32; idx is (B, T).

    Raises:
        TypeError: no tensor, or one of floats or bools. ValueError: another shape.
        IndexError: a position outside [0, max_len), where looking at values costs no wait (on a CPU).
    """
    if not isinstance(positions, Tensor):
        need = "must be a tensor of integers (T,) or (batch, T); torch.arange(T) is the default"
        raise SettingTypeError(owner, "positions", positions, need)
    positions = _integers(owner, "positions", positions, "")
    if positions.shape not in (idx.shape, idx.shape[1:]):
        raise ValueError(
            f"{owner}: positions have shape {tuple(positions.shape)}, and must have idx's, {tuple(idx.shape)}, or "
            f"{tuple(idx.shape[1:])} for all rows"
        )
    if _is_cheap_to_read(positions):
        low, high = positions.aminmax()
        if low < 0 or high >= max_len:
            bad = int(low) if low < 0 else int(high)
            raise IndexError(f"{owner}: position {bad} is outside [0, {max_len}); make the model with a larger max_len")
    return positions


def _integers(owner: str, name: str, tokens: Any, kind: str = " (token ids)") -> Tensor:
    if not isinstance(tokens, Tensor):
        raise SettingTypeError(owner, name, tokens, f"must be a tensor of token ids (batch, tokens); {_way_to(tokens)}")
    if tokens.dtype in _INDEXING:
        return tokens
    if tokens.dtype in _NARROW:
        return tokens.long()
    raise TypeError(f"{owner}: {name} must hold integers{kind}, got {tokens.dtype}; convert with .long()")


def _way_to(tokens: Any) -> str:
    match tokens:
        case str() | bytes():
            return "torch.tensor([tokenizer.encode(text)])"
        case list() | tuple() | int():
            return "torch.tensor([[464, 3290]]) is a batch of one sequence"
        case None:
            return "torch.tensor([[tokenizer.end_of_text]]) starts from nothing"
        case _ if type(tokens).__module__ == "numpy":
            return "torch.from_numpy(it)"
        case _:
            return f"got {type(tokens).__name__}"


def _is_cheap_to_read(tokens: Tensor) -> bool:
    return tokens.device.type == "cpu" and tokens.numel() > 0 and support.can_be_read(tokens)


def _read(tokens: Tensor) -> np.ndarray:
    with torch._C._DisableFuncTorch():  # within torch.func's transforms a tensor does not show its memory otherwise
        return tokens.numpy()


def _ends(values: np.ndarray) -> tuple[int, int]:
    """The lowest and the highest; 0 and 0 of none. Of memory as it is: no number is taken out of a tensor."""
    return (int(values.min()), int(values.max())) if values.size else (0, 0)
