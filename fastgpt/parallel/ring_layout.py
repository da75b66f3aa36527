"""Which tokens of a sequence each rank of a ring holds, and which of its pairs of query and key it computes where.

T tokens are cut into 2 n chunks for n ranks; rank r holds the chunks r and 2 n - 1 - r, in this order ("zigzag", as in
Llama 3, arXiv 2407.21783, §3.3.2, and in torch's own head-tail load balancer). Under a causal mask the first has few
keys to see and the second many, so that every rank has the same number of pairs, and has it at every step of the ring:

    own keys                    causal over both chunks
    keys of an earlier rank     all queries see its first chunk, and none its second
    keys of a later rank        the second chunk of queries sees both chunks, the first sees none
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from ..base.settings import SettingError, check_integer


class Piece(NamedTuple):
    """Of a rank's queries and another's keys, those that see each other: all of them, or by a causal mask."""

    queries: slice
    keys: slice
    causal: bool

    @property
    def pairs(self) -> int:
        """How many queries and keys see each other."""
        queries, keys = self.queries.stop - self.queries.start, self.keys.stop - self.keys.start
        return queries * (queries + 1) // 2 if self.causal else queries * keys


def local_length(owner: str, seq_len: int, size: int, *, name: str = "seq_len") -> int:
    """How many of `seq_len` tokens each of `size` ranks holds. name: of the setting that they come from.

    Raises:
        SettingTypeError, SettingError: a size below 1, or a seq_len that 2 · size does not divide.
    """
    check_integer(owner, "context_parallel", size, least=1)
    check_integer(owner, name, seq_len, least=1)
    if size > 1 and seq_len % (2 * size):
        lower = seq_len // (2 * size) * 2 * size
        would_do = f"{lower} or {lower + 2 * size}" if lower else f"{2 * size}"
        raise SettingError(
            owner, name, seq_len,
            f"must be a multiple of {2 * size}: {size} ranks (context_parallel, --context-parallel) share a sequence "
            f"as {2 * size} chunks of one length; {would_do} would do",
        )  # fmt: skip
    return seq_len // size


def positions(seq_len: int, rank: int, size: int, *, owner: str = "positions") -> Tensor:
    """(seq_len / size,) int64: where rank `rank`'s tokens stand in the sequence. On the CPU.

    Raises:
        SettingError: a seq_len that does not divide.
    """
    length = local_length(owner, seq_len, size)
    if size == 1:
        return torch.arange(seq_len)
    chunks = torch.arange(seq_len).view(2 * size, length // 2)
    return chunks[[rank, 2 * size - 1 - rank]].flatten()


def piece(rank: int, of: int, length: int) -> Piece:
    """What the queries of `rank` see of the keys of `of`, with `length` tokens on each, an even number."""
    everything, half = slice(0, length), length // 2
    if of == rank:
        return Piece(everything, everything, True)
    if of < rank:
        return Piece(everything, slice(0, half), False)
    return Piece(slice(half, length), everything, False)
