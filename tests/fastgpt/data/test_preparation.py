"""`prepare` encodes many documents by one call, on threads: what comes out is each document's tokens, in order."""

from __future__ import annotations

import gzip
import json
import random

import pytest

from fastgpt.data import SourceError, TokenDataset, preparation, prepare, sources
from fastgpt.data.tokenizer import END_OF_TEXT, Tokenizer
from tests.fastgpt.published import published_encoding

pytestmark = pytest.mark.needs("tiktoken")


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return Tokenizer.named("gpt2")


def mixed(rng: random.Random, n: int) -> list[str]:
    """Short documents, some of them with `<|endoftext|>` in them or at an end, some without a space."""
    parts = ["word ", "  \n", "1234", "é", "🤖", "'s", "\n\n", "x" * 9, "漢字", END_OF_TEXT, "a ", "\t", "?!"]
    return ["".join(rng.choices(parts, k=rng.randint(1, 40))) for _ in range(n)] + ["end" + END_OF_TEXT, END_OF_TEXT]


@pytest.fixture
def files(tmp_path):
    """Documents, and the JSON Lines, packed and not, and plain files that they are in, in order."""
    texts = mixed(random.Random(3), 60)
    lines = [json.dumps({"text": text}) + "\n" for text in texts]
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "a.jsonl").write_text("".join(lines[:30]))
    (tmp_path / "in" / "b.jsonl.gz").write_bytes(gzip.compress("".join(lines[30:50]).encode()))
    for n, text in enumerate(texts[50:]):
        (tmp_path / "in" / f"c{n:02d}.txt").write_bytes(text.encode("utf-8"))
    return tmp_path / "in", texts


def expected(tokenizer: Tokenizer, texts: list[str], separators: bool) -> tuple[list[int], list[int]]:
    """(ids, where documents start), by tiktoken, text by text."""
    published, end = published_encoding(tokenizer), tokenizer.end_of_text
    ids, starts = [], [0]
    for text in texts:
        allowed = {END_OF_TEXT} if separators else set()
        ids += published.encode(text, allowed_special=allowed, disallowed_special=())
        if not ids or ids[-1] != end:
            ids.append(end)
    starts += [at + 1 for at, token in enumerate(ids[:-1]) if token == end]
    return ids, starts


@pytest.mark.parametrize("separators", [False, True])
@pytest.mark.parametrize("size", [13, 200, 1 << 18])
def test_the_tokens_are_those_of_each_document_alone(tmp_path, monkeypatch, gpt2, files, size, separators):
    folder, texts = files
    monkeypatch.setattr(sources, "PIECE_CHARS", size)
    monkeypatch.setattr(preparation, "PIECE_CHARS", size)
    ids, starts = expected(gpt2, texts, separators)
    found = {}
    for threads in (1, 3):
        out = tmp_path / f"out{threads}"
        dataset = prepare(folder, out, gpt2, separators=separators, threads=threads, shard_tokens=900, progress=False)
        assert dataset.read(0, len(dataset)).tolist() == ids
        assert dataset.documents.tolist() == starts
        assert json.loads((out / "manifest.json").read_text())["n_bytes"] == sum(len(t.encode("utf-8")) for t in texts)
        found[threads] = {path.name: path.read_bytes() for path in out.iterdir() if path.name != "manifest.json"}
    assert found[1] == found[3]


def test_no_more_is_read_than_the_threads_are_about_to_encode(tmp_path, monkeypatch, gpt2):
    """So the memory that it takes is the same however long the text."""
    (tmp_path / "a.jsonl").write_text('{"text": "To be, or not to be."}\n' * 3000)
    monkeypatch.setattr(preparation, "PIECE_CHARS", 500)
    made, done, ahead = [], [], []
    batches, write = preparation._batches, preparation.ShardWriter.write

    def counted(*args):
        for batch in batches(*args):
            made.append(batch)
            ahead.append(len(made) - len(done))
            yield batch

    monkeypatch.setattr(preparation, "_batches", counted)
    monkeypatch.setattr(preparation.ShardWriter, "write", lambda self, ids: done.append(ids) or write(self, ids))
    prepare(tmp_path / "a.jsonl", tmp_path / "out", gpt2, threads=2, progress=False)
    assert len(made) > 100
    assert max(ahead) <= 4
    assert max(batch.chars for batch in made) < 600


def test_what_cannot_be_encoded_names_its_file(tmp_path, monkeypatch, gpt2):
    def fail(self, text, **options):
        raise ValueError("could not be encoded")

    monkeypatch.setattr(Tokenizer, "encode_array", fail)
    (tmp_path / "a.txt").write_text("text")
    with pytest.raises(SourceError, match=r"a\.txt: could not be encoded"):
        prepare(tmp_path / "a.txt", tmp_path / "out", gpt2, progress=False)
    assert not (tmp_path / "out").exists()


def test_white_space_of_any_length(tmp_path, gpt2):
    """Longer than the regex engine takes, between documents and in one."""
    text = "a" + " " * 1_200_000 + "b"
    (tmp_path / "a.txt").write_text(text)
    (tmp_path / "b.jsonl").write_text(json.dumps({"text": text}) + "\n")
    prepare([tmp_path / "a.txt", tmp_path / "b.jsonl"], tmp_path / "out", gpt2, progress=False)
    dataset = TokenDataset.open(tmp_path / "out")
    for start, stop in zip(dataset.documents, [*dataset.documents[1:], len(dataset)]):
        assert gpt2.decode(dataset.read(int(start), int(stop) - 1)) == text


def test_line_ends_before_a_separator_are_not_cut(tmp_path, monkeypatch, gpt2):
    r"""Two \n are one token there, as at a text's end; before anything else, each is a token of its own."""
    text = f"ab\n\n{END_OF_TEXT}cd\n\nef"
    (tmp_path / "a.txt").write_text(text)
    for separators in (False, True):
        ids, _ = expected(gpt2, [text], separators)
        for size in range(1, 8):
            monkeypatch.setattr(sources, "PIECE_CHARS", size)
            monkeypatch.setattr(preparation, "PIECE_CHARS", size)
            out = tmp_path / f"out{size}{separators}"
            dataset = prepare(tmp_path / "a.txt", out, gpt2, separators=separators, threads=1, progress=False)
            assert dataset.read(0, len(dataset)).tolist() == ids
