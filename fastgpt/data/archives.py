"""Reading .gz, .xz and .zst to the end: what cannot be unpacked is an error, wherever it stands, never shorter data.

Python's own readers take a damaged second stream of an .xz for the end, and zstandard's a last frame that is cut short.
"""

from __future__ import annotations

import io
import lzma
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

FEED = 1 << 12  # bytes unpacked at a time: zeros become 32,000 times as many, and what comes out is held whole


class ArchiveError(ValueError):
    """What is wrong with an archive, to go on after its name."""


class _Format(NamedTuple):
    stream: Callable[[], Any]  # makes an object with decompress(), eof and unused_data, for one stream of the archive
    error: type[Exception]
    padding: int  # streams may be followed by zeros, so many or a multiple; 0: they may not


def open_unpacked(path: Path, raw: BinaryIO) -> BinaryIO:
    """What is packed in `raw`, the file at `path`, or `raw` itself if its name has no suffix of an archive.

    Reading it raises:
        ArchiveError: damaged, cut short, or followed by anything else. ImportError: .zst without zstandard.
    """
    suffix = path.suffix.lower()
    return io.BufferedReader(_Unpacked(raw, FORMATS[suffix]()), 1 << 18) if suffix in FORMATS else raw


def _zst() -> _Format:
    import zstandard

    return _Format(lambda: zstandard.ZstdDecompressor().decompressobj(), zstandard.ZstdError, 0)


FORMATS: dict[str, Callable[[], _Format]] = {
    ".gz": lambda: _Format(lambda: zlib.decompressobj(wbits=31), zlib.error, 1),  # 31: with gzip's header and checksum
    ".xz": lambda: _Format(lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ), lzma.LZMAError, 4),
    ".zst": _zst,
}


class _Unpacked(io.RawIOBase):
    """One stream after the other. (A file that ends exactly between two of them is whole, as far as it can tell.)"""

    def __init__(self, raw: BinaryIO, format: _Format) -> None:
        self._raw, self._format = raw, format
        self._stream: Any = None
        self._first = True
        self._zeros = 0  # since the last stream
        self._packed = b""
        self._ready = memoryview(b"")

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        while not self._ready:
            packed = self._packed or self._raw.read(FEED)
            self._packed = b""
            if not packed:
                self._end()
                return 0
            self._unpack(packed)
        n = min(len(buffer), len(self._ready))
        buffer[:n] = self._ready[:n]
        self._ready = self._ready[n:]
        return n

    def _unpack(self, packed: bytes) -> None:
        if self._stream is None:
            if self._format.padding and not self._first:
                rest = packed.lstrip(b"\0")
                self._zeros += len(packed) - len(rest)
                if not rest:
                    return
                packed = rest
                self._check_padding()
            self._stream, self._first = self._format.stream(), False
        try:
            self._ready = memoryview(self._stream.decompress(packed))
        except self._format.error as error:
            if "too much memory" in str(error):  # zstandard's words; it takes up to 128 MB
                raise ArchiveError(
                    f"it needs more memory to unpack than is taken ({error}); unpack it first"
                ) from error
            raise ArchiveError(f"the archive is damaged ({error}); copy it again") from error
        if self._stream.eof:
            self._packed, self._stream = self._stream.unused_data, None

    def _end(self) -> None:
        if self._stream is not None:
            raise ArchiveError("the archive is damaged or cut short (its last stream has no end); copy it again")
        self._check_padding()

    def _check_padding(self) -> None:
        if self._zeros % (self._format.padding or 1):
            what = f"{self._zeros} zeros after a stream, no multiple of {self._format.padding}"
            raise ArchiveError(f"the archive is damaged ({what}); copy it again")
        self._zeros = 0
