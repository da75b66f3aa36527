"""Reading texts from disk: plain text and JSON Lines, packed or not, one file or a folder of them.

A plain text file is one document; in a JSON Lines file every line is one, its text under the key "text".
"""

from __future__ import annotations

import codecs
import io
import itertools
import json
import os
import shlex
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

from ..base.files import reason
from . import pretokens
from .archives import FORMATS, ArchiveError, open_unpacked
from .pretokens import PIECE_CHARS

TEXT_SUFFIXES = (".txt", ".text", ".md")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
_MODEL_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "ckpt.pt", "metrics.jsonl")
_MARKS = {
    codecs.BOM_UTF32_LE: "UTF-32",  # before that of UTF-16, which it begins with
    codecs.BOM_UTF32_BE: "UTF-32",
    codecs.BOM_UTF16_LE: "UTF-16",
    codecs.BOM_UTF16_BE: "UTF-16",
}
_ZEROS = {  # which of four bytes is zero, in texts of Latin letters
    (False, True, False, True): "UTF-16LE",
    (True, False, True, False): "UTF-16BE",
    (False, True, True, True): "UTF-32LE",
    (True, True, True, False): "UTF-32BE",
}


class SourceError(ValueError):
    """A data file that cannot be used: the message names the file and the way out."""


def find_sources(paths: str | os.PathLike[str] | Iterable[str | os.PathLike[str]]) -> list[Path]:
    """Files named by `paths`, and those of known suffixes inside folders (recursively, sorted; hidden ones skipped).

    Raises:
        FileNotFoundError: a path does not exist.
        SourceError: a folder without a single usable file, an empty file, one that is named twice, or a folder that
            holds a model or token shards.
    """
    if isinstance(paths, (str, os.PathLike)):
        paths = [paths]
    files: list[Path] = []
    for path in map(Path, paths):
        if os.path.isdir(path):  # False, unlike Path's, also for a path that cannot be
            files += _inside(path)
        elif os.path.exists(path):
            files.append(path)
        else:
            raise FileNotFoundError(f"{path}: no such file or folder; check the data path")
    if not files:
        raise SourceError("no data was named; give text files or folders of them")
    seen: dict[Path, Path] = {}
    for path in files:
        if not path.is_file() and str(path) != os.devnull:  # read more than once, and measured before
            raise SourceError(f"{path}: no regular file (a pipe, or a device); write its text to a file first")
        if path.stat().st_size == 0:
            raise SourceError(f"{path}: the file is empty; remove it or give another one")
        first = seen.setdefault(path.resolve(), path)
        if first is not path:
            same = "named twice" if first == path else f"the same file as {first}"
            raise SourceError(f"{path}: {same}, so its text would count twice; name it once")
    return files


def _inside(folder: Path) -> list[Path]:
    """The data files in `folder`."""
    if (folder / "manifest.json").is_file():
        raise SourceError(f"{folder}: token shards, which `fastgpt prepare` made; name them alone, with --data")
    if any((folder / name).exists() for name in _MODEL_FILES):
        raise SourceError(f"{folder}: a model's or a run's folder, not data; give text files or folders of them")
    inside = sorted(p for p in folder.rglob("*") if p.is_file() and _known(p) and not _hidden(p, folder))
    holding = {parent for path in inside for parent in itertools.takewhile(lambda one: one != folder, path.parents)}
    for parent in sorted(holding):
        if any((parent / name).exists() for name in _MODEL_FILES):
            raise SourceError(f"{folder}: holds {parent}, a model's or a run's folder, not data; name the texts alone")
    if not inside:
        known = ", ".join(TEXT_SUFFIXES + JSONL_SUFFIXES)
        raise SourceError(f"{folder}: the folder holds no data file; put {known} (or .gz/.xz/.zst of them) there")
    return inside


def read_pieces(
    path: Path, on_read: Callable[[int], None] | None = None, *, special: bool = False
) -> Iterator[tuple[str, bool]]:
    """(piece of text, does it end a document?) through the whole file.

    The pieces of a document have its tokens, see `pretokens.py`, also where `special` makes `<|endoftext|>` one.
    Memory is bounded whatever the file's size; of JSON Lines, whose lines must be read whole, by the longest line's.
    Line ends in plain text are kept as they are. A line of JSON Lines ends with a line feed, as the format says: a
    carriage return is white space there.
    `on_read` is told how many bytes of the file (packed, if it is) have been read so far.

    Raises:
        SourceError: binary or not UTF-8, a damaged archive, a line that is not a JSON object with a "text", or a file
            that changed meanwhile.
    """
    packed = path.suffix.lower() in FORMATS
    kind = Path(path.stem if packed else path.name).suffix.lower()
    try:
        with _File(path, on_read) as file, io.BufferedReader(file, 1 << 18) as raw, open_unpacked(path, raw) as stream:
            if kind in JSONL_SUFFIXES:
                for text in _json_texts(path, stream):
                    yield from _with_end(_cut(text, special))
            else:
                yield from _with_end(pretokens.pieces(_plain_text(path, stream), PIECE_CHARS, special=special))
            file.check_unchanged(path)
    except ArchiveError as error:
        raise SourceError(f"{path}: {error}") from error
    except ImportError as error:
        raise SourceError(
            f"{path}: reading .zst needs zstandard; `pip install 'fastgpt-triton[train]'`, or unpack it first"
        ) from error
    except OSError as error:
        if error.filename is None:  # reading, unlike opening, does not say what
            raise SourceError(
                f"{path}: could not be read ({reason(error)}); copy it from where it came from"
            ) from error
        raise


class _File(io.FileIO):
    """A file that says how far it has been read."""

    def __init__(self, path: Path, on_read: Callable[[int], None] | None) -> None:
        super().__init__(path)
        self._on_read = on_read
        self._before = self._state()

    def _state(self) -> tuple[int, int]:
        found = os.fstat(self.fileno())
        return found.st_size, found.st_mtime_ns

    def check_unchanged(self, path: Path) -> None:
        """Raise SourceError where another program has cut it or written into it since: what was read is neither."""
        if self._state() != self._before:
            raise SourceError(
                f"{path}: it was written while it was being read; wait for who writes it, and start again"
            )

    def readinto(self, buffer: Any) -> int:
        n = super().readinto(buffer)
        if self._on_read is not None:
            self._on_read(self.tell())
        return n


def _cut(text: str, special: bool) -> Iterable[str]:
    if len(text) <= PIECE_CHARS:
        return [text] if text else []
    chunks = (text[at : at + PIECE_CHARS] for at in range(0, len(text), PIECE_CHARS))
    return pretokens.pieces(chunks, PIECE_CHARS, special=special)


def _with_end(pieces: Iterable[str]) -> Iterator[tuple[str, bool]]:
    """The pieces of one document, each with whether it is the last."""
    previous = None
    for piece in pieces:
        if previous is not None:
            yield previous, False
        previous = piece
    if previous is not None:
        yield previous, True


def _plain_text(path: Path, stream: BinaryIO) -> Iterator[str]:
    """The text of the file in chunks, none empty."""
    start = stream.read(PIECE_CHARS)
    data = _unmarked(path, start)
    offset, line, more = len(start) - len(data), 1, True
    while more:
        block = stream.read(PIECE_CHARS)
        more = bool(block)
        if b"\0" in data:
            raise _no_text(path, data, line, offset)
        try:
            text, used = codecs.utf_8_decode(data, "strict", not more)
        except UnicodeDecodeError as error:
            raise _not_utf8(path, error, line, offset) from error
        if text:
            yield text
        line += data.count(b"\n", 0, used)
        offset += used
        data = data[used:] + block


def _json_texts(path: Path, stream: BinaryIO) -> Iterator[str]:
    """The "text" of each line that is not empty."""
    offset = 0
    for number, line in enumerate(stream, start=1):
        data = _unmarked(path, line) if number == 1 else line
        if data.strip():
            yield _json_text(path, number, data, offset + len(line) - len(data))
        offset += len(line)


def _json_text(path: Path, number: int, line: bytes, offset: int) -> str:
    where = f"{path}: line {number}"
    try:
        text = json.loads(str(line, "utf-8"))["text"]
    except ValueError as error:  # also where an integer has more digits than Python reads
        if b"\0" in line:
            raise _no_text(path, line, number, offset) from error
        if isinstance(error, UnicodeDecodeError):
            raise _not_utf8(path, error, number, offset) from error
        hint = "; lines end with \\n, not with \\r alone" if b"\r" in line.strip() else ""
        raise SourceError(f"{where} is not JSON ({error}); give one object per line{hint}") from error
    except RecursionError:
        raise SourceError(f"{where} is not JSON for a text (nested too deeply); mend it") from None
    except (KeyError, TypeError) as error:
        raise SourceError(f'{where} has no "text"; give {{"text": "..."}} on every line') from error
    if not isinstance(text, str):
        raise SourceError(f'{where}: "text" is a {type(text).__name__}; it must be a string')
    if "\0" in text:
        raise SourceError(f'{where}: "text" holds a NUL character (\\u0000), which no text has; remove it')
    if b"\\u" in line and not text.isascii():  # bytes that were UTF-8 hold no half of a pair; an escape may be one
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # "\\ud83d" alone: half of a character
            raise SourceError(f'{where}: "text" is no Unicode text ({error}); mend it') from error
    return text


# ---- what is no UTF-8 text -----------------------------------------------------------------------------------------


def _unmarked(path: Path, start: bytes) -> bytes:
    """The file's first bytes without UTF-8's mark, which Windows' programs put there and which is none of the text."""
    for mark, encoding in _MARKS.items():
        if start.startswith(mark):
            raise SourceError(
                f"{path}: {encoding} text (it starts with its byte-order mark); {_convert(path, encoding)}"
            )
    return start.removeprefix(codecs.BOM_UTF8)


def _no_text(path: Path, data: bytes, line: int, offset: int) -> SourceError:
    """What to do about a text with NUL bytes, of which `data` begins in that line and at that offset."""
    at = data.index(b"\0")
    where = f"(a NUL byte in line {line + data.count(10, 0, at)}, at byte {offset + at})"
    sample = data[offset % 4 and 4 - offset % 4 :][:4096]  # from the beginning of a character on, whatever they are
    zeros = [sample[byte::4].count(0) * 8 > len(sample) for byte in range(4)]  # more than half of them
    encoding = _ZEROS.get((zeros[0], zeros[1], zeros[2], zeros[3]))
    if encoding:
        return SourceError(f"{path}: {encoding} text without a byte-order mark {where}; {_convert(path, encoding)}")
    return SourceError(f"{path}: binary data {where}, not text; give text or JSON Lines files")


def _not_utf8(path: Path, error: UnicodeDecodeError, line: int, offset: int) -> SourceError:
    """What to do about `error`, found in bytes that begin in that line and at that offset."""
    data, at = error.object, error.start
    where = f"(byte {data[at]:#04x}) in line {line + data.count(10, 0, at)}, at byte {offset + at}"
    fix = f"convert it first: {_convert(path, 'ISO-8859-1')}, for example"
    if error.reason == "unexpected end of data":
        fix = f"it ends within a character: copy it again, or {fix}"
    return SourceError(f"{path}: not UTF-8 text {where}; {fix}")


def _convert(path: Path, encoding: str) -> str:
    unpack = {".gz": "gzip -dc", ".xz": "xz -dc", ".zst": "zstd -dc"}.get(path.suffix.lower())
    name, convert = shlex.quote(str(path)), f"iconv -f {encoding} -t UTF-8"
    return f"{unpack} {name} | {convert} > NEW" if unpack else f"{convert} {name} > NEW"


def _known(path: Path) -> bool:
    name = path.name.lower()
    for suffix in FORMATS:
        name = name.removesuffix(suffix)
    return name.endswith(TEXT_SUFFIXES + JSONL_SUFFIXES)


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
