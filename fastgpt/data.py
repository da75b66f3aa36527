"""Texts become memory-mapped token shards, and shards become the token stream that training reads.

    dataset = prepare("books/", "tokens/books", Tokenizer.named("gpt2"))     # once
    dataset = TokenDataset.open("tokens/books")                              # from then on
    dataset = shakespeare_tokens("train", Tokenizer.named("shakespeare"))    # the embedded corpus, in memory

Every document is followed by the tokenizer's `<|endoftext|>`. `fastgpt.shards` says what lies on disk.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .assets import read_asset
from .files import check_folder, reason
from .settings import SettingError, SettingTypeError, check_integer, check_number
from .shards import (
    DOCUMENTS,
    MAGIC,
    MANIFEST,
    REDO,
    VERSION,
    FolderError,
    ShardError,
    ShardWriter,
    check_target,
    new_set,
    open_documents,
    open_shard,
    read_manifest,
)  # fmt: skip
from .sources import SourceError, find_sources, read_pieces
from .tokenizer import END_OF_TEXT, Tokenizer

__all__ = ["ShardError", "SourceError", "TokenDataset", "prepare", "shakespeare", "shakespeare_tokens"]

SHARD_TOKENS = 1 << 28  # 512 MiB of uint16
BATCH_CHARS = 4 << 20  # what the tokenizer's threads share at a time

_SHAKESPEARE_SHA256 = {
    "train": "38da2f4edb6582da1d469955079a39236ab33f9f5b5e8c28accbbf4970266120",
    "val": "f7b9bead1173a04b53881ec6b30ccc993cbe30d9970c36c0d49e7b83897db372",
}


def shakespeare(split: str) -> str:
    """The embedded corpus: "train" (4.8 MB: 40 works) or "val" (214 KB: The Tempest and Julius Caesar).

    Works are separated by `<|endoftext|>`. Raises ValueError for another split.
    """
    if split not in _SHAKESPEARE_SHA256:
        raise ValueError(f"shakespeare: split={split!r} does not exist; choose 'train' or 'val'")
    return read_asset(f"shakespeare-{split}.txt.xz", _SHAKESPEARE_SHA256[split]).decode("utf-8")


def shakespeare_tokens(split: str, tokenizer: Tokenizer) -> TokenDataset:
    """The embedded corpus, tokenized in memory (half a second)."""
    works = tokenizer.encode_batch(shakespeare(split).split(END_OF_TEXT))
    return TokenDataset.from_documents(works, tokenizer, name=f"shakespeare/{split}")


@dataclass(frozen=True)
class TokenDataset:
    """A stream of token ids, in memory or memory-mapped, and where its documents start.

    shards            1-D arrays of ids, one after the other
    documents         (n_documents,) int64 positions in the stream
    vocab_size        of the tokenizer; every id is below it
    tokenizer_sha256  hash of the tokenizer's ranks
    name              for messages
    """

    shards: tuple[np.ndarray, ...]
    documents: np.ndarray
    vocab_size: int
    tokenizer_sha256: str
    name: str

    def __new__(cls, *args: Any, **kwargs: Any) -> TokenDataset:
        if args and isinstance(args[0], (str, os.PathLike)):  # before Python misses the other arguments
            need = "must be arrays of token ids; a folder of shards is opened by TokenDataset.open(folder)"
            raise SettingTypeError("TokenDataset", "shards", args[0], need)
        return super().__new__(cls)

    def __post_init__(self) -> None:
        for shard in self.shards if isinstance(self.shards, (tuple, list)) else [None]:
            if not (isinstance(shard, np.ndarray) and shard.ndim == 1 and shard.dtype.kind in "iu"):
                need = "must be a tuple of one-dimensional arrays of integers; from_documents makes them of lists"
                raise SettingTypeError("TokenDataset", "shards", self.shards, need)

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    @staticmethod
    def from_documents(documents: Iterable[Sequence[int]], tokenizer: Tokenizer, name: str = "tokens") -> TokenDataset:
        """In memory, from the token ids of each document; `<|endoftext|>` is put after each.

        Raises:
            ValueError: an id outside the tokenizer's vocabulary.
            SettingTypeError: no sequences of integers, or no tokenizer.
        """
        owner = "TokenDataset.from_documents"
        dtype = _dtype(_checked_tokenizer(owner, tokenizer).vocab_size)
        pieces, starts, position = [], [], 0
        for ids in _checked_documents(owner, documents):
            if ids.size and (ids.min() < 0 or ids.max() >= tokenizer.vocab_size):
                raise ValueError(
                    f"{owner}: ids span {ids.min()} ... {ids.max()}, but tokenizer "
                    f"{tokenizer.name!r} has {tokenizer.vocab_size}; encode with the same tokenizer"
                )
            starts.append(position)
            pieces.append(np.append(ids, tokenizer.end_of_text).astype(dtype))
            position += len(ids) + 1
        stream = np.concatenate(pieces) if pieces else np.zeros(0, dtype)
        return TokenDataset((stream,), np.array(starts, np.int64), tokenizer.vocab_size, tokenizer.sha256, name)

    @staticmethod
    def open(folder: str | os.PathLike[str], *, verify: bool = False) -> TokenDataset:
        """Memory-map what `prepare` wrote. `verify` also reads every shard and compares its sha256.

        Raises:
            FileNotFoundError: no manifest in `folder`, or a shard is missing.
            ShardError: a truncated, foreign or (with `verify`) altered shard; the message says which.
            SettingTypeError: no path.
        """
        if not isinstance(folder, (str, os.PathLike)):
            raise SettingTypeError("TokenDataset.open", "folder", folder, "must be the path of a folder")
        folder = Path(folder)
        manifest = read_manifest(folder)
        try:
            shards = tuple(open_shard(folder, entry, verify=verify) for entry in manifest["shards"])
            documents = open_documents(folder, manifest)
            tokenizer = manifest["tokenizer"]
            return TokenDataset(shards, documents, tokenizer["vocab_size"], tokenizer["sha256"], str(folder))
        except (LookupError, TypeError) as error:
            raise ShardError(f"{folder / MANIFEST}: not a manifest of token shards ({error!r}); {REDO}") from error

    def read(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) int64 ids of the stream, across shards.

        Raises:
            IndexError: outside the stream.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"TokenDataset.read: [{start}, {stop}) is outside the {len(self)} tokens of {self.name}")
        out, at, base = np.empty(stop - start, np.int64), 0, 0
        for shard in self.shards:
            low, high = max(start - base, 0), min(stop - base, len(shard))
            if low < high:
                out[at : at + high - low] = shard[low:high]
                at += high - low
            base += len(shard)
        return out

    def split(self, fraction: float) -> tuple[TokenDataset, TokenDataset]:
        """(all but the last `fraction` of the tokens, the last `fraction`), both without copying.

        Raises:
            SettingError: fraction not between 0 and 1. SettingTypeError: no number.
        """
        check_number("TokenDataset.split", "fraction", fraction, above=0, below=1, hint=", e.g. 0.01")
        cut = len(self) - max(1, round(len(self) * fraction))
        return self._slice(0, cut, "train"), self._slice(cut, len(self), "val")

    def _slice(self, start: int, stop: int, label: str) -> TokenDataset:
        parts, base = [], 0
        for shard in self.shards:
            parts.append(shard[max(start - base, 0) : max(stop - base, 0)])
            base += len(shard)
        inside = self.documents[(self.documents >= start) & (self.documents < stop)] - start
        return TokenDataset(tuple(parts), inside, self.vocab_size, self.tokenizer_sha256, f"{self.name} ({label})")

    def unigram_entropy(self) -> float:
        """-Σ p ln p of the ids' frequencies, in nats per token: the best loss of a model that ignores context."""
        counts = np.zeros(self.vocab_size, np.int64)
        for shard in self.shards:
            counts += np.bincount(shard, minlength=self.vocab_size)
        p = counts[counts > 0] / counts.sum()
        return float(-(p * np.log(p)).sum())


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
        FileNotFoundError, SourceError: see `fastgpt.sources`.
        FileExistsError: `folder` is there already, and not `overwrite`, or it holds anything but token shards.
        SettingError: numbers that cannot be, or a folder in which sources lie. SettingTypeError: wrong types.
        OSError: the disk is full or cannot be written.
    """
    folder = check_folder("prepare", "folder", folder)
    _checked_tokenizer("prepare", tokenizer)
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
        need = f"could not be written ({reason(error)}); free disk space, or choose another folder"
        raise FolderError("prepare", "folder", str(folder), need) from error
    return TokenDataset.open(folder)


def _write(
    work: Path, files: Sequence[Path], tokenizer: Tokenizer, separators: bool, shard_tokens: int, threads: int | None,
    progress: bool,
) -> None:  # fmt: skip
    """Tokenize `files` into shards, documents and manifest in the folder `work`."""
    writer = ShardWriter(work, _dtype(tokenizer.vocab_size), shard_tokens)
    end, starts, n_bytes, at_start = tokenizer.end_of_text, [], 0, True
    with _progress(files, enabled=progress) as on_read:
        for ids, size, ends in _tokenized(files, tokenizer, separators, threads, on_read):
            n_bytes += size
            if at_start or (separators and writer.last == end):
                starts.append(writer.n_tokens)
            at_start = ends
            begins = np.flatnonzero(ids[:-1] == end) + 1 if separators else []
            starts += [writer.n_tokens + int(at) for at in begins]
            writer.write(ids)
            if ends and not (separators and writer.last == end):
                writer.write(np.array([end]))
    if not writer.n_tokens:
        raise SourceError(f"{', '.join(map(str, files))}: no text in there; give files that hold some")
    np.save(work / DOCUMENTS, np.array(starts, np.int64))
    manifest = {
        "format": MAGIC.decode(),
        "version": VERSION,
        "tokenizer": {"name": tokenizer.name, "vocab_size": tokenizer.vocab_size, "sha256": tokenizer.sha256},
        "n_tokens": writer.n_tokens,
        "n_documents": len(starts),
        "n_bytes": n_bytes,
        "shards": writer.close(),
        "sources": [{"path": str(path), "bytes": path.stat().st_size} for path in files],
    }
    (work / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")


def _checked_tokenizer(owner: str, tokenizer: Any) -> Tokenizer:
    if isinstance(tokenizer, (str, os.PathLike)):
        need = f"must be a Tokenizer; load it first: Tokenizer.load({str(tokenizer)!r})"
        raise SettingTypeError(owner, "tokenizer", tokenizer, need)
    if not hasattr(tokenizer, "end_of_text"):
        need = 'must be a Tokenizer, e.g. Tokenizer.named("gpt2")'
        raise SettingTypeError(owner, "tokenizer", tokenizer, need)
    return tokenizer


def _checked_documents(owner: str, documents: Any) -> Iterator[np.ndarray]:
    """Each document's ids as int64."""
    need = "must be sequences of integer ids, one for each document; texts go through tokenizer.encode_batch first"
    if isinstance(documents, (str, bytes)) or not isinstance(documents, Iterable):
        raise SettingTypeError(owner, "documents", documents, need)
    for document in documents:
        try:
            ids = np.asarray(document)
        except (ValueError, TypeError):  # lists of several lengths in it
            ids = np.asarray(None)
        if ids.ndim != 1 or (ids.size and ids.dtype.kind not in "iu"):
            raise SettingTypeError(owner, "documents", documents, need)
        yield ids.astype(np.int64)


def _tokenized(
    files: Sequence[Path],
    tokenizer: Tokenizer,
    separators: bool,
    threads: int | None,
    on_read: Callable[[Path, int], None],
) -> Iterator[tuple[np.ndarray, int, bool]]:
    """(ids, bytes of text, does it end a document?) of piece after piece, encoded by threads in batches."""

    def encode(batch: list[tuple[str, bool]]) -> Iterator[tuple[np.ndarray, int, bool]]:
        texts = [text for text, _ in batch]
        if separators:
            encoded = [tokenizer.encode(text, allow_special=True) for text in texts]
        else:
            encoded = tokenizer.encode_batch(texts, threads=threads)
        for ids, (text, ends) in zip(encoded, batch):
            yield np.array(ids, np.int64), len(text.encode("utf-8")), ends

    batch, chars = [], 0
    for path in files:
        for piece in read_pieces(path, lambda n, path=path: on_read(path, n)):
            batch.append(piece)
            chars += len(piece[0])
            if chars >= BATCH_CHARS:
                yield from encode(batch)
                batch, chars = [], 0
    yield from encode(batch)


class _progress:
    """A progress bar over the files' bytes, on a terminal; calling `on_read(path, n)` moves it."""

    def __init__(self, files: Sequence[Path], *, enabled: bool) -> None:
        from rich.console import Console
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        console = Console(stderr=True)  # stdout is for results
        columns = (TextColumn("tokenizing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, console=console, disable=not (enabled and console.is_terminal))
        sizes = [path.stat().st_size for path in files]
        self._before = {path: sum(sizes[:n]) for n, path in enumerate(files)}
        self._task = self._bar.add_task("tokenizing", total=sum(sizes))

    def __enter__(self) -> Callable[[Path, int], None]:
        self._bar.start()
        return lambda path, n: self._bar.update(self._task, completed=self._before[path] + n)

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()


def _dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
