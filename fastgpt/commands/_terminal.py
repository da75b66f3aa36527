"""What stdout and stderr do with characters that they cannot show: no command ends because of one."""

from __future__ import annotations

import codecs
import os
import sys
from collections.abc import Callable

_DECORATION = {
    **dict.fromkeys("─━═╌╍┄┅┈┉╴╶╸╺", "-"), **dict.fromkeys("│┃║╎╏┆┇┊┋╵╷", "|"),
    **dict.fromkeys("┌┐└┘├┤┬┴┼╭╮╰╯┏┓┗┛┣┫┳┻╋┡┩┠┨╇╈╪╞╡╔╗╚╝╠╣╦╩╬", "+"), **dict.fromkeys("█▉▊▋▌▍▎▏▇▆▅▄▃▂▁", "#"),
}  # fmt: skip
_TEXT = {
    **dict.fromkeys("–—−‐‑", "-"), **dict.fromkeys("‘’", "'"), **dict.fromkeys("“”", '"'), "…": "...", "•": "*",
    "·": ".", "×": "x", "→": "->", "≤": "<=", "≥": ">=", "±": "+-", "µ": "u", "μ": "u", "²": "2", "³": "3",
    "\N{NO-BREAK SPACE}": " ",
}  # fmt: skip


def adapt() -> None:
    """Make stdout and stderr write lookalikes, or "?", for what their encoding lacks.

    LC_ALL=C asks for ASCII, but Python's answer to it is UTF-8: then boxes and the like are drawn in ASCII, and
    text (a sample, a file's name) stays what it is, UTF-8.
    """
    codecs.register_error(
        "fastgpt.question-mark", lambda error: _replaced(error, lambda character: _TEXT.get(character, "?"))
    )
    codecs.register_error("fastgpt.utf-8", lambda error: _replaced(error, lambda character: character))
    asked = {"PYTHONIOENCODING", "PYTHONUTF8"} & os.environ.keys()
    plain = os.environ.get("LC_ALL") in ("C", "POSIX") and not asked
    for stream in (sys.stdout, sys.stderr):
        if not hasattr(stream, "reconfigure"):  # None, or what a test puts in its place
            continue
        if _is_utf8(stream.encoding):
            if plain:
                stream.reconfigure(encoding="ascii", errors="fastgpt.utf-8")
            else:
                stream.reconfigure(errors="backslashreplace")  # halves of characters: a name that is not UTF-8
        else:
            stream.reconfigure(errors="fastgpt.question-mark")


def _is_utf8(encoding: str) -> bool:
    return codecs.lookup(encoding).name == "utf-8"


def _replaced(error: UnicodeError, otherwise: Callable[[str], str]) -> tuple[str | bytes, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    characters = error.object[error.start : error.end]
    text = "".join(_DECORATION.get(character) or otherwise(character) for character in characters)
    return text.encode("utf-8", "backslashreplace"), error.end
