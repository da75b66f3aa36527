"""The embedded corpus: Shakespeare's plays and poems, as text and as tokens."""

from __future__ import annotations

from .assets import read_asset
from .dataset import TokenDataset
from .tokenizer import END_OF_TEXT, Tokenizer

_SHAKESPEARE_SHA256 = {
    "train": "38da2f4edb6582da1d469955079a39236ab33f9f5b5e8c28accbbf4970266120",
    "val": "f7b9bead1173a04b53881ec6b30ccc993cbe30d9970c36c0d49e7b83897db372",
}


def shakespeare(split: str) -> str:
    """The embedded corpus: "train" (4.8 MB: 40 works) or "val" (214 KB: The Tempest and Julius Caesar).

    Works are separated by `<|endoftext|>`. Raises ValueError for another split.
    """
    if split not in _SHAKESPEARE_SHA256:
        raise ValueError(f"shakespeare: split={split!r} does not exist; choose 'train' or 'val'")
    return read_asset(f"shakespeare-{split}.txt.xz", _SHAKESPEARE_SHA256[split]).decode("utf-8")


def shakespeare_tokens(split: str, tokenizer: Tokenizer) -> TokenDataset:
    """The embedded corpus, tokenized in memory (half a second). Raises ValueError for another split."""
    works = tokenizer.encode_batch(shakespeare(split).split(END_OF_TEXT))
    return TokenDataset.from_documents(works, tokenizer, name=f"shakespeare/{split}")
