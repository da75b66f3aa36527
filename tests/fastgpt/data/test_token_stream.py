"""Every token of every text, once and in its place: from documents and files through shards and splits to `read`."""

from __future__ import annotations

import gzip
import hashlib
import json
import os

import numpy as np
import pytest

from fastgpt.data import ShardError, TokenDataset, preparation, prepare, shard_checks, sources
from fastgpt.data.shards import id_dtype, manifest_sha256
from fastgpt.data.tokenizer import END_OF_TEXT, Tokenizer


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    pytest.importorskip("tiktoken")
    return Tokenizer.named("shakespeare")


class Letters:
    """A tokenizer of `vocab_size` ids, of which the last is the end of a text."""

    sha256, name = "x", "letters"

    def __init__(self, vocab_size: int) -> None:
        self.vocab_size, self.end_of_text = vocab_size, vocab_size - 1


def stream(dataset: TokenDataset) -> list[int]:
    return dataset.read(0, len(dataset)).tolist()


def cut(dataset: TokenDataset) -> list[list[int]]:
    """The documents, by their starts."""
    ends = [*dataset.documents.tolist()[1:], len(dataset)]
    return [dataset.read(start, end).tolist() for start, end in zip(dataset.documents.tolist(), ends)]


# ---- in memory -----------------------------------------------------------------------------------------------------


def test_documents_in_memory():
    documents = [[1, 2, 3], [], [4], [5, 6]]
    dataset = TokenDataset.from_documents(documents, Letters(10))
    assert cut(dataset) == [[*ids, 9] for ids in documents]
    assert dataset.documents.tolist() == [0, 4, 5, 7]
    assert len(dataset) == 10


@pytest.mark.parametrize(("vocab_size", "itemsize"), [(65535, 2), (65536, 2), (65537, 4), (70000, 4), (2**31, 4)])
def test_the_largest_ids_survive(vocab_size, itemsize):
    dataset = TokenDataset.from_documents([[0, vocab_size - 2]], Letters(vocab_size))
    assert stream(dataset) == [0, vocab_size - 2, vocab_size - 1]
    assert id_dtype(vocab_size).itemsize == itemsize


@pytest.mark.parametrize("ids", [[10], [3, 10, 4], [-1], [4, -3]])
def test_ids_are_below_the_vocabulary_and_not_negative(ids):
    with pytest.raises(ValueError, match="encode with the same tokenizer"):
        TokenDataset.from_documents([[1], ids], Letters(10))
    assert stream(TokenDataset.from_documents([[0, 9]], Letters(10))) == [0, 9, 9]


def in_shards(ids: list[int], size: int, documents: list[int]) -> TokenDataset:
    shards = tuple(np.array(ids[at : at + size], np.uint16) for at in range(0, len(ids), size))
    return TokenDataset(shards, np.array(documents, np.int64), 100, "x", "stream")


@pytest.mark.parametrize("size", [1, 3, 7, 30, 100])
def test_a_split_of_shards_loses_nothing(size):
    ids = list(range(40, 70))
    whole = in_shards(ids, size, [0])
    for fraction in (0.01, 0.1, 0.3, 0.5, 0.9, 0.99):
        train, val = whole.split(fraction)
        assert stream(train) + stream(val) == ids
        assert len(val) == max(1, round(30 * fraction))
        for start in range(len(val)):
            assert val.read(start, len(val)).tolist() == ids[len(train) + start :]


def test_a_split_keeps_the_documents():
    whole = in_shards(list(range(10)), 4, [0, 3, 7])
    for fraction, first, second in ((0.3, [0, 3], [0]), (0.4, [0, 3], [1]), (0.2, [0, 3, 7], []), (0.7, [0], [0, 4])):
        train, val = whole.split(fraction)
        assert (train.documents.tolist(), val.documents.tolist()) == (first, second)


# ---- on disk -------------------------------------------------------------------------------------------------------

TEXT = "".join(f"Line {n} of a text with ü, 🤖 and white   space.\r\n" for n in range(40))


@pytest.fixture
def text(tmp_path):
    (tmp_path / "a.txt").write_bytes(TEXT.encode())
    return tmp_path / "a.txt"


@pytest.mark.parametrize("shard_tokens", [31, 100, 10**6])
def test_every_part_of_the_stream_reads_the_same(text, tmp_path, small, shard_tokens):
    expected = [*small.encode(TEXT), small.end_of_text]
    dataset = prepare(text, tmp_path / "out", small, shard_tokens=shard_tokens, progress=False)
    for start in (0, 1, 6, 7, 8, 100, len(expected) - 1):
        for stop in (start, start + 1, start + 7, start + 200, len(expected)):
            if start <= stop <= len(expected):
                assert dataset.read(start, stop).tolist() == expected[start:stop]


def test_shards_are_full_and_hashed(text, tmp_path, small, monkeypatch):
    """By a reader of its own: 32 bytes of header, then the ids."""
    for module in (preparation, sources):
        monkeypatch.setattr(module, "PIECE_CHARS", 50)  # several writes to a shard
    prepare(text, tmp_path / "out", small, shard_tokens=64, progress=False)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    expected, found = [*small.encode(TEXT), small.end_of_text], []
    for number, entry in enumerate(manifest["shards"]):
        assert entry["file"] == f"tokens-{number:05d}.bin"
        data = (tmp_path / "out" / entry["file"]).read_bytes()
        assert data[:8] == b"FGPTTOKS"
        assert np.frombuffer(data[8:16], "<u4").tolist() == [1, 2]
        ids = np.frombuffer(data[32:], "<u2").tolist()
        assert int.from_bytes(data[16:24], "little") == len(ids) == entry["n_tokens"]
        assert hashlib.sha256(data[32:]).hexdigest() == entry["sha256"]
        assert len(ids) == 64 or entry is manifest["shards"][-1]
        found += ids
    assert found == expected
    assert manifest["n_tokens"] == len(expected)


def test_the_manifest_says_what_is_there(text, tmp_path, small):
    (tmp_path / "b.txt.gz").write_bytes(gzip.compress(b"packed"))
    paths = [text, tmp_path / "b.txt.gz"]
    dataset = prepare(paths, tmp_path / "out", small, progress=False)
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["n_bytes"] == len(TEXT.encode()) + len("packed") > len(TEXT) + len("packed")
    assert manifest["n_documents"] == len(dataset.documents) == 2
    assert manifest["n_tokens"] == len(dataset)
    assert manifest["sources"] == [
        {"path": str(path), "bytes": path.stat().st_size, "first_document": n} for n, path in enumerate(paths)
    ]
    assert manifest["tokenizer"] == {"name": "shakespeare", "vocab_size": 4096, "sha256": small.sha256}


@pytest.mark.parametrize("pieces", [30, 1 << 18])
@pytest.mark.parametrize("separators", [False, True])
def test_a_long_document_is_one(text, tmp_path, small, monkeypatch, pieces, separators):
    for module in (preparation, sources):
        monkeypatch.setattr(module, "PIECE_CHARS", pieces)
    (tmp_path / "b.txt").write_text("another")
    options = {"separators": separators, "progress": False}
    dataset = prepare([text, tmp_path / "b.txt"], tmp_path / "out", small, **options)
    assert cut(dataset) == [[*small.encode(one), small.end_of_text] for one in (TEXT, "another")]


@pytest.mark.parametrize("end", ["", END_OF_TEXT])
def test_a_separator_at_the_end_ends_once(tmp_path, small, end):
    (tmp_path / "a.txt").write_text(f"one{END_OF_TEXT}two{end}")
    (tmp_path / "b.txt").write_text("three")
    dataset = prepare(
        [tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "out", small, separators=True, progress=False
    )
    assert cut(dataset) == [[*small.encode(one), small.end_of_text] for one in ("one", "two", "three")]


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n"])
def test_a_last_line_without_a_newline_counts(tmp_path, small, end):
    lines = [json.dumps({"text": one}) for one in ("first", "second", "last")]
    (tmp_path / "a.jsonl").write_bytes(("\n".join(lines) + end).encode())
    dataset = prepare(tmp_path / "a.jsonl", tmp_path / "out", small, progress=False)
    assert cut(dataset) == [[*small.encode(one), small.end_of_text] for one in ("first", "second", "last")]


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl"])
def test_line_ends_are_kept(tmp_path, small, name):
    text = "one\r\ntwo\rthree\n\r\n"
    content = text if name == "a.txt" else json.dumps({"text": text})
    (tmp_path / name).write_bytes(content.encode())
    dataset = prepare(tmp_path / name, tmp_path / "out", small, progress=False)
    assert small.decode(stream(dataset)[:-1]) == text


# ---- folders that are not what they say ----------------------------------------------------------------------------


@pytest.fixture
def folder(text, tmp_path, small):
    """Two documents in shards of 100 ids."""
    (tmp_path / "b.txt").write_text("another")
    prepare([text, tmp_path / "b.txt"], tmp_path / "out", small, shard_tokens=100, progress=False)
    return tmp_path / "out"


@pytest.mark.parametrize("extra", [-2, 2, 1])
def test_a_shard_of_another_length_is_refused(folder, monkeypatch, extra):
    monkeypatch.setattr(shard_checks, "_QUICK_FROM", 0)  # small ones are hashed each time
    path = folder / "tokens-00000.bin"
    before = path.stat()
    path.write_bytes(path.read_bytes()[:extra] if extra < 0 else path.read_bytes() + bytes(extra))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the length alone tells
    with pytest.raises(ShardError, match=r"tokens-00000\.bin"):
        TokenDataset.open(folder)


@pytest.mark.parametrize("starts", [[5, 5], [9, 3], [-1, 3], [0, "n"], [0, 10**9]])
def test_documents_that_do_not_rise_are_refused(folder, monkeypatch, starts):
    monkeypatch.setattr(shard_checks, "_QUICK_FROM", 0)  # small ones are hashed each time
    n, path = len(TokenDataset.open(folder)), folder / "documents.npy"
    before = path.stat()
    np.save(path, np.array([n if start == "n" else start for start in starts], np.int64))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))  # the positions alone tell
    with pytest.raises(ShardError, match=r"documents\.npy"):
        TokenDataset.open(folder)


def test_other_documents_than_were_written_are_refused(folder):
    """Positions that could be, but are not those whose hash the manifest has."""
    n = len(TokenDataset.open(folder))
    np.save(folder / "documents.npy", np.array([0, n - 1], np.int64))
    with pytest.raises(ShardError, match=r"documents\.npy"):
        TokenDataset.open(folder)


def test_what_is_remembered_is_a_hash_and_not_a_file(folder, monkeypatch):
    """A file that was read in whole need not be read again, unless it is to have another hash."""
    monkeypatch.setattr(shard_checks, "_QUICK_FROM", 0)  # small ones are read each time
    path, entry = folder / "manifest.json", 0
    manifest = json.loads(path.read_text())

    def written(**changes) -> None:
        manifest["shards"][entry].update(changes)
        path.write_text(json.dumps(manifest | {"manifest_sha256": manifest_sha256(manifest)}))

    written(mtime_ns=1)  # as of a copy, which has another
    TokenDataset.open(folder)
    written(sha256="0" * 64)
    with pytest.raises(ShardError, match=r"tokens-00000\.bin: its sha256 is not the manifest's"):
        TokenDataset.open(folder)


class Executed:
    def __reduce__(self):
        return print, ("executed",)


def test_nothing_in_a_folder_of_shards_is_executed(folder, capsys):
    np.save(folder / "documents.npy", np.array([Executed(), Executed()], object), allow_pickle=True)
    with pytest.raises(ShardError, match=r"documents\.npy"):
        TokenDataset.open(folder)
    assert "executed" not in capsys.readouterr().out
