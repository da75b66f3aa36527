"""What `fastgpt <command> --help` shows: tyro's boxes of options, on any screen."""

from __future__ import annotations

import contextlib
import io
import os
import re
import shutil
import sys
import textwrap
from collections.abc import Iterator

from ._options import Given


def print_help(given: Given) -> None:
    """What `<prog> --help` shows."""
    import tyro

    # tyro sees an encoding that is stdout's, and takes boxes that it can show.
    captured = io.TextIOWrapper(io.BytesIO(), encoding=sys.stdout.encoding, errors="backslashreplace")
    width = min(shutil.get_terminal_size().columns, 120)
    with _columns(width), contextlib.redirect_stdout(captured), contextlib.suppress(SystemExit):
        options = tyro.conf.OmitArgPrefixes[given.command]  # type: ignore[name-defined]  # made at run time
        tyro.cli(options, args=["--help"], prog=given.prog)
    captured.seek(0)
    _, _, text = captured.read().partition("\n")  # tyro's usage line can be longer than the screen is wide
    text = re.sub(r"\{None\}\|(\w+)( ?)", lambda found: f"{found[1]}{found[2]}{' ' * len('{None}|')}", text)
    text = text.replace("{None,True,False}", "{True,False}     ")
    print(f"usage: {given.usage()}")
    for line in text.splitlines():
        print(line if len(line) <= width else textwrap.fill(line, width, break_on_hyphens=False))


@contextlib.contextmanager
def _columns(width: int) -> Iterator[None]:
    """tyro draws its boxes as wide as the screen, and a line of one cannot be wrapped."""
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        os.environ.pop("COLUMNS")
        if before is not None:
            os.environ["COLUMNS"] = before
