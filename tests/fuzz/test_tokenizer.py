"""Any text comes back from its tokens, and has the tokens that tiktoken gives it."""

import pytest

pytest.importorskip("hypothesis", reason="property-based tests need hypothesis")
from hypothesis import given
from hypothesis import strategies as st

from fastgpt.data import pretokens
from fastgpt.data.pretokens import END_OF_TEXT
from fastgpt.data.tokenizer import BUNDLED, Tokenizer
from tests.fastgpt.published import published_encoding

from .harness import fuzz


@pytest.mark.needs("tiktoken")
@fuzz(60)
@given(st.text(max_size=200))
def test_round_trip(text):
    for name in BUNDLED:
        tokenizer = Tokenizer.named(name)
        ids = tokenizer.encode(text)
        assert tokenizer.decode(ids) == text
        assert "".join(tokenizer.decode_stream(ids)) == text
        assert sum(tokenizer.token_bytes()[ids]) == len(text.encode())


PARTS = [
    "a", "ll", "s", "'", "'s", "12", "²", " ", "  ", "\n", "\t", "\xa0", "\u3000", "\x1c", "\u180e", "\u0301", "漢字",
    "。", "🤖", "𝐀", "-", "é", "ที่", END_OF_TEXT,
]  # fmt: skip


@pytest.mark.needs("tiktoken")
@fuzz(150)
@given(
    st.lists(st.one_of(st.sampled_from(PARTS), st.characters(exclude_categories=["Cs"])), max_size=80).map("".join),
    st.integers(1, 40), st.integers(1, 40), st.booleans(),
)  # fmt: skip
def test_pieces_have_the_tokens_of_the_whole(text, size, chunk, special):
    """By the pattern as it was published, whatever the text is made of and wherever it is read in parts."""
    tokenizer = Tokenizer.named("gpt2")
    published = published_encoding(tokenizer)
    allowed = {END_OF_TEXT} if special else set()
    whole = published.encode(text, allowed_special=allowed, disallowed_special=())
    assert tokenizer.encode(text, allow_special=special) == whole
    chunks = [text[at : at + chunk] for at in range(0, len(text), chunk)]
    found = list(pretokens.pieces(chunks, size, special=special))
    assert "".join(found) == text
    assert [i for piece in found for i in tokenizer.encode(piece, allow_special=special)] == whole
