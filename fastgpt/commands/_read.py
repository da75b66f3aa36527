"""From command line and configuration file to a command's dataclass."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TypeVar

from ..base.settings import shown
from ._options import Given, UsageError, options_of
from ._settings_file import read_settings
from ._words import Reader

T = TypeVar("T")


def parse(command: type[T], words: Sequence[str], prog: str) -> T:
    """The dataclass `command`, filled from words and from the file given by `--config`; see `read`."""
    given = Given(command, prog, options_of(command))
    read(given, words)
    return given.make()


def read(given: Given, words: Sequence[str]) -> None:
    """Fill `given` from words; before them comes the file of `--config`, or the one that the command names itself, by a
    classmethod `settings_file(values) -> Path | None` of what was typed. Of an option given twice the last counts.

    Raises:
        SystemExit: `--help` was asked for.
        UsageError: words that cannot be, or a file that is missing, malformed or has an unknown key.
    """
    Reader(given, words).read()
    path, flag = given.values.get("config"), "--config "
    if path is None and hasattr(given.command, "settings_file"):
        path, flag = given.command.settings_file(given.values), ""
    if path is not None:
        typed, typed_words = dict(given.values), dict(given.words)
        try:
            read_settings(Path(path), f"{flag}{shown(str(path))}", given)
        except UsageError as error:
            if flag:
                raise
            raise UsageError(
                f"{error}; mend the file, or start a new run from this one's weights: "
                f"--init-from {shown(str(Path(path).parent))}"
            ) from None
        given.values |= typed
        given.words |= typed_words
