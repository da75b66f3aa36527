"""From texts to token shards and back; inputs and shards that must be refused."""

from __future__ import annotations

import gzip
import json
import lzma
import math
import os
import random
import sys

import numpy as np
import pytest

from fastgpt.data import ShardError, SourceError, TokenDataset, prepare, shakespeare, shakespeare_tokens, sources
from fastgpt.data.tokenizer import END_OF_TEXT, Tokenizer

zstandard = pytest.importorskip("zstandard")

TEXT = "To be, or not to be: that is the question.\n\nWhether 'tis nobler in the mind 🤖 to suffer\n" * 3


@pytest.fixture(scope="module")
def gpt2() -> Tokenizer:
    return Tokenizer.named("gpt2")


@pytest.fixture(scope="module")
def small() -> Tokenizer:
    return Tokenizer.named("shakespeare")


def jsonl(texts: list[str]) -> bytes:
    return "".join(json.dumps({"text": t}) + "\n" for t in texts).encode()


def tokens_of(dataset: TokenDataset) -> list[int]:
    return dataset.read(0, len(dataset)).tolist()


def expected(tokenizer: Tokenizer, documents: list[str]) -> list[int]:
    return [i for text in documents for i in [*tokenizer.encode(text), tokenizer.end_of_text]]


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("a.txt", TEXT.encode()),
        ("a", TEXT.encode()),
        ("a.txt.gz", gzip.compress(TEXT.encode(), mtime=0)),
        ("a.txt.xz", lzma.compress(TEXT.encode())),
        ("a.txt.zst", zstandard.compress(TEXT[:100].encode()) + zstandard.compress(TEXT[100:].encode())),
        ("a.jsonl", jsonl([TEXT])),
        ("bom.txt", b"\xef\xbb\xbf" + TEXT.encode()),  # no character of the text
        ("bom.jsonl", b"\xef\xbb\xbf" + jsonl([TEXT])),
        ("a.jsonl.gz", gzip.compress(jsonl([TEXT]), mtime=0)),
        ("a.jsonl.zst", zstandard.compress(jsonl([TEXT]))),
    ],
)
def test_every_kind_of_source(tmp_path, gpt2, name, content):
    (tmp_path / name).write_bytes(content)
    dataset = prepare(tmp_path / name, tmp_path / "out", gpt2, progress=False)
    assert tokens_of(dataset) == expected(gpt2, [TEXT])
    assert dataset.documents.tolist() == [0]
    assert dataset.shards[0].dtype == np.uint16


def test_folder_of_sources(tmp_path, gpt2):
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "b.txt").write_text("second")
    (tmp_path / "in" / "a.jsonl").write_bytes(jsonl(["first", "", "again"]))
    (tmp_path / "in" / "deep" / "c.txt").write_text("third")
    (tmp_path / "in" / "picture.png").write_bytes(b"\x89PNG\0")
    (tmp_path / "in" / ".hidden.txt").write_text("no")
    dataset = prepare(tmp_path / "in", tmp_path / "out", gpt2, progress=False)
    assert tokens_of(dataset) == expected(gpt2, ["first", "again", "second", "third"])
    starts = dataset.documents.tolist()
    assert [dataset.read(s - 1, s)[0] for s in starts[1:]] == [gpt2.end_of_text] * 3
    manifest = json.loads((tmp_path / "out" / "manifest.json").read_text())
    assert manifest["n_documents"] == 4
    assert manifest["n_bytes"] == len("firstagainsecondthird")
    assert manifest["tokenizer"] == {"name": "gpt2", "vocab_size": 50257, "sha256": gpt2.sha256}
    assert [s["path"].split("/")[-1] for s in manifest["sources"]] == ["a.jsonl", "b.txt", "c.txt"]


def test_pieces_give_the_tokens_of_the_whole(tmp_path, gpt2, monkeypatch, seed):
    rng = random.Random(seed)
    parts = ["a", "word", " ", "  ", "\n", "\n\n", "\t", "'s", "1234", "!?", "é", "🤖", "\u2003", "\r\n", "x" * 40]
    text = "".join(rng.choice(parts) for _ in range(4000))
    monkeypatch.setattr(sources, "PIECE_CHARS", 50)
    path = tmp_path / "a.txt"
    path.write_bytes(text.encode())
    pieces = list(sources.read_pieces(path))
    assert len(pieces) > 50
    assert "".join(piece for piece, _ in pieces) == text
    assert [i for piece, _ in pieces for i in gpt2.encode(piece)] == gpt2.encode(text)
    assert [ends for _, ends in pieces] == [False] * (len(pieces) - 1) + [True]


def test_end_of_text_separates_only_when_asked(tmp_path, gpt2):
    (tmp_path / "a.txt").write_text(f"one{END_OF_TEXT}two")
    plain = prepare(tmp_path / "a.txt", tmp_path / "plain", gpt2, progress=False)
    assert plain.documents.tolist() == [0]
    assert tokens_of(plain).count(gpt2.end_of_text) == 1
    cut = prepare(tmp_path / "a.txt", tmp_path / "cut", gpt2, separators=True, progress=False)
    assert tokens_of(cut) == expected(gpt2, ["one", "two"])
    assert cut.documents.tolist() == [0, 2]


def test_several_shards_and_reading_across_them(tmp_path, gpt2):
    (tmp_path / "a.txt").write_text(TEXT)
    whole = prepare(tmp_path / "a.txt", tmp_path / "one", gpt2, progress=False)
    parts = prepare(tmp_path / "a.txt", tmp_path / "many", gpt2, shard_tokens=7, progress=False)
    assert len(parts.shards) == math.ceil(len(whole) / 7)
    assert tokens_of(parts) == tokens_of(whole)
    assert parts.read(5, 23).tolist() == whole.read(5, 23).tolist()
    with pytest.raises(IndexError, match="is outside the"):
        parts.read(0, len(parts) + 1)


def test_large_vocabulary_takes_uint32(gpt2):
    class Large:
        vocab_size, end_of_text, sha256, name = 70000, 69999, "x", "large"

    dataset = TokenDataset.from_documents([[1, 65536]], Large())
    assert dataset.shards[0].dtype == np.uint32
    assert tokens_of(dataset) == [1, 65536, 69999]
    with pytest.raises(ValueError, match=r"ids span 1 \.\.\. 70000"):
        TokenDataset.from_documents([[1, 70000]], Large())


def test_existing_folder_is_kept_unless_overwritten(tmp_path, gpt2):
    (tmp_path / "a.txt").write_text("one")
    prepare(tmp_path / "a.txt", tmp_path / "out", gpt2, progress=False)
    with pytest.raises(FileExistsError, match="--overwrite"):
        prepare(tmp_path / "a.txt", tmp_path / "out", gpt2, progress=False)
    (tmp_path / "a.txt").write_text("two")
    assert tokens_of(prepare(tmp_path / "a.txt", tmp_path / "out", gpt2, progress=False, overwrite=True)) == expected(
        gpt2, ["two"]
    )


def listing(folder) -> list[str]:
    return sorted(p.name for p in folder.iterdir())


def test_only_files_that_the_manifest_names_are_replaced(tmp_path, gpt2):
    (tmp_path / "a.txt").write_text(TEXT)
    out = tmp_path / "out"
    prepare(tmp_path / "a.txt", out, gpt2, shard_tokens=20, progress=False)
    assert len(listing(out)) > 4
    (out / "notes.txt").write_text("mine")
    (out / "deep").mkdir()
    (out / "deep" / "tokens-00000.bin").write_text("mine too")
    whole = prepare(tmp_path / "a.txt", out, gpt2, overwrite=True, progress=False)
    assert listing(out) == ["deep", "documents.npy", "manifest.json", "notes.txt", "tokens-00000.bin"]
    assert (out / "notes.txt").read_text() == "mine"
    assert (out / "deep" / "tokens-00000.bin").read_text() == "mine too"
    assert tokens_of(whole) == expected(gpt2, [TEXT])


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("manifest", [None, "{}", "{", '{"format": "other", "version": 1, "shards": []}'])
def test_a_folder_that_is_not_ours_is_never_touched(tmp_path, gpt2, overwrite, manifest):
    (tmp_path / "a.txt").write_text("one")
    out = tmp_path / "out"
    out.mkdir()
    (out / "work.py").write_text("mine")
    if manifest is not None:
        (out / "manifest.json").write_text(manifest)
    before = listing(out)
    with pytest.raises(FileExistsError, match=r"choose another folder"):
        prepare(tmp_path / "a.txt", out, gpt2, overwrite=overwrite, progress=False)
    assert listing(out) == before
    assert (out / "work.py").read_text() == "mine"


def test_a_manifest_cannot_name_files_elsewhere(tmp_path, gpt2):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "tokens-00000.bin").write_text("mine")
    out = tmp_path / "out"
    prepare(tmp_path / "a.txt", out, gpt2, progress=False)
    manifest = json.loads((out / "manifest.json").read_text())
    manifest["shards"][0]["file"] = "../tokens-00000.bin"
    (out / "manifest.json").write_text(json.dumps(manifest))
    with pytest.raises(ShardError, match="is no name of a shard"):
        TokenDataset.open(out)
    with pytest.raises(FileExistsError, match="is no name of a shard"):
        prepare(tmp_path / "a.txt", out, gpt2, overwrite=True, progress=False)
    assert (tmp_path / "tokens-00000.bin").read_text() == "mine"


def test_a_shard_that_the_manifest_does_not_name_is_not_overwritten(tmp_path, gpt2):
    (tmp_path / "a.txt").write_text(TEXT)
    prepare(tmp_path / "a.txt", tmp_path / "out", gpt2, progress=False)
    (tmp_path / "out" / "tokens-00001.bin").write_text("mine")
    with pytest.raises(FileExistsError, match=r"tokens-00001\.bin, which its manifest does not name"):
        prepare(tmp_path / "a.txt", tmp_path / "out", gpt2, shard_tokens=9, overwrite=True, progress=False)
    assert (tmp_path / "out" / "tokens-00001.bin").read_text() == "mine"


def test_an_empty_folder_and_a_link_to_one_are_used(tmp_path, gpt2):
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "empty").mkdir()
    (tmp_path / "link").symlink_to("empty")
    prepare(tmp_path / "a.txt", tmp_path / "link", gpt2, progress=False)
    assert tokens_of(TokenDataset.open(tmp_path / "empty")) == expected(gpt2, ["one"])
    assert (tmp_path / "link").is_symlink()


@pytest.mark.parametrize("sources", ["in", "in/a.txt", "in/deep", "alias/a.txt"])
@pytest.mark.parametrize("folder", ["in", "alias", "."])
def test_a_folder_that_holds_sources_is_refused(tmp_path, gpt2, monkeypatch, sources, folder):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "in" / "deep").mkdir(parents=True)
    (tmp_path / "in" / "a.txt").write_text("one")
    (tmp_path / "in" / "deep" / "b.txt").write_text("two")
    (tmp_path / "alias").symlink_to("in")
    with pytest.raises(ValueError, match=r"holds the source"):
        prepare(sources, folder, gpt2, overwrite=True, progress=False)
    with pytest.raises(ValueError, match=r"lies inside of the source"):
        prepare("in", "alias/out", gpt2, progress=False)
    assert (tmp_path / "in" / "a.txt").read_text() == "one"
    assert listing(tmp_path / "in") == ["a.txt", "deep"]


@pytest.mark.parametrize("error", [KeyboardInterrupt, OSError(28, "No space left on device")])
@pytest.mark.parametrize("where", ["np.save", "replace"])
def test_a_failure_while_replacing_leaves_the_old_shards(tmp_path, gpt2, monkeypatch, error, where):
    out = tmp_path / "out"
    (tmp_path / "a.txt").write_text(TEXT)
    prepare(tmp_path / "a.txt", out, gpt2, shard_tokens=20, progress=False)
    before = {p.name: p.read_bytes() for p in out.iterdir()}
    patched = (np, "save") if where == "np.save" else (os, "replace")
    original = getattr(*patched)
    for at in range(1, 100):
        calls = []

        def fail(*args, calls=calls, at=at, **kwargs):
            calls.append(args)
            if len(calls) == at:
                raise error
            return original(*args, **kwargs)

        with monkeypatch.context() as patch:
            patch.setattr(*patched, fail)
            try:
                prepare(tmp_path / "a.txt", out, gpt2, shard_tokens=30, overwrite=True, progress=False)
                break
            except (KeyboardInterrupt, OSError):
                pass
        assert {p.name: p.read_bytes() for p in out.iterdir()} == before, at
    assert at > (5 if where == "replace" else 1)
    assert len(TokenDataset.open(out, verify=True).shards) < len(before) - 2


def test_files_of_the_set_have_the_users_permissions(tmp_path, gpt2):
    (tmp_path / "a.txt").write_text("one")
    before = os.umask(0o027)
    try:
        for _ in range(2):
            prepare(tmp_path / "a.txt", tmp_path / "new" / "out", gpt2, overwrite=True, progress=False)
    finally:
        os.umask(before)
    assert {p.stat().st_mode & 0o777 for p in (tmp_path / "new" / "out").iterdir()} == {0o640}
    assert (tmp_path / "new" / "out").stat().st_mode & 0o777 == 0o750


def test_separators_at_the_end_of_a_piece_begin_a_document(tmp_path, gpt2, monkeypatch):
    documents = [f" document {n} of some words" for n in range(40)]
    (tmp_path / "a.txt").write_text(END_OF_TEXT.join(documents))
    monkeypatch.setattr(sources, "PIECE_CHARS", 41)
    cut = prepare(tmp_path / "a.txt", tmp_path / "cut", gpt2, separators=True, progress=False)
    assert tokens_of(cut) == expected(gpt2, documents)
    ends = np.flatnonzero(np.array(tokens_of(cut)) == gpt2.end_of_text)
    assert cut.documents.tolist() == [0, *(ends[:-1] + 1).tolist()]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"tokenizer": "gpt2"}, r"tokenizer='gpt2' must be a Tokenizer; load it first: Tokenizer.load\('gpt2'\)"),
        ({"tokenizer": None}, r"tokenizer=None must be a Tokenizer, e.g. Tokenizer.named"),
        ({"folder": None}, "folder=None must be the path of a folder"),
        ({"folder": ""}, "folder='' must be the path"),
        ({"folder": "x" * 300}, "folder=.* cannot be: File name too long"),
        ({"folder": "a.txt"}, "folder='a.txt' is a file; choose a folder"),
        ({"folder": "a.txt/b"}, "folder='a.txt/b' lies in a file"),
        ({"threads": 0}, "threads=0 must be an integer, at least 1"),
        ({"shard_tokens": 0}, "shard_tokens=0 must be an integer, at least 1"),
        ({"shard_tokens": -1}, "shard_tokens=-1 must be"),
        ({"shard_tokens": 1.5}, "shard_tokens=1.5 must be an integer"),
        ({"sources": []}, r"sources=\[\] must name a text file"),
        ({"sources": None}, "sources=None must be a path"),
        ({"sources": ["a.txt", "./a.txt"]}, r"a\.txt: named twice"),
        ({"sources": ["a.txt", "same.txt"]}, r"same\.txt: the same file as a\.txt"),
        ({"sources": [".", "a.txt"]}, r"same\.txt: the same file as a\.txt"),
    ],
)
def test_prepare_refuses_before_the_work(tmp_path, gpt2, monkeypatch, changes, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.txt").write_text("one")
    (tmp_path / "same.txt").symlink_to("a.txt")
    arguments = {"sources": "a.txt", "folder": "out", "tokenizer": gpt2} | changes
    with pytest.raises((ValueError, TypeError), match=message):
        prepare(**arguments, progress=False)
    assert listing(tmp_path) == ["a.txt", "same.txt"]


@pytest.mark.parametrize("name", ["model.safetensors", "metrics.jsonl", "manifest.json"])
def test_folders_of_models_runs_and_shards_are_no_texts(tmp_path, gpt2, name):
    (tmp_path / "in").mkdir()
    (tmp_path / "in" / "README.md").write_text("about the model")
    (tmp_path / "in" / name).write_text("{}")
    with pytest.raises(SourceError, match=r"not data|token shards"):
        prepare(tmp_path / "in", tmp_path / "out", gpt2, progress=False)
    if name != "manifest.json":
        with pytest.raises(SourceError, match=r"holds .*in, a model's or a run's folder, not data"):
            prepare(tmp_path, tmp_path / "out", gpt2, progress=False)


@pytest.mark.parametrize(
    "documents",
    ["text", ["text"], [1, 2], [[1.5]], [[[1]]], 3, None, [["a"]], [np.array([1.0])], [None]],
)
def test_documents_that_are_no_ids(small, documents):
    with pytest.raises(TypeError, match=r"documents=.* must be sequences of integer ids"):
        TokenDataset.from_documents(documents, small)


def test_what_is_no_dataset(tmp_path, small):
    with pytest.raises(TypeError, match=r"TokenDataset.open\(folder\)"):
        TokenDataset("tokens/books")
    with pytest.raises(TypeError, match=r"shards=.* must be a tuple of one-dimensional arrays"):
        TokenDataset(([1, 2],), np.array([0]), 10, "x", "name")
    with pytest.raises(TypeError, match="folder=3 must be the path"):
        TokenDataset.open(3)
    with pytest.raises(FileNotFoundError, match="no such folder"):
        TokenDataset.open(tmp_path / "gone")
    with pytest.raises(TypeError, match=r"fraction='0.1' must be a number, above 0 and below 1"):
        TokenDataset.from_documents([[1, 2]], small).split("0.1")


def test_failure_leaves_nothing_behind(tmp_path, gpt2):
    (tmp_path / "a.txt").write_text("fine")
    (tmp_path / "b.txt").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(SourceError):
        prepare([tmp_path / "a.txt", tmp_path / "b.txt"], tmp_path / "out", gpt2, progress=False)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.txt", "b.txt"]


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("binary.txt", b"abc\0def", r"binary\.txt: binary data"),
        ("latin1.txt", "é".encode("latin-1") * 9, r"latin1\.txt: not UTF-8 text \(byte 0xe9\)"),
        ("empty.txt", b"", r"empty\.txt: the file is empty"),
        ("blank.jsonl", b'{"text": ""}\n', r"blank\.jsonl: no text"),
        ("cut.txt.gz", gzip.compress(TEXT.encode(), mtime=0)[:-12], r"cut\.txt\.gz: the archive is damaged or cut"),
        ("cut.txt.xz", lzma.compress(TEXT.encode())[:-12], r"cut\.txt\.xz: the archive is damaged or cut short"),
        ("cut.txt.zst", zstandard.compress(TEXT.encode())[:-3], r"cut\.txt\.zst: the archive is damaged or cut short"),
        ("not.txt.gz", b"plain text", r"not\.txt\.gz: the archive is damaged"),
        ("not.txt.xz", b"plain text", r"not\.txt\.xz: the archive is damaged"),
        ("not.txt.zst", b"plain text", r"not\.txt\.zst: the archive is damaged"),
        ("bad.jsonl", b'{"text": "a"}\n{"text": \n', r"bad\.jsonl: line 2 is not JSON"),
        ("key.jsonl", b'{"body": "a"}\n', r'key\.jsonl: line 1 has no "text"'),
        ("list.jsonl", b"[1]\n", r'list\.jsonl: line 1 has no "text"'),
        ("half.jsonl", b'{"text": "a \\ud83d"}\n', r'half\.jsonl: line 1: "text" is no Unicode text'),
        ("type.jsonl", b'{"text": 3}\n', r'type\.jsonl: line 1: "text" is a int'),
    ],
)
def test_bad_source(tmp_path, gpt2, name, content, message):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(SourceError, match=message):
        prepare(tmp_path / name, tmp_path / "out", gpt2, progress=False)


def test_zst_without_zstandard(tmp_path, gpt2, monkeypatch):
    (tmp_path / "a.txt.zst").write_bytes(zstandard.compress(b"text"))
    monkeypatch.setitem(sys.modules, "zstandard", None)
    with pytest.raises(SourceError, match=r"pip install 'fastgpt-triton\[train\]'"):
        prepare(tmp_path / "a.txt.zst", tmp_path / "out", gpt2, progress=False)


def test_missing_source_and_useless_folder(tmp_path, gpt2):
    with pytest.raises(FileNotFoundError, match=r"gone\.txt: no such file"):
        prepare(tmp_path / "gone.txt", tmp_path / "out", gpt2)
    (tmp_path / "in").mkdir()
    with pytest.raises(SourceError, match="holds no data file"):
        prepare(tmp_path / "in", tmp_path / "out", gpt2)


@pytest.fixture
def shards(tmp_path, gpt2):
    (tmp_path / "a.txt").write_text(TEXT)
    prepare(tmp_path / "a.txt", tmp_path / "out", gpt2, shard_tokens=50, progress=False)
    return tmp_path / "out"


def test_open_is_memory_mapped(shards):
    dataset = TokenDataset.open(shards, verify=True)
    assert all(isinstance(s, np.memmap) for s in dataset.shards)


def damage(path, at: int, new: bytes) -> None:
    data = bytearray(path.read_bytes())
    data[at : at + len(new)] = new
    path.write_bytes(data)


def test_truncated_shard(shards):
    path = shards / "tokens-00000.bin"
    path.write_bytes(path.read_bytes()[:-2])
    with pytest.raises(ShardError, match=r"tokens-00000\.bin: 130 bytes, expected 132: truncated"):
        TokenDataset.open(shards)


def test_foreign_shard(shards):
    damage(shards / "tokens-00000.bin", 0, b"PK\x03\x04")
    with pytest.raises(ShardError, match="not a token shard of fastgpt"):
        TokenDataset.open(shards)


def test_shard_of_another_set(shards):
    (shards / "tokens-00001.bin").write_bytes((shards / "tokens-00000.bin").read_bytes()[:32])
    damage(shards / "tokens-00001.bin", 16, (7).to_bytes(8, "little"))
    with pytest.raises(ShardError, match="7 tokens, the manifest says"):
        TokenDataset.open(shards)


def test_damaged_documents(shards):
    path = shards / "documents.npy"
    path.write_bytes(path.read_bytes()[:-4])
    with pytest.raises(ShardError, match=r"documents\.npy: truncated or damaged"):
        TokenDataset.open(shards)
    for wrong in (np.array([0, 1]), np.array([10**6]), np.array([0.0])):
        np.save(path, wrong)
        with pytest.raises(ShardError, match=r"documents\.npy: (not the 1 positions|positions that do not rise)"):
            TokenDataset.open(shards)
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"documents\.npy: missing"):
        TokenDataset.open(shards)


def test_newer_shard(shards):
    damage(shards / "tokens-00000.bin", 8, (2).to_bytes(4, "little"))
    with pytest.raises(ShardError, match="version 2"):
        TokenDataset.open(shards)


def test_missing_shard_and_manifest(shards):
    (shards / "tokens-00001.bin").unlink()
    with pytest.raises(FileNotFoundError, match=r"tokens-00001\.bin: the manifest names this shard"):
        TokenDataset.open(shards)
    (shards / "manifest.json").write_text("{")
    with pytest.raises(ShardError, match="not a manifest"):
        TokenDataset.open(shards)
    (shards / "manifest.json").write_text('{"format": "other", "version": 1}')
    with pytest.raises(ShardError, match="format 'other'"):
        TokenDataset.open(shards)
    (shards / "manifest.json").unlink()
    with pytest.raises(FileNotFoundError, match="fastgpt prepare"):
        TokenDataset.open(shards)


def test_split_and_unigram_entropy(small):
    dataset = TokenDataset.from_documents([[1, 1, 2], [3, 4]], small)
    train, val = dataset.split(0.3)
    assert tokens_of(train) + tokens_of(val) == tokens_of(dataset)
    assert len(val) == 2
    assert train.documents.tolist() == [0, 4]
    assert val.documents.tolist() == []
    counts = np.array([2, 1, 1, 1, 2]) / 7
    assert dataset.unigram_entropy() == pytest.approx(-(counts * np.log(counts)).sum())
    for fraction in (0.0, 1.0, -1):
        with pytest.raises(ValueError, match=f"fraction={fraction}"):
            dataset.split(fraction)


def test_embedded_corpus(small):
    assert len(shakespeare("train").encode()) == 4838241
    assert len(shakespeare("val").split(END_OF_TEXT)) == 2
    val = shakespeare_tokens("val", small)
    assert len(val.documents) == 2
    assert small.decode(t for t in tokens_of(val) if t != small.end_of_text) == shakespeare("val").replace(
        END_OF_TEXT, ""
    )
    assert 5.5 < val.unigram_entropy() < 6.5
    with pytest.raises(ValueError, match="split='test' does not exist"):
        shakespeare("test")
