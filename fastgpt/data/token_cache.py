"""Texts that commands were given, tokenized once: shards in the user's cache folder, found again while nothing changed.

    <cache>/tokens/<which texts and tokenizer>-<their state>/

<cache> is the folder of `base/user_cache.py`. An entry appears when it is whole, so two processes may make the same one
at once; a new state of the same texts replaces the old one, and what nobody used for `MAX_AGE` seconds goes.
"""

from __future__ import annotations

import atexit
import contextlib
import functools
import hashlib
import json
import logging
import os
import re
import shutil
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

from ..base import user_cache
from ..base.files import reason
from ..base.user_cache import MAX_AGE
from .dataset import TokenDataset
from .preparation import prepare
from .shards import FolderError, ShardError
from .sources import find_sources
from .tokenizer import Tokenizer

_log = logging.getLogger("fastgpt")
_ENTRY = re.compile(r"[0-9a-f]{16}-[0-9a-f]{16}")


def tokenized(
    paths: Sequence[str], tokenizer: Tokenizer, *, progress: bool = True, verify: bool = False
) -> TokenDataset:
    """The texts that `paths` name as a dataset of that name, tokenized now or by an earlier call.

    What that call left is compared with its hashes as `TokenDataset.open` does, and made again where it is damaged.

    Raises:
        FileNotFoundError, SourceError: see `fastgpt.data.sources`.
    """
    name = ", ".join(map(str, paths))
    texts = find_sources(paths)
    files = [(str(path.resolve()), path.stat()) for path in texts]
    which = _digest([path for path, _ in files], tokenizer.sha256)
    # The time of the last change of the file's entry catches a file whose size and modification time were put back.
    state = _digest([(s.st_size, s.st_mtime_ns, s.st_ctime_ns) for _, s in files])
    folder = _cache_folder() / f"{which}-{state}"
    found = _opened(folder, verify=verify, progress=progress)
    if found is not None:
        with contextlib.suppress(OSError):
            os.utime(folder)  # it was used today
        return found.renamed(name)
    _delete(folder)  # damaged
    try:
        # By the files: the cache may well lie in a folder that was named, the home folder for example.
        found = prepare(texts, folder, tokenizer, progress=progress)
    except (FileExistsError, FolderError) as error:  # another process was quicker; or the disk is full, for example
        found = _opened(folder)
        if found is None:
            folder = _temporary_folder(f"{folder.parent}: {reason(error.__cause__ or error)}") / folder.name
            found = prepare(texts, folder, tokenizer, progress=progress)
    _tidy(folder)
    return found.renamed(name)


def _opened(folder: Path, **how: bool) -> TokenDataset | None:
    """The entry, if it is there and whole."""
    with contextlib.suppress(FileNotFoundError, ShardError):
        return TokenDataset.open(folder, **how)
    return None


def _delete(entry: Path) -> None:
    """Delete the entry, whatever lies in its place, if that can be."""
    with contextlib.suppress(OSError):
        if entry.is_symlink() or not entry.is_dir():  # rmtree would open a pipe, and wait
            entry.unlink()
        else:
            shutil.rmtree(entry, ignore_errors=True)


def _digest(*what: object) -> str:
    return hashlib.sha256(json.dumps(what).encode()).hexdigest()[:16]


def _cache_folder() -> Path:
    """<cache>/tokens, made and writable; or a temporary folder, removed at the end of the process, which it says."""
    try:
        folder = user_cache.root() / "tokens"
        folder.mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder):
            return folder
    except OSError as error:
        return _temporary_folder(f"{error.filename or folder}: {reason(error)}")
    except RuntimeError as error:  # no home folder
        return _temporary_folder(str(error))


@functools.cache  # said once
def _temporary_folder(why: str) -> Path:
    _log.warning(
        "the cache of tokens cannot be written (%s), so the texts are tokenized for this call only; set FASTGPT_CACHE "
        "to a folder that can be", why,
    )  # fmt: skip
    folder = tempfile.mkdtemp(prefix="fastgpt-tokens-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    return Path(folder)


def _tidy(new: Path) -> None:
    """Remove earlier states of the same texts, and entries that were not used for long."""
    for entry in new.parent.iterdir():
        if entry == new or not _ENTRY.fullmatch(entry.name):
            continue
        with contextlib.suppress(OSError):
            if entry.name[:16] == new.name[:16] or time.time() - entry.stat().st_mtime > MAX_AGE:
                shutil.rmtree(entry)
