"""Faults that change nothing, and why: the arguments that `planting.py` asks for."""

from __future__ import annotations

import re
from typing import NamedTuple

from .faults import Fault


class Argument(NamedTuple):
    """Of all faults of this kind; `kernel` and `text` are regular expressions of the kernel and the instruction."""

    kind: str
    kernel: str
    text: str
    why: str


ARGUMENTS: tuple[Argument, ...] = ()


def argument(kernel: str, capability: int, fault: Fault, text: str) -> str:
    """Why this fault changes nothing; "" if nobody has said so."""
    for one in ARGUMENTS:
        if one.kind == fault.kind and re.search(one.kernel, kernel) and re.search(one.text, fault.before):
            return one.why
    return ""
