"""Whether the files of a token folder are those that were written: by time stamp, or by every byte.

What was read in whole and found right is remembered in the user's cache, so that a copied set is hashed once:

    <cache>/checked/<hash of the folder's path>.json       {file: [sha256, bytes, mtime_ns, ctime_ns], ...}
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import itertools
import json
import os
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ..base import files, user_cache
from ..base.progress import bytes_bar
from .shards import DOCUMENTS, HEADER, REDO, ShardError, unreadable

_QUICK_FROM = 1 << 20  # bytes; below, hashing takes less than a millisecond, and no clock's tick hides a change
_LONG = 1 << 28  # bytes that take so long that a bar is welcome


def check_unaltered(folder: Path, manifest: dict[str, Any], *, whole: bool = False, progress: bool = True) -> None:
    """Raise ShardError unless the shards and documents.npy are those that `manifest` describes.

    Without `whole`, a large file whose modification time is the recorded one is taken for unaltered, and so is one that
    was read in whole before and has not been touched since. `progress`: a bar on a terminal, where it takes long.
    """
    remembered = _remembered(folder)
    described = [*manifest["shards"], *([manifest["documents"]] if "documents" in manifest else [])]
    states = {entry["file"]: _state(folder / entry["file"], entry) for entry in described}
    large = {name for name, state in states.items() if state[1] >= _QUICK_FROM}
    believed = {entry["file"] for entry in described if _in_time(entry, states)} | {
        name for name, state in states.items() if remembered.get(name) == state
    }
    doubtful = [entry for entry in described if whole or entry["file"] not in believed & large]
    sizes = [states[entry["file"]][1] for entry in doubtful]
    with bytes_bar("verifying", sum(sizes), enabled=progress and sum(sizes) >= _LONG, transient=True) as move:
        for entry, before in zip(doubtful, itertools.accumulate(sizes, initial=0)):
            on_read = functools.partial(lambda start, n: move(start + n), before)
            _check_hash(folder / entry["file"], entry["sha256"], on_read)
    new = {entry["file"]: states[entry["file"]] for entry in doubtful if entry["file"] in large - believed}
    if new:
        _remember(folder, remembered | new)


def _state(path: Path, entry: dict[str, Any]) -> list[Any]:
    found = path.stat()
    return [entry["sha256"], found.st_size, found.st_mtime_ns, found.st_ctime_ns]


def _in_time(entry: dict[str, Any], states: dict[str, list[Any]]) -> bool:
    return entry.get("mtime_ns") == states[entry["file"]][2]


def _check_hash(path: Path, expected: str, on_read: Callable[[int], None]) -> None:
    start = 0 if path.name == DOCUMENTS else HEADER.size  # a shard's header is compared at every open
    try:
        found = files.sha256(path, start=start, on_read=on_read)
    except OSError as error:
        raise unreadable(path, error) from error
    if found != expected:
        raise ShardError(f"{path}: its sha256 is not the manifest's: altered after it was written; {REDO}")


# ---- what is remembered --------------------------------------------------------------------------------------------


def _record(folder: Path) -> Path:
    return user_cache.root() / "checked" / f"{hashlib.sha256(os.fsencode(folder.resolve())).hexdigest()[:32]}.json"


def _remembered(folder: Path) -> dict[str, list[Any]]:
    with contextlib.suppress(OSError, ValueError, RuntimeError):
        found = files.read_json(_record(folder))
        return found if isinstance(found, dict) else {}
    return {}


def _remember(folder: Path, states: dict[str, list[Any]]) -> None:
    """Write it down; where that cannot be, the files are hashed again next time."""
    with contextlib.suppress(OSError, RuntimeError):
        path = _record(folder)
        files.replace_file(path, lambda new: new.write_text(json.dumps(states), encoding="utf-8"))
        for other in path.parent.glob("*.json"):
            if time.time() - other.stat().st_mtime > user_cache.MAX_AGE:
                other.unlink()
