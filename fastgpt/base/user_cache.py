"""Where fastgpt keeps what it can make again: $FASTGPT_CACHE, or fastgpt in $XDG_CACHE_HOME or in ~/.cache."""

from __future__ import annotations

import os
from pathlib import Path

MAX_AGE = 30 * 24 * 3600.0  # seconds after which what nobody used goes


def root() -> Path:
    """The folder, absolute; it need not be there.

    Raises:
        RuntimeError: it is not named, and there is no home folder.
    """
    named = os.environ.get("FASTGPT_CACHE")
    if named:
        return Path(named).absolute()
    asked = Path(os.environ.get("XDG_CACHE_HOME") or "")  # by its specification, a relative one does not count
    return ((asked if asked.is_absolute() else Path.home() / ".cache") / "fastgpt").absolute()
