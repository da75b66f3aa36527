"""From command line and configuration file to a command's dataclass.

A field is an option (`seq_len: int | None` is --seq-len INT), or stands by itself where it is marked Positional. tyro
writes the help. The words are read here, because each mistake is answered with one line that names the option as typed,
the value, and the way out.
"""

from __future__ import annotations

import contextlib
import dataclasses
import difflib
import io
import os
import re
import shutil
import sys
import textwrap
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Generic, TypeVar

from ..settings import shown

T = TypeVar("T")


class UsageError(ValueError):
    """Options that cannot be; the message is the user's line."""


@dataclass(frozen=True)
class Option:
    """One setting. key: with its table's name, as in a configuration file ("train.lr"); example: a value that fits."""

    name: str
    key: str
    kind: type
    many: bool = False
    optional: bool = False
    positional: bool = False
    required: bool = False
    metavar: str = ""
    default: Any = None

    def __str__(self) -> str:
        return self.metavar if self.positional else f"--{self.name.replace('_', '-')}"

    @property
    def is_flag(self) -> bool:
        return self.kind is bool

    @property
    def example(self) -> str:
        value = self.default[0] if self.many and self.default else self.default
        fallback = {int: 8, float: 0.5}.get(self.kind, self.metavar or self.name.upper())
        return shown(fallback if value in (None, (), "") else value)

    @property
    def need(self) -> str:
        return f"must be {_KINDS[self.kind]}, e.g. {self.example}"

    def value_of(self, text: str) -> Any:
        """The value that `text` stands for.

        Raises:
            UsageError: none.
        """
        if self.optional and text == "None":
            return None
        try:
            decoded = os.fsencode(text).decode()  # where the locale has no UTF-8, Python keeps its bytes undecoded
        except UnicodeError:
            raise UsageError(f"{self} {shown(text)} is not UTF-8; write it in UTF-8") from None
        if self.name == "prompt":
            text = decoded
        if self.kind is str:
            if not text and self.name != "prompt":
                raise UsageError(f"{self} '' is empty; give a value, e.g. {self.example}")
            return text
        try:
            return {"True": True, "False": False}[text] if self.kind is bool else self.kind(text)
        except (ValueError, KeyError):
            whole = _whole(text) if self.kind is int else None
            need = self.need if whole is None else f"must be an integer; did you mean {whole}?"
            raise UsageError(f"{self} {shown(text)} {need}") from None

    def accepts(self, value: Any) -> bool:
        """Whether a value of a configuration file has this option's type."""
        if value is None:
            return self.optional
        if self.kind is float:
            return isinstance(value, (int, float)) and not isinstance(value, bool)
        return type(value) is self.kind


_KINDS = {int: "an integer", float: "a number", bool: "true or false", str: "a text"}


def options_of(command: type, prefix: str = "") -> dict[str, Option]:
    """All options of a command's dataclass by name, those of nested groups included."""
    hints = typing.get_type_hints(command, include_extras=True)
    found: dict[str, Option] = {}
    for one in dataclasses.fields(command):
        if dataclasses.is_dataclass(hints[one.name]):
            found |= options_of(hints[one.name], f"{prefix}{one.name}.")
        else:
            found[one.name] = _option(one, hints[one.name], prefix)
    return found


def _option(one: dataclasses.Field, hint: Any, prefix: str) -> Option:
    marks = getattr(hint, "__metadata__", ())
    kind = typing.get_args(hint)[0] if marks else hint
    optional = many = False
    if typing.get_origin(kind) in (types.UnionType, typing.Union):
        optional, kind = True, next(k for k in typing.get_args(kind) if k is not type(None))
    if typing.get_origin(kind) is tuple:
        many, kind = True, typing.get_args(kind)[0]
    if typing.get_origin(kind) is typing.Literal:
        kind = str
    assert kind in _KINDS, f"{prefix}{one.name}: the command line has no {kind}"
    required = one.default is dataclasses.MISSING and one.default_factory is dataclasses.MISSING
    return Option(
        one.name, prefix + one.name, kind, many, optional, _is_positional(marks), required,
        next((m.metavar for m in marks if getattr(m, "metavar", None)), one.name.upper()),
        None if one.default is dataclasses.MISSING else one.default,
    )  # fmt: skip


def _is_positional(marks: Sequence[Any]) -> bool:
    return any(type(mark).__name__ != "_ArgConfig" and str(mark) == "Positional" for mark in marks)


@dataclass
class Given(Generic[T]):
    """What a command line and its configuration file give. values: by name; words: how each was written there."""

    command: type[T]
    prog: str
    options: dict[str, Option]
    values: dict[str, Any] = field(default_factory=dict)
    words: dict[str, str] = field(default_factory=dict)

    def make(self) -> T:
        """The command's dataclass, filled.

        Raises:
            UsageError: something required is missing. ValueError, TypeError: whatever its `__post_init__` raises.
        """
        missing = [option for option in self.options.values() if option.required and not self._has(option)]
        if missing:
            raise UsageError(f"{missing[0]} is missing; write {self.usage()}")
        return self._make(self.command)

    def usage(self) -> str:
        """`fastgpt sample MODEL [PROMPT] [options]`"""
        words = [f"{o}" if o.required else f"[{o}]" for o in self.options.values() if o.positional]
        return " ".join([self.prog, *words, "[options]"])

    def _has(self, option: Option) -> bool:
        return self.values.get(option.name, ()) != ()

    def _make(self, group: type) -> Any:
        hints = typing.get_type_hints(group)
        values = {}
        for name in (one.name for one in dataclasses.fields(group)):
            if dataclasses.is_dataclass(hints[name]):
                values[name] = self._make(hints[name])
            elif name in self.values:
                values[name] = self.values[name]
        return group(**values)


def parse(command: type[T], argv: Sequence[str], prog: str) -> T:
    """The dataclass `command`, filled from words and from the file given by `--config`; see `read`."""
    return read(command, argv, prog).make()


def read(command: type[T], argv: Sequence[str], prog: str) -> Given[T]:
    """What the words give; before them comes the file of `--config`, or the one that the command names itself, by a
    classmethod `settings_file(values) -> Path | None` of what was typed. Of an option given twice the last counts.

    Raises:
        SystemExit: `--help` was asked for.
        UsageError: words that cannot be, or a file that is missing, malformed or has an unknown key.
    """
    from ._settings_file import read_settings

    line = Given(command, prog, options_of(command))
    _Reader(line, argv).read()
    path, flag = line.values.get("config"), "--config "
    if path is None and hasattr(command, "settings_file"):
        path, flag = command.settings_file(line.values), ""
    if path is None:
        return line
    given = Given(command, prog, line.options)
    read_settings(Path(path), f"{flag}{shown(str(path))}", given)
    given.values |= line.values
    given.words |= line.words
    return given


class _Reader:
    """Goes through the words of a line, and puts into a Given what they say."""

    def __init__(self, given: Given, argv: Sequence[str]) -> None:
        self.given, self.words = given, list(argv)[::-1]  # the next is the last
        self.positionals = [option for option in given.options.values() if option.positional]
        self.flag: Option | None = None  # the flag just read: what follows may have been meant for its value
        self.loose: list[str] = []

    def read(self) -> None:
        greedy = None
        while self.words:
            word = self.words.pop()
            if word == "--":
                self.loose += self.words[::-1]
                break
            if not _looks_like_an_option(word):
                self._keep_loose(word)
                continue
            self.flag = None
            greedy = self._option(word)
        if greedy is not None:
            self._give_back(greedy)
        self._place()

    def _option(self, word: str) -> Option | None:
        """Reads the option `word` and its values; gives it back if it took all words up to the end."""
        if word in ("-h", "--help"):
            print_help(self.given)
            raise SystemExit(0)
        typed, equals, value = word.partition("=")
        option, negated = self._find(typed)
        if option.is_flag and not (option.optional and not negated and (equals or self._next_is("True", "False"))):
            if equals:
                raise UsageError(f"{word} takes no value; write {option} or --no-{str(option)[2:]}")
            self._set(option, not negated, typed)
            self.flag = option
            return None
        if option.many:
            texts = [value] if equals else []
            while self.words and not _looks_like_an_option(self.words[-1]) and self._fits(option, texts):
                texts.append(self.words.pop())
            if not texts:
                raise UsageError(f"{typed} needs at least one value, e.g. {typed} {option.example}")
            self._set(option, tuple(map(option.value_of, texts)), f"{typed} {' '.join(map(shown, texts))}")
            return option if not self.words and not equals else None
        if not equals:
            if not self.words or self.words[-1] == "--" or self._is_known(self.words[-1]):
                raise UsageError(f"{typed} needs a value, e.g. {typed} {option.example}")
            value = self.words.pop()
        self._set(option, option.value_of(value), f"{typed} {shown(value)}")
        return None

    def _find(self, typed: str) -> tuple[Option, bool]:
        """The option that `typed` names, and whether it says --no-<option>."""
        options = self.given.options
        name = typed.removeprefix("--").replace("-", "_")
        if typed.startswith("--"):
            if name in options and not options[name].positional:
                return options[name], False
            other = options.get(name.removeprefix("no_"))
            if name.startswith("no_") and other is not None and other.is_flag:
                return other, True
        raise UsageError(f"unknown option {shown(typed)}; {self._nearest(name)}")

    def _nearest(self, name: str) -> str:
        named = {option.name: str(option) for option in self.given.options.values() if not option.positional}
        leaf = name.rpartition(".")[2].lstrip("_")
        found = difflib.get_close_matches(leaf, named, n=1)
        if found:
            return f"did you mean {named[found[0]]}?"
        meant = " (a text that begins with '-' comes after --)" if self.positionals else ""
        return f"{self.given.prog} --help lists them{meant}"

    def _is_known(self, word: str) -> bool:
        try:
            return word in ("-h", "--help") or bool(self._find(word.partition("=")[0]))
        except UsageError:
            return False

    def _next_is(self, *words: str) -> bool:
        return bool(self.words) and self.words[-1] in words

    def _fits(self, option: Option, texts: list[str]) -> bool:
        """Whether the next word is one more value of `option`; one that cannot be may be a positional."""
        if not texts or option.kind is str or len(self.loose) >= len(self.positionals):
            return True
        try:
            option.value_of(self.words[-1])
        except UsageError:
            return False
        return True

    def _keep_loose(self, word: str) -> None:
        many = any(option.many for option in self.positionals)
        if len(self.loose) >= len(self.positionals) and not many:
            raise UsageError(self._too_many(word))
        self.loose.append(word)

    def _too_many(self, word: str) -> str:
        if self.flag is not None:
            name = str(self.flag)
            return f"{name} {shown(word)}: {name} takes no value; write {name} or --no-{name[2:]}"
        if self.positionals and self.positionals[-1].name == "prompt":
            hint = "a prompt of several words goes in quotes"
        elif "data" in self.given.options:
            hint = f"did you mean --data {shown(word)}?"
        else:
            hint = f"write {self.given.usage()}"
        return f"unexpected {shown(word)}; {hint}"

    def _give_back(self, option: Option) -> None:
        """`eval --data a.txt MODEL`: what an option of many values took from the end, as far as it is missing."""
        wanted = sum(positional.required for positional in self.positionals) - len(self.loose)
        values = self.given.values[option.name]
        if 0 < wanted < len(values) and option.kind is str:
            self.loose += values[-wanted:]
            self._set(option, values[:-wanted], f"{option} {' '.join(map(shown, values[:-wanted]))}")

    def _place(self) -> None:
        for option in self.positionals:
            texts = self.loose if option.many else self.loose[:1]
            self.loose = self.loose[len(texts) :]
            if texts:
                values = tuple(map(option.value_of, texts))
                self._set(option, values if option.many else values[0], f"{option} {' '.join(map(shown, texts))}")
        if self.loose:
            raise UsageError(self._too_many(self.loose[0]))

    def _set(self, option: Option, value: Any, words: str) -> None:
        self.given.values[option.name] = value
        self.given.words[option.name] = words


def _looks_like_an_option(word: str) -> bool:
    name = word.partition("=")[0]
    return len(word) > 1 and word.startswith("-") and not _is_number(word) and not any(map(str.isspace, name))


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _whole(text: str) -> int | None:
    """1000 of "1e3": what was meant where an integer is needed."""
    try:
        return int(float(text)) if float(text).is_integer() and abs(float(text)) < 1e15 else None
    except (ValueError, OverflowError):
        return None


def print_help(given: Given) -> None:
    """What `<prog> --help` shows."""
    import tyro

    # tyro sees an encoding that is stdout's, and takes boxes that it can show.
    captured = io.TextIOWrapper(io.BytesIO(), encoding=sys.stdout.encoding, errors="backslashreplace")
    with contextlib.redirect_stdout(captured), contextlib.suppress(SystemExit):
        tyro.cli(tyro.conf.OmitArgPrefixes[given.command], args=["--help"], prog=given.prog)
    captured.seek(0)
    _, _, text = captured.read().partition("\n")  # tyro's usage line can be longer than the screen is wide
    text = re.sub(r"\{None\}\|(\w+)( ?)", lambda found: f"{found[1]}{found[2]}{' ' * len('{None}|')}", text)
    text = text.replace("{None,True,False}", "{True,False}     ")
    print(f"usage: {given.usage()}")
    width = min(shutil.get_terminal_size().columns, 120)
    for line in text.splitlines():
        print(line if len(line) <= width else textwrap.fill(line, width, break_on_hyphens=False))
