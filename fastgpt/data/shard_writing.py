"""Writing folders of token shards: only files of ours are ever replaced, and a set is whole or not there."""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..base import files
from ..base.settings import SettingError, some_of
from .shards import (
    DOCUMENTS,
    HEADER,
    MAGIC,
    MANIFEST,
    MANIFEST_VERSIONS,
    NAME,
    VERSION,
    FolderTakenError,
    ShardError,
    is_shards,
    manifest_sha256,
    read_manifest,
    shard_name,
)

_MOVED = "moved.json"  # in the temporary folder: names of the files that are replaced, old and new


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
        need = f"holds other files ({some_of(found)}), no token shards: nothing in it is touched; choose another folder"
        raise FolderTakenError("prepare", "folder", str(folder), need)
    if not overwrite:
        need = "exists; choose another folder, or pass overwrite=True (--overwrite)"
        raise FolderTakenError("prepare", "folder", str(folder), need)
    try:
        ours = owned(folder)
    except ShardError as error:
        need = f"is not replaced, for what is in it is not certain: {error}; choose another folder, or delete this one"
        raise FolderTakenError("prepare", "folder", str(folder), need) from error
    foreign = [name for name in found if name not in ours and (NAME.fullmatch(name) or name == DOCUMENTS)]
    if foreign:
        need = f"holds {foreign[0]}, which its manifest does not name: move that away, or choose another folder"
        raise FolderTakenError("prepare", "folder", str(folder), need)


def owned(folder: Path) -> list[str]:
    """Names of the files in `folder` that are ours: those of its manifest, itself first, and where a process was killed
    as it replaced them, those of its old and new ones.

    Raises:
        FileNotFoundError, ShardError: see `read_manifest`.
    """
    names = [MANIFEST, DOCUMENTS, *(entry["file"] for entry in read_manifest(folder)["shards"])]
    for path in folder.glob(f".*/{_MOVED}"):
        with contextlib.suppress(OSError, ValueError):  # cut, so nothing was moved yet
            names += [name for name in files.read_json(path) if NAME.fullmatch(name) and name not in names]
    return names


@contextlib.contextmanager
def new_set(folder: Path) -> Iterator[Path]:
    """A folder to write shards, documents and manifest into; when the block ends well, they are `folder`'s.

    What fails before that, Ctrl-C included, leaves `folder` as it was. Files that are not ours stay in it.

    Raises:
        OSError: the disk is full or cannot be written. FileExistsError: another process has just made `folder`.
    """
    beside = not folder.is_dir()
    old = [] if beside or not is_shards(folder) else owned(folder)
    with files.working_folder(folder.parent if beside else folder) as work:
        yield work
        new = [DOCUMENTS, *sorted(path.name for path in work.iterdir() if NAME.fullmatch(path.name)), MANIFEST]
        if not beside:
            (work / _MOVED).write_text(json.dumps([*old, *new]), encoding="utf-8")
        files.flush_all(work)
        if not beside:
            files.take_places(work, folder, new, gone=[name for name in old if name not in new])
            files.flush(folder)
            return
        try:
            work.rename(folder)
        except OSError as error:
            if error.errno in (errno.EEXIST, errno.ENOTEMPTY, errno.ENOTDIR):
                raise FileExistsError(f"{folder} exists: another process made it meanwhile") from error
            raise
    files.flush(folder.parent)


class ShardWriter:
    """Appends ids to numbered shard files, and describes them in a manifest."""

    def __init__(self, folder: Path, dtype: np.dtype, shard_tokens: int) -> None:
        self.folder, self.dtype, self.shard_tokens = folder, dtype, shard_tokens
        self.n_tokens = 0
        self._file: BinaryIO | None = None  # the shard that is being written
        self._count, self._hash = 0, hashlib.sha256()  # of its ids
        self._hash_of_all = hashlib.sha256()
        self._entries: list[dict[str, Any]] = []

    def write(self, ids: np.ndarray) -> None:
        while len(ids):
            if self._file is None:
                self._file = open(self.folder / shard_name(len(self._entries)), "wb")  # noqa: SIM115
                self._file.write(bytes(HEADER.size))
            file = self._file
            part, ids = ids[: self.shard_tokens - self._count], ids[self.shard_tokens - self._count :]
            data = part.astype(self.dtype).tobytes()
            file.write(data)
            self._hash.update(data)
            self._hash_of_all.update(data)
            self._count += len(part)
            self.n_tokens += len(part)
            if self._count == self.shard_tokens:
                self._finish(file)

    def _finish(self, file: BinaryIO) -> None:
        file.seek(0)
        file.write(HEADER.pack(MAGIC, VERSION, self.dtype.itemsize, self._count))
        file.close()
        name = Path(file.name).name
        self._entries.append({"file": name, "n_tokens": self._count, "sha256": self._hash.hexdigest()})
        self._file, self._count, self._hash = None, 0, hashlib.sha256()

    def close(self, documents: np.ndarray, **about: Any) -> None:
        """End the last shard; write documents.npy, the (n,) positions where documents start, and the manifest, in which
        `about` (tokenizer, n_bytes, sources) stands too."""
        if self._file is not None:
            self._finish(self._file)
        np.save(self.folder / DOCUMENTS, documents.astype(np.int64))
        entry = {"file": DOCUMENTS, "sha256": files.sha256(self.folder / DOCUMENTS)}
        manifest = {
            "format": MAGIC.decode(), "version": MANIFEST_VERSIONS[-1], "n_tokens": self.n_tokens,
            "n_documents": len(documents), "tokens_sha256": self._hash_of_all.hexdigest(), **about,
            "documents": entry, "shards": self._entries,
        }  # fmt: skip
        write_manifest(self.folder, manifest)


def write_manifest(folder: Path, manifest: dict[str, Any]) -> None:
    """Write `manifest`, with the time of each file that it names and its own hash."""
    for entry in (*manifest["shards"], manifest["documents"]):
        entry["mtime_ns"] = (folder / entry["file"]).stat().st_mtime_ns
    manifest = manifest | {"manifest_sha256": manifest_sha256(manifest)}
    (folder / MANIFEST).write_text(json.dumps(manifest, indent=2) + "\n", encoding="utf-8")
