"""Texts as they lie on disk: line ends, encodings, archives of several streams, and what is refused by its place."""

from __future__ import annotations

import codecs
import gzip
import io
import json
import lzma
import os
import random
import re
import zlib

import pytest

from fastgpt.data import archives, sources
from fastgpt.data.sources import SourceError, read_pieces

zstandard = pytest.importorskip("zstandard")

PACKERS = {".gz": lambda data: gzip.compress(data, mtime=0), ".xz": lzma.compress, ".zst": zstandard.compress}
TEXT = "To be, or not to be: that is the question.\n" * 3


def written(tmp_path, name: str, content: bytes):
    path = tmp_path / name
    path.write_bytes(content)
    return path


def documents(path) -> list[str]:
    found = [[]]
    for piece, ends in read_pieces(path):
        found[-1].append(piece)
        if ends:
            found.append([])
    assert not found.pop(), "the last piece does not end a document"
    return ["".join(pieces) for pieces in found]


# ---- line ends and white space -------------------------------------------------------------------------------------

LINES = "a\rb\r\nc\n\nd\u2028e\u2029f\x85g\x0bh\x0ci\x1cj\x1dk\x1el\r"


@pytest.mark.parametrize("size", [4, 5, 1 << 18])
def test_plain_text_is_kept_byte_for_byte(tmp_path, monkeypatch, size):
    monkeypatch.setattr(sources, "PIECE_CHARS", size)
    for text in (LINES, LINES.encode("utf-8").decode("latin-1"), "🤖é" * 9, "\ufeff\ufeffx", " \n "):
        kept = text.removeprefix("\ufeff")  # the mark that Windows' programs put first
        assert documents(written(tmp_path, "a.txt", text.encode("utf-8"))) == [kept]


@pytest.mark.parametrize("end", ["\n", "\r\n", "\r\n\r\n", " \r\n\t\n"])
def test_json_lines_end_with_a_line_feed(tmp_path, end):
    """Nothing else that str.splitlines() splits at does, in strings or, a carriage return, around them."""
    texts = [LINES, "second", "", "third"]
    for raw in (True, False):
        lines = end.join(json.dumps({"text": text}, ensure_ascii=not raw) for text in texts)
        content = lines.replace(": ", ":\r ").encode("utf-8")
        for last in (b"", end.encode()):
            assert documents(written(tmp_path, "a.jsonl", content + last)) == [LINES, "second", "third"]


def test_a_long_json_text_is_cut_as_plain_text_is(tmp_path, monkeypatch):
    monkeypatch.setattr(sources, "PIECE_CHARS", 50)
    text = "word " * 100
    path = written(tmp_path, "a.jsonl", json.dumps({"text": text}).encode() + b'\n{"text": "b"}')
    pieces = list(read_pieces(path))
    assert len(pieces) == 11
    assert [ends for _, ends in pieces] == [False] * 9 + [True, True]
    assert documents(path) == [text, "b"]


def test_progress_is_told_by_blocks_of_the_packed_file(tmp_path):
    path = written(tmp_path, "a.jsonl.gz", gzip.compress(b'{"text": "a"}\n' * 2000))
    told = []
    assert len(list(read_pieces(path, told.append))) == 2000
    assert told[-1] == path.stat().st_size
    assert len(told) < 5


# ---- encodings -----------------------------------------------------------------------------------------------------

LATIN = "naïve"
PLAIN = "fine\nline\n"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ((PLAIN + LATIN).encode("latin-1"), "not UTF-8 text (byte 0xef) in line 3, at byte 12; convert it"),
        ((PLAIN + "漢").encode("utf-8")[:-1], "in line 3, at byte 10; it ends within a character: copy it again"),
        ((PLAIN + "\ud83d").encode("utf-8", "surrogatepass"), "not UTF-8 text (byte 0xed) in line 3, at byte 10"),
        (PLAIN.encode() + b"a\0b" + PLAIN.encode(), "binary data (a NUL byte in line 3, at byte 11), not text"),
        (codecs.BOM_UTF16_LE + PLAIN.encode("utf-16-le"), "UTF-16 text (it starts with its byte-order mark); iconv"),
        (codecs.BOM_UTF16_BE + PLAIN.encode("utf-16-be"), "UTF-16 text (it starts with its byte-order mark)"),
        (codecs.BOM_UTF32_LE + PLAIN.encode("utf-32-le"), "UTF-32 text (it starts with its byte-order mark)"),
        (codecs.BOM_UTF32_BE + PLAIN.encode("utf-32-be"), "UTF-32 text (it starts with its byte-order mark)"),
        (PLAIN.encode("utf-16-le"), "UTF-16LE text without a byte-order mark (a NUL byte in line 1, at byte 1); iconv"),
        (PLAIN.encode("utf-16-be"), "UTF-16BE text without a byte-order mark (a NUL byte in line 1, at byte 0)"),
        (PLAIN.encode("utf-32-le"), "UTF-32LE text without a byte-order mark"),
        (PLAIN.encode("utf-32-be"), "UTF-32BE text without a byte-order mark"),
    ],
)  # fmt: skip
@pytest.mark.parametrize("size", [4, 1 << 18])
def test_what_is_not_utf8_is_named_with_its_place_and_the_way_out(tmp_path, monkeypatch, content, message, size):
    monkeypatch.setattr(sources, "PIECE_CHARS", size)
    if size == 4 and ("without" in message or "binary" in message):
        message = "a NUL byte in line"  # of which encoding, four bytes do not tell
    path = written(tmp_path, "a b.txt", content)
    with pytest.raises(SourceError, match=re.escape(f"{path}: ") + ".*" + re.escape(message)) as caught:
        documents(path)
    if "iconv -f" in message:
        assert f"'{path}' > NEW" in str(caught.value)


def test_the_way_out_of_an_archive_begins_with_unpacking_it(tmp_path):
    for suffix, command in [(".gz", "gzip -dc"), (".xz", "xz -dc"), (".zst", "zstd -dc")]:
        path = written(tmp_path, f"a.txt{suffix}", PACKERS[suffix]("é".encode("latin-1")))
        with pytest.raises(
            SourceError, match=rf"{command} {re.escape(str(path))} \| iconv -f ISO-8859-1 -t UTF-8 > NEW"
        ):
            documents(path)


@pytest.mark.parametrize(
    ("line", "message"),
    [
        (rb'{"text": "a \ud83d b"}', "line 2: \"text\" is no Unicode text"),
        (rb'{"text": "\udc00"}', "line 2: \"text\" is no Unicode text"),
        (rb'{"text": "a\u0000b"}', 'line 2: "text" holds a NUL character'),
        ('{"text": "é"}'.encode("latin-1"), "not UTF-8 text (byte 0xe9) in line 2, at byte 24"),
        (b'{"text": "\xed\xa0\x80"}', "not UTF-8 text (byte 0xed) in line 2, at byte 24"),
        (b'{"text": "a\0b"}', "binary data (a NUL byte in line 2, at byte 25)"),
        (b'{"text": "a"}\r{"text": "b"}', r"(char 14)); give one object per line; lines end with \n"),
        (b'\xef\xbb\xbf{"text": "a"}', "line 2 is not JSON (Unexpected UTF-8 BOM"),
        (b'{"text": "a", "n": ' + b"9" * 5000 + b"}", "line 2 is not JSON (Exceeds the limit"),
        (b"[" * 100_000, "line 2 is not JSON for a text (nested too deeply)"),
    ],
    ids=range(10),
)  # fmt: skip
def test_a_line_that_is_refused_is_named(tmp_path, line, message):
    path = written(tmp_path, "a.jsonl", b'{"text": "a"}\n' + line + b'\n{"text": "c"}\n')
    with pytest.raises(SourceError, match=re.escape(f"{path}: ") + ".*" + re.escape(message)):
        documents(path)


def test_pairs_of_escapes_are_one_character(tmp_path):
    assert documents(written(tmp_path, "a.jsonl", rb'{"text": "\ud83e\udd16"}')) == ["🤖"]


def test_json_lines_of_another_encoding(tmp_path):
    line = '{"text": "aaaa"}\n'
    for encoding in ("utf-16", "utf-32", "utf-16-le", "utf-16-be"):
        with pytest.raises(SourceError, match=r"UTF-(16|32).* text .*iconv -f UTF-"):
            documents(written(tmp_path, "a.jsonl", (line * 3).encode(encoding)))
    assert documents(written(tmp_path, "a.jsonl", codecs.BOM_UTF8 + line.encode())) == ["aaaa"]


# ---- archives ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("suffix", PACKERS)
def test_streams_follow_each_other(tmp_path, suffix):
    pack = PACKERS[suffix]
    path = written(tmp_path, f"a.txt{suffix}", pack(TEXT.encode()) + pack(b"") + pack(b"second") + pack(b""))
    assert documents(path) == [TEXT + "second"]


@pytest.mark.parametrize("suffix", PACKERS)
def test_an_archive_cut_anywhere_is_an_error(tmp_path, suffix):
    """But between two streams: nothing tells that another one was there."""
    first, second = PACKERS[suffix](TEXT.encode()), PACKERS[suffix](b"second")
    whole = first + second
    for size in range(1, len(whole)):
        path = written(tmp_path, f"a.txt{suffix}", whole[:size])
        if size == len(first):
            assert documents(path) == [TEXT]
            continue
        with pytest.raises(SourceError, match=re.escape(f"{path}: the archive is damaged")):
            documents(path)


@pytest.mark.parametrize("suffix", PACKERS)
@pytest.mark.parametrize("at", [0, 1, 5, 10])
def test_a_damaged_second_stream_is_an_error(tmp_path, suffix, at):
    first, second = PACKERS[suffix](TEXT.encode()), bytearray(PACKERS[suffix](random.Random(0).randbytes(500)))
    if (suffix, at) in ((".gz", 5), (".zst", 5), (".zst", 10), (".zst", 1)):
        at = len(second) - 6 if suffix == ".gz" else 0  # a time stamp, or data that zstandard puts no checksum to
    second[at] ^= 0x55
    path = written(tmp_path, f"a.txt{suffix}", first + second)
    with pytest.raises(SourceError, match=re.escape(f"{path}: the archive is damaged")):
        documents(path)


@pytest.mark.parametrize(
    ("suffix", "after", "fine"),
    [
        (".gz", b"\0" * 5, True),
        (".xz", b"\0" * 8, True),
        (".xz", b"\0" * 5, False),
        (".zst", b"\0" * 4, False),
        (".zst", b"\x50\x2a\x4d\x18\x03\0\0\0abc", True),  # a frame to skip
        (".gz", b"\x1f", False),
        (".gz", b"garbage", False),
        (".xz", b"garbage", False),
        (".xz", b"\0\0\0\0garbage", False),
        (".zst", b"garbage", False),
    ],
)
@pytest.mark.parametrize("feed", [1, 1 << 12])
def test_what_may_follow_a_stream(tmp_path, monkeypatch, suffix, after, fine, feed):
    monkeypatch.setattr(archives, "FEED", feed)
    for last in (b"", PACKERS[suffix](b"second")):
        path = written(tmp_path, f"a.txt{suffix}", PACKERS[suffix](TEXT.encode()) + after + last)
        if fine:
            assert documents(path) == [TEXT + ("second" if last else "")]
            continue
        with pytest.raises(SourceError, match=re.escape(f"{path}: the archive is damaged")):
            documents(path)


@pytest.mark.parametrize("suffix", PACKERS)
def test_unpacking_takes_little_memory_however_well_it_was_packed(suffix):
    packed = PACKERS[suffix](bytes(1 << 23))
    stream = archives._Unpacked(io.BytesIO(packed), archives.FORMATS[suffix]())
    longest, size, buffer = 0, 0, bytearray(1 << 18)
    while n := stream.readinto(buffer):
        longest, size = max(longest, n + len(stream._ready)), size + n
    assert size == 1 << 23
    assert longest <= (1 << 23 if suffix == ".zst" else archives.FEED * 8000)  # .zst: 128 KiB in 4 bytes


def test_gzips_checksum_is_looked_at(tmp_path):
    packed = bytearray(PACKERS[".gz"](TEXT.encode()))
    packed[-8] ^= 1
    assert zlib.decompressobj(-15).decompress(packed[10:-8]) == TEXT.encode()
    with pytest.raises(SourceError, match=r"the archive is damaged \(.*incorrect data check\)"):
        documents(written(tmp_path, "a.txt.gz", bytes(packed)))


def test_a_disk_that_fails_while_reading_names_the_file(tmp_path, monkeypatch):
    def fail(self, buffer):
        raise OSError(5, "Input/output error")

    path = written(tmp_path, "a.txt", b"text")
    monkeypatch.setattr(sources._File, "readinto", fail)
    with pytest.raises(SourceError, match=r"a\.txt: could not be read \(Input/output error\)"):
        documents(path)


@pytest.mark.parametrize("suffix", PACKERS)
def test_nothing_stands_before_an_archive(tmp_path, suffix):
    path = written(tmp_path, f"a.txt{suffix}", bytes(4) + PACKERS[suffix](TEXT.encode()))
    with pytest.raises(SourceError, match=re.escape(f"{path}: the archive is damaged")):
        documents(path)


@pytest.mark.parametrize("name", ["a.txt", "a.jsonl", "a.jsonl.gz"])
@pytest.mark.parametrize(
    "change",
    [
        lambda path: os.truncate(path, path.stat().st_size // 2 // 21 * 21),
        lambda path: path.open("ab").write(b'{"text": "more"}\n'),
        lambda path: os.utime(path, ns=(1, 1)),  # as a write in place does, by now
    ],
    ids=["cut", "grown", "written into"],
)
def test_a_file_that_changes_while_it_is_read_is_refused(tmp_path, monkeypatch, name, change):
    monkeypatch.setattr(sources, "PIECE_CHARS", 1 << 10)
    line = b'{"text": "word 123"}\n'
    content = line * 60_000  # more than what is read ahead
    path = written(tmp_path, name, gzip.compress(content, 0) if name.endswith(".gz") else content)
    pieces = sources.read_pieces(path)
    next(pieces)
    change(path)
    with pytest.raises(sources.SourceError, match=rf"{name}: (it was written while it was being read|the archive is)"):
        list(pieces)


def test_a_file_that_another_one_replaces_is_read_to_its_end(tmp_path):
    path = written(tmp_path, "a.txt", b"word 1 " * 200_000)
    pieces = sources.read_pieces(path)
    read = next(pieces)[0]
    os.replace(written(tmp_path, "b.txt", b"another"), path)
    assert read + "".join(text for text, _ in pieces) == "word 1 " * 200_000


def test_a_frame_that_needs_much_memory_is_not_called_damaged(tmp_path):
    window = zstandard.ZstdCompressionParameters(window_log=28)
    packer = zstandard.ZstdCompressor(compression_params=window).compressobj()  # of unknown size: the window counts
    path = written(tmp_path, "a.txt.zst", packer.compress(b"text") + packer.flush())
    with pytest.raises(sources.SourceError, match=r"needs more memory to unpack than is taken .*; unpack it first"):
        documents(path)
