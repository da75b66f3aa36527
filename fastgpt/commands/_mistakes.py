"""What one line says of an exception: the option as typed, its value, the way out."""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator

from ..base.settings import SettingError, SettingTypeError, shown
from ._options import Given, Option

# A user's mistake, or something about this machine. All else is a mistake of ours.
KINDS = (
    ValueError, IndexError, OSError, RuntimeError, ImportError, MemoryError, OverflowError, FloatingPointError,
    SettingTypeError,
)  # fmt: skip

_BY_ERRNO = {
    errno.ENOENT: "no such file or folder; check its spelling",
    errno.EACCES: "permission denied; choose another path, or change its mode",
    errno.EPERM: "not permitted; choose another path",
    errno.EISDIR: "is a folder, where a file is meant; choose another path",
    errno.ENOTDIR: "a file lies where a folder is meant; choose another path",
    errno.EEXIST: "exists already, and is no folder; choose another path",
    errno.ENAMETOOLONG: "the name is too long; choose a shorter one",
    errno.ENOSPC: "no space is left on the disk; free some, or write elsewhere",
    errno.EROFS: "the disk can only be read; write elsewhere",
    errno.ELOOP: "symbolic links go in a circle; choose another path",
    errno.EMFILE: "too many open files; raise `ulimit -n`",
}

# What an error of the library begins with in Python: the class or function that raises it.
_OWNER = re.compile(r"^([A-Z]\w*(\.\w+)?|[a-z]\w*\.\w+\(\)|generate|evaluate|prepare|from_pretrained|[a-z]+_[a-z_]+): ")

# "overwrite=True (--overwrite)": of both ways to say it, the user's.
_IN_PYTHON = re.compile(r"\b(\w+=[^\s()]+|\w+_\w+) \((--[\w-]+)\)")

# What the system's own words begin with, and the same said for Python.
_ASIDE = re.compile(r"\[Errno -?\d+\] | \(in Python: [^()]*(\([^()]*\)[^()]*)*\)")

_MEMORY_OPTIONS = ("batch_size", "seq_len", "max_len", "n_layers", "d_model", "max_new_tokens")


def describe(error: BaseException, given: Given | None) -> str:
    """The message for a user who typed `given` (None: the command could not be loaded); one line."""
    if isinstance(error, (SettingError, SettingTypeError)):
        text = _IN_PYTHON.sub(r"\2", _setting(error, given))
    elif isinstance(error, MemoryError) or _is_out_of_memory(error):
        text = _memory(given)
    elif isinstance(error, ModuleNotFoundError) and str(error) == f"No module named {error.name!r}":
        package = str(error.name).partition(".")[0]
        text = f"{package} is not installed, or not whole; `pip install {package}`"
    elif isinstance(error, OSError) and error.errno is not None:
        text = _path(error, given)
    else:
        text = _named(_without_owner(str(error), given) or type(error).__name__, given)
    return _one_line(_ASIDE.sub("", _IN_PYTHON.sub(r"\2", text)), given)


def _one_line(text: str, given: Given | None) -> str:
    """Without line breaks, and with what was typed as it was; what a terminal would obey is written out."""
    for _, typed in _texts(given):
        if not typed.isprintable():
            text = text.replace(typed, _printable(typed))
    return _printable(" ".join(line.strip() for line in text.splitlines() if line.strip()))


def _printable(text: str) -> str:
    return "".join(c if c.isprintable() else repr(c)[1:-1] for c in text)


def _without_owner(text: str, given: Given | None) -> str:
    """The message without what raised it. A path that looks like one (my_model, Mine) is what the message is about."""
    if any(text.startswith(f"{os.path.normpath(typed)}: ") for _, typed in _texts(given)):
        return text
    return _OWNER.sub("", text)


def is_ours(error: Exception) -> bool:
    """Whether this is a bug of fastgpt, and nothing that a user could put right."""
    return not isinstance(error, KINDS) or isinstance(error, RecursionError)


def _setting(error: SettingError | SettingTypeError, given: Given | None) -> str:
    option = given.options.get(error.name) if given is not None else None
    if given is None or option is None:
        return f"{error.name.replace('_', ' ')} {shown(error.value)} {error.need}"
    if option.name in given.words and (given.values[option.name] == error.value or error.value != error.value):
        return f"{given.words[option.name]} {error.need}"
    return f"{option} {shown(error.value)} {error.need}"


def _is_out_of_memory(error: BaseException) -> bool:
    if type(error).__name__ == "OutOfMemoryError":
        return True
    return isinstance(error, RuntimeError) and ("can't allocate memory" in str(error) or "out of memory" in str(error))


def _memory(given: Given | None) -> str:
    options = [str(given.options[name]) for name in _MEMORY_OPTIONS if given is not None and name in given.options]
    return f"out of memory; lower {' or '.join(options)}" if options else "out of memory"


def _named(text: str, given: Given | None) -> str:
    """A message about a path as it was typed, with its option before it."""
    about = [(option, typed) for option, typed in _texts(given) if _mentions(text, typed)]
    says_it = "--" in text or any(text.startswith(f"{option} ") for option, _ in about)
    if about and not says_it:
        option, typed = max(about, key=lambda pair: len(pair[1]))
        text = f"{option} {text}" if text.startswith(f"{typed}:") else f"{option} {typed}: {text}"
    for _, typed in _texts(given):
        if len(typed) > len(shown(typed)):
            text = text.replace(typed, shown(typed))
    return text


def _mentions(text: str, typed: str) -> bool:
    """Whether a message is about what was typed: begins with it or quotes it, or holds it, no common word."""
    if text.startswith(f"{typed}:") or repr(typed) in text:
        return True
    word = rf"(?<![\w./-]){re.escape(typed)}(?![\w.-])"
    return bool(set(typed) & {"/", "."}) and re.search(word, text) is not None


def _texts(given: Given | None) -> Iterator[tuple[Option, str]]:
    """Every text that was typed or stands in the configuration file, with its option."""
    if given is None:
        return
    for option in given.options.values():
        value = given.values.get(option.name)
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, str) and one:
                yield option, one


def _path(error: OSError, given: Given | None) -> str:
    reason = _BY_ERRNO.get(error.errno or 0) or os.strerror(error.errno or 0).lower()
    if error.filename is None:
        return reason
    path = os.fspath(error.filename) if not isinstance(error.filename, int) else f"file {error.filename}"
    path = os.fsdecode(path)
    for option, text in _texts(given):
        if path == text:
            return f"{option} {shown(path)}: {reason}"
        if _is_of(path, text):
            return f"{option} {shown(text)}: {shown(path)}: {reason}"
    return f"{shown(path)}: {reason}"


def _is_of(path: str, given: str) -> bool:
    """Whether `path` lies in the path that was given, or is the temporary one beside it that is to take its name."""
    folder, name = os.path.split(os.path.abspath(given))
    beside, base = os.path.split(os.path.abspath(path))
    return path.startswith(given.rstrip("/") + "/") or (
        beside == folder and name != "" and base.startswith(".") and name in base
    )
