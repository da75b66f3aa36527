"""Texts become memory-mapped token shards, and shards become the token stream that training reads.

    dataset = prepare("books/", "tokens/books", Tokenizer.named("gpt2"))     # once
    dataset = TokenDataset.open("tokens/books")                              # from then on
    dataset = shakespeare_tokens("train", Tokenizer.named("shakespeare"))    # the embedded corpus, in memory

On disk: `tokens-00000.bin` ... (a 32-byte header, then uint16 or uint32 ids), `documents.npy` (int64: where each
document starts) and `manifest.json`. Every document is followed by the tokenizer's `<|endoftext|>`.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from .assets import read_asset
from .sources import SourceError, find_sources, read_pieces
from .tokenizer import END_OF_TEXT, Tokenizer

__all__ = ["ShardError", "SourceError", "TokenDataset", "prepare", "shakespeare", "shakespeare_tokens"]

MAGIC, VERSION = b"FGPTTOKS", 1
HEADER = struct.Struct("<8sIIQ8x")  # magic, version, bytes per id, number of ids: 32 bytes
SHARD_TOKENS = 1 << 28  # 512 MiB of uint16
BATCH_CHARS = 4 << 20  # what the tokenizer's threads share at a time

_SHAKESPEARE_SHA256 = {
    "train": "38da2f4edb6582da1d469955079a39236ab33f9f5b5e8c28accbbf4970266120",
    "val": "f7b9bead1173a04b53881ec6b30ccc993cbe30d9970c36c0d49e7b83897db372",
}


class ShardError(ValueError):
    """A token shard or manifest that cannot be used: the message names the file and the way out."""


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

    def __len__(self) -> int:
        return sum(len(shard) for shard in self.shards)

    @staticmethod
    def from_documents(documents: Iterable[Sequence[int]], tokenizer: Tokenizer, name: str = "tokens") -> TokenDataset:
        """In memory, from the token ids of each document; `<|endoftext|>` is put after each.

        Raises:
            ValueError: an id outside the tokenizer's vocabulary.
        """
        dtype = _dtype(tokenizer.vocab_size)
        pieces, starts, position = [], [], 0
        for ids in documents:
            ids = np.asarray(ids, dtype=np.int64)
            if ids.size and (ids.min() < 0 or ids.max() >= tokenizer.vocab_size):
                raise ValueError(
                    f"TokenDataset.from_documents: ids span {ids.min()} ... {ids.max()}, but tokenizer "
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
        """
        folder = Path(folder)
        path = folder / "manifest.json"
        if not path.is_file():
            raise FileNotFoundError(f"{folder}: no manifest.json, so no token shards; make them with `fastgpt prepare`")
        try:
            manifest = json.loads(path.read_text(encoding="utf-8"))
            if manifest["format"] != MAGIC.decode() or manifest["version"] != VERSION:
                raise ShardError(f"{path}: format {manifest['format']!r} version {manifest['version']}, {_REDO}")
            shards = tuple(_open_shard(folder, entry, verify=verify) for entry in manifest["shards"])
            documents = _open_documents(folder)
            tokenizer = manifest["tokenizer"]
            return TokenDataset(shards, documents, tokenizer["vocab_size"], tokenizer["sha256"], str(folder))
        except (json.JSONDecodeError, KeyError, TypeError) as error:
            raise ShardError(f"{path}: not a manifest of token shards ({error!r}); {_REDO}") from error

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
            ValueError: fraction not between 0 and 1.
        """
        if not 0 < fraction < 1:
            raise ValueError(f"TokenDataset.split: fraction={fraction} must lie between 0 and 1, e.g. 0.01")
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


_REDO = "run `fastgpt prepare` on the original texts again"


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
        overwrite: replace shards that are already there.

    The folder appears under its name only when it is complete.

    Raises:
        FileNotFoundError, SourceError: see `fastgpt.sources`.
        FileExistsError: `folder` is there already, and not `overwrite`.
    """
    folder = Path(folder)
    if folder.exists() and not overwrite:
        raise FileExistsError(f"{folder} exists; choose another folder, or pass overwrite=True (--overwrite)")
    files = find_sources(sources)
    folder.parent.mkdir(parents=True, exist_ok=True)
    work = Path(tempfile.mkdtemp(prefix=f".{folder.name}-", dir=folder.parent))
    try:
        writer = _ShardWriter(work, _dtype(tokenizer.vocab_size), shard_tokens)
        starts, n_bytes, at_start = [], 0, True
        with _progress(files, enabled=progress) as on_read:
            for ids, size, ends in _tokenized(files, tokenizer, separators, threads, on_read):
                n_bytes += size
                if at_start and (len(ids) or ends):
                    starts.append(writer.n_tokens)
                at_start = ends
                begins = np.flatnonzero(ids[:-1] == tokenizer.end_of_text) + 1 if separators else []
                starts += [writer.n_tokens + int(at) for at in begins]
                writer.write(ids)
                if ends and not (separators and writer.last == tokenizer.end_of_text):
                    writer.write(np.array([tokenizer.end_of_text]))
        if not writer.n_tokens:
            raise SourceError(f"{', '.join(map(str, files))}: no text in there; give files that hold some")
        np.save(work / "documents.npy", np.array(starts, np.int64))
        manifest = {
            "format": MAGIC.decode(),
            "version": VERSION,
            "tokenizer": {
                "name": tokenizer.name, "vocab_size": tokenizer.vocab_size, "sha256": tokenizer.sha256,
            },
            "n_tokens": writer.n_tokens,
            "n_documents": len(starts),
            "n_bytes": n_bytes,
            "shards": writer.close(),
            "sources": [{"path": str(path), "bytes": path.stat().st_size} for path in files],
        }  # fmt: skip
        (work / "manifest.json").write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
        if folder.exists():
            shutil.rmtree(folder)
        work.chmod(0o755)
        work.rename(folder)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return TokenDataset.open(folder)


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
    """A rich progress bar over the files' bytes; calling `on_read(path, n)` moves it."""

    def __init__(self, files: Sequence[Path], *, enabled: bool) -> None:
        from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

        columns = (TextColumn("tokenizing"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
        self._bar = Progress(*columns, disable=not enabled)
        sizes = [path.stat().st_size for path in files]
        self._before = {path: sum(sizes[:n]) for n, path in enumerate(files)}
        self._task = self._bar.add_task("tokenizing", total=sum(sizes))

    def __enter__(self) -> Callable[[Path, int], None]:
        self._bar.start()
        return lambda path, n: self._bar.update(self._task, completed=self._before[path] + n)

    def __exit__(self, *exc: object) -> None:
        self._bar.stop()


class _ShardWriter:
    """Appends ids to numbered shard files; `close` returns their entries in the manifest."""

    def __init__(self, folder: Path, dtype: np.dtype, shard_tokens: int) -> None:
        self.folder, self.dtype, self.shard_tokens = folder, dtype, shard_tokens
        self.n_tokens, self.last = 0, -1
        self._file, self._count, self._hash = None, 0, hashlib.sha256()
        self._entries: list[dict] = []

    def write(self, ids: np.ndarray) -> None:
        while len(ids):
            if self._file is None:
                self._file = open(self.folder / f"tokens-{len(self._entries):05d}.bin", "wb")  # noqa: SIM115
                self._file.write(bytes(HEADER.size))
            part, ids = ids[: self.shard_tokens - self._count], ids[self.shard_tokens - self._count :]
            data = part.astype(self.dtype).tobytes()
            self._file.write(data)
            self._hash.update(data)
            self._count += len(part)
            self.n_tokens += len(part)
            self.last = int(part[-1])
            if self._count == self.shard_tokens:
                self._finish()

    def _finish(self) -> None:
        self._file.seek(0)
        self._file.write(HEADER.pack(MAGIC, VERSION, self.dtype.itemsize, self._count))
        self._file.flush()
        os.fsync(self._file.fileno())
        self._file.close()
        name = Path(self._file.name).name
        self._entries.append({"file": name, "n_tokens": self._count, "sha256": self._hash.hexdigest()})
        self._file, self._count, self._hash = None, 0, hashlib.sha256()

    def close(self) -> list[dict]:
        if self._file is not None:
            self._finish()
        return self._entries


def _open_documents(folder: Path) -> np.ndarray:
    path = folder / "documents.npy"
    try:
        documents = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: missing from the token shards; {_REDO}") from None
    except (ValueError, EOFError) as error:
        raise ShardError(f"{path}: truncated or damaged ({error}); {_REDO}") from error
    return documents


def _open_shard(folder: Path, entry: dict, *, verify: bool) -> np.ndarray:
    path = folder / entry["file"]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the manifest names this shard, but it is missing; {_REDO}")
    size = path.stat().st_size
    with open(path, "rb") as file:
        header = file.read(HEADER.size)
    if len(header) < HEADER.size or header[:8] != MAGIC:
        raise ShardError(f"{path}: not a token shard of fastgpt (it starts with {header[:8]!r}); {_REDO}")
    _, version, itemsize, count = HEADER.unpack(header)
    if version != VERSION or itemsize not in (2, 4):
        raise ShardError(f"{path}: shard version {version} with {itemsize}-byte ids, cannot be read; {_REDO}")
    if count != entry["n_tokens"]:
        raise ShardError(f"{path}: {count} tokens, the manifest says {entry['n_tokens']}: from another set; {_REDO}")
    expected = HEADER.size + count * itemsize
    if size != expected:
        raise ShardError(f"{path}: {size} bytes, expected {expected}: truncated or damaged; {_REDO}")
    tokens = np.memmap(path, dtype=f"<u{itemsize}", mode="r", offset=HEADER.size, shape=(count,))
    if verify and hashlib.sha256(tokens).hexdigest() != entry["sha256"]:
        raise ShardError(f"{path}: its sha256 is not the manifest's: altered after it was written; {_REDO}")
    return tokens


def _dtype(vocab_size: int) -> np.dtype:
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
