"""Tokenizers: known ids, exact round trips, special tokens, damaged and foreign files."""

from __future__ import annotations

import base64
import lzma
import os
import pickle
import socket

import numpy as np
import pytest
import torch

from fastgpt.data import assets
from fastgpt.data.tokenizer import BUNDLED, END_OF_TEXT, Tokenizer

pytestmark = pytest.mark.needs("tiktoken")


@pytest.fixture(scope="module", params=sorted(BUNDLED))
def tokenizer(request) -> Tokenizer:
    return Tokenizer.named(request.param)


def write_ranks(path, tokens: list[bytes]):
    path.write_bytes(b"".join(base64.b64encode(t) + b" %d\n" % n for n, t in enumerate(tokens)))
    return path


BYTES = [bytes([b]) for b in range(256)]


@pytest.mark.parametrize(
    ("text", "ids"),
    [
        ("hello world", [31373, 995]),
        ("Hello, world!", [15496, 11, 995, 0]),
        ("", []),
    ],
)
def test_gpt2_known_ids(text, ids):
    assert Tokenizer.named("gpt2").encode(text) == ids


def test_gpt2_sizes():
    gpt2 = Tokenizer.named("gpt2")
    assert (gpt2.vocab_size, gpt2.end_of_text) == (50257, 50256)
    assert Tokenizer.named("shakespeare").vocab_size == 4096


def test_end_of_text_is_ordinary_text_unless_allowed(tokenizer):
    text = f"a{END_OF_TEXT}b"
    plain = tokenizer.encode(text)
    assert tokenizer.end_of_text not in plain
    assert tokenizer.end_of_text not in tokenizer.encode_batch([text])[0]
    assert tokenizer.decode(plain) == text
    special = tokenizer.encode(text, allow_special=True)
    assert special == [*tokenizer.encode("a"), tokenizer.end_of_text, *tokenizer.encode("b")]
    assert tokenizer.decode(special) == text


def test_stream_never_cuts_a_character(tokenizer):
    pieces = list(tokenizer.decode_stream(tokenizer.encode("naïve 🤖 ✓")))
    assert "".join(pieces) == "naïve 🤖 ✓"
    assert not any("�" in piece for piece in pieces)


def test_batch_equals_one_by_one(tokenizer):
    texts = [f"Line {n}, to be or not to be.\n" * (n % 7) for n in range(100)]
    assert tokenizer.encode_batch(texts, threads=4) == [tokenizer.encode(t) for t in texts]


def test_nothing_touches_the_network(monkeypatch):
    def refuse(*args, **kwargs):
        raise AssertionError("a tokenizer opened a socket")

    monkeypatch.setattr(socket, "socket", refuse)
    from fastgpt.data.tokenizer import _bundled

    _bundled.cache_clear()
    assert Tokenizer.named("gpt2").encode("hello world") == [31373, 995]


def test_pickles_and_compares(tokenizer):
    copy = pickle.loads(pickle.dumps(tokenizer))
    assert copy == tokenizer
    assert copy.encode("good morrow") == tokenizer.encode("good morrow")
    assert copy != "gpt2"


def test_tokenizers_of_other_ranks_are_others_whatever_their_name(tmp_path, tokenizer):
    other = Tokenizer.from_file(write_ranks(tmp_path / f"{tokenizer.name}.tiktoken", BYTES))
    assert other.name == tokenizer.name
    assert other != tokenizer
    same = Tokenizer("another name", tokenizer.ranks_file)
    assert same == tokenizer
    assert hash(same) == hash(tokenizer)


def test_every_id_stands_for_its_bytes_and_end_of_text_for_none(tokenizer):
    lengths = tokenizer.token_bytes()
    assert lengths.tolist() == [*(len(tokenizer.decode_bytes([i])) for i in range(tokenizer.end_of_text)), 0]


def test_own_vocabulary_from_a_file(tmp_path):
    path = write_ranks(tmp_path / "own.tiktoken", [*BYTES, b"th", b"the"])
    own = Tokenizer.from_file(path)
    assert own.encode("the") == [257]
    assert (own.vocab_size, own.end_of_text) == (259, 258)
    packed = tmp_path / "own.tiktoken.xz"
    packed.write_bytes(lzma.compress(path.read_bytes()))
    assert Tokenizer.load(packed) == own
    own.save(tmp_path)
    assert Tokenizer.load(tmp_path) == own


def test_bundled_tokenizer_is_saved_by_name(tmp_path, tokenizer):
    tokenizer.save(tmp_path)
    assert not (tmp_path / "tokenizer.tiktoken").exists()
    assert Tokenizer.from_pretrained(tmp_path) == tokenizer


def test_saved_tokenizer_of_other_ranks_is_refused(tmp_path):
    Tokenizer.from_file(write_ranks(tmp_path / "own.tiktoken", [*BYTES, b"th"])).save(tmp_path)
    write_ranks(tmp_path / "tokenizer.tiktoken", [*BYTES, b"he"])
    with pytest.raises(ValueError, match="records sha256"):
        Tokenizer.from_pretrained(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"not a ranks file at all\n", "line 1"),
        (b"!!!! 0\n", "line 1"),
        (b"YQ== 0\nYg== 2\n", "ranks are not 0"),
        (b"YQ== 0\n", "single bytes have no rank"),
        (b"", "single bytes have no rank"),
    ],
)
def test_malformed_ranks_file(tmp_path, content, message):
    path = tmp_path / "bad.tiktoken"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message):
        Tokenizer.from_file(path)


def test_missing_and_unknown(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no\.tiktoken"):
        Tokenizer.from_file(tmp_path / "no.tiktoken")
    with pytest.raises(ValueError, match="'gpt9' is not bundled; choose from gpt2, shakespeare"):
        Tokenizer.named("gpt9")
    with pytest.raises(ValueError, match="neither a bundled tokenizer"):
        Tokenizer.load("gpt9")
    with pytest.raises(FileNotFoundError, match="no tokenizer in"):
        Tokenizer.load(tmp_path)
    (tmp_path / "cut.tiktoken.xz").write_bytes(lzma.compress(b"YQ== 0\n")[:-9])
    with pytest.raises(ValueError, match=r"not a whole \.xz"):
        Tokenizer.from_file(tmp_path / "cut.tiktoken.xz")


def test_id_out_of_range(tokenizer):
    with pytest.raises(ValueError, match=f"id {tokenizer.vocab_size} is outside"):
        tokenizer.decode([tokenizer.vocab_size])
    with pytest.raises(ValueError, match="id -1 is outside"):
        tokenizer.decode_bytes([-1])


@pytest.mark.parametrize("damaged", [b"garbage", lzma.compress(b"YQ== 0\n")])
def test_damaged_asset_is_refused(tmp_path, monkeypatch, damaged):
    (tmp_path / "x.xz").write_bytes(damaged)
    monkeypatch.setattr(assets.resources, "files", lambda package: tmp_path)
    with pytest.raises(ValueError, match=r"x\.xz is damaged.*reinstall"):
        assets.read_asset("x.xz", "0" * 64)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda t: Tokenizer("gpt2"), r"Tokenizer\.named\('gpt2'\) makes a bundled tokenizer"),
        (lambda t: Tokenizer("own", "text"), r"ranks_file='text' must be the bytes.*Tokenizer\.from_file\(path\)"),
        (lambda t: Tokenizer.named(None), "name=None must be one of gpt2, shakespeare"),
        (lambda t: Tokenizer.load(3), "tokenizer=3 must be a name or a path"),
        (lambda t: Tokenizer.from_file(None), "path=None must be"),
        (lambda t: Tokenizer.from_pretrained(None), "folder=None must be"),
        (lambda t: t.encode(b"bytes"), r"text=b'bytes' must be a string; of bytes make one first"),
        (lambda t: t.encode(None), "text=None must be a string"),
        (lambda t: t.encode(["a", "b"]), r"must be one string; for several: encode_batch"),
        (lambda t: t.encode_batch("text"), "texts='text' must be several strings; for one: encode"),
        (lambda t: t.encode_batch(["a", 3]), "texts=3 must be a string"),
        (lambda t: t.encode_batch(["a"], threads=0), "threads=0 must be an integer, at least 1"),
        (lambda t: t.decode("123"), "ids='123' must be one sequence of integer ids"),
        (lambda t: t.decode(b"ab"), "must be one sequence of integer ids"),
        (lambda t: t.decode(5), "ids=5 must be one sequence"),
        (lambda t: t.decode([1.0]), r"ids=\[1.0\] must be one sequence"),
        (lambda t: t.decode([[1, 2]]), "of a batch decode row after row"),
        (lambda t: t.decode(torch.tensor([1.0])), r"ids=tensor\(\[1.\]\) must be"),
        (lambda t: t.decode(torch.tensor([[1, 2]])), "of a batch decode row after row"),
        (lambda t: t.decode(np.array([1.5])), "must be one sequence of integer ids"),
    ],
)
def test_misuse_names_the_argument_and_the_fix(tokenizer, call, message):
    with pytest.raises((TypeError, ValueError), match=message):
        call(tokenizer)


def test_ids_may_be_any_sequence_of_integers(tokenizer):
    ids = tokenizer.encode("good morrow")
    for same in (tuple(ids), iter(ids), np.array(ids), np.array(ids, np.uint16), torch.tensor(ids)):
        assert tokenizer.decode(same) == "good morrow"


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"gpt2"', '"gpt3"'), ('"gpt2"', "[1]"), ('"gpt2"', '"shakespeare"'), ('"306cd', '"316cd'),
        ('"306cd', '"306c\u00e4'), ('"sha256": "', '"sha256": 3, "x": "'),
    ],
)  # fmt: skip
def test_a_changed_character_is_said_of_the_file_it_stands_in(tmp_path, old, new):
    Tokenizer.named("gpt2").save(tmp_path)
    about = tmp_path / "fastgpt_tokenizer.json"
    about.write_text(about.read_text().replace(old, new), encoding="utf-8")
    with pytest.raises(ValueError, match=r"fastgpt_tokenizer\.json (is corrupted|records sha256)") as error:
        Tokenizer.from_pretrained(tmp_path)
    assert "tokenizer.tiktoken" not in str(error.value), "which a bundled one has not"


@pytest.mark.parametrize(
    ("put", "what"),
    [
        (lambda path: path.mkdir(), "a folder"),
        (lambda path: path.symlink_to("nowhere"), "a link to nowhere"),
        (lambda path: path.symlink_to(path), "a link to nowhere"),
        (os.mkfifo, "a pipe or a device"),
    ],
)
def test_what_is_no_file_in_the_place_of_the_description(tmp_path, put, what):
    put(tmp_path / "fastgpt_tokenizer.json")
    with pytest.raises(ValueError, match=rf"fastgpt_tokenizer\.json: {what} in the place of a file"):
        Tokenizer.load(tmp_path)


def test_files_that_hold_a_tokenizer_or_look_so(tmp_path):
    Tokenizer.named("gpt2").save(tmp_path)
    about = tmp_path / "fastgpt_tokenizer.json"
    assert Tokenizer.load(about) == Tokenizer.named("gpt2")
    whole = about.read_text()
    for damaged in (whole[:20], "[]", "{}", ""):
        about.write_text(damaged)
        with pytest.raises(ValueError, match=r"fastgpt_tokenizer\.json is corrupted"):
            Tokenizer.load(tmp_path)
    about.write_text(whole.replace("gpt2", "mine").replace("true", "false"))
    with pytest.raises(FileNotFoundError, match=r"tokenizer\.tiktoken: missing"):
        Tokenizer.load(tmp_path)
    about.rename(tmp_path / "tokenizer.json")
    with pytest.raises(FileNotFoundError, match=r"no tokenizer in .*tokenizer\.json, which is transformers'"):
        Tokenizer.load(tmp_path)
    with pytest.raises(ValueError, match=r"tokenizer\.json' is no ranks file: .*line 1"):
        Tokenizer.load(tmp_path / "tokenizer.json")
    with pytest.raises(ValueError, match="did you mean 'shakespeare'"):
        Tokenizer.load("shakespear")
    with pytest.raises(ValueError, match="neither a bundled tokenizer"):
        Tokenizer.load("x" * 300)
