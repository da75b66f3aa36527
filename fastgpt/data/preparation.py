"""`prepare`: texts become memory-mapped token shards."""

from __future__ import annotations

import collections
import functools
import itertools
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..base.files import check_folder, reason, way_out
from ..base.progress import bytes_bar
from ..base.settings import SettingError, SettingTypeError, check_integer
from .dataset import TokenDataset, checked_tokenizer
from .pretokens import PIECE_CHARS
from .shard_writing import ShardWriter, check_target, new_set
from .shards import FolderError, id_dtype
from .sources import SourceError, find_sources, read_pieces
from .tokenizer import END_OF_TEXT, Tokenizer, default_threads

SHARD_TOKENS = 1 << 28  # 512 MiB of uint16


def prepare(
    sources: str | os.PathLike[str] | Iterable[str | os.PathLike[str]],
    folder: str | os.PathLike[str],
    tokenizer: Tokenizer,
    *,
    separators: bool = False,
    shard_tokens: int = SHARD_TOKENS,
    threads: int | None = None,
    progress: bool = True,
    overwrite: bool = False,
) -> TokenDataset:
    """Tokenize text, JSON Lines, .gz, .xz and .zst files (or folders of them) into shards under `folder`, and open it.

    Args:
        separators: take `<|endoftext|>` in the texts for the end of a document. Without it, it is ordinary text.
        shard_tokens: ids per shard.
        threads: of the tokenizer; default one per CPU, at most 8.
        overwrite: replace the token shards that are already in `folder`, file by file; other files stay.

    The shards are written elsewhere and renamed when they are complete: a failure or Ctrl-C leaves `folder` as it was.

    Raises:
        FileNotFoundError, SourceError: see `fastgpt.data.sources`.
        FileExistsError: `folder` is there already, and not `overwrite`, or it holds anything but token shards.
        SettingError: numbers that cannot be, or a folder in which sources lie. SettingTypeError: wrong types.
        OSError: the disk is full or cannot be written.
    """
    folder = check_folder("prepare", "folder", folder)
    checked_tokenizer("prepare", tokenizer)
    check_integer("prepare", "shard_tokens", shard_tokens, least=1)
    if threads is not None:
        check_integer("prepare", "threads", threads, least=1, most=1024)
    sources = [sources] if isinstance(sources, (str, os.PathLike)) else sources
    if not isinstance(sources, Iterable) or isinstance(sources, bytes):
        raise SettingTypeError("prepare", "sources", sources, "must be a path or several")
    sources = list(sources)
    if not sources:
        raise SettingError("prepare", "sources", sources, "must name a text file or a folder of them, at least one")
    files = find_sources(sources)
    check_target(folder, [*map(Path, sources), *files], overwrite=overwrite)
    try:
        with new_set(folder) as work:
            _write(work, files, tokenizer, separators, shard_tokens, threads, progress)
    except OSError as error:
        if isinstance(error, FileExistsError) or error.filename in map(str, files):
            raise
        need = f"could not be written ({reason(error)}); {way_out(error)}"
        raise FolderError("prepare", "folder", str(folder), need) from error
    return TokenDataset.open(folder)


def _write(
    work: Path, files: Sequence[Path], tokenizer: Tokenizer, separators: bool, shard_tokens: int, threads: int | None,
    progress: bool,
) -> None:  # fmt: skip
    """Tokenize `files` into shards, documents and manifest in the folder `work`."""
    writer = ShardWriter(work, id_dtype(tokenizer.vocab_size), shard_tokens)
    ends, n_bytes = [], 0
    sizes = [path.stat().st_size for path in files]
    counts: list[int] = []  # documents of each file
    before = dict(zip(files, itertools.accumulate(sizes, initial=0)))
    with bytes_bar("tokenizing", sum(sizes), enabled=progress) as move:

        def on_read(path: Path, n: int) -> None:
            move(before[path] + n)

        batches = _batches(files, separators, on_read, counts)
        for ids, size in _tokenized(batches, tokenizer, threads or default_threads()):
            n_bytes += size
            ends.append(writer.n_tokens + np.flatnonzero(ids == tokenizer.end_of_text))
            writer.write(ids)
    if not writer.n_tokens:
        raise SourceError(f"{', '.join(map(str, files))}: no text in there; give files that hold some")
    writer.close(
        np.append(0, np.concatenate(ends)[:-1] + 1),  # the stream ends with a document, and each but it with another
        tokenizer={"name": tokenizer.name, "vocab_size": tokenizer.vocab_size, "sha256": tokenizer.sha256},
        n_bytes=n_bytes,
        sources=[
            {"path": str(path), "bytes": size, "first_document": first}
            for path, size, first in zip(files, sizes, itertools.accumulate(counts, initial=0))
        ],
    )


@dataclass
class _Batch:
    """Pieces of text to be encoded by one call, each document's end marked by `<|endoftext|>`.

    A call for every document would take longer than what it does, where documents are a few hundred characters.
    """

    texts: list[str] = field(default_factory=list)
    special: bool = True  # False: `<|endoftext|>` in it is a document's own text
    chars: int = 0
    n_bytes: int = 0  # of the sources' text
    files: list[Path] = field(default_factory=list)

    def add(self, path: Path, piece: str) -> None:
        self.texts.append(piece)
        self.chars += len(piece)
        self.n_bytes += len(piece) if piece.isascii() else len(piece.encode("utf-8"))
        if path not in self.files[-1:]:
            self.files.append(path)


def _batches(
    files: Sequence[Path], separators: bool, on_read: Callable[[Path, int], None], counts: list[int]
) -> Iterator[_Batch]:
    """All that is to be encoded, in order. How many documents each file has is put into `counts`."""
    batch = _Batch()
    for path in files:
        counts.append(0)
        for piece, ends in read_pieces(path, functools.partial(on_read, path), special=separators):
            if END_OF_TEXT in piece and not separators:
                apart = _Batch(special=False)
                apart.add(path, piece)
                yield batch
                yield apart
                batch = _Batch()
            else:
                batch.add(path, piece)
            if separators:
                counts[-1] += piece.count(END_OF_TEXT)
            if ends and not (separators and piece.endswith(END_OF_TEXT)):
                batch.texts.append(END_OF_TEXT)
                counts[-1] += 1
            if batch.chars >= PIECE_CHARS:
                yield batch
                batch = _Batch()
    yield batch


def _tokenized(batches: Iterable[_Batch], tokenizer: Tokenizer, threads: int) -> Iterator[tuple[np.ndarray, int]]:
    """(ids, bytes of text) of each batch in order: threads encode while this one reads and writes."""

    def encode(batch: _Batch) -> np.ndarray:
        try:
            return tokenizer.encode_array("".join(batch.texts), allow_special=batch.special)
        except ValueError as error:
            raise SourceError(f"{', '.join(map(str, batch.files))}: {error}") from error

    waiting: collections.deque[tuple[Future[np.ndarray], int]] = collections.deque()
    with ThreadPoolExecutor(threads) as pool:
        for batch in batches:
            waiting.append((pool.submit(encode, batch), batch.n_bytes))
            if len(waiting) > threads + 1:  # one more than they work at; the others of the text are not yet read
                ids, n_bytes = waiting.popleft()
                yield ids.result(), n_bytes
        for ids, n_bytes in waiting:
            yield ids.result(), n_bytes
