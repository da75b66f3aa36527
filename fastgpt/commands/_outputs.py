"""The files that a command is to write, looked at before it works for minutes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable
from pathlib import Path

from ..base.settings import SettingError, SettingTypeError


def check_file(command: str, option: str, value: str | None, is_ours: Callable[[Path], bool]) -> None:
    """Raise SettingError for a file that cannot be written, or that `is_ours` says another program wrote.

    command: as typed behind `fastgpt` ("study cost"); option: the field's name; value: None where it was not given.
    """
    from ..base.files import check_folder, instead_of_file

    if value is None:
        return
    path = Path(value)
    if os.path.isdir(path):
        raise SettingError(command, option, value, "is a folder; name a file in it")
    try:
        check_folder(command, option, path.parent)
    except (SettingError, SettingTypeError) as error:
        raise SettingError(command, option, value, f"cannot be written: {error.value} {error.need}") from None
    if what := instead_of_file(path):
        raise SettingError(command, option, value, f"is {what}; choose another name")
    if os.path.isfile(path) and not is_ours(path):
        need = f"is a file that `fastgpt {command}` did not write; choose another"
        raise SettingError(command, option, value, need)
    if why := why_not(path):
        raise SettingError(command, option, value, f"cannot be written: {why}")


def check_page(command: str, option: str, value: str | None) -> None:
    """As `check_file`, of a page: one that the same command wrote may be replaced."""
    from ..pages.page import is_ours

    check_file(command, option, value, lambda path: is_ours(path, f"fastgpt {command}"))


def check_both(command: str, out: str | None, page: str | None, is_record: Callable[[Path], bool]) -> None:
    """`check_file` of --out, a record that `is_record` knows, and `check_page` of --page, which is another file."""
    check_file(command, "out", out, is_record)
    check_page(command, "page", page)
    if out is not None and page is not None and os.path.realpath(out) == os.path.realpath(page):
        raise SettingError(command, "page", page, "is the file of --out too; name another")


def why_not(path: Path) -> str:
    """What the system says to a file beside `path` and to its name; "" where it takes both. Nothing stays of it."""
    from ..base.files import reason, remedy, working_folder

    missing = [folder for folder in (path.parent, *path.parent.parents) if not folder.exists()]
    try:
        with working_folder(path.parent) as work:
            (work / path.name).touch()
    except OSError as error:
        way_out = f"{remedy(error)}, or choose another file" if remedy(error) else "choose another file"
        return f"{reason(error)}; {way_out}"
    finally:
        for folder in missing:
            with contextlib.suppress(OSError):
                folder.rmdir()
    return ""
