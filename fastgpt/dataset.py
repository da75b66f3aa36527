"""`TokenDataset`: the stream of token ids that training reads, in memory or memory-mapped."""

from __future__ import annotations

import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from .settings import SettingTypeError, check_number
from .shards import MANIFEST, REDO, ShardError, open_documents, open_shard, read_manifest
from .tokenizer import Tokenizer


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
        dtype = id_dtype(checked_tokenizer(owner, tokenizer).vocab_size)
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


def checked_tokenizer(owner: str, tokenizer: Any) -> Tokenizer:
    """`tokenizer`, or SettingTypeError."""
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


def id_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")
