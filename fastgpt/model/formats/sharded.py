"""Checkpoints that many processes wrote, read in one or in many: torch.distributed.checkpoint, over safetensors.

    <checkpoint>/sharded/shard-00001-model-00001-of-00001.safetensors, ...    one file for each rank that wrote

Each file holds pieces of tensors, and in its metadata where in the whole they belong ("DCP_SHARDING_INFO", written and
read by torch's HuggingFaceStorageWriter and -Reader). The names are those of the files of one process, so that one
reader takes both: "token_emb.weight", "optimizer/<parameter>/<kind>", "rng/...".
"""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...base import checksums
from .tensor_file import dtype_of, opened

FOLDER = "sharded"
_BESIDE = ("optimizer/", "rng/")  # how names begin that are no weights
_PLACES = "DCP_SHARDING_INFO"  # key of a file's metadata: {name: {"saved_offsets": [...]}}
_PLAIN = ("model.safetensors", "training.safetensors")


def is_sharded(folder: Path) -> bool:
    """Whether the checkpoint in `folder` is one that many processes wrote."""
    return (folder / FOLDER).is_dir()


def is_weight(name: str) -> bool:
    """Whether a checkpoint's tensor of this name is the model's, and no moment or random state."""
    return not name.startswith(_BESIDE)


def tensor_files(folder: Path) -> list[Path]:
    """The files of safetensors of a checkpoint, sharded or not; in the order of their names."""
    if is_sharded(folder):
        return sorted((folder / FOLDER).glob("*.safetensors"))
    return [folder / name for name in _PLAIN if (folder / name).is_file()]


def stored(folder: Path) -> dict[str, tuple[Any, ...]]:
    """(dtype as the format calls it, *shape of the whole tensor) of everything in a checkpoint, by the headers.

    Raises:
        ValueError: a file is truncated or corrupted, or pieces are missing; the message names the file or the tensor.
        OSError: one cannot be read.
    """
    pieces: dict[str, list[tuple[str, tuple[int, ...], tuple[int, ...]]]] = {}
    for path in tensor_files(folder):
        for name, piece in _pieces(path).items():
            pieces.setdefault(name, []).append(piece)
    found: dict[str, tuple[Any, ...]] = {}
    for name, parts in pieces.items():
        ends = [[start + size for start, size in zip(offset, shape, strict=True)] for _, shape, offset in parts]
        whole = tuple(max(sizes) for sizes in zip(*ends, strict=True))
        there = {offset: math.prod(shape) for _, shape, offset in parts if math.prod(shape)}
        if sum(there.values()) != math.prod(whole) or len({dtype for dtype, _, _ in parts}) > 1:
            raise ValueError(
                f"{folder / FOLDER}: pieces of {name} are missing; copy the files of all ranks there, or take another "
                "checkpoint"
            )
        found[name] = (parts[0][0], *whole)
    return found


def _pieces(path: Path) -> dict[str, tuple[str, tuple[int, ...], tuple[int, ...]]]:
    """Name -> (dtype, shape, where it begins in the whole) of what is in a file."""
    from safetensors import SafetensorError

    with open(path, "rb"):  # safetensors says "no such file" of one that may not be read
        pass
    try:
        with opened(path) as file:
            places = json.loads((file.metadata() or {}).get(_PLACES, "{}"))
            found = {}
            for name in file.keys():  # noqa: SIM118 (not a dict)
                piece = file.get_slice(name)
                shape = tuple(piece.get_shape())
                offset = places[name]["saved_offsets"] if places else [0] * len(shape)
                found[name] = (str(piece.get_dtype()), shape, tuple(offset))
            return found
    except (SafetensorError, ValueError, LookupError, TypeError, AttributeError) as error:
        raise ValueError(f"{path} is truncated or corrupted ({error}); restore it from a copy, or save again") from None


def read_into(folder: Path, tensors: Mapping[str, Tensor]) -> None:
    """Fill `tensors`, plain ones or DTensors of which each rank has its part, from a checkpoint, sharded or not.

    A rank reads what it needs, alone: no collective is called, so each may fail or do without the others.

    Raises:
        ValueError: a file is truncated or corrupted, or lacks something. OSError: one cannot be read.
    """
    from torch.distributed import checkpoint as dcp
    from torch.distributed.checkpoint.api import CheckpointException
    from torch.distributed.checkpoint.filesystem import FileSystem
    from torch.distributed.checkpoint.hf_storage import HuggingFaceStorageReader

    class Listed(FileSystem):
        """Only the checkpoint's own files: the reader takes every file of safetensors in its folder."""

        def ls(self, path: Any) -> list[str]:
            return [str(found) for found in tensor_files(folder)]

    reader = HuggingFaceStorageReader(str(folder))
    reader.fs = Listed()
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", "torch.distributed is disabled", UserWarning)
            dcp.load(dict(tensors), storage_reader=reader, no_dist=True)
    except CheckpointException as error:
        (cause, _), *_ = error.failures.values()
        if isinstance(cause, OSError):
            raise cause from None
        raise ValueError(f"{folder}: cannot be read ({' '.join(str(cause).split())}); take another copy") from None


def read_whole(folder: Path, wanted: Callable[[str], bool] = is_weight) -> dict[str, Tensor]:
    """The tensors of a checkpoint whose names are `wanted`, each put together of its pieces, on the CPU.

    Raises:
        ValueError: a file was altered, is truncated or corrupted, or pieces are missing. OSError: it cannot be read.
    """
    checksums.check(folder, [path.relative_to(folder).as_posix() for path in tensor_files(folder)])
    kinds = {name: kind for name, kind in stored(folder).items() if wanted(name)}
    with torch.device("cpu"):
        tensors = {name: torch.empty(shape, dtype=dtype_of(dtype)) for name, (dtype, *shape) in kinds.items()}
        read_into(folder, tensors)
    return tensors
