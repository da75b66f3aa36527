"""Checks of settings, and the error that they raise: one wording, which the command line turns into its own.

In Python    TrainConfig: lr=nan must be a number above 0
`fastgpt`    --lr nan must be a number above 0
"""

from __future__ import annotations

import difflib
import math
import numbers
import operator
import shlex
from collections.abc import Collection, Iterable, Sequence
from typing import Any

MOST_SIZE = 2**31 - 1  # of one dimension: products of two still fit the 64 bits that torch counts in
_MOST_INTEGER = 2**63 - 1  # where a setting has no other bound: Python counts further, floats and files do not
_LONGEST = 200  # characters of a value in a message


class _Setting(Exception):
    """owner: the class or function; name: its argument; value: as given; need: "must ...", with the way out."""

    def __init__(self, owner: str, name: str, value: Any, need: str) -> None:
        super().__init__(owner, name, value, need)  # what pickle makes it again from
        self.owner, self.name, self.value, self.need = owner, name, value, need

    def __str__(self) -> str:
        return f"{self.owner}: {self.name}={_short(self.value)} {self.need}"


class SettingError(_Setting, ValueError):
    """A setting whose value cannot be."""


class SettingTypeError(_Setting, TypeError):
    """A setting of another type than it must have."""


def check_integer(
    owner: str, name: str, value: Any, *, least: int | None = None, most: int | None = None, hint: str = ""
) -> int:
    """`value` as an int, in [least, most], most 2^63 - 1 if not given; `hint` is appended to the error ("; lower it").

    Raises:
        SettingTypeError: not an integer (True and False are none, 2.0 is none). SettingError: outside of the range.
    """
    need = f"must be an integer{_range(least, most, None, None)}{hint}"
    if isinstance(value, bool):
        raise SettingTypeError(owner, name, value, need)
    try:
        number = operator.index(value)
    except TypeError:
        raise SettingTypeError(owner, name, value, need) from None
    end = _MOST_INTEGER if most is None else most
    if number > end:
        raise SettingError(owner, name, value, f"must be an integer{_range(least, end, None, None)}{hint}")
    if least is not None and number < least:
        raise SettingError(owner, name, value, need)
    return number


def check_number(
    owner: str, name: str, value: Any, *, least: float | None = None, most: float | None = None,
    above: float | None = None, below: float | None = None, hint: str = "",
) -> float:  # fmt: skip
    """`value` as a float: finite, in [least, most], and > `above`, < `below` where those are given.

    Raises:
        SettingTypeError: not a real number. SettingError: NaN, infinite or outside of the range.
    """
    need = f"must be a number{_range(least, most, above, below)}{hint}"
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise SettingTypeError(owner, name, value, need)
    number = float(value)
    if (
        not math.isfinite(number)
        or (least is not None and number < least)
        or (most is not None and number > most)
        or (above is not None and number <= above)
        or (below is not None and number >= below)
    ):
        raise SettingError(owner, name, value, need)
    return number


def check_flag(owner: str, name: str, value: Any) -> bool:
    """`value`, True or False.

    Raises:
        SettingTypeError: anything else, 0 and 1 included.
    """
    if not isinstance(value, bool):
        raise SettingTypeError(owner, name, value, "must be True or False")
    return value


def check_choice(owner: str, name: str, value: Any, choices: Collection[str]) -> str:
    """`value`, one of `choices`.

    Raises:
        SettingTypeError: not a string. SettingError: another one.
    """
    if not isinstance(value, str):
        raise SettingTypeError(owner, name, value, f"must be one of {', '.join(choices)}")
    if value not in choices:
        raise SettingError(owner, name, value, must_be_one_of(value, choices))
    return value


def must_be_one_of(value: str, choices: Collection[str], more: str = "") -> str:
    """The need of a value that is none of `choices`; `more`: what else would do (" or a number of GiB")."""
    meant = nearest(value, choices)
    return f"must be one of {', '.join(choices)}{more}" + (f"; {meant}" if meant else "")


def nearest(value: str, choices: Iterable[str], *, cutoff: float = 0.6) -> str:
    """What was meant: "did you mean 'gpt2'?" where one of `choices` is as similar as `cutoff` (1: equal), else ""."""
    by_lower = {choice.lower(): choice for choice in choices}
    found = difflib.get_close_matches(value.lower(), by_lower, n=1, cutoff=cutoff)
    return f"did you mean {by_lower[found[0]]!r}?" if found else ""


def _short(value: Any) -> str:
    """`value` in Python's notation; of a long one (a list of tokens, a tensor) the beginning, on one line."""
    words = " ".join(repr(value).split())
    return words if len(words) <= _LONGEST else f"{words[:_LONGEST]}... ({type(value).__name__})"


def shown(value: Any) -> str:
    """A value as a user would type it, quoted where a shell needs it; long ones without their middle."""
    if isinstance(value, (list, tuple)):
        return " ".join(map(shown, value))
    text = str(value)
    quoted = shlex.quote(text) if text.isprintable() else repr(text)
    return quoted if len(quoted) <= 160 else f"{quoted[:100]}...{quoted[-40:]}"


def some_of(names: Sequence[str]) -> str:
    """The first three of `names`, and how many more there are."""
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "") if names else "nothing"


def _range(least: float | None, most: float | None, above: float | None, below: float | None) -> str:
    low = f"at least {least}" if least is not None else f"above {above}" if above is not None else ""
    high = f"at most {most}" if most is not None else f"below {below}" if below is not None else ""
    words = " and ".join(word for word in (low, high) if word)
    return f", {words}" if words else ""
