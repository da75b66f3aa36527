"""Byte-pair tokenizers, from files on disk only: GPT-2's and a small one are part of the package.

    tokenizer = Tokenizer.named("gpt2")
    ids = tokenizer.encode("hello world")            # [31373, 995]

A ranks file has one line per token, `base64(bytes) rank`, as tiktoken's own files have. Nothing is ever downloaded.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import functools
import hashlib
import json
import lzma
import os
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

import numpy as np

from .assets import read_asset

END_OF_TEXT = "<|endoftext|>"

# GPT-2's pre-tokenization (Radford et al. 2019): contractions, words, numbers, punctuation, runs of white space.
GPT2_PATTERN = r"""'s|'t|'re|'ve|'m|'ll|'d| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"""

# name -> (asset, sha256 of the unpacked ranks)
BUNDLED = {
    "gpt2": ("gpt2.tiktoken.xz", "306cd27f03c1a714eca7108e03d66b7dc042abe8c258b44c199a7ed9838dd930"),
    "shakespeare": (
        "shakespeare-4096.tiktoken.xz",
        "8a3581fe1cf43c75c85b7ec0cae91fd3cbb6e5df24467180adb572544a85fd24",
    ),
}


class Tokenizer:
    """Text to token ids and back. Ids run from 0 to vocab_size - 1; the last is `<|endoftext|>`.

    Build one with `Tokenizer.named("gpt2")`, `Tokenizer.from_file(path)` or `Tokenizer.from_pretrained(folder)`.
    It pickles, compares equal by the hash of its ranks, and may be used by several threads at once.
    """

    def __init__(self, name: str, ranks_file: bytes) -> None:
        """`ranks_file`: the bytes of an (unpacked) ranks file.

        Raises:
            ValueError: malformed lines, ranks that are not 0 ... n - 1, or a single byte without a rank.
        """
        import tiktoken

        self.name = name
        self.ranks_file = ranks_file
        self.sha256 = hashlib.sha256(ranks_file).hexdigest()
        self._ranks = _parse_ranks(name, ranks_file)
        self.end_of_text = len(self._ranks)
        self.vocab_size = len(self._ranks) + 1
        self._encoding = tiktoken.Encoding(
            name=name,
            pat_str=GPT2_PATTERN,
            mergeable_ranks=self._ranks,
            special_tokens={END_OF_TEXT: self.end_of_text},
            explicit_n_vocab=self.vocab_size,
        )

    @staticmethod
    def named(name: str) -> Tokenizer:
        """A bundled tokenizer: "gpt2" (50,257 ids) or "shakespeare" (4,096 ids).

        Raises:
            ValueError: unknown name, or a bundled file whose hash is wrong.
        """
        return _bundled(name)

    @staticmethod
    def from_file(path: str | os.PathLike[str]) -> Tokenizer:
        """A ranks file on disk (`.tiktoken`, or packed as `.xz`). `<|endoftext|>` becomes the id after the last rank.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a ranks file.
        """
        path = Path(path)
        if not path.is_file():
            raise FileNotFoundError(f"Tokenizer.from_file: path={str(path)!r} is not a file; give a .tiktoken file")
        packed = path.read_bytes()
        try:
            ranks_file = lzma.decompress(packed) if path.suffix == ".xz" else packed
        except (lzma.LZMAError, EOFError) as error:
            message = f"Tokenizer.from_file: {str(path)!r} is not a whole .xz file ({error}); copy it again"
            raise ValueError(message) from error
        return Tokenizer(path.name.removesuffix(".xz").removesuffix(".tiktoken"), ranks_file)

    @staticmethod
    def load(name_or_path: str | os.PathLike[str]) -> Tokenizer:
        """A bundled name, a ranks file, or a folder that `save` wrote into.

        Raises:
            ValueError: neither a bundled name nor an existing path.
        """
        if str(name_or_path) in BUNDLED:
            return Tokenizer.named(str(name_or_path))
        path = Path(name_or_path)
        if path.is_dir():
            return Tokenizer.from_pretrained(path)
        if path.is_file():
            return Tokenizer.from_file(path)
        raise ValueError(
            f"Tokenizer.load: {str(name_or_path)!r} is neither a bundled tokenizer ({', '.join(BUNDLED)}) nor an "
            "existing .tiktoken file; give one of them"
        )

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `fastgpt_tokenizer.json`, and the ranks (`tokenizer.tiktoken`) unless they are bundled ones."""
        folder = Path(folder)
        bundled = self.sha256 in {sha256 for _, sha256 in BUNDLED.values()}
        about = {"name": self.name, "vocab_size": self.vocab_size, "sha256": self.sha256, "bundled": bundled}
        (folder / "fastgpt_tokenizer.json").write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
        if not bundled:
            (folder / "tokenizer.tiktoken").write_bytes(self.ranks_file)

    @staticmethod
    def from_pretrained(folder: str | os.PathLike[str]) -> Tokenizer:
        """What `save` wrote.

        Raises:
            FileNotFoundError: the folder holds no tokenizer.
            ValueError: its hash is not the one that was recorded.
        """
        about_path = Path(folder) / "fastgpt_tokenizer.json"
        if not about_path.is_file():
            raise FileNotFoundError(
                f"Tokenizer.from_pretrained: no tokenizer in {str(folder)!r}; name one, e.g. tokenizer='gpt2'"
            )
        about = json.loads(about_path.read_text(encoding="utf-8"))
        if about["bundled"]:
            loaded = Tokenizer.named(about["name"])
        else:
            loaded = Tokenizer(about["name"], (Path(folder) / "tokenizer.tiktoken").read_bytes())
        if loaded.sha256 != about["sha256"]:
            raise ValueError(
                f"Tokenizer.from_pretrained: {str(folder)!r} records sha256 {about['sha256'][:12]}..., its ranks have "
                f"{loaded.sha256[:12]}...; restore tokenizer.tiktoken from the original folder"
            )
        return loaded

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids of `text`. `<|endoftext|>` in it is ordinary text, unless `allow_special` makes it the id."""
        if allow_special:
            return self._encoding.encode(text, allowed_special="all")
        return self._encoding.encode_ordinary(text)

    def encode_batch(self, texts: Sequence[str], *, threads: int | None = None) -> list[list[int]]:
        """`encode` (everything ordinary text) of many texts on `threads` threads (default: one per CPU, at most 8)."""
        threads = threads or min(8, os.cpu_count() or 1)
        return self._encoding.encode_ordinary_batch(list(texts), num_threads=threads)

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids`; bytes that are not UTF-8 become U+FFFD. Raises ValueError for an id out of range."""
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of `ids`. Raises ValueError for an id out of range."""
        ids = [int(i) for i in ids]
        for i in ids:
            if not 0 <= i < self.vocab_size:
                raise ValueError(
                    f"Tokenizer.decode: id {i} is outside 0 ... {self.vocab_size - 1} of tokenizer {self.name!r}; "
                    "decode with the tokenizer that the model was trained with"
                )
        return self._encoding.decode_bytes(ids)

    def decode_stream(self, ids: Iterable[int]) -> Iterator[str]:
        """Text of `ids` as they come; a character whose bytes span tokens appears when it is whole."""
        decoder = codecs.getincrementaldecoder("utf-8")(errors="replace")
        for i in ids:
            yield decoder.decode(self.decode_bytes([i]))
        yield decoder.decode(b"", final=True)

    def token_bytes(self) -> np.ndarray:
        """(vocab_size,) int64: how many bytes of text each id stands for; 0 for `<|endoftext|>`."""
        lengths = np.zeros(self.vocab_size, dtype=np.int64)
        for token, rank in self._ranks.items():
            lengths[rank] = len(token)
        return lengths

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Tokenizer) and self.sha256 == other.sha256

    def __hash__(self) -> int:
        return hash(self.sha256)

    def __repr__(self) -> str:
        return f"Tokenizer({self.name!r}, vocab_size={self.vocab_size}, sha256={self.sha256[:12]}...)"

    def __reduce__(self) -> tuple[type[Tokenizer], tuple[str, bytes]]:
        return Tokenizer, (self.name, self.ranks_file)


@functools.cache
def _bundled(name: str) -> Tokenizer:
    if name not in BUNDLED:
        raise ValueError(f"Tokenizer.named: name={name!r} is not bundled; choose from {', '.join(BUNDLED)}")
    asset, sha256 = BUNDLED[name]
    return Tokenizer(name, read_asset(asset, sha256))


def _parse_ranks(name: str, ranks_file: bytes) -> dict[bytes, int]:
    ranks: dict[bytes, int] = {}
    for number, line in enumerate(ranks_file.splitlines(), start=1):
        if not line.strip():
            continue
        try:
            token, rank = line.split()
            ranks[base64.b64decode(token, validate=True)] = int(rank)
        except (ValueError, binascii.Error) as error:
            raise ValueError(
                f"Tokenizer {name!r}: line {number} is {line[:40]!r}, expected 'base64(bytes) rank'; "
                "give a .tiktoken ranks file"
            ) from error
    if sorted(ranks.values()) != list(range(len(ranks))):
        raise ValueError(
            f"Tokenizer {name!r}: {len(ranks)} tokens whose ranks are not 0 ... {len(ranks) - 1}, each once; "
            "the ranks file is incomplete, copy it again"
        )
    missing = [byte for byte in range(256) if bytes([byte]) not in ranks]
    if missing:
        raise ValueError(
            f"Tokenizer {name!r}: {len(missing)} single bytes have no rank (first: {missing[0]:#04x}), so some texts "
            "could not be encoded; give a byte-level .tiktoken file"
        )
    return ranks
