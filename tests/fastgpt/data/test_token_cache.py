"""Which texts are which entry of the cache: found again while nothing changed, made anew as soon as anything did."""

from __future__ import annotations

import os
import time

import pytest

from fastgpt.data import token_cache
from fastgpt.data.tokenizer import Tokenizer

pytest.importorskip("tiktoken")
SMALL = Tokenizer.named("shakespeare")


@pytest.fixture
def here(tmp_path, monkeypatch):
    monkeypatch.setenv("FASTGPT_CACHE", str(tmp_path / "cache"))
    (tmp_path / "a.txt").write_text("one text")
    (tmp_path / "b.txt").write_text("two text")
    return tmp_path


def tokens(*paths, tokenizer=SMALL) -> list[int]:
    found = token_cache.tokenized([str(path) for path in paths], tokenizer, progress=False)
    return found.read(0, len(found)).tolist()


def expected(*texts: str, tokenizer=SMALL) -> list[int]:
    return [i for text in texts for i in [*tokenizer.encode(text), tokenizer.end_of_text]]


def entries(here) -> set[str]:
    return {path.name for path in (here / "cache" / "tokens").iterdir()}


def made(monkeypatch) -> list:
    """The calls of `prepare` from now on."""
    calls, prepare = [], token_cache.prepare
    monkeypatch.setattr(token_cache, "prepare", lambda *a, **k: calls.append(a) or prepare(*a, **k))
    return calls


def test_the_second_time_it_is_there(here, monkeypatch):
    calls = made(monkeypatch)
    assert tokens(here / "a.txt") == tokens(here / "a.txt") == expected("one text")
    assert len(calls) == 1


@pytest.mark.parametrize("put_back", [False, True])
def test_a_changed_text_is_read_again(here, put_back):
    """Also one of the same size whose time stamp was put back; the entry of the old one goes."""
    before = (here / "a.txt").stat()
    tokens(here / "a.txt")
    old = entries(here)
    time.sleep(0.02)
    (here / "a.txt").write_text("new text")
    if put_back:
        os.utime(here / "a.txt", ns=(before.st_atime_ns, before.st_mtime_ns))
        assert (here / "a.txt").stat().st_mtime_ns == before.st_mtime_ns
    assert tokens(here / "a.txt") == expected("new text")
    assert len(entries(here)) == 1
    assert entries(here) != old


def test_other_texts_are_another_entry(here):
    assert tokens(here / "a.txt") == expected("one text")
    assert tokens(here / "b.txt") == expected("two text")
    assert tokens(here / "a.txt", here / "b.txt") == expected("one text", "two text")
    assert tokens(here / "b.txt", here / "a.txt") == expected("two text", "one text")
    assert len(entries(here)) == 4


def test_another_tokenizer_is_another_entry(here):
    gpt2 = Tokenizer.named("gpt2")
    assert tokens(here / "a.txt") == expected("one text")
    assert tokens(here / "a.txt", tokenizer=gpt2) == expected("one text", tokenizer=gpt2)
    assert len(entries(here)) == 2


def test_what_was_not_used_for_long_goes(here):
    tokens(here / "a.txt")
    (a,) = entries(here)
    tokens(here / "b.txt")
    (b,) = entries(here) - {a}
    old = time.time() - token_cache.MAX_AGE - 60
    for name in (a, b):
        os.utime(here / "cache" / "tokens" / name, (old, old))
    tokens(here / "a.txt")  # which is its use
    (here / "c.txt").write_text("three text")
    tokens(here / "c.txt")
    assert a in entries(here)
    assert b not in entries(here)
    assert len(entries(here)) == 2


def test_a_damaged_entry_is_made_anew(here, monkeypatch):
    tokens(here / "a.txt")
    calls = made(monkeypatch)
    (entry,) = (here / "cache" / "tokens").iterdir()
    for name in ("tokens-00000.bin", "documents.npy", "manifest.json"):
        (entry / name).write_bytes((entry / name).read_bytes()[:20])
        assert tokens(here / "a.txt") == expected("one text")
        (entry / name).unlink()
        assert tokens(here / "a.txt") == expected("one text")
    assert len(calls) == 6
