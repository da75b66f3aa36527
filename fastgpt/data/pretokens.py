"""GPT-2's pre-tokenization: the pattern, and where a long text may be cut without changing a single token.

Byte-pair merges never cross the end of a pre-token, so a text whose pieces end where pre-tokens do has its pieces'
tokens. Pieces bound the memory that tokenizing takes, and spare the regex engine what it cannot do: it gives up, by a
panic, on white space of a million characters that something follows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Iterator
from typing import Any

END_OF_TEXT = "<|endoftext|>"

# Radford et al. 2019, 's|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+, written so that all
# that needs no look ahead is one alternative: the engine hands that to a finite automaton, which is twice as fast.
# White space up to the text's end is in it too, for (?!\S) remembers every character that it may have to give back.
GPT2_PATTERN = r"""(?:'(?:[sdmt]|ll|ve|re)| ?(?:\p{L}+|\p{N}+|[^\s\p{L}\p{N}]+)|\s+$)|\s+(?!\S)|\s"""

PIECE_CHARS = 1 << 18  # pieces have about this many characters
LONGEST = 1 << 20  # what goes on for longer than this without an end of a pre-token is cut all the same

_CONTEXT = len(END_OF_TEXT)  # characters after a place that decide whether it may be cut
_BLOCK = 256


def pieces(
    chunks: Iterable[str], size: int = PIECE_CHARS, longest: int = LONGEST, *, special: bool = False
) -> Iterator[str]:
    """The text that `chunks` (of about `size` characters, none empty) make up, in pieces of `size` characters or more.

    A piece ends with a pre-token, and never inside `<|endoftext|>`, so the tokens of the pieces are those of the text.
    Only a pre-token of more than `longest` characters (DNA, a million spaces) may be cut: its tokens are then those of
    its parts. Time is linear in the text, memory that of `size + longest` characters.

    `special`: `<|endoftext|>` will be a token of its own, before which the text ends, rather than ordinary text.
    """
    chunks, pending, looked, more = iter(chunks), "", size, True
    while more:
        chunk = next(chunks, "")
        more = bool(chunk)
        pending += chunk
        certain = len(pending) - (_CONTEXT if more else 0)
        while looked < certain:
            cut = _first_cut(pending, looked, min(certain, size + longest), special)
            if cut is None and certain <= size + longest:
                looked = certain
                break
            cut = cut or _outside_end_of_text(pending, size + longest)
            yield pending[:cut]
            pending, looked, certain = pending[cut:], size, certain - cut
    if pending:
        yield pending


def _first_cut(text: str, start: int, stop: int, special: bool) -> int | None:
    """The first place in start ... stop - 1 where `text` may be cut."""
    for low in range(start, stop, _BLOCK):
        high = min(low + _BLOCK, stop)
        if len({_kind(char) for char in set(text[low - 1 : high + 1])}) == 1:
            continue  # nothing ends in the middle of a word: skipped, for there may be a million letters of it
        for at in range(low, high):
            if _ends_pretoken(text, at, special) and _outside_end_of_text(text, at) == at:
                return at
    return None


def _ends_pretoken(text: str, at: int, special: bool) -> bool:
    """Whether a pre-token ends before text[at], and would be the same if the text ended there.

    White space is never joined to what stands before it. Letters, numbers and all others never share a pre-token but in
    contractions ('s, 'll). Of white space before something else, all but the last character is one pre-token.
    """
    before, after = _kind(text[at - 1]), _kind(text[at])
    if after == "space" == before:
        more = at + 1 < len(text) and not (special and text.startswith(END_OF_TEXT, at + 1))
        return more and _kind(text[at + 1]) != "space"
    if after == "space":
        return True
    return before not in ("space", after) and not (text[at - 1] == "'" and after == "letter")


def _outside_end_of_text(text: str, at: int) -> int:
    """`at`, or the beginning of the `<|endoftext|>` that it lies in (its end, where the text begins with it)."""
    begin = text.find(END_OF_TEXT, max(at - _CONTEXT + 1, 0), at + _CONTEXT - 1)
    return at if begin < 0 or begin >= at else begin or _CONTEXT


@functools.lru_cache(maxsize=1 << 16)
def _kind(char: str) -> str:
    """The engine's own word, whose Unicode is another than Python's: \x1c is a space to `str.isspace` only."""
    return next((name for name, engine in _engines().items() if engine.encode_ordinary(char)), "other")


@functools.cache
def _engines() -> dict[str, Any]:
    """For each kind of character an encoding that has tokens for no others."""
    import tiktoken

    single_bytes = {bytes([byte]): byte for byte in range(256)}
    patterns = {"letter": r"\p{L}", "number": r"\p{N}", "space": r"\s"}
    return {
        name: tiktoken.Encoding(name, pat_str=pattern, mergeable_ranks=single_bytes, special_tokens={})
        for name, pattern in patterns.items()
    }
