"""Files of safetensors that record the hash of what is in them: written tensor by tensor, verified when read.

    8 bytes    length of the header, little-endian
    header     JSON: {"__metadata__": {"format": "pt", "fastgpt_sha256": ...},
                      name: {"dtype": "F32", "shape": [2, 3], "data_offsets": [begin, end]}, ...}
    data       the tensors in C order, one after the other, those of the widest numbers first: so all are aligned

(https://github.com/huggingface/safetensors, "Format".) The library reads them. Its own writer holds all tensors on the
CPU at once, and orders the metadata by chance: equal runs would leave files that differ.
"""

from __future__ import annotations

import contextlib
import difflib
import hashlib
import itertools
import json
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ...base import checksums

HASH = "fastgpt_sha256"  # key of our files' metadata; tools that write the file anew leave it out
_ALIGNMENT = 8  # of the data in the file, which the header is padded for
_NAMES = {
    torch.bool: "BOOL", torch.uint8: "U8", torch.int8: "I8", torch.uint16: "U16", torch.int16: "I16",
    torch.uint32: "U32", torch.int32: "I32", torch.uint64: "U64", torch.int64: "I64", torch.float16: "F16",
    torch.bfloat16: "BF16", torch.float32: "F32", torch.float64: "F64", torch.complex64: "C64",
    torch.float8_e4m3fn: "F8_E4M3", torch.float8_e5m2: "F8_E5M2",
}  # fmt: skip


def write_safetensors(path: Path, tensors: Mapping[str, Tensor]) -> None:
    """Write `tensors` with their sha256. One at a time is copied, and only if it is on a GPU or not contiguous.

    Raises:
        OSError: the disk is full or cannot be written. RuntimeError: two tensors share memory, which no file keeps.
        ValueError: a sparse tensor, or of a dtype that the format has not.
    """
    begins, header = _layout(tensors)
    _check_separate(tensors)
    digest = hashlib.sha256()
    with open(path, "wb") as file:
        file.write(_header_bytes(header, "0" * 64))
        start = file.tell()
        for name in sorted(tensors):
            values = _bytes_of(tensors[name])
            _update(digest, name, tensors[name], values)
            file.seek(start + begins[name])
            file.write(values)
        file.seek(0)
        file.write(_header_bytes(header, digest.hexdigest()))  # which is known only now, and as long


def read_safetensors(path: Path) -> dict[str, Tensor]:
    """The tensors of a safetensors file, on the CPU: of a checkpoint's file or of one that records its own hash, those
    that were written.

    Raises:
        ValueError: truncated, corrupted or altered. OSError: no such file, or no permission.
    """
    from safetensors import SafetensorError

    with open(path, "rb"):  # safetensors says "no such file" of one that may not be read
        pass
    is_checked = path.name in checksums.check(path.parent, [path.name])
    try:
        with opened(path) as file:
            metadata, tensors = file.metadata() or {}, all_tensors(file)
    except SafetensorError as error:
        raise ValueError(f"{path} is truncated or corrupted ({error}); restore it from a copy, or save again") from None
    # A key that is almost ours is ours with some bytes overwritten.
    ours = bool(difflib.get_close_matches(HASH, metadata, cutoff=0.7))
    if ours and not is_checked and (metadata.get(HASH) != tensors_sha256(tensors) or metadata.get("format") != "pt"):
        raise ValueError(
            f"{path} is corrupted or was altered: the sha256 of its tensors is not the one that it records; restore it "
            f"from a copy, or, if the change is wanted, write it anew without {HASH!r} in its metadata"
        )
    return tensors


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Any]:
    """The library's reader of a file, whose tensors come to the CPU.

    Raises:
        SafetensorError: no such file, truncated or corrupted; also while it is read. OSError: it cannot be read.
    """
    from safetensors import safe_open  # a few milliseconds that `import fastgpt` need not take

    with torch.device("cpu"), safe_open(path, framework="pt", device="cpu") as file:
        yield file


def all_tensors(file: Any) -> dict[str, Tensor]:
    """Name -> tensor, of a file that was `opened`."""
    return {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)


def tensors_sha256(tensors: Mapping[str, Tensor]) -> str:
    """Hex sha256 of all names, dtypes, shapes and values, whatever the order."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        _update(digest, name, tensors[name], _bytes_of(tensors[name]))
    return digest.hexdigest()


def dtype_name(dtype: torch.dtype) -> str:
    """What the format calls a dtype.

    Raises:
        ValueError: the format has no such numbers.
    """
    if dtype not in _NAMES:
        raise ValueError(f"safetensors has no {dtype}; convert the tensor, e.g. to torch.float32")
    return _NAMES[dtype]


def dtype_of(name: str) -> torch.dtype:
    """The dtype that the format calls `name`.

    Raises:
        ValueError: it calls none so, or torch has none for it.
    """
    for dtype, own in _NAMES.items():
        if own == name:
            return dtype
    raise ValueError(f"tensors of dtype {name}, which torch has not; convert them")


def _layout(tensors: Mapping[str, Tensor]) -> tuple[dict[str, int], dict[str, Any]]:
    """Where each tensor begins in the data, and the header's entries in that order."""
    begins, header, end = {}, {}, 0
    for name in sorted(tensors, key=lambda name: (-tensors[name].element_size(), name)):
        tensor = tensors[name]
        if tensor.layout != torch.strided:
            raise ValueError(f"safetensors has no tensors of layout {tensor.layout}; give {name}.to_dense()")
        begins[name], end = end, end + tensor.numel() * tensor.element_size()
        entry = {"dtype": dtype_name(tensor.dtype), "shape": list(tensor.shape), "data_offsets": [begins[name], end]}
        header[name] = entry
    return begins, header


def _header_bytes(entries: dict[str, Any], sha256: str) -> bytes:
    header = {"__metadata__": {"format": "pt", HASH: sha256}} | entries
    text = json.dumps(header, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % _ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def _bytes_of(tensor: Tensor) -> Any:
    """The values of a dense tensor in C order, as a numpy array of uint8 on the CPU."""
    plain = tensor.detach().cpu().resolve_conj().resolve_neg().contiguous()
    # Not `reshape(-1)`: a tensor of one number is contiguous whatever its stride, which forbids another view of it.
    return plain.as_strided((plain.numel(),), (1,)).view(torch.uint8).numpy()


def _update(digest: Any, name: str, tensor: Tensor, values: Any) -> None:
    digest.update(json.dumps([name, str(tensor.dtype), list(tensor.shape)]).encode())
    digest.update(values)


def _check_separate(tensors: Mapping[str, Tensor]) -> None:
    """Raise RuntimeError where two tensors lie in the same memory: read back, they would no longer be one."""
    whole = [(name, t) for name, t in tensors.items() if t.is_contiguous() and t.numel()]
    places = sorted((str(t.device), t.data_ptr(), t.data_ptr() + t.numel() * t.element_size(), n) for n, t in whole)
    for (device, _, end, name), (other_device, begin, _, other) in itertools.pairwise(places):
        if device == other_device and begin < end:
            raise RuntimeError(
                f"{name} and {other} share memory, and a file of safetensors would hold them apart; leave one of them "
                "out, or clone it"
            )
