"""`prepare`: texts become memory-mapped token shards."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from .dataset import TokenDataset, checked_tokenizer
from .files import check_folder, reason
from .settings import SettingError, SettingTypeError, check_integer
from .shard_writing import ShardWriter, check_target, new_set
from .shards import FolderError, id_dtype
from .sources import SourceError, find_sources, read_pieces
from .tokenizer import Tokenizer

SHARD_TOKENS = 1 << 28  # 512 MiB of uint16
BATCH_CHARS = 4 << 20  # what the tokenizer's threads share at a time


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
        need = f"could not be written ({reason(error)}); free disk space, or choose another folder"
        raise FolderError("prepare", "folder", str(folder), need) from error
    return TokenDataset.open(folder)


def _write(
    work: Path, files: Sequence[Path], tokenizer: Tokenizer, separators: bool, shard_tokens: int, threads: int | None,
    progress: bool,
) -> None:  # fmt: skip
    """Tokenize `files` into shards, documents and manifest in the folder `work`."""
    writer = ShardWriter(work, id_dtype(tokenizer.vocab_size), shard_tokens)
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
    writer.close(
        np.array(starts, np.int64),
        tokenizer={"name": tokenizer.name, "vocab_size": tokenizer.vocab_size, "sha256": tokenizer.sha256},
        n_bytes=n_bytes,
        sources=[{"path": str(path), "bytes": path.stat().st_size} for path in files],
    )


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
