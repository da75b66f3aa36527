"""Which documents a stretch of a `TokenDataset` is of, and which files they came from."""

from __future__ import annotations

import bisect
from typing import NamedTuple

import numpy as np

from .dataset import TokenDataset


class Document(NamedTuple):
    """A document of the stream.

    number        from 0, in the data that was prepared
    start, stop   its tokens, there; `<|endoftext|>` is the last
    source        the file that it was prepared from; None where that was not recorded
    """

    number: int
    start: int
    stop: int
    source: str | None

    def __str__(self) -> str:
        what = f"document {self.number} (tokens {self.start}-{self.stop - 1})"
        return what if self.source is None else f"{self.source}: {what}"


def documents_in(dataset: TokenDataset, start: int, stop: int) -> list[Document]:
    """Those of which tokens lie in [start, stop) of the dataset, in order.

    Of a slice (`split`) they are those of the whole that it was cut from, where that is known.

    Raises:
        IndexError: outside the stream.
    """
    if not 0 <= start <= stop <= len(dataset):
        raise IndexError(f"documents_in: [{start}, {stop}) is outside the {len(dataset)} tokens of {dataset.name}")
    whole, at = dataset.whole
    starts, end = whole.documents, len(whole)
    first = max(int(np.searchsorted(starts, start + at, side="right")) - 1, 0)
    last = int(np.searchsorted(starts, stop + at, side="left"))
    found = []
    for number in range(first, last if stop > start else first):
        ends = int(starts[number + 1]) if number + 1 < len(starts) else end
        found.append(Document(number, int(starts[number]), ends, _source(whole, number)))
    return found


def _source(whole: TokenDataset, number: int) -> str | None:
    """The last of the files that had begun by then."""
    at = bisect.bisect_right(whole.sources, number, key=lambda source: source[1]) - 1
    return whole.sources[at][0] if at >= 0 else None
