"""Whether the files of a token folder are those that were written: by time stamp, or by every byte.

What was read in whole and found right is remembered in the user's cache, so that a copied set is hashed once:

    <cache>/checked/<hash of the folder's path>.json       {file: [sha256, bytes, mtime_ns, ctime_ns], ...}
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from . import files, user_cache
from .shards import DOCUMENTS, HEADER, REDO, ShardError, unreadable

_BLOCK = 1 << 20  # bytes
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
    with _bar(sum(states[entry["file"]][1] for entry in doubtful), enabled=progress) as on_read:
        for entry in doubtful:
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
    digest = hashlib.sha256()
    try:
        with open(path, "rb", buffering=0) as file:
            file.seek(0 if path.name == DOCUMENTS else HEADER.size)  # a shard's header is compared at every open
            while block := file.read(_BLOCK):
                digest.update(block)
                on_read(len(block))
    except OSError as error:
        raise unreadable(path, error) from error
    if digest.hexdigest() != expected:
        raise ShardError(f"{path}: its sha256 is not the manifest's: altered after it was written; {REDO}")


@contextlib.contextmanager
def _bar(n_bytes: int, *, enabled: bool) -> Iterator[Callable[[int], None]]:
    """A bar on stderr, if that is a terminal and there is much to read. Calling it moves it by so many bytes."""
    if not enabled or n_bytes < _LONG or sys.stderr is None or not sys.stderr.isatty():
        yield lambda n: None
        return
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (TextColumn("verifying"), BarColumn(), DownloadColumn(), TimeRemainingColumn())
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task("verifying", total=n_bytes)
        yield lambda n: bar.advance(task, n)


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
