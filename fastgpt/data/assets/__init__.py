"""What the package ships as data: byte-pair ranks and the embedded corpus, with their licences (README.md here)."""

from __future__ import annotations

import hashlib
import lzma
from importlib import resources


def read_asset(name: str, sha256: str) -> bytes:
    """The unpacked bytes of the .xz file `name` of this folder.

    Raises:
        ValueError: the file is damaged: its hash is not `sha256`.
    """
    packed = resources.files(__name__).joinpath(name).read_bytes()
    try:
        unpacked = lzma.decompress(packed)
    except lzma.LZMAError:
        unpacked = b""
    found = hashlib.sha256(unpacked).hexdigest()
    if found != sha256:
        raise ValueError(
            f"fastgpt.data.assets/{name} is damaged: sha256 {found[:12]}..., expected {sha256[:12]}...; "
            "reinstall fastgpt-triton"
        )
    return unpacked
