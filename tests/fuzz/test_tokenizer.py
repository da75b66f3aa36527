"""Any text comes back from its tokens."""

import pytest

pytest.importorskip("hypothesis", reason="property-based tests need hypothesis")
from hypothesis import given
from hypothesis import strategies as st

from fastgpt.tokenizer import BUNDLED, Tokenizer

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
