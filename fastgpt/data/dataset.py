"""`TokenDataset`: the stream of token ids that training reads, in memory or memory-mapped."""

from __future__ import annotations

import bisect
import dataclasses
import functools
import hashlib
import itertools
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..base.settings import SettingTypeError, check_number
from .mapped import Place, check_whole
from .shard_checks import check_unaltered
from .shards import (
    DOCUMENTS,
    REDO,
    ShardError,
    content_sha256,
    id_dtype,
    open_documents,
    open_shard,
    read_manifest,
    sources_of,
)
from .tokenizer import Tokenizer

_BLOCK = 1 << 22  # ids


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
    # What `sha256` is found from without reading: the manifest's, or (whole, start, stop) of a slice.
    _known_sha256: str | None = field(default=None, init=False, repr=False, compare=False)
    _part_of: tuple[TokenDataset, int, int] | None = field(default=None, init=False, repr=False, compare=False)
    _sources: tuple[tuple[str, int], ...] = field(default=(), init=False, repr=False, compare=False)

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
        return self._ends[-1] if self.shards else 0

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
    def open(folder: str | os.PathLike[str], *, verify: bool = False, progress: bool = True) -> TokenDataset:
        """Memory-map what `prepare` wrote.

        Small files, and those whose time stamp is another than when they were written (copies, altered ones, those of
        early versions, which recorded none), are compared with their sha256; with `verify`, all are. `progress`: a bar
        on a terminal, where that takes long.

        Raises:
            FileNotFoundError: no manifest in `folder`, or a shard is missing.
            ShardError: a truncated, foreign or altered file; the message says which.
            SettingTypeError: no path.
        """
        if not isinstance(folder, (str, os.PathLike)):
            raise SettingTypeError("TokenDataset.open", "folder", folder, "must be the path of a folder")
        folder = Path(folder)
        manifest = read_manifest(folder)
        tokenizer, dtype = manifest["tokenizer"], id_dtype(manifest["tokenizer"]["vocab_size"])
        shards = tuple(open_shard(folder / entry["file"], entry["n_tokens"], dtype) for entry in manifest["shards"])
        documents = open_documents(folder / DOCUMENTS, manifest["n_documents"], manifest["n_tokens"])
        check_unaltered(folder, manifest, whole=verify, progress=progress)
        dataset = TokenDataset(shards, documents, tokenizer["vocab_size"], tokenizer["sha256"], str(folder))
        dataset.__dict__.update(_sources=sources_of(manifest))
        return dataset._known_as(content_sha256(manifest))

    @property
    def sources(self) -> tuple[tuple[str, int], ...]:
        """(file, number of its first document) of all that were prepared, in order; empty where nobody recorded it."""
        return self.__dict__.get("_sources", ())  # pickles of version 0.1 have none

    @property
    def whole(self) -> tuple[TokenDataset, int]:
        """(what this is a slice of, where in it this begins); itself and 0 if it is none, or that is not known."""
        if self._part_of is None:
            return self, 0
        above, start, _ = self._part_of
        whole, at = above.whole
        return whole, at + start

    @functools.cached_property
    def sha256(self) -> str:
        """Identity of the ids, hex: equal for copies of a folder, for the same text tokenized again, and in memory.

        Of an opened folder from its manifest, without reading; of others, the sha256 of the ids as uint16 (uint32 where
        the vocabulary needs it), computed once. Of a slice, from that of the whole and the limits.
        """
        if self._known_sha256 is not None:
            return self._known_sha256
        if self._part_of is not None:
            whole, start, stop = self._part_of
            return hashlib.sha256(f"{whole.sha256} {start} {stop}".encode()).hexdigest()
        digest = hashlib.sha256()
        for ids in self._blocks():
            digest.update(ids.astype(id_dtype(self.vocab_size)).data)
        return digest.hexdigest()

    def _known_as(self, sha256: str | None, part_of: tuple[TokenDataset, int, int] | None = None) -> TokenDataset:
        self.__dict__.update(_known_sha256=sha256, _part_of=part_of)
        return self

    def renamed(self, name: str) -> TokenDataset:
        """The same tokens under another name."""
        other = dataclasses.replace(self, name=name)._known_as(self._known_sha256, self._part_of)
        other.__dict__.update(_sources=self.sources)
        return other

    def __getstate__(self) -> dict[str, Any]:
        """What pickle and deepcopy take: mapped arrays as the place in their file, where they are mapped again."""
        shards = tuple(Place.of(shard) for shard in self.shards)
        known = self._known_sha256 if self._part_of is None else self.sha256  # the whole is not sent
        changes = {"shards": shards, "documents": Place.of(self.documents), "_known_sha256": known, "_part_of": None}
        return self.__dict__ | changes

    def __setstate__(self, state: dict[str, Any]) -> None:
        def there(array: np.ndarray | Place) -> np.ndarray:
            return array.open() if isinstance(array, Place) else array

        shards = tuple(there(shard) for shard in state["shards"])
        self.__dict__.update(state | {"shards": shards, "documents": there(state["documents"])})

    def read(self, start: int, stop: int) -> np.ndarray:
        """(stop - start,) int64 ids of the stream, across shards.

        Raises:
            IndexError: outside the stream.
            ShardError: the file was cut since it was opened, or holds ids that the tokenizer has not.
        """
        if not 0 <= start <= stop <= len(self):
            raise IndexError(f"TokenDataset.read: [{start}, {stop}) is outside the {len(self)} tokens of {self.name}")
        out, at = np.empty(stop - start, np.int64), 0
        number = bisect.bisect_right(self._ends, start)
        while at < len(out):
            shard, base = self.shards[number], self._ends[number] - len(self.shards[number])
            part = self._part(shard, start + at - base, min(stop - base, len(shard)))
            out[at : at + len(part)] = part
            at, number = at + len(part), number + 1
        return out

    def _part(self, shard: np.ndarray, start: int, stop: int) -> np.ndarray:
        """shard[start:stop], which is not empty; of a mapped file, after a look at the file and at the ids."""
        check_whole(shard)
        part = shard[start:stop]
        if isinstance(shard, np.memmap) and part.max() >= self.vocab_size:  # where a GPU would give up its context
            need = f"an id of {part.max()}, but its tokenizer has {self.vocab_size}: damaged; {REDO}"
            raise ShardError(f"{shard.filename}: {need}")
        return part

    @functools.cached_property
    def _ends(self) -> list[int]:
        """Where in the stream each shard ends."""
        return list(itertools.accumulate(len(shard) for shard in self.shards))

    def _blocks(self) -> Iterator[np.ndarray]:
        """All ids, in arrays of at most `_BLOCK`."""
        for shard in self.shards:
            for start in range(0, len(shard), _BLOCK):
                yield self._part(shard, start, min(start + _BLOCK, len(shard)))

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
        check_whole(self.documents)
        inside = self.documents[slice(*np.searchsorted(self.documents, (start, stop)))]
        inside = inside - start if start else inside
        other = TokenDataset(tuple(parts), inside, self.vocab_size, self.tokenizer_sha256, f"{self.name} ({label})")
        return other._known_as(None, part_of=(self, start, stop))

    def unigram_entropy(self) -> float:
        """-Σ p ln p of the ids' frequencies, in nats per token: the best loss of a model that ignores context.

        Raises:
            ShardError: as `read`.
        """
        counts = np.zeros(self.vocab_size, np.int64)
        for ids in self._blocks():
            counts += np.bincount(ids, minlength=self.vocab_size)
        p = counts[counts > 0] / counts.sum()
        return float(-(p * np.log(p)).sum())


def checked_tokenizer(owner: str, tokenizer: Any) -> Tokenizer:
    """`tokenizer`. Raises SettingTypeError where it is none."""
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
