"""The options of a command's dataclass, and the dataclass of the options that were given (`_read.py` fills them in).

A field is an option (`seq_len: int | None` is --seq-len INT), or stands by itself where it is marked Positional.
"""

from __future__ import annotations

import dataclasses
import os
import types
import typing
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from ..base.settings import shown

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
        """A value that fits, as it would be typed."""
        value = self.default[0] if self.many and self.default else self.default
        fallback = {int: 8, float: 0.5}.get(self.kind, self.metavar)
        return shown(fallback if value in (None, (), "") else value)

    @property
    def need(self) -> str:
        return f"must be {_KINDS[self.kind]}" + (f", e.g. {self.example}" if self.kind is not bool else "")

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


def _whole(text: str) -> int | None:
    """1000 of "1e3": what was meant where an integer is needed."""
    try:
        return int(float(text)) if float(text).is_integer() and abs(float(text)) < 1e15 else None
    except (ValueError, OverflowError):
        return None
