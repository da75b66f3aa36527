"""The files that a command is to write, looked at before it works for minutes."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

from ..base.settings import SettingError, SettingTypeError


def check_file(command: str, option: str, value: str | None, is_ours: Callable[[Path], bool]) -> None:
    """Raise SettingError for a file that cannot be written, or that `is_ours` says another program wrote.

    command: as typed behind `fastgpt` ("study cost"); option: the field's name; value: None where it was not given.
    """
    from ..base.files import check_folder

    if value is None:
        return
    path = Path(value)
    if path.is_dir():
        raise SettingError(command, option, value, "is a folder; name a file in it")
    try:
        check_folder(command, option, path.parent)
    except (SettingError, SettingTypeError) as error:
        raise SettingError(command, option, value, f"cannot be written: {error.value} {error.need}") from None
    try:
        there = os.path.lexists(path) and os.stat(path, follow_symlinks=False) is not None
    except (OSError, ValueError):
        there = False
    if there and not (path.is_file() and is_ours(path)):
        need = f"is a file that `fastgpt {command}` did not write; choose another"
        raise SettingError(command, option, value, need)
    if len(os.fsencode(path.name)) > 255:
        raise SettingError(command, option, value, "has a name that is too long; choose a shorter one")
