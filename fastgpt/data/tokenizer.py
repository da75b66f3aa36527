"""Byte-pair tokenizers, from files on disk only: GPT-2's and a small one are part of the package.

    tokenizer = Tokenizer.named("gpt2")
    ids = tokenizer.encode("hello world")            # [31373, 995]

A ranks file has one line per token, `base64(bytes) rank`, as tiktoken's own files have. Nothing is ever downloaded.
"""

from __future__ import annotations

import base64
import binascii
import codecs
import difflib
import functools
import hashlib
import json
import operator
import os
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from ..base import checksums, files
from ..base.settings import SettingError, SettingTypeError, check_integer
from .archives import ArchiveError, open_unpacked
from .assets import read_asset
from .pretokens import END_OF_TEXT, GPT2_PATTERN, PIECE_CHARS, pieces

_ABOUT, _RANKS = "fastgpt_tokenizer.json", "tokenizer.tiktoken"  # what `save` writes

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

    def __init__(self, name: str, ranks_file: bytes | None = None) -> None:
        """`ranks_file`: the bytes of an (unpacked) ranks file.

        Raises:
            ValueError: malformed lines, ranks that are not 0 ... n - 1, or a single byte without a rank.
            SettingTypeError: no bytes.
        """
        if not isinstance(ranks_file, bytes):
            bundled = f"Tokenizer.named({name!r}) makes" if name in BUNDLED else 'Tokenizer.named("gpt2") makes'
            need = (
                f"must be the bytes of a ranks file; {bundled} a bundled tokenizer, Tokenizer.from_file(path) another"
            )
            raise SettingTypeError("Tokenizer", "ranks_file", ranks_file, need)
        self.name = name
        self.ranks_file = ranks_file
        self.sha256 = hashlib.sha256(ranks_file).hexdigest()
        self._ranks = _parse_ranks(name, ranks_file)
        self.end_of_text = len(self._ranks)
        self.vocab_size = len(self._ranks) + 1

    @functools.cached_property
    def _encoding(self) -> Any:
        """tiktoken's: tokens that are made already need none of it, as on a machine that has no tiktoken."""
        import tiktoken

        return tiktoken.Encoding(
            name=self.name,
            pat_str=GPT2_PATTERN,
            mergeable_ranks=self._ranks,
            special_tokens={END_OF_TEXT: self.end_of_text},
            explicit_n_vocab=self.vocab_size,
        )

    @staticmethod
    def named(name: str) -> Tokenizer:
        """A bundled tokenizer: "gpt2" (50,257 ids) or "shakespeare" (4,096 ids).

        Raises:
            ValueError: unknown name, or a bundled file whose hash is wrong. SettingTypeError: no string.
        """
        if not isinstance(name, str):
            raise SettingTypeError("Tokenizer.named", "name", name, f"must be one of {', '.join(BUNDLED)}")
        return _bundled(name)

    @staticmethod
    def from_file(path: str | os.PathLike[str]) -> Tokenizer:
        """A ranks file on disk (`.tiktoken`, or packed as `.xz`). `<|endoftext|>` becomes the id after the last rank.

        Raises:
            FileNotFoundError: no such file.
            ValueError: not a ranks file. SettingTypeError: no path.
        """
        path = _checked_path("Tokenizer.from_file", "path", path)
        if not os.path.isfile(path):
            raise FileNotFoundError(f"Tokenizer.from_file: path={str(path)!r} is not a file; give a .tiktoken file")
        try:
            with open(path, "rb") as raw:
                ranks_file = (open_unpacked(path, raw) if path.suffix == ".xz" else raw).read()
        except ArchiveError as error:
            raise ValueError(f"Tokenizer.from_file: {str(path)!r} is not a whole .xz file: {error}") from error
        return Tokenizer(path.name.removesuffix(".xz").removesuffix(".tiktoken"), ranks_file)

    @staticmethod
    def load(name_or_path: str | os.PathLike[str]) -> Tokenizer:
        """A bundled name, a ranks file, or a folder that `save` wrote into.

        Raises:
            SettingError: neither a bundled name nor an existing path, or a file that is no ranks file.
            FileNotFoundError, ValueError: see `from_pretrained`. SettingTypeError: no string or path.
        """
        if str(name_or_path) in BUNDLED:
            return Tokenizer.named(str(name_or_path))
        path = _checked_path("Tokenizer.load", "tokenizer", name_or_path)
        if path.name == _ABOUT and os.path.isfile(path):
            path = path.parent
        if os.path.isdir(path):
            return Tokenizer.from_pretrained(path)
        if os.path.isfile(path):
            try:
                return Tokenizer.from_file(path)
            except ValueError as error:
                raise SettingError("Tokenizer.load", "tokenizer", str(path), f"is no ranks file: {error}") from error
        near = difflib.get_close_matches(str(name_or_path).lower(), BUNDLED, n=1)
        need = f"is neither a bundled tokenizer ({', '.join(BUNDLED)}) nor an existing .tiktoken file; "
        need += f"did you mean {near[0]!r}?" if near else "give one of them"
        raise SettingError("Tokenizer.load", "tokenizer", str(name_or_path), need)

    def save(self, folder: str | os.PathLike[str]) -> None:
        """Write `fastgpt_tokenizer.json`, and the ranks (`tokenizer.tiktoken`) unless they are bundled ones.

        Raises:
            OSError: the disk is full or cannot be written; the previous files are intact.
        """
        bundled = self.sha256 in {sha256 for _, sha256 in BUNDLED.values()}
        about = {"name": self.name, "vocab_size": self.vocab_size, "sha256": self.sha256, "bundled": bundled}

        def write(work: Path) -> None:
            (work / _ABOUT).write_text(json.dumps(about, indent=2) + "\n", encoding="utf-8")
            if not bundled:
                (work / _RANKS).write_bytes(self.ranks_file)

        files.replace_files(Path(folder), write)

    @staticmethod
    def from_pretrained(folder: str | os.PathLike[str]) -> Tokenizer:
        """What `save` wrote.

        Raises:
            FileNotFoundError: the folder holds no tokenizer, or not all of it.
            ValueError: its hash is not the one that was recorded, or its files are damaged.
        """
        folder = _checked_path("Tokenizer.from_pretrained", "folder", folder)
        about_path = folder / _ABOUT
        checksums.check(folder, [_ABOUT, _RANKS])
        if what := files.instead_of_file(about_path):
            raise ValueError(f"{about_path}: {what} in the place of a file; restore it from a copy, or save again")
        if not os.path.isfile(about_path):
            theirs = [name for name in ("tokenizer.json", "vocab.json") if os.path.isfile(folder / name)]
            what = f"holds {theirs[0]}, which is transformers' and not read here" if theirs else "holds no tokenizer"
            raise FileNotFoundError(
                f"Tokenizer.from_pretrained: no tokenizer in {str(folder)!r} ({what}); name one, e.g. 'gpt2'"
            )
        try:
            about = files.read_json(about_path)
            name, sha256, bundled = about["name"], about["sha256"], about["bundled"]
            if not isinstance(name, str) or not isinstance(sha256, str) or (bundled and name not in BUNDLED):
                raise ValueError(f"no tokenizer {name!r} of sha256 {sha256!r}")
        except (ValueError, LookupError, TypeError) as error:
            raise ValueError(f"{about_path} is corrupted ({error!r}); restore it from a copy, or save again") from None
        if not bundled and not (folder / _RANKS).is_file():
            raise FileNotFoundError(f"{folder / _RANKS}: missing beside {_ABOUT}; restore it from the original folder")
        if bundled:
            loaded = Tokenizer.named(name)
        else:
            try:
                loaded = Tokenizer(name, (folder / _RANKS).read_bytes())
            except ValueError as error:
                raise ValueError(f"{folder / _RANKS} is corrupted ({error}); restore it from a copy") from error
        if loaded.sha256 != sha256:
            ranks = f"{name!r} has" if bundled else f"{_RANKS} has"
            raise ValueError(
                f"{about_path} records sha256 {sha256}, {ranks} {loaded.sha256}: damaged, or of another tokenizer; "
                f"restore {'it' if bundled else 'both'} from the original folder"
            )
        return loaded

    def encode(self, text: str, *, allow_special: bool = False) -> list[int]:
        """Token ids of `text`. `<|endoftext|>` in it is ordinary text, unless `allow_special` makes it the id.

        Halves of surrogate pairs, which no text has, become U+FFFD. A word, number, or run of other characters or of
        white space of more than 2**20 characters is encoded in parts.

        Raises:
            SettingTypeError: no string.
        """
        return self.encode_array(text, allow_special=allow_special).tolist()

    def encode_array(self, text: str, *, allow_special: bool = False) -> np.ndarray:
        """`encode`, as (n,) uint32: a third of the memory, and other threads run meanwhile.

        Raises:
            SettingTypeError: no string.
        """
        _check_text("Tokenizer.encode", "text", text)
        try:
            return self._encoded(text, allow_special)
        except UnicodeEncodeError:
            whole = text.encode("utf-16", "surrogatepass").decode("utf-16", "replace")
            return self._encoded(whole, allow_special)

    def encode_batch(self, texts: Sequence[str], *, threads: int | None = None) -> list[list[int]]:
        """`encode` (everything ordinary text) of many texts on `threads` threads (default: one per CPU, at most 8).

        Raises:
            SettingTypeError: no strings. SettingError: threads below 1.
        """
        owner = "Tokenizer.encode_batch"
        if isinstance(texts, (str, bytes)) or not isinstance(texts, Iterable):
            raise SettingTypeError(owner, "texts", texts, "must be several strings; for one: encode")
        texts = list(texts)
        for text in texts:
            _check_text(owner, "texts", text)
        threads = default_threads() if threads is None else check_integer(owner, "threads", threads, least=1)
        with ThreadPoolExecutor(threads) as pool:
            return list(pool.map(self.encode, texts))

    def _encoded(self, text: str, special: bool) -> np.ndarray:
        if len(text) > PIECE_CHARS:
            chunks = (text[at : at + PIECE_CHARS] for at in range(0, len(text), PIECE_CHARS))
            return np.concatenate([self._encoded_piece(piece, special) for piece in pieces(chunks, special=special)])
        return self._encoded_piece(text, special)

    def _encoded_piece(self, text: str, special: bool) -> np.ndarray:
        allowed = {END_OF_TEXT} if special else set()
        try:
            return self._encoding.encode_to_numpy(text, allowed_special=allowed, disallowed_special=())
        except BaseException as error:
            if type(error).__name__ != "PanicException":  # of the Rust code, and no Exception
                raise
            short = f"{text[:40]!r} ({len(text):,} characters)"
            raise ValueError(f"Tokenizer.encode: text={short} could not be encoded ({error}); split it") from error

    def decode(self, ids: Iterable[int]) -> str:
        """Text of `ids` (a list, an array, a tensor); bytes that are not UTF-8 become U+FFFD.

        Raises:
            ValueError: an id out of range. SettingTypeError: not one sequence of integers.
        """
        return self.decode_bytes(ids).decode("utf-8", errors="replace")

    def decode_bytes(self, ids: Iterable[int]) -> bytes:
        """The exact bytes of `ids`.

        Raises:
            ValueError: an id out of range. SettingTypeError: not one sequence of integers.
        """
        ids = _integers("Tokenizer.decode", ids)
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


def default_threads() -> int:
    """One per CPU that this process may use, at most 8."""
    return min(8, len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)


def _check_text(owner: str, name: str, text: Any) -> None:
    """Raise SettingTypeError unless `text` is a string."""
    if isinstance(text, str):
        return
    need = "must be a string; of bytes make one first: .decode('utf-8')"
    if isinstance(text, (list, tuple)):
        need = "must be one string; for several: encode_batch"
    raise SettingTypeError(owner, name, text, need)


def _integers(owner: str, ids: Any) -> list[int]:
    """`ids` as a list; strings and numbers that are no integers would be taken for other ids."""
    need = "must be one sequence of integer ids; of a batch decode row after row"
    if isinstance(ids, (str, bytes)):
        raise SettingTypeError(owner, "ids", ids, need)
    try:
        return [operator.index(i) for i in (ids.tolist() if hasattr(ids, "tolist") else ids)]
    except TypeError:
        raise SettingTypeError(owner, "ids", ids, need) from None


def _checked_path(owner: str, name: str, path: Any) -> Path:
    if not isinstance(path, (str, os.PathLike)):
        raise SettingTypeError(owner, name, path, "must be a name or a path")
    return Path(path)


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
