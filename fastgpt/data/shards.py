"""Token shards on disk: their format, and reading it.

`tokens-00000.bin` ...: a 32-byte header, then uint16 or uint32 ids. `documents.npy`: int64, where each document starts.
`manifest.json` describes both; a folder holds token shards if and only if it has one of ours. It holds the sha256 of
the ids of each shard, of those of all together, of documents.npy, and of itself, and when the files were written
(version 1: the shards' sha256 alone).
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import re
import struct
from pathlib import Path
from typing import Any

import numpy as np

from ..base import files
from ..base.settings import SettingError

MAGIC, VERSION = b"FGPTTOKS", 1
MANIFEST_VERSIONS = (1, 2)
HEADER = struct.Struct("<8sIIQ8x")  # magic, version, bytes per id, number of ids: 32 bytes
MANIFEST, DOCUMENTS = "manifest.json", "documents.npy"
REDO = "run `fastgpt prepare` on the original texts again"

NAME = re.compile(r"tokens-\d{5,}\.bin")


class ShardError(ValueError):
    """A token shard or manifest that cannot be used: the message names the file and the way out."""


class FolderError(SettingError, OSError):
    """The folder to write cannot be written."""


class FolderTakenError(FolderError, FileExistsError):
    """The folder to write is there already, and not replaced."""


def is_shards(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder has a manifest of token shards, damaged or not."""
    return os.path.isfile(Path(folder, MANIFEST))  # False, unlike Path's, also for a path that cannot be


def were_shards(folder: str | os.PathLike[str]) -> bool:
    """Whether the folder has a manifest, or else a shard, whose manifest was lost."""
    return is_shards(folder) or (os.path.isdir(folder) and any(map(NAME.fullmatch, os.listdir(folder))))


def id_dtype(vocab_size: int) -> np.dtype:
    """The smallest type that holds every id."""
    return np.dtype("<u2" if vocab_size <= 1 << 16 else "<u4")


# ---- the manifest --------------------------------------------------------------------------------------------------


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of `folder`, in which every value is one that can be.

    Raises:
        FileNotFoundError: it has none. ShardError: it is not of token shards, damaged, or of a newer version.
    """
    path = folder / MANIFEST
    if not were_shards(folder):
        what = "no such folder" if not os.path.exists(folder) else "no token shards (no manifest.json in a folder)"
        raise FileNotFoundError(f"{folder}: {what}; make them with `fastgpt prepare`")
    _check_is_file(path, "missing from the token shards")
    try:
        manifest = files.read_json(path)
        version = manifest["version"]
        if manifest["format"] != MAGIC.decode() or type(version) is not int or version not in MANIFEST_VERSIONS:
            raise ShardError(f"{path}: format {manifest['format']!r} version {version!r}, {REDO}")
        for entry in manifest["shards"]:
            if not NAME.fullmatch(entry["file"]):  # such as ../../somewhere else
                raise ShardError(f"{path}: {entry['file']!r} is no name of a shard; {REDO}")
        if version > 1 and manifest["manifest_sha256"] != manifest_sha256(manifest):
            raise ShardError(f"{path}: its sha256 is not the one in it: damaged, or altered by hand; {REDO}")
        _check_values(manifest)
    except ShardError:
        raise
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise ShardError(f"{path}: not a manifest of token shards ({error!r}); {REDO}") from error
    except OSError as error:
        raise unreadable(path, error) from error
    return manifest


def _check_values(manifest: dict[str, Any]) -> None:
    """Raise ValueError, TypeError or LookupError where a value that is read from the manifest cannot be."""
    tokenizer, shards = manifest["tokenizer"], manifest["shards"]
    _check_count("vocab_size", tokenizer["vocab_size"], most=1 << 32)
    _check_hash("tokenizer", tokenizer["sha256"], digits=0)  # whoever has one that is no Tokenizer may call it so
    for number, entry in enumerate(shards):
        if entry["file"] != shard_name(number):
            raise ValueError(f"shard {number} is {entry['file']}")
        _check_count(f"n_tokens of {entry['file']}", entry["n_tokens"])
        _check_hash(entry["file"], entry["sha256"])
    together = sum(entry["n_tokens"] for entry in shards)
    if _check_count("n_tokens", manifest["n_tokens"]) != together:
        raise ValueError(f"n_tokens is {manifest['n_tokens']}, but the shards have {together}")
    _check_count("n_documents", manifest["n_documents"], most=manifest["n_tokens"])
    if manifest["version"] > 1:
        _check_hash("tokens_sha256", manifest["tokens_sha256"])
        _check_hash(DOCUMENTS, manifest["documents"]["sha256"])


def _check_count(name: str, value: Any, most: int = (1 << 62)) -> int:
    if type(value) is not int or not 1 <= value <= most:
        raise ValueError(f"{name} is {str(value)[:40]!r}")
    return value


def _check_hash(name: str, value: Any, digits: int = 64) -> None:
    if type(value) is not str or not value or (digits and not re.fullmatch(f"[0-9a-f]{{{digits}}}", value)):
        raise ValueError(f"the sha256 of {name} is {str(value)[:40]!r}")


def manifest_sha256(manifest: dict[str, Any]) -> str:
    """Hash of what the manifest says, whatever its layout."""
    rest = {name: value for name, value in manifest.items() if name != "manifest_sha256"}
    return hashlib.sha256(json.dumps(rest, sort_keys=True).encode()).hexdigest()


def content_sha256(manifest: dict[str, Any]) -> str:
    """Hash of the ids of the whole stream. Of several shards of version 1, whose manifest has none: of their hashes."""
    hashes = [entry["sha256"] for entry in manifest["shards"]]
    if "tokens_sha256" in manifest or len(hashes) == 1:
        return manifest.get("tokens_sha256", hashes[0])
    return hashlib.sha256("\n".join(hashes).encode()).hexdigest()


def sources_of(manifest: dict[str, Any]) -> tuple[tuple[str, int], ...]:
    """(path, number of its first document) of each text; () where that was not recorded, or is none of what prepare
    writes: nothing but names in messages depends on it."""
    found = []
    for entry in manifest.get("sources") or ():
        if not isinstance(entry, dict) or type(entry.get("first_document")) is not int:
            return ()
        found.append((str(entry.get("path")), entry["first_document"]))
    return tuple(sorted(found, key=lambda source: source[1]))


def shard_name(number: int) -> str:
    return f"tokens-{number:05d}.bin"


# ---- shards and documents ------------------------------------------------------------------------------------------


def open_shard(path: Path, n_tokens: int, dtype: np.dtype) -> np.memmap:
    """Memory-map the shard `path`, which must hold `n_tokens` ids of `dtype`.

    Raises:
        FileNotFoundError: it is missing. ShardError: it is truncated, foreign or cannot be read.
    """
    _check_is_file(path, "the manifest names this shard, but it is missing")
    try:
        with open(path, "rb") as file:
            header, size = file.read(HEADER.size), os.fstat(file.fileno()).st_size
            _check_header(path, header, n_tokens, dtype)
            expected = HEADER.size + n_tokens * dtype.itemsize
            if size != expected:
                raise ShardError(f"{path}: {size} bytes, expected {expected}: truncated or damaged; {REDO}")
            return np.memmap(path, dtype, "r", HEADER.size, (n_tokens,))
    except OSError as error:
        raise unreadable(path, error) from error


def _check_header(path: Path, header: bytes, n_tokens: int, dtype: np.dtype) -> None:
    if len(header) < HEADER.size or header[:8] != MAGIC:
        raise ShardError(f"{path}: not a token shard of fastgpt (it starts with {header[:8]!r}); {REDO}")
    _, version, itemsize, count = HEADER.unpack(header)
    if version != VERSION or itemsize not in (2, 4):
        raise ShardError(f"{path}: shard version {version} with {itemsize}-byte ids, cannot be read; {REDO}")
    if count != n_tokens:
        raise ShardError(f"{path}: {count} tokens, the manifest says {n_tokens}: from another set; {REDO}")
    if header != HEADER.pack(MAGIC, VERSION, dtype.itemsize, n_tokens):
        what = f"{itemsize}-byte ids, the vocabulary needs {dtype.itemsize}, or a damaged header"
        raise ShardError(f"{path}: {what}; {REDO}")


def open_documents(path: Path, n_documents: int, n_tokens: int) -> np.ndarray:
    """Memory-map documents.npy: (n_documents,) int64, rising, inside the stream.

    Raises:
        FileNotFoundError: it is missing. ShardError: it is truncated, damaged or of another set.
    """
    _check_is_file(path, "missing from the token shards")
    try:
        documents = np.load(path, mmap_mode="r", allow_pickle=False)
    except OSError as error:
        raise unreadable(path, error) from error
    except Exception as error:  # numpy lets through whatever Python's parser raises at a garbled header
        raise ShardError(f"{path}: truncated or damaged ({' '.join(str(error).split())}); {REDO}") from error
    if not isinstance(documents, np.memmap) or documents.dtype != np.int64 or documents.shape != (n_documents,):
        raise ShardError(f"{path}: not the {n_documents} positions that the manifest says; {REDO}")
    expected = documents.offset + documents.nbytes
    if path.stat().st_size != expected:
        raise ShardError(f"{path}: {path.stat().st_size} bytes, expected {expected}: damaged; {REDO}")
    if not (documents[0] >= 0 and documents[-1] < n_tokens and (np.diff(documents) > 0).all()):
        raise ShardError(f"{path}: positions that do not rise from 0 to {n_tokens}: damaged; {REDO}")
    return documents


def _check_is_file(path: Path, missing: str) -> None:
    if not os.path.lexists(path):
        raise FileNotFoundError(f"{path}: {missing}; {REDO}")
    if not path.is_file():
        raise ShardError(f"{path}: {files.instead_of_file(path)} in the place of a file of token shards; {REDO}")


def unreadable(path: Path, error: OSError) -> ShardError:
    """What the operating system refused to read, as the error to raise: it names the file and the way out."""
    way = files.remedy(error) or "copy it from where it came from"
    if error.errno == errno.EMFILE:
        way += ", or prepare with a larger --shard-tokens"
    return ShardError(f"{path}: cannot be read ({files.reason(error)}); {way}")
