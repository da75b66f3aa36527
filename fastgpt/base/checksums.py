"""What a training checkpoint records of its files, and whether they still are what was written.

    checksums.json    {"model.safetensors": "<sha256>", ...,
                       "stamps": {"model.safetensors": [<bytes>, <mtime_ns>], ..., "sha256": "<of the stamps>"}}

A file that is read is hashed, whatever its time stamp says. One that is not read is believed by size and time stamp,
and hashed where they differ: a copy is whole, too. (Version 0.1 recorded no stamps.)
"""

from __future__ import annotations

import hashlib
import json
import os
import re
import time
from collections.abc import Iterable, Mapping
from pathlib import Path

from . import files

NAME = "checksums.json"
_STAMPS = "stamps"
_TRAINING = ("training.safetensors", "training.json")
_SHARDS = "sharded/*.safetensors"
_OURS = ("config.json", "model.safetensors", "fastgpt_tokenizer.json", "tokenizer.tiktoken", *_TRAINING)
_QUICK_FROM = 1 << 20  # bytes; below, hashing takes less than a millisecond, and no clock's tick hides a change
_SETTLED_NS = 2_000_000_000  # a file whose last change is so long ago gets another stamp by the next


class DamagedFile(ValueError):
    """A file that is missing or is not what was written; `path`, and `what` is wrong in words."""

    def __init__(self, path: Path, what: str) -> None:
        super().__init__(path, what)
        self.path, self.what = path, what

    def __str__(self) -> str:
        return (
            f"{self.path}: {self.what}; restore it from a copy, or, if the change is wanted, copy the model's files "
            "elsewhere and read them there"
        )


def write(folder: Path, known: Mapping[str, str] | None = None) -> None:
    """Write checksums.json for all files that are in `folder`. known: hashes, by their names, that need no reading."""
    paths = {p.relative_to(folder).as_posix(): p for p in sorted(folder.rglob("*")) if p.is_file() and p.name != NAME}
    known = {} if known is None else known
    hashes = {name: known.get(name) or files.sha256(path) for name, path in paths.items()}
    stamps = {name: _stamp(path.stat()) for name, path in paths.items()}
    text = json.dumps(hashes | {_STAMPS: stamps | {"sha256": _hash(stamps)}}, indent=2) + "\n"
    (folder / NAME).write_text(text, encoding="utf-8")


def check(folder: Path, read: Iterable[str] = (), *, whole: bool = False) -> set[str]:
    """Compare the files of a training checkpoint with what it records. Returns their names; {} of another folder.

    read: names of files that the caller goes on to read; they are hashed. whole: all are.

    Raises:
        DamagedFile: one of them is missing, unreadable or was altered, or checksums.json is, or lacks some of them.
    """
    if not _is_checkpoint(folder):
        return set()
    hashes, stamps = _read(folder / NAME)
    hashed = set(hashes if whole else read)
    for name, expected in hashes.items():
        _check_file(folder / name, expected, None if name in hashed else stamps.get(name))
    return set(hashes)


def _is_checkpoint(folder: Path) -> bool:
    if os.path.lexists(folder / NAME) or all(os.path.lexists(folder / name) for name in _TRAINING):
        return True
    return os.path.lexists(folder / _TRAINING[1]) and any(folder.glob(_SHARDS))


def _read(path: Path) -> tuple[dict[str, str], dict[str, list[int]]]:
    """The hashes and the stamps in checksums.json at `path`, by the files' names: all of ours that are there."""
    try:
        found = files.read_json(path)
    except FileNotFoundError:
        raise DamagedFile(path, "missing from the checkpoint") from None
    except IsADirectoryError:
        raise DamagedFile(path, "a folder in the place of a file") from None
    except OSError as error:
        raise DamagedFile(path, f"cannot be read ({files.reason(error)})") from error
    except ValueError as error:
        raise DamagedFile(path, f"corrupted ({error})") from None
    if not isinstance(found, dict):
        raise DamagedFile(path, f"corrupted (a {type(found).__name__}, not an object)")
    stamps = found.pop(_STAMPS, {"sha256": _hash({})})
    for name, value in found.items():
        if not isinstance(value, str) or not re.fullmatch("[0-9a-f]{64}", value):
            raise DamagedFile(path, f"corrupted, its entry for {name} is no sha256")
    if not isinstance(stamps, dict) or stamps.pop("sha256", None) != _hash(stamps):
        raise DamagedFile(path, "corrupted or altered, its stamps have not the sha256 that it records")
    shards = [f"{shard.parent.name}/{shard.name}" for shard in path.parent.glob(_SHARDS)]
    lacking = [name for name in (*_OURS, *shards) if os.path.lexists(path.parent / name) and name not in found]
    if lacking or not found:
        raise DamagedFile(path, f"corrupted, it has no sha256 of {lacking[0] if lacking else 'any file'}")
    return found, stamps


def _hash(stamps: dict[str, list[int]]) -> str:
    return hashlib.sha256(json.dumps(stamps, sort_keys=True).encode()).hexdigest()


def _stamp(found: os.stat_result) -> list[int]:
    return [found.st_size, found.st_mtime_ns]


def _check_file(path: Path, expected: str, stamp: list[int] | None) -> None:
    """Raise DamagedFile unless the file has the sha256 `expected`. stamp: what may stand for it, if anything may."""
    try:
        found = os.stat(path)
    except OSError as error:
        raise DamagedFile(path, f"missing from the checkpoint ({files.reason(error)})") from None
    if not os.path.isfile(path):
        raise DamagedFile(path, f"missing from the checkpoint, {files.instead_of_file(path)} is in its place")
    if found.st_size >= _QUICK_FROM and _stamp(found) == stamp:
        return
    try:
        is_other = _sha256(path, found) != expected
    except OSError as error:  # a bad sector's names no file
        raise DamagedFile(path, f"cannot be read ({files.reason(error)})") from error
    if is_other:
        raise DamagedFile(path, f"corrupted or altered, its sha256 is not the one in {NAME}")


_known: dict[tuple[int, ...], str] = {}


def _sha256(path: Path, found: os.stat_result) -> str:
    """The file's hash; what this process has hashed and nobody has touched since is not read again."""
    stamp = (found.st_dev, found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
    if stamp in _known:
        return _known[stamp]
    digest = files.sha256(path)
    if time.time_ns() - max(found.st_mtime_ns, found.st_ctime_ns) > _SETTLED_NS:
        _known[stamp] = digest
    return digest
