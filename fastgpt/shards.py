"""Token shards on disk: their format, and folders of them, of which only files of ours are ever replaced.

`tokens-00000.bin` ...: a 32-byte header, then uint16 or uint32 ids. `documents.npy`: int64, where each document starts.
`manifest.json` describes both; a folder holds token shards if and only if it has one of ours.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import re
import struct
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from . import files
from .settings import SettingError

MAGIC, VERSION = b"FGPTTOKS", 1
HEADER = struct.Struct("<8sIIQ8x")  # magic, version, bytes per id, number of ids: 32 bytes
MANIFEST, DOCUMENTS = "manifest.json", "documents.npy"
REDO = "run `fastgpt prepare` on the original texts again"

_NAME = re.compile(r"tokens-\d{5,}\.bin")


class ShardError(ValueError):
    """A token shard or manifest that cannot be used: the message names the file and the way out."""


class FolderError(SettingError, OSError):
    """The folder to write cannot be written."""


class FolderTakenError(FolderError, FileExistsError):
    """The folder to write is there already, and not replaced."""


def is_shards(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder has a manifest of token shards, damaged or not."""
    return os.path.isfile(Path(folder, MANIFEST))  # False, unlike Path's, also for a path that cannot be


# ---- reading -------------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`.

    Raises:
        FileNotFoundError: it has none. ShardError: it is not of token shards, or of a newer version.
    """
    path = folder / MANIFEST
    if not is_shards(folder):
        what = "no such folder" if not os.path.exists(folder) else "no token shards (no manifest.json in a folder)"
        raise FileNotFoundError(f"{folder}: {what}; make them with `fastgpt prepare`")
    try:
        manifest = files.read_json(path)
        if manifest["format"] != MAGIC.decode() or manifest["version"] != VERSION:
            raise ShardError(f"{path}: format {manifest['format']!r} version {manifest['version']}, {REDO}")
        for entry in manifest["shards"]:
            if not _NAME.fullmatch(entry["file"]):  # such as ../../somewhere else
                raise ShardError(f"{path}: {entry['file']!r} is no name of a shard; {REDO}")
    except ShardError:
        raise
    except (ValueError, LookupError, TypeError) as error:
        raise ShardError(f"{path}: not a manifest of token shards ({error!r}); {REDO}") from error
    return manifest


def open_shard(folder: Path, entry: dict[str, Any], *, verify: bool) -> np.ndarray:
    """Memory-map the shard that `entry` of the manifest describes; `verify` also compares its sha256.

    Raises:
        FileNotFoundError: it is missing. ShardError: it is truncated, foreign or altered.
    """
    path = folder / entry["file"]
    if not path.is_file():
        raise FileNotFoundError(f"{path}: the manifest names this shard, but it is missing; {REDO}")
    size = path.stat().st_size
    with open(path, "rb") as file:
        header = file.read(HEADER.size)
    if len(header) < HEADER.size or header[:8] != MAGIC:
        raise ShardError(f"{path}: not a token shard of fastgpt (it starts with {header[:8]!r}); {REDO}")
    _, version, itemsize, count = HEADER.unpack(header)
    if version != VERSION or itemsize not in (2, 4):
        raise ShardError(f"{path}: shard version {version} with {itemsize}-byte ids, cannot be read; {REDO}")
    if count != entry["n_tokens"]:
        raise ShardError(f"{path}: {count} tokens, the manifest says {entry['n_tokens']}: from another set; {REDO}")
    expected = HEADER.size + count * itemsize
    if size != expected:
        raise ShardError(f"{path}: {size} bytes, expected {expected}: truncated or damaged; {REDO}")
    tokens = np.memmap(path, dtype=f"<u{itemsize}", mode="r", offset=HEADER.size, shape=(count,))
    if verify and hashlib.sha256(tokens).hexdigest() != entry["sha256"]:
        raise ShardError(f"{path}: its sha256 is not the manifest's: altered after it was written; {REDO}")
    return tokens


def open_documents(folder: Path, manifest: dict[str, Any]) -> np.ndarray:
    """Memory-map documents.npy: (n_documents,) int64, rising, inside the stream.

    Raises:
        FileNotFoundError: it is missing. ShardError: it is truncated, damaged or of another set.
    """
    path = folder / DOCUMENTS
    try:
        documents = np.load(path, mmap_mode="r", allow_pickle=False)
    except FileNotFoundError:
        raise FileNotFoundError(f"{path}: missing from the token shards; {REDO}") from None
    except (ValueError, EOFError) as error:
        raise ShardError(f"{path}: truncated or damaged ({error}); {REDO}") from error
    if documents.dtype != np.int64 or documents.shape != (manifest["n_documents"],):
        raise ShardError(f"{path}: not the {manifest['n_documents']} positions that the manifest says; {REDO}")
    n_tokens = manifest["n_tokens"]
    if len(documents) and not (documents[0] >= 0 and documents[-1] < n_tokens and (np.diff(documents) > 0).all()):
        raise ShardError(f"{path}: positions that do not rise from 0 to {n_tokens}: damaged; {REDO}")
    return documents


# ---- writing -------------------------------------------------------------------------------------------------------


def check_target(folder: Path, sources: list[Path], *, overwrite: bool) -> None:
    """Refuse, before any work, to write where anything could be lost.

    `sources`: what the user named. A folder that is not there, an empty one, and, with `overwrite`, one of token shards
    are written; only files that its manifest names are replaced.

    Raises:
        FolderTakenError, SettingError: named `folder`; the message says what is in the way.
    """
    files.check_folder("prepare", "folder", folder)
    inside = folder.resolve()
    for source in sources:
        if inside == source.resolve() or inside in source.resolve().parents:
            raise SettingError("prepare", "folder", str(folder), f"holds the source {source}; choose another folder")
        if source.is_dir() and source.resolve() in inside.parents:
            need = f"lies inside of the source {source}; choose a folder outside"
            raise SettingError("prepare", "folder", str(folder), need)
    if not folder.is_dir():
        return
    found = sorted(path.name for path in folder.iterdir())
    if not found:
        return
    if not is_shards(folder):
        some = ", ".join(found[:3]) + (f" and {len(found) - 3} more" if len(found) > 3 else "")
        need = f"holds other files ({some}), no token shards: nothing in it is touched; choose another folder"
        raise FolderTakenError("prepare", "folder", str(folder), need)
    if not overwrite:
        need = "exists; choose another folder, or pass overwrite=True (--overwrite)"
        raise FolderTakenError("prepare", "folder", str(folder), need)
    try:
        ours = owned(folder)
    except ShardError as error:
        need = f"is not replaced, for what is in it is not certain: {error}; choose another folder, or delete this one"
        raise FolderTakenError("prepare", "folder", str(folder), need) from error
    foreign = [name for name in found if name not in ours and (_NAME.fullmatch(name) or name == DOCUMENTS)]
    if foreign:
        need = f"holds {foreign[0]}, which its manifest does not name: move that away, or choose another folder"
        raise FolderTakenError("prepare", "folder", str(folder), need)


def owned(folder: Path) -> list[str]:
    """Names of the files that the manifest of `folder` says are ours, itself first.

    Raises:
        FileNotFoundError, ShardError: see `read_manifest`.
    """
    return [MANIFEST, DOCUMENTS, *(entry["file"] for entry in read_manifest(folder)["shards"])]


@contextlib.contextmanager
def new_set(folder: Path) -> Iterator[Path]:
    """A folder to write shards, documents and manifest into; when the block ends well, they are `folder`'s.

    What fails before that, Ctrl-C included, leaves `folder` as it was. Files that are not ours stay in it.

    Raises:
        OSError: the disk is full or cannot be written. FileExistsError: another process has just made `folder`.
    """
    beside = not folder.is_dir()
    with files.working_folder(folder.parent if beside else folder) as work:
        yield work
        files.flush_all(work)
        if not beside:
            _replace(folder, work)
            return
        try:
            work.rename(folder)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise FileExistsError(f"{folder} exists: another process made it meanwhile") from error
            raise
    files.flush(folder.parent)


def _replace(folder: Path, work: Path) -> None:
    """Let the files in `work` take the places of the set in `folder`; undo it all if anything fails."""
    new = [DOCUMENTS, *sorted(path.name for path in work.iterdir() if _NAME.fullmatch(path.name)), MANIFEST]
    aside = work / "replaced"
    aside.mkdir()
    moves = [(folder / name, aside / name) for name in owned(folder)] if is_shards(folder) else []
    moves += [(work / name, folder / name) for name in new]
    done = []
    try:
        for source, target in moves:
            done.append((source, target))
            with contextlib.suppress(FileNotFoundError):  # a shard that the old manifest names and that was lost
                source.rename(target)
    except BaseException:
        for source, target in reversed(done):
            with contextlib.suppress(FileNotFoundError):  # the move that failed
                target.rename(source)
        raise
    files.flush(folder)


class ShardWriter:
    """Appends ids to numbered shard files; `close` returns their entries in the manifest."""

    def __init__(self, folder: Path, dtype: np.dtype, shard_tokens: int) -> None:
        self.folder, self.dtype, self.shard_tokens = folder, dtype, shard_tokens
        self.n_tokens, self.last = 0, -1
        self._file, self._count, self._hash = None, 0, hashlib.sha256()
        self._entries: list[dict[str, Any]] = []

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
        self._file.close()
        name = Path(self._file.name).name
        self._entries.append({"file": name, "n_tokens": self._count, "sha256": self._hash.hexdigest()})
        self._file, self._count, self._hash = None, 0, hashlib.sha256()

    def close(self) -> list[dict[str, Any]]:
        if self._file is not None:
            self._finish()
        return self._entries
