"""Texts become memory-mapped token shards, and shards become the token stream that training reads.

    dataset = prepare("books/", "tokens/books", Tokenizer.named("gpt2"))     # once
    dataset = TokenDataset.open("tokens/books")                              # from then on
    dataset = shakespeare_tokens("train", Tokenizer.named("shakespeare"))    # the embedded corpus, in memory

Every document is followed by the tokenizer's `<|endoftext|>`. `fastgpt.data.shards` says what lies on disk.
"""

from __future__ import annotations

from typing import Any

from .. import _moved
from .corpus import shakespeare, shakespeare_tokens
from .dataset import TokenDataset
from .preparation import prepare
from .shards import ShardError
from .sources import SourceError

__all__ = ["ShardError", "SourceError", "TokenDataset", "prepare", "shakespeare", "shakespeare_tokens"]


def __getattr__(name: str) -> Any:
    return _moved.old_name(__name__, name)
