"""A restarted job's own part of the launcher's store.

torch elastic keeps one store for all the rounds of a job, and a round finds there what the one before it left: the
addresses of processes that are gone. What differs from round to round no environment variable says on all machines, so
the ranks agree on a name for theirs: each writes a word that it has just made up, rank 0 writes the list of them, and a
rank that finds its own word in the list knows that it is of this round.
"""

from __future__ import annotations

import json
import secrets
import time
from typing import Any

import torch.distributed as dist

_POLL = 0.02


def own_round(store: Any, rank: int, size: int, timeout: float) -> Any:
    """`store`, a torch.distributed.Store, without what was written before this round; called by all ranks.

    Raises:
        TimeoutError: not all ranks have come within `timeout` seconds; `args` are their numbers, as far as known.
    """
    word = secrets.token_hex(8)
    store.set(f"here/{rank}", word)
    end = time.monotonic() + timeout
    while (name := _lead(store, word, size) if rank == 0 else _follow(store, word, rank, size)) is None:
        if time.monotonic() > end:
            raise TimeoutError(*(other for other in range(size) if not store.check([f"here/{other}"])))
        time.sleep(_POLL)
    return dist.PrefixStore(f"round/{name}", store)


def _lead(store: Any, word: str, size: int) -> str | None:
    """Rank 0: the round's name, once all ranks have found themselves in the list."""
    keys = [f"here/{rank}" for rank in range(1, size)]
    if keys and not store.check(keys):
        return None
    store.set("round", json.dumps([word, *(store.get(key).decode() for key in keys)]))
    found = [f"found/{word}/{rank}" for rank in range(1, size)]
    return word if not found or store.check(found) else None


def _follow(store: Any, word: str, rank: int, size: int) -> str | None:
    """Another rank: the round's name, once its own word is in rank 0's list."""
    if not store.check(["round"]):
        return None
    words = json.loads(store.get("round"))
    if len(words) != size or words[rank] != word:
        return None  # of an earlier round, or not yet of this one
    store.set(f"found/{words[0]}/{rank}", "")
    return str(words[0])
