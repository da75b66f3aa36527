"""Reading texts from disk: plain text and JSON Lines, packed or not, one file or a folder of them.

A plain text file is one document; in a JSON Lines file every line is one, its text under the key "text".
"""

from __future__ import annotations

import gzip
import io
import itertools
import json
import lzma
import os
import zlib
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import BinaryIO

from . import pretokens
from .pretokens import PIECE_CHARS

TEXT_SUFFIXES = (".txt", ".text", ".md")
JSONL_SUFFIXES = (".jsonl", ".ndjson")
PACKED_SUFFIXES = (".gz", ".xz", ".zst")
_MODEL_FILES = ("model.safetensors", "model.safetensors.index.json", "pytorch_model.bin", "ckpt.pt", "metrics.jsonl")
_ENCODING = "utf-8-sig"  # the mark that Windows' programs put before a text is none of its characters


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


def read_pieces(path: Path, on_read: Callable[[int], None] | None = None) -> Iterator[tuple[str, bool]]:
    """(piece of text, does it end a document?) through the whole file, in constant memory.

    `on_read` is told how many bytes of the file (packed, if it is) have been read so far.

    A document is cut only before white space that follows something else: no token of a GPT-2 style pre-tokenization
    spans such a place, so the pieces have exactly the document's tokens.

    Raises:
        SourceError: binary or not UTF-8, a damaged archive, or a line that is not a JSON object with a "text".
    """
    kind = path.suffix.lower() if path.suffix.lower() not in PACKED_SUFFIXES else Path(path.stem).suffix.lower()
    try:
        with open(path, "rb") as raw, _unpack(path, raw) as stream:
            if kind in JSONL_SUFFIXES:
                texts = (io.StringIO(text, newline="") for text in _json_lines(path, stream))
            else:
                texts = iter([io.TextIOWrapper(stream, encoding=_ENCODING, newline="")])
            for text in texts:
                for piece in _pieces(path, text):
                    yield piece
                    if on_read is not None:
                        on_read(raw.tell())
    except UnicodeDecodeError as error:
        raise SourceError(
            f"{path}: not UTF-8 text (byte {error.object[error.start]:#04x}); convert it first, e.g. with iconv"
        ) from error
    except (EOFError, lzma.LZMAError, zlib.error, gzip.BadGzipFile) as error:
        raise SourceError(f"{path}: the archive is damaged or cut short ({error}); copy it again") from error


def _pieces(path: Path, stream: io.TextIOBase) -> Iterator[tuple[str, bool]]:
    def chunks() -> Iterator[str]:
        while chunk := stream.read(PIECE_CHARS):
            if "\0" in chunk:
                raise SourceError(f"{path}: binary data (a NUL byte), not text; give text or JSON Lines files")
            yield chunk

    previous = None
    for piece in pretokens.pieces(chunks(), PIECE_CHARS):
        if previous is not None:
            yield previous, False
        previous = piece
    if previous is not None:
        yield previous, True


def _json_lines(path: Path, stream: BinaryIO) -> Iterator[str]:
    for number, line in enumerate(io.TextIOWrapper(stream, encoding=_ENCODING), start=1):
        if not line.strip():
            continue
        try:
            text = json.loads(line)["text"]
        except json.JSONDecodeError as error:
            raise SourceError(f"{path}: line {number} is not JSON ({error}); give one object per line") from error
        except RecursionError:
            raise SourceError(f"{path}: line {number} is not JSON for a text (nested too deeply); mend it") from None
        except (KeyError, TypeError) as error:
            raise SourceError(f'{path}: line {number} has no "text"; give {{"text": "..."}} on every line') from error
        if not isinstance(text, str):
            raise SourceError(f'{path}: line {number}: "text" is a {type(text).__name__}; it must be a string')
        try:
            text.encode("utf-8")
        except UnicodeEncodeError as error:  # "\\ud83d" alone: half of a character
            raise SourceError(f'{path}: line {number}: "text" is no Unicode text ({error}); mend it') from error
        yield text


def _unpack(path: Path, raw: BinaryIO) -> BinaryIO:
    suffix = path.suffix.lower()
    if suffix == ".gz":
        return gzip.open(raw)
    if suffix == ".xz":
        return lzma.open(raw)
    if suffix == ".zst":
        try:
            import zstandard
        except ImportError as error:
            raise SourceError(
                f"{path}: reading .zst needs zstandard; `pip install 'fastgpt-triton[train]'`, or unpack it first"
            ) from error
        return io.BufferedReader(_ZstdStream(path, raw, zstandard), 1 << 16)
    return raw


class _ZstdStream(io.RawIOBase):
    """Frames one after the other; unlike zstandard's own reader it notices that the last one is cut short."""

    def __init__(self, path: Path, raw: BinaryIO, zstandard) -> None:
        self._path, self._raw, self._zstandard = path, raw, zstandard
        self._frame = None
        self._packed = b""
        self._ready = b""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        while not self._ready:
            self._packed = self._packed or self._raw.read(1 << 16)
            if not self._packed:
                if self._frame is not None:
                    raise EOFError("the last frame has no end")
                return 0
            self._frame = self._frame or self._zstandard.ZstdDecompressor().decompressobj()
            try:
                self._ready = self._frame.decompress(self._packed)
            except self._zstandard.ZstdError as error:
                raise SourceError(f"{self._path}: the archive is damaged ({error}); copy it again") from error
            self._packed = b""
            if self._frame.eof:
                self._packed, self._frame = self._frame.unused_data, None
        data, self._ready = self._ready[: len(buffer)], self._ready[len(buffer) :]
        buffer[: len(data)] = data
        return len(data)


def _known(path: Path) -> bool:
    name = path.name.lower()
    for suffix in PACKED_SUFFIXES:
        name = name.removesuffix(suffix)
    return name.endswith(TEXT_SUFFIXES + JSONL_SUFFIXES)


def _hidden(path: Path, folder: Path) -> bool:
    return any(part.startswith(".") for part in path.relative_to(folder).parts)
