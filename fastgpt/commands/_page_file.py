"""The file that a command writes a page to: it may be new, or one that the same command wrote."""

from __future__ import annotations

import os
from pathlib import Path

from ..base import files
from ..base.settings import SettingError


def check_page_file(command: str, out: str, mark: str) -> Path:
    """`out` as a path, if a page may be written there. mark: what stands in the pages that the command writes.

    Raises:
        SettingError: a folder or a device, a name that cannot be, or a file that the command did not write.
    """
    path = Path(out)
    if out.endswith(os.sep) or os.path.isdir(path):
        raise SettingError(command, "out", out, "is a folder; give the name of a file in it, e.g. page.html")
    try:
        files.check_folder(command, "out", path.parent)
    except SettingError as error:
        raise SettingError(command, "out", out, error.need) from None
    what = files.instead_of_file(path)
    if what is not None:
        raise SettingError(command, "out", out, f"is {what}; choose another name")
    try:
        if os.path.lexists(path) and mark.encode() not in path.read_bytes():
            need = f"is a file that `fastgpt {command}` did not write; choose another name"
            raise SettingError(command, "out", out, need)
    except OSError as error:
        raise SettingError(command, "out", out, f"cannot be: {files.reason(error)}; choose another name") from None
    return path
