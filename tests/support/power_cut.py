"""What a power cut would leave: only what fsync was called for counts, of a file its bytes, of a folder its entries.

    with PowerCut() as disk:
        save()
    disk.left(folder)          {name: bytes, or what is left of the folder of that name}
    disk.renamed_too_early     a line for each rename of what was not flushed yet

Hidden names do not count: they are what the next writer removes.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest


class PowerCut:
    """Listens to os.fsync, mkdir, rename and replace inside the block. What was there before it is on the disk."""

    def __init__(self, folder: Path) -> None:
        self.renamed_too_early: list[str] = []
        self._patch = pytest.MonkeyPatch()
        self._bytes: dict[int, bytes] = {}  # by inode
        self._entries: dict[int, dict[str, int]] = {}
        for path in [folder, *folder.rglob("*")]:
            self._flush(path)

    def __enter__(self) -> PowerCut:
        fsync, mkdir = os.fsync, os.mkdir
        renames = {name: getattr(os, name) for name in ("rename", "replace")}

        def flushing(descriptor: int) -> None:
            fsync(descriptor)
            self._flush(Path(os.readlink(f"/proc/self/fd/{descriptor}")))

        def making(path: Any, *args: Any, **options: Any) -> None:
            mkdir(path, *args, **options)
            self._flush(Path(path))  # a new folder is an empty one; its name is another matter

        def renaming(name: str) -> Any:
            def rename(source: Any, target: Any, **options: Any) -> None:
                if self._is_new(Path(source)):
                    self.renamed_too_early.append(f"{source} -> {target}")
                renames[name](source, target, **options)

            return rename

        self._patch.setattr(os, "fsync", flushing)
        self._patch.setattr(os, "mkdir", making)
        for name in renames:
            self._patch.setattr(os, name, renaming(name))
        return self

    def __exit__(self, *_: object) -> None:
        self._patch.undo()

    def left(self, folder: Path) -> dict[str, Any]:
        """What is left of `folder`; a file or a folder that was made and never flushed is empty."""
        return self._left(folder.stat().st_ino)

    def _left(self, inode: int) -> Any:
        if inode in self._entries:
            return {name: self._left(other) for name, other in self._entries[inode].items()}
        return self._bytes.get(inode, b"")

    def _flush(self, path: Path) -> None:
        inode, is_folder = path.stat().st_ino, path.is_dir()
        (self._bytes if is_folder else self._entries).pop(inode, None)  # of what had this inode before
        if is_folder:
            self._entries[inode] = _entries(path)
        else:
            self._bytes[inode] = path.read_bytes()

    def _is_new(self, path: Path) -> bool:
        """Whether anything of it, or in it, is not on the disk."""
        inode = path.stat().st_ino
        if not path.is_dir():
            return self._bytes.get(inode) != path.read_bytes()
        return self._entries.get(inode) != _entries(path) or any(map(self._is_new, _shown(path)))


def _entries(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_ino for path in _shown(folder)}


def real(folder: Path) -> dict[str, Any]:
    """What is in `folder`, as `PowerCut.left` says it."""
    return {path.name: real(path) if path.is_dir() else path.read_bytes() for path in _shown(folder)}


def _shown(folder: Path) -> list[Path]:
    return [path for path in folder.iterdir() if not path.name.startswith(".")]
