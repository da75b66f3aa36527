"""What GPT-2's tokens are: by tiktoken and the pattern as it was published (Radford et al. 2019)."""

from __future__ import annotations

import functools

from fastgpt.data.tokenizer import END_OF_TEXT, Tokenizer

PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""


@functools.cache
def published_encoding(tokenizer: Tokenizer):
    """A tiktoken.Encoding of the tokenizer's ranks, without anything of ours."""
    import tiktoken

    ranks = tokenizer._encoding._mergeable_ranks
    special = {END_OF_TEXT: tokenizer.end_of_text}
    return tiktoken.Encoding("published", pat_str=PATTERN, mergeable_ranks=ranks, special_tokens=special)
