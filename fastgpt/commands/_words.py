"""The words after `fastgpt <command>`: which option each belongs to, and one line for each mistake.

tyro writes the help; the words are read here, since its errors are boxes of several lines, and users get one that names
the option as typed, the value, and the way out.
"""

from __future__ import annotations

import difflib
from collections.abc import Sequence
from typing import Any

from ..base.settings import shown
from ._options import Given, Option, UsageError

_BOOLS = ("true", "false", "yes", "no", "on", "off", "1", "0")  # what other programs take for a flag


class Reader:
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
            from ._help import print_help

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
        if self.flag is not None and word.lower() in _BOOLS:
            raise UsageError(self._too_many(word))
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
