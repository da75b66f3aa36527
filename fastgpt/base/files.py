"""Files that are whole or not there: written in a folder of their own, flushed to the disk, then renamed.

    replace_file(path, lambda new: new.write_text(text))            one file
    replace_files(folder, write_all_of_them)                        several, renamed in a row
    with working_folder(parent) as work: ...                        a whole folder: the caller renames it

New folders have the permissions that the user's umask gives (those of tempfile are for their owner alone).
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import re
import secrets
import shutil
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

from .settings import SettingError, SettingTypeError

PREFIX = ".fastgpt-"
_REMEDIES = {
    errno.ENOSPC: "free disk space",
    errno.EDQUOT: "free disk space",
    errno.EACCES: "fix the permissions",
    errno.EPERM: "fix the permissions",
    errno.EROFS: "mount it for writing",
    errno.EIO: "check the disk",
    errno.ENAMETOOLONG: "choose a shorter name",
    errno.EMFILE: "raise the limit of open files (ulimit -n)",
    errno.ENFILE: "close other programs, for the system has too many files open",
    errno.EFBIG: "raise the limit of a file's size (ulimit -f)",
}


def reason(error: BaseException) -> str:
    """What the operating system said, without the temporary name that it said it of."""
    return (isinstance(error, OSError) and error.strerror) or " ".join(str(error).split())


def remedy(error: BaseException) -> str:
    """What may help against an error of the operating system, by its number; "" where that is not known."""
    return _REMEDIES.get(_number(error) or 0, "")


def way_out(error: BaseException) -> str:
    """What to do where a file or folder cannot be written."""
    way = f"{remedy(error)}, or choose another folder" if remedy(error) else "choose another folder"
    return way + "; what was there is partly replaced: write it again" * isinstance(error, _PartlyReplacedError)


def free_space(error: BaseException, folder: Path) -> str:
    """ "; 0.01 GB free there" where that is why; else ""."""
    if _number(error) != errno.ENOSPC:
        return ""
    try:
        return f"; {shutil.disk_usage(folder).free / 1e9:.2f} GB free there"
    except OSError:
        return ""


def _number(error: BaseException | None) -> int | None:
    """The errno of an error or of one that it came from; also as libraries of Rust (safetensors) word it."""
    while error is not None:
        told = re.search(r"\(os error (\d+)\)", str(error))
        number = int(told.group(1)) if told else getattr(error, "errno", None)
        if number is not None:
            return number
        error = error.__cause__
    return None


def replace_file(path: Path, write: Callable[[Path], Any]) -> None:
    """`write` is given a path in a temporary folder beside `path`, whose file then takes `path`'s place.

    Readers see the old file or the new one; a failure, Ctrl-C included, leaves the old one.

    Raises:
        OSError: the disk is full or cannot be written; the message names the file.
    """
    path = Path(path)
    if os.path.isdir(path):  # False also where the name is too long
        raise IsADirectoryError(f"could not write {path}: it is a folder; choose another name")
    replace_files(path.parent, lambda work: write(work / path.name), says=path)


def replace_files(folder: Path, write: Callable[[Path], Any], *, says: Path | None = None) -> None:
    """`write` fills a temporary folder, whose files then take their places in `folder`, in the order of their names
    but those of JSON, which describe the others, last. `says`: what an error names in place of `folder`.

    What fails on the way, Ctrl-C included, leaves the old files. A process that is killed between two renames leaves
    none of JSON that would say of the others what is not so.

    Raises:
        OSError: the disk is full or cannot be written; nothing was replaced, unless the message says so.
    """
    intact = "; the previous file is intact" if says is not None and os.path.lexists(says) else ""
    try:
        with working_folder(folder) as work:
            write(work)
            flush_all(work)
            names = sorted((path.name for path in work.iterdir()), key=lambda name: (name.endswith(".json"), name))
            others = [name for name in names if name.endswith(".json") and not _is_same(work / name, folder / name)]
            take_places(work, folder, names, unread=others)
            flush(folder)
    except (OSError, RuntimeError) as error:
        if isinstance(error, _PartlyReplacedError):
            intact = ""
        raise type(error if isinstance(error, OSError) else OSError())(
            f"could not write {says or folder} ({reason(error)}); {way_out(error)}{intact}"
        ) from error


def take_places(
    work: Path, folder: Path, names: list[str], *, gone: Iterable[str] = (), unread: Iterable[str] = ()
) -> None:
    """Rename files of `work` into `folder`, each over the one of its name, and those called `gone` out of it; undo it
    all if one of them fails. A process that is killed meanwhile leaves some old and some new, and each is there but
    those in `unread`, which are missing until all others are new.

    Raises:
        OSError: nothing is changed, but for a _PartlyReplacedError.
    """
    there = [name for name in (*names, *gone) if os.path.lexists(folder / name)]
    old = work / ".old"
    try:
        if there and len({*names, *gone}) > 1:
            old.mkdir()
            for name in set(there) & set(names):
                with contextlib.suppress(OSError):  # some file systems have no second names
                    if name not in unread:
                        os.link(folder / name, old / name)  # so that the first one is never missing
                if not os.path.lexists(old / name):
                    os.replace(folder / name, old / name)
        for name in names:
            os.replace(work / name, folder / name)
        for name in set(gone) & set(there):
            os.replace(folder / name, old / name)
    except BaseException as error:
        try:
            for name in {*names, *gone}:
                if os.path.lexists(old / name):
                    os.replace(old / name, folder / name)
                elif name not in there:
                    (folder / name).unlink(missing_ok=True)
        except OSError:
            raise _PartlyReplacedError(*error.args) from error
        raise


def _is_same(new: Path, old: Path) -> bool:
    return old.is_file() and new.read_bytes() == old.read_bytes()


class _PartlyReplacedError(OSError):
    """A rename failed, and so did the undoing of those before it."""


def check_folder(owner: str, name: str, folder: str | os.PathLike[str]) -> Path:
    """`folder` as a path, if a folder of that name is there or can be.

    Raises:
        SettingError: a file, or in a file, a name that is too long, or one that may not be written; named `name`.
        SettingTypeError: no path.
    """
    if not isinstance(folder, (str, os.PathLike)):
        raise SettingTypeError(owner, name, folder, "must be the path of a folder")
    path = Path(folder)
    need = 'must be the path of a folder; "." is this one' if not os.fspath(folder) else _why_no_folder(path)
    if need:
        raise SettingError(owner, name, str(folder), need)
    return path


def _why_no_folder(path: Path) -> str | None:
    try:
        os.lstat(path)
        if not path.is_dir():
            return f"is {'a file' if path.exists() else 'a link to nowhere'}; choose a folder"
    except FileNotFoundError:
        path = next(parent for parent in path.absolute().parents if os.path.lexists(parent))  # in the end, the root
    except NotADirectoryError:
        return "lies in a file; choose another folder"
    except (OSError, ValueError) as error:
        return f"cannot be: {reason(error)}; choose another folder"
    if not path.is_dir():
        return f"lies in {path}, which is no folder; choose another one"
    if not os.access(path, os.W_OK | os.X_OK):
        return f"cannot be written: no permission in {path}; choose another folder"
    return None


@contextlib.contextmanager
def working_folder(parent: Path, prefix: str = PREFIX) -> Iterator[Path]:
    """A new hidden folder in `parent` (made if need be), removed when the block ends unless it was renamed.

    Folders of that prefix that a killed process left behind are removed; those of running ones are locked.
    """
    parent = Path(parent)
    make_folder(parent)
    remove_left_behind(parent, prefix)
    with contextlib.ExitStack() as held:
        while True:
            work = parent / f"{prefix}{secrets.token_hex(4)}"
            held.callback(_remove, work)  # before it is there: a signal may come at any moment
            work.mkdir()
            try:
                held.enter_context(locked(work, must=False))
                break
            except (BlockingIOError, FileNotFoundError):  # another process took it for one left behind
                continue
        yield work


def remove_left_behind(parent: Path, prefix: str = PREFIX) -> None:
    """Remove what `working_folder` made in `parent`, if that is there, and a killed process left there."""
    for path in parent.iterdir() if parent.is_dir() else ():
        if path.name.startswith(prefix) and path.is_dir() and not path.is_symlink():
            with contextlib.suppress(OSError), locked(path):
                shutil.rmtree(path, ignore_errors=True)


def _remove(work: Path) -> None:
    """Delete the folder `work`, if that can be, though it fails once or a signal comes meanwhile."""
    try:
        shutil.rmtree(work, ignore_errors=True)
    finally:
        shutil.rmtree(work, ignore_errors=True)


def instead_of_file(path: str | os.PathLike[str]) -> str | None:
    """What is at `path` and is no file; None of a file, and where there is nothing."""
    if os.path.isfile(path) or not os.path.lexists(path):
        return None
    if os.path.isdir(path):
        return "a folder"
    return "a pipe or a device" if is_pipe(path) else "a link to nowhere"


def is_pipe(path: str | os.PathLike[str]) -> bool:
    """Whether it is a pipe or a device: to open one is to wait."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)


def read_json(path: str | os.PathLike[str]) -> Any:
    """What a file of JSON holds.

    Raises:
        OSError: it cannot be read. ValueError: it is no JSON.
    """
    if is_pipe(path):
        raise ValueError("a pipe or a device, no file")
    try:
        return json.loads(Path(path).read_text(encoding="utf-8"))
    except RecursionError:
        raise ValueError("nested too deeply") from None


def make_folder(path: Path) -> None:
    """Make the folder `path` and those above it, where they are not there, so that a power cut takes none of them away.

    Raises:
        OSError: one cannot be made, or is a file.
    """
    missing = [folder for folder in (path, *path.parents) if not folder.exists()]
    path.mkdir(parents=True, exist_ok=True)
    for folder in reversed(missing):
        flush(folder.parent)


def flush_all(work: Path) -> None:
    """Flush the folder `work` and every file in it to the disk."""
    for path in work.iterdir():
        flush(path)
    flush(work)


def flush(path: Path) -> None:
    """fsync of a file or folder; nothing where the file system has none for folders."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    except OSError:
        if not path.is_dir():
            raise
    finally:
        os.close(descriptor)


def sha256(path: Path, *, start: int = 0, on_read: Callable[[int], None] | None = None) -> str:
    """Hex sha256 of a file's bytes from `start` on; `on_read` is told how many of the file have been read so far."""
    with open(path, "rb") as file:
        digest = hashlib.sha256()
        file.seek(start)
        while block := file.read(1 << 20):
            digest.update(block)
            if on_read is not None:
                on_read(file.tell())
    return digest.hexdigest()


_held: set[int] = set()  # descriptors of the locks that this process holds


def _close_held() -> None:
    for descriptor in _held:
        os.close(descriptor)
    _held.clear()


if hasattr(os, "register_at_fork"):  # a worker that outlives a killed run would keep its lock
    os.register_at_fork(after_in_child=_close_held)


@contextlib.contextmanager
def locked(folder: Path, *, must: bool = True) -> Iterator[bool]:
    """Hold the folder's lock, which the system lets go when this process ends, however it does; forked ones lack it.

    The value is False where there are no locks, on this system or in this file system.

    Raises:
        OSError: another process holds it; or there is no such folder; or, with `must`, there are no locks here.
    """
    try:
        import fcntl
    except ImportError:
        if must:
            raise OSError("no locks of folders on this system") from None
        yield False
        return
    descriptor = os.open(folder, os.O_RDONLY)
    _held.add(descriptor)
    try:
        is_held = True
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise
        except OSError:  # a file system without locks
            if must:
                raise
            is_held = False
        yield is_held
    finally:
        if descriptor in _held:
            _held.remove(descriptor)
            with contextlib.suppress(OSError):  # closing does not let go of it while another program is being started
                fcntl.flock(descriptor, fcntl.LOCK_UN)
            os.close(descriptor)
