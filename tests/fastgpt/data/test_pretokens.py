"""Long texts are cut into pieces that have the text's tokens, whatever they are made of."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from fastgpt.data import pretokens
from fastgpt.data.pretokens import END_OF_TEXT, pieces
from fastgpt.data.tokenizer import Tokenizer
from tests.fastgpt.published import published_encoding

pytestmark = pytest.mark.needs("tiktoken")

# Of every class of characters, and those that Python and the regex engine class differently (\x1c: white space?).
ALPHABET = ["a", "s", "'", "²", " ", "\n", "\u0301", "漢", "\x1c", "."]
RUNS = {
    "spaces": " ", "newlines": "\n", "line ends": "\r\n", "tabs": "\t", "no-break spaces": "\xa0", "digits": "7",
    "letters": "a", "DNA": "ACGT", "dashes": "-", "combining marks": "\u0301", "emoji": "🤖", "Han": "漢",
    "quotes": "'", "contractions": "'s", "Thai": "ที่",
}  # fmt: skip


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return Tokenizer.named("gpt2")


@pytest.fixture(scope="module")
def published(gpt2):
    return published_encoding(gpt2)


def split_at(ids: np.ndarray, end: int) -> list[list[int]]:
    return [part.tolist() for part in np.split(ids, np.flatnonzero(ids == end))]


def together(encoding, texts: list[str], end: int) -> list[list[int]]:
    """The ids of each text, by one call: a hundred times as fast as one by one."""
    ids = encoding.encode_to_numpy(END_OF_TEXT.join(texts), allowed_special={END_OF_TEXT})
    first, *others = split_at(ids, end)
    return [first, *(part[1:] for part in others)]


def test_every_place_that_may_be_cut(gpt2, published):
    """All texts of four characters: a place that is called an end of a pre-token is one, on both sides."""
    texts = ["".join(chars) for chars in itertools.product(ALPHABET, repeat=4)]
    cuts = [(text, at) for text in texts for at in (1, 2, 3) if pretokens._ends_pretoken(text, at, False)]
    assert len(cuts) > len(texts)
    whole = dict(zip(texts, together(published, texts, gpt2.end_of_text)))
    assert list(whole.values()) == together(gpt2._encoding, texts, gpt2.end_of_text)
    left = together(published, [text[:at] for text, at in cuts], gpt2.end_of_text)
    right = together(published, [text[at:] for text, at in cuts], gpt2.end_of_text)
    assert all(whole[text] == a + b for (text, _), a, b in zip(cuts, left, right))


def test_the_places_are_many():
    """Cut where classes change, not at white space only: base64, minified code and CJK have none."""
    for text in ("QmFzZTY0+/8x" * 50, "function(a){return a[0]+1};" * 50, "天地玄黄，宇宙洪荒。" * 50, "ที่" * 200):
        assert max(map(len, pieces([text], size=20))) < 32


@pytest.mark.parametrize("char", RUNS.values(), ids=RUNS)
@pytest.mark.parametrize("around", [("", ""), ("x", "x"), (" ", "!"), ("1", " x")])
def test_runs_longer_than_a_piece(gpt2, published, char, around, monkeypatch):
    monkeypatch.setattr("fastgpt.data.tokenizer.PIECE_CHARS", 3000)
    monkeypatch.setattr("fastgpt.data.tokenizer.pieces", lambda chunks, special: pieces(chunks, 3000, special=special))
    text = around[0] + char * (10000 // len(char)) + around[1]
    assert gpt2.encode(text) == published.encode_ordinary(text)


@pytest.mark.parametrize(("char", "tail"), [(" ", ""), (" ", "x"), ("\n", " !")])
def test_more_white_space_than_the_engine_takes(gpt2, char, tail):
    """From a million on, the published pattern makes the engine panic."""
    text = "a" + char * 1_200_000 + tail
    assert gpt2.decode(gpt2.encode(text)) == text


def test_what_has_no_end_is_cut_in_linear_time_and_bounded_memory(monkeypatch):
    looked = []
    kind = pretokens._kind
    monkeypatch.setattr(pretokens, "_kind", lambda char: looked.append(char) or kind(char))
    chunks = ["ACGT" * 250] * 100
    found = list(pieces(chunks, 1000, 60_000))
    assert "".join(found) == "".join(chunks)
    assert list(map(len, found)) == [61_000, 39_000]
    assert len(looked) < 4000  # four letters a block of 256: nothing is looked at again


def test_end_of_text_stays_whole(gpt2):
    text = END_OF_TEXT * 3 + "ab" + END_OF_TEXT * 200
    found = list(pieces([text[i : i + 7] for i in range(0, len(text), 7)], 7, 50))
    assert len(found) > 10
    assert "".join(found) == text
    assert sum(piece.count(END_OF_TEXT) for piece in found) == 203


def test_white_space_before_end_of_text_is_at_a_texts_end_if_that_is_special(gpt2, published):
    for text in (f"ab   {END_OF_TEXT}c", f"ab\n\n{END_OF_TEXT}\n\n"):  # "\n\n" is one token
        for special in (False, True):
            allowed = {END_OF_TEXT} if special else set()
            whole = published.encode(text, allowed_special=allowed, disallowed_special=())
            for size in range(1, len(text)):
                found = pieces([text], size, special=special)
                assert [i for piece in found for i in gpt2.encode(piece, allow_special=special)] == whole


def test_the_engines_panic_is_a_value_error(gpt2, monkeypatch):
    class PanicException(BaseException):
        pass

    class Panics:
        def encode_to_numpy(self, *args, **kwargs):
            raise PanicException("StackOverflow")

    monkeypatch.setattr(gpt2, "_encoding", Panics())
    with pytest.raises(ValueError, match=r"text='a+' \(99 characters\) could not be encoded \(StackOverflow\)"):
        gpt2.encode("a" * 99)


@pytest.mark.parametrize(
    ("text", "same"),
    [
        ("a\ud83d b", "a\ufffd b"),
        ("\ud835\udc00" * 40, "𝐀" * 40),
        ("a " * 20 + "\udc80", "a " * 20 + "\ufffd"),
    ],
)
def test_halves_of_surrogate_pairs(gpt2, monkeypatch, text, same):
    monkeypatch.setattr("fastgpt.data.tokenizer.PIECE_CHARS", 10)
    assert gpt2.encode(text) == gpt2.encode(same)
    assert gpt2.encode(text, allow_special=True) == gpt2.encode(same)
